"""Settings are checked, named in errors, and survive a round trip through TOML."""

import tomllib
from dataclasses import dataclass
from typing import Literal

import pytest

from daybreak.config import Count, Share, Training, difference, fill, merge, parse_override, read_toml, to_toml, to_tree
from daybreak.errors import Refused


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: Share = 0.5
    pair: tuple[float, float] = (0.2, 1.0)
    size: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    count: Count = 3
    mode: Literal["a", "b"] = "a"
    on: bool = False


def test_fill_converts_what_is_the_same_value():
    made = fill(Outer, {"inner": {"pair": [0, 1], "size": 32}, "count": 4.0})
    assert made == Outer(inner=Inner(pair=(0.0, 1.0), size=(32,)), count=4)


@pytest.mark.parametrize(("tree", "said"), [
    ({"inner": {"shre": 0.1}}, "unknown setting 'inner.shre'; did you mean 'share'"),
    ({"inner": {"share": 1.5}}, "inner.share = 1.5: expected from 0 to 1"),
    ({"inner": {}, "count": 0}, "count = 0: expected at least 1"),
    ({"inner": {}, "count": "three"}, "count = 'three': expected int"),
    ({"inner": {}, "count": True}, "count = True: expected int"),
    ({"inner": {}, "mode": "c"}, "mode = 'c'"),
    ({"inner": {"pair": [1]}}, "inner.pair = .*: expected 2 values"),
    ({"inner": 3}, "inner: expected a table"),
])
def test_bad_values_are_refused_by_name(tree, said):
    with pytest.raises(Refused, match=said):
        fill(Outer, tree)


@pytest.mark.parametrize(("text", "tree"), [
    ("a.b=0.7", {"a": {"b": 0.7}}), ("a=true", {"a": True}), ("a=[1, 2]", {"a": [1, 2]}), ("a=word", {"a": "word"}),
    ("a.b=none", {"a": {"b": None}}),
])
def test_overrides(text, tree):
    assert parse_override(text) == tree


def test_an_override_without_a_sign_is_refused():
    with pytest.raises(Refused, match="key=value"):
        parse_override("mask_ratio")


def test_later_trees_win_and_round_trip_through_toml(tmp_path):
    tree = merge({"a": {"b": 1, "c": 'quo"te'}}, {"a": {"b": 2.5}, "d": [1, 2]})
    assert tree == {"a": {"b": 2.5, "c": 'quo"te'}, "d": [1, 2]}
    assert tomllib.loads(to_toml(tree)) == tree
    config = Outer(inner=Inner(size=(3, 4)))
    (tmp_path / "c.toml").write_text(to_toml(to_tree(config)))
    assert fill(Outer, read_toml(tmp_path / "c.toml")) == config


def test_a_claim_in_a_recipe_is_a_record_and_not_a_setting(tmp_path):
    (tmp_path / "r.toml").write_text("seed = 3\n[claim]\nvalue = 0.5\n")
    assert read_toml(tmp_path / "r.toml") == {"seed": 3}
    (tmp_path / "bad.toml").write_text("seed = \n")
    with pytest.raises(Refused, match=r"bad\.toml: not valid TOML"):
        read_toml(tmp_path / "bad.toml")


def test_difference_from_the_defaults():
    changed = Training(clip=3.0)
    assert difference(changed, Training()) == [("clip", None, 3.0)]
