"""Runs side by side: what is marked, and what is refused because it was not measured alike."""

import io
import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from daybreak.compare import beyond, compare_runs, keep_results, numbers_of
from daybreak.errors import Refused
from daybreak.evaluate.protocols import Result

KNN = Result("knn", "v1", "accuracy", 0.8, 0.02, "trained", "aaaa", 0, 100, 50, 5, "bbbb", "w1", 64)


@pytest.fixture
def make(tmp_path):
    def write(name: str, *results: Result):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps([asdict(r) for r in results]))
        return tmp_path / name

    return write


def run(*folders) -> tuple[list, str]:
    console = Console(width=400, record=True, file=io.StringIO())
    return compare_runs(list(folders), console), console.export_text()


def test_two_standard_errors_by_hand():
    """Errors of 0.03 and 0.04 make 0.05, so the line is at 0.1."""
    first = replace(KNN, value=0.5, error=0.03)
    assert not beyond(first, replace(KNN, value=0.599, error=0.04)) and beyond(first, replace(KNN, value=0.601, error=0.04))
    assert beyond(first, replace(KNN, value=0.399, error=0.04))
    assert not beyond(first, replace(KNN, value=0.9, error=None))


def test_numbers_stand_side_by_side_and_only_those_of_the_trained_backbone(make):
    other = replace(KNN, value=0.6)
    rows, text = run(make("a", KNN, replace(KNN, backbone="random", value=0.1)), make("b", other), make("c", replace(KNN, seed=7)))
    assert [(row.name, [r.value for r in row.results], row.differs) for row in rows] == [
        ("knn-v1 accuracy", [0.8, 0.6, 0.8], [False, True, False])]
    assert "80.0% ± 2.0%" in text and "60.0% ± 2.0% *" in text and "10.0%" not in text


@pytest.mark.parametrize(("change", "words"), [
    ({"data": "cccc"}, "training images: aaaa / cccc"), ({"test_data": "cccc"}, "test images: bbbb / cccc"),
    ({"num_classes": 4}, "number of classes: 5 / 4")])
def test_numbers_of_other_data_are_refused(make, change, words):
    with pytest.raises(Refused, match="no number was measured alike") as error:
        run(make("a", KNN), make("b", replace(KNN, **change)))
    assert words in str(error.value) and "daybreak evaluate RUN" in str(error.value)


def test_another_seed_is_refused_where_it_draws_the_task_and_another_width_for_ranks(make):
    few, rank = replace(KNN, protocol="fewshot"), replace(KNN, protocol="rank", metric="rankme", error=None)
    with pytest.raises(Refused, match="seed: 0 / 1"):
        run(make("a", few), make("b", replace(few, seed=1)))
    rows, text = run(make("c", KNN, rank), make("d", KNN, replace(rank, width=128)))
    assert [row.name for row in rows] == ["knn-v1 accuracy"]
    assert "1 numbers were measured in other ways" in text and "width of the vectors: 64 / 128" in text


def test_what_only_some_have_is_counted_and_nothing_in_common_refused(make):
    linear = replace(KNN, protocol="linear")
    rows, text = run(make("a", KNN, linear), make("b", KNN))
    assert len(rows) == 1 and "1 numbers that only some of the runs have are left out" in text
    with pytest.raises(Refused, match="no protocol in common"):
        run(make("c", KNN), make("d", linear))


def test_the_drawing_holds_the_numbers_on_one_scale_and_escapes_names(make, tmp_path):
    folders = [make("a", KNN, replace(KNN, metric="AUC", error=None)), make("<b>", replace(KNN, value=0.6))]
    compare_runs(folders, Console(file=io.StringIO()), tmp_path / "new" / "table.html")
    text = (tmp_path / "new" / "table.html").read_text()
    assert "80.0% ± 2.0%" in text and "60.0% ± 2.0% *" in text and text.count('<svg class="strip"') == 2
    assert "data-run='" in text and text.count("&lt;b&gt;'><span>60.0%") == 1 and "name='viewport'" in text
    assert "&lt;b&gt;" in text and "<b>" not in text.split("<body>")[1]
    ticks = [part.split("</svg>")[0].count('class="tick"') for part in text.split("<svg")[1:]]
    assert ticks[0] == ticks[1] > 1 and len(list((tmp_path / "new").iterdir())) == 1


def test_names_in_brackets_are_no_markup(make):
    _, text = run(make("[a]", replace(KNN, metric="AUC ([red])")), make("b", replace(KNN, metric="AUC ([red])")))
    assert "AUC ([red])" in text and text.count("/[a]") == 2  # in the head and below the table


def test_folders_without_numbers_and_single_runs_are_refused(make, tmp_path):
    with pytest.raises(Refused, match="give two or more"):
        run(make("a", KNN))
    with pytest.raises(Refused, match="holds no numbers"):
        run(tmp_path / "a", tmp_path / "nowhere")
    (tmp_path / "a" / "evaluations.json").write_text("[{")
    with pytest.raises(Refused, match="cut short"):
        run(tmp_path / "a", tmp_path / "a")


def test_kept_numbers_replace_those_of_the_same_name_and_of_former_weights(make):
    folder = make("a", replace(KNN, metric="AUC"))
    keep_results(folder, [KNN, replace(KNN, seed=1)])
    keep_results(folder, [replace(KNN, value=0.9)])
    assert [(r.metric, r.value, r.seed) for r in numbers_of(folder)] == [
        ("AUC", 0.8, 0), ("accuracy", 0.8, 1), ("accuracy", 0.9, 0)]
    keep_results(folder, [replace(KNN, protocol="linear", backbone_hash="w2")])
    assert [r.protocol for r in numbers_of(folder)] == ["knn", "linear"]
