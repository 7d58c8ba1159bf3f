"""The report of a run: one HTML file that needs nothing else, so it can be mailed.

It reads what the run wrote (config.toml, metrics.jsonl, results.json, survey.json) and is given what was
looked at. All text goes through the template's escaping; pictures are in the file as data.

h w height and width, c channels of a picture.
"""

import base64
import json
import os
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from ..data.sources import printable
from ..evaluate.metrics import HEADLINES
from ..explain.clusters import Cluster
from ..explain.neighbours import Neighbours
from ..explain.projection import Projection
from ..explain.strips import Strips
from ..explain.thumbnails import png, shrink
from .plots import line_chart, number, reach, scatter, strip

PICTURE_SIDE = 128  # pixels of a reconstruction
PICTURE_ROWS = 8
COLORS = 10  # classes with a colour of their own on the map
BACKBONES = {"trained": "Trained", "random": "Random weights", "pixels": "Raw pixels"}
PROTOCOLS = {"knn-v1": "Nearest neighbours", "linear-v1": "Linear classifier", "multilabel-v1": "Classifiers of labels",
             "label-tokens-v1": "Label tokens"}
CURVES = {  # of metrics.jsonl: title, percent, zero, what it means
    "loss": ("Loss", False, False, "what the method minimises"),
    "knn_accuracy": ("Online kNN accuracy", True, False, "on a part of bank and queries"),
    "linear_accuracy": ("Online linear accuracy", True, False, "on a part of bank and queries"),
    "rankme": ("Effective rank", False, True, "RankMe: directions in use; 1 is collapse"),
    "neighbours_kept": ("Neighbours kept", True, True, "of those under the starting weights"),
    "spread": ("Spread", False, True, "1 is even, 0 is collapse"),
    "learning_rate": ("Learning rate", False, True, ""),
    "gradient_norm": ("Gradient norm", False, True, "before any clipping"),
    "pixel_spread": ("Spread of the pixels", False, True, "of the views; 0 is images all the same, or flat"),
    "images_per_second": ("Images a second", False, True, ""),
    "waiting": ("Waiting for images", True, True, "share of the time"),
}
HIDDEN = ("kind", "images", "seconds", "knn_error", "linear_error")  # of metrics.jsonl: no curve of their own
MACHINERY = ("learning_rate", "gradient_norm", "pixel_spread", "images_per_second", "waiting")  # folded away


@dataclass(kw_only=True)
class Looks:
    """What a report shows besides the files of the run; None where there is nothing to show."""

    command: str = ""
    differences: list[tuple[str, Any, Any]] = field(default_factory=list)  # name, default, value
    notes: list[str] = field(default_factory=list)  # sentences
    neighbours: list[Neighbours] | None = None
    projection: Projection | None = None
    clusters: list[Cluster] | None = None
    strips: Strips | None = None
    # Each has a caption, columns (names) and rows (lists of (h, w, c) uint8 images, one a column).
    reconstructions: list[dict[str, Any]] | None = None


def write_report(folder: Path, *, looks: Looks, pictures: bool = True) -> Path:
    """Write ``report.html`` into the folder of a run and return its path.

    A file of the run that is missing, or a part that was not looked at, leaves a sentence in its place.

    Args:
        pictures: False leaves every image of the data out.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    metrics = [line for line in lines if line.get("kind") != "alarm"]
    alarms = [str(line["sentence"]) for line in lines if line.get("kind") == "alarm"]
    results = read_json(folder / "results.json") or []
    survey = read_json(folder / "survey.json") or {}
    config = read_text(folder / "config.toml")
    page = render("report", looks=looks, neighbours=looks.neighbours, pictures=pictures,
                  title=title_of(config, folder), facts=facts_of(metrics), alarms=alarms, headlines=headlines(results),
                  results=results, backbones=BACKBONES, curves=curves(metrics), data=survey.pop("sentence", ""),
                  survey=flat(survey), config=config, map=draw_map(looks.projection), most_rows=PICTURE_ROWS)
    return write_page(folder / "report.html", page)


def render(template: str, /, *styles: str, **values: Any) -> str:
    """Fill a template, by its name without ending; all values are escaped unless they are Markup.

    Args:
        styles: names of style sheets besides that of the report.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(here), trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "picture": picture, "value": plain}
    style = Markup("".join((here / f"{sheet}.css").read_text() for sheet in ("report", *styles)))
    return environment.get_template(f"{template}.html").render(style=style, **values)


def write_page(path: Path, page: str) -> Path:
    """Write a page beside and rename it, so that a reader never sees half of it."""
    unfinished = path.with_suffix(".html.part")
    unfinished.write_text(printable(page), encoding="utf-8")
    os.replace(unfinished, path)
    return path


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; one that an interruption cut short is left out."""
    lines = []
    for text in read_text(path).splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def title_of(config: str, folder: Path) -> dict[str, str]:
    """Method, encoder and name of the run, for the heading."""
    tree = tomllib.loads(config)
    encoder = tree.get("encoder", {})
    size = encoder.get("image_size") or []
    return {"method": Path(tree.get("method", {}).get("name", "unknown method")).stem,
            "encoder": str(encoder.get("name", "unknown encoder")),
            "size": f"{size[0]} × {size[-1]} pixels" if size else "",
            "seed": str(tree.get("seed", 0)), "run": folder.resolve().name}


def facts_of(metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Images seen, time and speed of the whole run, as (name, text)."""
    train = [line for line in metrics if line.get("kind") == "train"]
    if not train:
        return []
    seen, seconds = train[-1]["images"], train[-1].get("seconds", 0)
    took = f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
    return [("Images seen", f"{seen:,}"), ("Training time", took),
            ("Images a second", number(seen / seconds) if seconds else "unknown")]


