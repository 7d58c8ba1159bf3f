"""The report is one file, escapes all text, needs nothing from outside and says what is missing."""

import html.parser
import json
import re

import numpy as np
import pytest

from daybreak.explain.clusters import Cluster
from daybreak.explain.neighbours import Neighbours
from daybreak.explain.projection import Projection
from daybreak.explain.strips import Strips
from daybreak.explain.thumbnails import Thumbnail
from daybreak.report.html import Looks, curves, verdict, write_report

EVIL = "<script>alert(1)</script>\"'&"


def result(backbone, value, error=0.01, metric="accuracy", protocol="knn"):
    return {"protocol": protocol, "version": "v1", "metric": metric, "value": value, "error": error,
            "backbone": backbone, "data": "f00d", "seed": 0, "num_train": 8060, "num_test": 1940, "num_classes": 10}


def some_looks(name="cat", side=32):
    random = np.random.default_rng(0)

    def thumbnail():
        return Thumbnail(f"{name}/1.png", name, random.integers(0, 256, (side, side, 3), dtype=np.uint8))

    points = random.random((50, 2))
    return Looks(
        command=f"daybreak pretrain {name}", differences=[("method.mask_ratio", 0.6, 0.7), ("data.path", "", name)],
        notes=[f"a note on {name}"], neighbours=[Neighbours(thumbnail(), [thumbnail()] * 3, [0.9, 0.8, 0.7])] * 4,
        projection=Projection(points, "t-SNE.", [f"{name}/{i}" for i in range(50)], [name] * 50, [(0, thumbnail())]),
        clusters=[Cluster(3, 5, 9, [thumbnail()] * 3)],
        strips=Strips([0, 12_800], [thumbnail().image] * 2, {"made": [[thumbnail().image] * 2] * 2}),
        reconstructions=[{"caption": name, "columns": [name, "restored"],
                          "rows": [[thumbnail().image, thumbnail().image]] * 3}])


def fill(folder, name="cat"):
    (folder / "config.toml").write_text(
        f"seed = 3\n[method]\nname = {json.dumps(name)}\n[encoder]\nname = \"vit_micro\"\nimage_size = [28, 28]\n")
    (folder / "survey.json").write_text(json.dumps({"sentence": f"9 images of {name}", "classes": {name: 3}}))
    (folder / "results.json").write_text(json.dumps([
        result("trained", 0.9), result("random", 0.7), result("pixels", 0.895), result("trained", 0.88, None, name),
        result("trained", 31.6, None, "rankme", "rank")]))
    lines = [{"kind": "train", "images": 100 * i, "seconds": i, "loss": 3 / i, "waiting": 0.02, name: 0.5}
             for i in range(1, 600)]
    lines += [{"kind": "health", "images": 5000, "rankme": 12.5, "spread": 0.8, "knn_accuracy": 0.75}]
    lines += [{"kind": "alarm", "images": 5000, "sentence": f"since image 40 {name} is wrong", "since": 40, "signs": ["loss"]}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')


def test_a_rank_is_a_number_and_an_accuracy_a_percentage(tmp_path):
    fill(tmp_path)
    page = write_report(tmp_path, looks=some_looks()).read_text()
    assert "31.6" in page and "3160" not in page and "90.00 %" in page


class Page(html.parser.HTMLParser):
    """Elements and text of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action", "xlink:href")]
        self.handlers += [k for k, _ in attributes if k.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_all_text_stays_text(tmp_path):
    fill(tmp_path, EVIL)
    page = Page(write_report(tmp_path, looks=some_looks(EVIL)).read_text())
    assert "script" not in page.tags and not page.handlers
    for where in (f"a note on {EVIL}", f"9 images of {EVIL}", f"classes {EVIL}", f"{EVIL}: {EVIL}/7",
                  f"since image 40 {EVIL} is wrong"):
        assert where in page.text
    assert page.text.count(EVIL) > 60


def test_one_file_that_needs_nothing_else(tmp_path):
    fill(tmp_path)
    path = write_report(tmp_path, looks=some_looks())
    text = path.read_text()
    page = Page(text)
    assert path == tmp_path / "report.html"
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?:|@import|url\(", text)
    assert path.stat().st_size < 500_000
    assert [p.name for p in tmp_path.glob("*.part")] == []


def test_headline_says_where_it_stands(tmp_path):
    fill(tmp_path)
    text = " ".join(Page(write_report(tmp_path, looks=some_looks()).read_text()).text.split())
    text = text[text.index("Daybreak report") :]  # after the style
    assert "90.0 % ± 1.0" in text
    assert ("20.0 points above the same network with random weights and 0.5 points above raw pixels, which may be "
            "chance.") in text
    assert text.index("since image 40 cat is wrong") < text.index("Nearest neighbours")
    assert text.index("Nearest neighbours") < text.index("Notes") < text.index("Each curve")


def test_verdict_counts_both_errors():
    def by(trained, other):
        return {"trained": {"value": trained, "error": 0.02}, "random": {"value": other, "error": 0.02}}

    assert "chance" in verdict(by(0.85, 0.80)) and "chance" not in verdict(by(0.86, 0.80))
    assert verdict(by(0.70, 0.80)).startswith("10.0 points below")
    assert verdict({"random": {"value": 0.5, "error": 0.1}}) == ""


def test_curves_tell_their_numbers(tmp_path):
    found = {c["title"]: c for c in curves([{"kind": "train", "images": i, "loss": float(i)} for i in range(1, 2001)])}
    assert "first" in found["Loss"]["chart"] and "last 2k" in found["Loss"]["chart"]
    assert found["Loss"]["last"] == "2k"
    assert len(re.search(r'points="([^"]*)"', found["Loss"]["chart"])[1].split()) <= 250
    broken = curves([{"kind": "train", "images": 1, "loss": float("nan")}])
    assert "No finite value" in broken[0]["chart"]
    single = curves([{"kind": "health", "images": 7, "rankme": 3.0}])
    assert "nan" not in single[0]["chart"] and 'role="img"' in single[0]["chart"]


def test_missing_parts_say_so(tmp_path):
    text = Page(write_report(tmp_path, looks=Looks()).read_text()).text
    for sentence in ("No accuracy", "no curves", "No neighbours were computed", "No map was computed", "No survey.json"):
        assert sentence in text


def test_pictures_can_be_left_out(tmp_path):
    fill(tmp_path)
    page = Page(write_report(tmp_path, looks=some_looks(), pictures=False).read_text())
    assert "img" not in page.tags and "Pictures were left out" in page.text
    assert "Map of the features" in page.text


@pytest.mark.parametrize("shape", [(400, 300, 3), (400, 300, 1), (224, 224, 4)])
def test_large_pictures_stay_small(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    looks = Looks(reconstructions=[{"caption": "c", "columns": list("abcd"), "rows": [[image] * 4] * 30}])
    assert write_report(tmp_path, looks=looks).stat().st_size < 5_000_000


def test_an_alarm_is_no_curve_and_a_healthy_run_has_none(tmp_path):
    fill(tmp_path)
    assert "since</b>" not in write_report(tmp_path, looks=Looks()).read_text()
    kept = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"alarm"' not in line]
    (tmp_path / "metrics.jsonl").write_text("\n".join(kept))
    assert "Alarms" not in Page(write_report(tmp_path, looks=Looks()).read_text()).text
