"""Planted failures are named and healthy runs left in peace, at the same thresholds; what an alarm does to a run."""

import json
from pathlib import Path

import continuation
import planted_failures as planted
import pytest

import daybreak
from daybreak.cli import main
from daybreak.methods import base
from daybreak.train.watch import NEIGHBOURS_KEPT, RANK_KEPT

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def demo():
    return planted.demo_split()


@pytest.fixture(scope="module")
def healthy(demo):
    """The run as it should be, of a method, once."""
    known = {}

    def run(name):
        if name not in known:
            known[name] = planted.run(name, demo)
        return known[name]

    return run


PLANTS = [plant for plant in planted.PLANTS if plant[0] == "simclr"]  # the quick ones; all: benchmarks/


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), PLANTS, ids=[": ".join(plant) for plant in PLANTS])
def test_a_planted_failure_hurts_and_is_named(name, what, demo, healthy):
    good, bad = healthy(name), planted.run(name, demo, planted.PLANTS[name, what])
    assert not good.said
    assert bad.end is None or bad.end <= good.end - planted.FALL
    assert bad.said, f"{bad} raised no alarm"


def test_the_page_shows_what_was_measured():
    record = json.loads((ROOT / "benchmarks" / "results" / "planted_failures_cpu.json").read_text())
    page = (ROOT / "docs" / "health.md").read_text()
    assert planted.table(record) in page and record["command"] in page
    assert all(row["said"] for row in record["planted"] if planted.does_hurt(row, record))
    healthy = json.loads((ROOT / "benchmarks" / "results" / "healthy_cpu.json").read_text())
    assert planted.healthy_table(healthy) in page and healthy["command"] in page


def test_the_thresholds_of_continuations_part_those_that_hurt_as_the_page_shows():
    record = json.loads((ROOT / "benchmarks" / "results" / "continuation_cpu.json").read_text())
    page = (ROOT / "docs" / "health.md").read_text()
    assert continuation.table(record) in page and record["command"] in page
    assert {row["hurt"] for row in record["continued"]} == {True, False}
    for row in record["continued"]:
        is_said = min(row["kept"]) <= NEIGHBOURS_KEPT or min(row["rankme"]) <= RANK_KEPT * row["rankme"][0]
        assert is_said == row["hurt"], row


@pytest.fixture
def zeroed(monkeypatch):
    """SimCLR with a head of zeros: all views alike, no gradient."""
    cls = base.find("simclr")
    start = cls.__init__

    def build(self, *arguments):
        start(self, *arguments)
        planted.zero_head(self)

    monkeypatch.setattr(cls, "__init__", build)


KNOWN = dict(method="simclr", images=1280, batch_size=64, threads=1, pictures=False, overrides=[
    "encoder.width=64", "encoder.depth=1", "method.hidden=32", "watch.log_steps=1", "watch.probes=2", "watch.probe_bank=64",
    "watch.probe_queries=32"])
SENTENCE = "the loss stands at 4.844 = ln 127 and the gradient is zero: no view is told from another. Try other settings"


def test_an_alarm_stops_the_run_is_kept_and_shown_and_may_be_overruled(zeroed, textures, tmp_path, capsys):
    run = daybreak.pretrain(textures, out=tmp_path / "run", on_collapse="stop", **KNOWN)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (alarm,) = [line for line in lines if line["kind"] == "alarm"]
    assert SENTENCE in run.stopped and alarm["sentence"] == run.stopped and alarm["images"] == alarm["since"] == 192
    assert lines[-1]["images"] == 192 and any("The run was stopped after 192 images" in note for note in run.notes)
    report = run.report.read_text()
    assert report.index(SENTENCE) < report.index('id="accuracy"')
    out = capsys.readouterr().out
    assert f"watch: since image 192 {SENTENCE}" in out and "--on-collapse warn" in out
    with pytest.raises(SystemExit) as end:
        main(["pretrain", "--resume", str(run.folder), "--no-pictures"])
    assert end.value.code == 1  # it is stopped where it stood
    rest = daybreak.pretrain(resume=run.folder, on_collapse="warn", pictures=False)
    assert rest.stopped is None and json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["images"] == 1280


def test_by_default_an_alarm_may_stand_for_a_tenth_of_the_budget(zeroed, textures, tmp_path):
    run = daybreak.pretrain(textures, out=tmp_path / "run", **KNOWN)
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.stopped and last["images"] == 192 + 128


def test_the_random_start_is_measured_before_the_first_step(textures, tmp_path):
    run = daybreak.pretrain(textures, out=tmp_path / "run", **KNOWN)
    first = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["kind"] == "health" and first["images"] == 0 and 0 < first["knn_accuracy"] < 1 and first["knn_error"] > 0
    (random,) = [r for r in run.results if (r.metric, r.backbone) == ("spread", "random")]
    assert run.stopped is None and first["spread"] == pytest.approx(random.value, abs=0.1)  # of 64 images and of all