def headlines(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each protocol's accuracy, or mean over labels: the numbers of all backbones, on one scale, and a sentence."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        if result["metric"].startswith(HEADLINES):
            rows.setdefault((f"{result['protocol']}-{result['version']}", result["metric"]), {})[
                result["backbone"]] = result
    marks = {row: [(name, by[name]["value"], by[name]["error"]) for name in BACKBONES if name in by]
             for row, by in rows.items()}
    low, high = reach([mark for row in marks.values() for mark in row]) if marks else (0.0, 1.0)
    return [{"name": PROTOCOLS.get(protocol, protocol), "protocol": protocol, "by": by,
             "detail": metric.removeprefix("accuracy").strip(" ()"), "sentence": verdict(by),
             "strip": strip(marks[protocol, metric], low, high)} for (protocol, metric), by in rows.items()]


def verdict(by: Mapping[str, Mapping[str, Any]]) -> str:
    """The trained backbone against random weights and raw pixels, in a sentence; empty without it.

    Differences of less than two standard errors, the two sides taken as independent, are called unclear.
    """
    if "trained" not in by:
        return ""
    parts, trained = [], by["trained"]
    for other, words in (("random", "the same network with random weights"), ("pixels", "raw pixels")):
        if other in by:
            gain = trained["value"] - by[other]["value"]
            doubt = 2 * ((trained["error"] or 0) ** 2 + (by[other]["error"] or 0) ** 2) ** 0.5
            side = "above" if gain > 0 else "below"
            unclear = ", which may be chance" if abs(gain) < doubt else ""
            parts.append(f"{abs(gain) * 100:.1f} points {side} {words}{unclear}")
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] + "." if parts else ""


def curves(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chart for each number that was recorded: the known ones first, then the method's own."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name not in HIDDEN and isinstance(value, int | float):
                key = "knn_accuracy" if line["kind"] == "probe" and line.get("metric") == "accuracy" else name
                xs, ys = series.setdefault(key, ([], []))
                xs.append(line["images"])
                ys.append(value)
    known = [name for name in CURVES if name in series]
    found = []
    for name in known + sorted(set(series) - set(known)):
        own = (name.replace("_", " "), False, False, "of the method")
        title, percent, zero, meaning = CURVES.get(name, own)
        xs, ys = series[name]
        chart = line_chart(title, xs, ys, percent=percent, zero=zero, marks=len(xs) <= 25)
        found.append({"title": title, "meaning": meaning, "chart": chart, "machinery": name in MACHINERY,
                      "last": f"{ys[-1] * 100:.1f} %" if percent else number(ys[-1])})
    return found


def draw_map(projection: Projection | None) -> dict[str, Any] | None:
    """The scatter of a projection and the legend of its classes; the most frequent have their own colours."""
    if projection is None:
        return None
    counts = Counter(label for label in projection.labels if label is not None)
    colored = sorted(sorted(counts, key=lambda name: (-counts[name], name))[:COLORS])
    marks = [f"c{colored.index(label)}" if label in colored else "other" for label in projection.labels]
    legend = [(f"c{i}", name, counts[name]) for i, name in enumerate(colored)]
    rest = len(projection.labels) - sum(count for _, _, count in legend)
    if rest and legend:
        legend.append(("other", "other or unknown", rest))
    titles = [key if label is None else f"{label}: {key}"
              for key, label in zip(projection.keys, projection.labels, strict=True)]
    classes = f" of {len(counts)} classes" if counts else ""
    said = f"Map of {len(marks)} images{classes} by their features."
    atlas = [{"left": f"{100 * x:.2f}", "top": f"{100 * (1 - y):.2f}", "thumbnail": thumbnail}
             for i, thumbnail in projection.pictures for x, y in [projection.points[i]]]
    return {"scatter": scatter(projection.points.tolist(), marks, titles, said), "legend": legend,
            "atlas": atlas, "how": projection.how}


def flat(tree: Mapping[str, Any], where: str = "") -> list[tuple[str, Any]]:
    """Names and values of nested tables, longer lists by their length."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        name = f"{where} {name}".replace("_", " ").strip()
        if isinstance(value, Mapping) and len(value) <= 12:
            found += flat(value, name)
        elif isinstance(value, Mapping) or (isinstance(value, list) and len(value) > 12):
            found.append((name, f"{len(value):,} entries"))
        else:
            found.append((name, value))
    return found


def plain(value: Any) -> str:
    """A setting as one reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(part) for part in value) or "none"
    return str(value)


def picture(image: np.ndarray, side: int = PICTURE_SIDE) -> str:
    """A data URL of an (h, w, c) uint8 image: PNG if it is small or has alpha, otherwise JPEG."""
    image = shrink(image if image.ndim == 3 else image[..., None], side)
    if max(image.shape[:2]) <= 64 or image.shape[2] == 4:
        kind, data = "png", png(image)
    else:
        turned = image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        kind, data = "jpeg", cv2.imencode(".jpg", turned, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
