"""The tables of the documentation show the numbers that were measured, and no others."""

import json
from pathlib import Path

import cifar10
import daily
import labels
import pytest
import transferability

ROOT = Path(__file__).resolve().parents[1]


SHOWN = [("protocols", cifar10, "cifar10", name) for name in cifar10.TABLES] + [
    ("training", daily, "daily", "economies"), ("medical", labels, "labels", "results")]


@pytest.mark.parametrize(("page", "benchmark", "file", "name"), SHOWN, ids=[shown[-1] for shown in SHOWN])
def test_a_table_shows_what_was_measured(page, benchmark, file, name):
    record = json.loads((ROOT / "benchmarks" / "results" / f"{file}_cpu.json").read_text())
    table = benchmark.TABLES[name](record)
    assert len(table.splitlines()) > 2 and table in (ROOT / "docs" / f"{page}.md").read_text()


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


def test_what_is_trained_from_scratch_stands_below_the_methods():
    (mae, tuned), (gmml, _) = cifar10.core("mae"), cifar10.core("gmml")
    accuracies = [row(protocol, "accuracy", who, value) for protocol, who, value in (
        ("knn", "trained", 0.3), ("knn", "random", 0.2), ("linear", "trained", 0.5), ("linear", "random", 0.4))]
    shares = [row("finetune", f"accuracy ({share}% of the labels)", who, value) for share, who, value in (
        (1, "trained", 0.25), (1, "random", 0.15), (10, "trained", 0.45), (10, "random", 0.35))]
    measured = {mae: {"images_seen": 1000, "numbers": accuracies}, tuned: {"numbers": shares},
                gmml: {"images_seen": 2000, "numbers": accuracies[:2]}}
    assert [line.replace(" ± 1.1", "") for line in cifar10.core_table({"measured": measured}).splitlines()[2:]] == [
        "| `mae` | 1,000 | 30.0 | 20.0 | 50.0 | 40.0 | 25.0 | 45.0 |", "| `gmml` | 2,000 | 30.0 | 20.0 |  |  |  |  |",
        "| from scratch | | | | | | 15.0 | 35.0 |"]


def test_seconds_of_a_run_are_those_of_its_stages():
    """8,000 images: a quarter at 100 a second, a quarter at 50, the rest at 20."""
    parts, speeds = daily.stages("schedule"), [100.0, 50.0, 20.0]
    assert daily.seconds_to(1000, 8000, parts, speeds) == 10
    assert daily.seconds_to(3000, 8000, parts, speeds) == 20 + 20
    assert daily.seconds_to(8000, 8000, parts, speeds) == 20 + 40 + 200
    assert daily.trailing([1.0, 2.0, 4.0], 2) == [float("inf"), 1.5, 3.0]
