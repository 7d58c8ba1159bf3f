"""The tables of the documentation show the numbers that were measured, and no others."""

import json
from pathlib import Path

import cifar10
import pytest
import transferability

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["methods", "protocols", "masks"])
def test_a_table_shows_what_was_measured(name):
    record = json.loads((ROOT / "benchmarks" / "results" / "cifar10_cpu.json").read_text())
    table = cifar10.TABLES[name](record)
    assert len(table.splitlines()) > 2 and table in (ROOT / "docs" / "protocols.md").read_text()


def test_the_table_of_scores_shows_what_was_measured():
    """At least six backbones on three sets, and the order that each score gives them."""
    record = json.loads((ROOT / "benchmarks" / "results" / "transferability_cpu.json").read_text())
    assert len(record["settings"]["backbones"]) >= 6 and len({row["train"] for row in record["rows"]}) == 3
    assert transferability.table(record["rows"]) in (ROOT / "docs" / "protocols.md").read_text()


def row(protocol, metric, backbone, value, error=0.011):
    return {"protocol": protocol, "metric": metric, "backbone": backbone, "value": value, "error": error}


def test_a_number_is_shown_with_its_error_in_its_unit():
    """Shares in per cent, others as they are; what was not measured is left empty."""
    record = {"measured": {"x": {"numbers": [row("knn", "accuracy", "trained", 0.4251, 0.0049),
                                             row("rank", "rankme", "trained", 20.194, None),
                                             row("patch-prompt", "overlap", "random", 0.8333)]}}}
    assert cifar10.number(record, "x", "knn", "accuracy") == "42.5 ± 0.5"
    assert cifar10.number(record, "x", "rank", "rankme") == "20.19"
    assert cifar10.number(record, "x", "patch-prompt", "overlap", "random") == "83.3 ± 1.1"
    assert cifar10.number(record, "x", "knn", "accuracy", "random") == "" == cifar10.number(record, "y", "knn", "accuracy")


def test_backbones_stand_beside_their_own_start_and_pixels_once():
    masks = {line: {"numbers": [row("segment", "mIoU", who, value + 0.1 * i) for who, value in (
        ("trained", 0.2), ("random", 0.15), ("pixels", 0.1), ("constant", 0.05))]}
        for i, line in enumerate(cifar10.STEPS["masks"]()[:2])}
    lines = cifar10.masks_table({"measured": masks}).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| `mae`", "20.0 ± 1.1"], ["| `mae`, as it starts", "15.0 ± 1.1"], ["| `simclr`", "30.0 ± 1.1"],
        ["| `simclr`, as it starts", "25.0 ± 1.1"], ["| raw pixels", "10.0 ± 1.1"], ["| a constant", "5.0 ± 1.1"]]
    tuned = {line: {"numbers": [row("finetune", "accuracy (10% of the labels)", who, 0.4) for who in starts]}
             for line, starts in zip(cifar10.STEPS["finetune"](), (("trained", "random"), ("trained",)), strict=False)}
    assert cifar10.finetuning_table({"measured": tuned}).splitlines()[2:] == [
        "| `mae` | 40.0 ± 1.1 |", "| random weights | 40.0 ± 1.1 |", "| `simclr` | 40.0 ± 1.1 |"]
