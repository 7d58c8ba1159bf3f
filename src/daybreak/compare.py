"""Numbers of several runs side by side: only what was measured alike, and which differences are more than chance."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import Refused
from .evaluate.protocols import Result
from .report.side_by_side import write_side_by_side
from .review import read_results

KEPT = "evaluations.json"
NO_SHARES = ("threshold", "intra", "inter", "d'")  # metrics of patch-prompt that are no shares of 1
DRAWN = ("fewshot", "nearest-mean")  # protocols whose task itself, not only its noise, the seed decides
SOME_LABELS = "of the labels)"  # ends the name of a number for which the seed drew the images trained on
MUST_AGREE = {"data": "training images", "test_data": "test images", "num_train": "number of training images",
              "num_test": "number of test images", "num_classes": "number of classes", "settings": "settings"}


@dataclass(frozen=True)
class Row:
    """One number of every run."""

    name: str  # protocol, version and metric
    results: list[Result]  # one a run
    differs: list[bool]  # whether by more than 2 standard errors from the first; False where there are none


def told(result: Result) -> str:
    """A number as one reads it, with its standard error where there is one."""
    if result.protocol == "rank":
        return f"{result.value:.3g}"
    if result.metric.startswith(NO_SHARES):
        return f"{result.value:.3f}" + (f" ± {result.error:.3f}" if result.error is not None else "")
    return f"{result.value:.1%}" + (f" ± {result.error:.1%}" if result.error is not None else "")


def keep_results(folder: Path, results: list[Result]) -> Path:
    """Add numbers to ``evaluations.json`` of a run and return its path.

    They replace those of the same name, data, seed and settings, and all of trained weights that stand there no longer.
    """
    def whose(r: Result) -> tuple:
        return r.protocol, r.version, r.metric, r.backbone, r.data, r.test_data, r.seed, r.settings

    path, new = folder / KEPT, {whose(r) for r in results}
    weights = {r.backbone_hash for r in results if r.backbone == "trained"}
    kept = [r for r in read_kept(path)
            if whose(r) not in new and (r.backbone != "trained" or not weights or r.backbone_hash in weights)]
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps([asdict(r) for r in kept + results], indent=1) + "\n")
    os.replace(beside, path)
    return path


def read_kept(path: Path) -> list[Result]:
    try:
        return [Result(**row) for row in json.loads(path.read_text())] if path.is_file() else []
    except (ValueError, TypeError) as error:
        raise Refused(f"{path}: not written by Daybreak, or cut short ({error}); move it away and evaluate again.") from error


def numbers_of(folder: Path) -> list[Result]:
    """What was measured of the trained backbone of a run, at its end and later."""
    ended = read_results(folder) if (folder / "results.json").is_file() else []
    found = [r for r in ended + read_kept(folder / KEPT) if r.backbone == "trained"]
    if not found:
        raise Refused(f"{folder}: holds no numbers (no results.json or {KEPT}); measure it: "
                      f"daybreak evaluate {folder} --train A --test B.")
    return found


def name_of(r: Result) -> str:
    return f"{r.protocol}-{r.version} {r.metric}"


def conditions(r: Result) -> dict[str, object]:
    """What two numbers of one name must have in common."""
    found = {words: getattr(r, field) for field, words in MUST_AGREE.items()}
    if r.protocol in DRAWN or r.metric.endswith(SOME_LABELS):
        found["seed"] = r.seed
    if r.protocol == "rank":
        found["width of the vectors"] = r.width
    return found


def compare_runs(folders: list[Path], console: Console, out: Path | None = None) -> list[Row]:
    """Print the table of what all runs have measured alike, draw it in the HTML file ``out``, and say what is left out.

    Differences are taken from the first run, the errors of both sides as independent: that is careful, since runs
    share their test images and mostly err on the same ones.

    Raises:
        Refused: fewer than two runs, one without numbers, or nothing that was measured alike.
    """
    if len(folders) < 2:
        raise Refused(f"{len(folders)} run to compare; give two or more, as in: daybreak compare runs/sit-1 runs/mae-1.")
    tables = [{(name_of(r), *conditions(r).values()): r for r in numbers_of(folder)} for folder in folders]
    alike = [key for key in tables[0] if all(key in table for table in tables)]
    shown = {key[0] for key in alike}
    named = [name for name in dict.fromkeys(key[0] for key in tables[0])
             if name not in shown and all(any(key[0] == name for key in table) for table in tables)]
    apart = [f"{name} ({difference(str(name), tables)})" for name in named]
    if not alike:
        why = f"{apart[0]} differ" if apart else "they have no protocol in common"
        raise Refused(f"{' and '.join(map(str, folders))}: no number was measured alike, {why}; measure each in the same way: "
                      "daybreak evaluate RUN --train A --test B.")
    rows = []
    for key in alike:
        results = [table[key] for table in tables]
        rows.append(Row(str(key[0]), results, [beyond(results[0], r) for r in results]))
    show(rows, folders, console, out)
    if apart:
        console.print(f"note: {len(apart)} numbers were measured in other ways and can't be compared: {'; '.join(apart[:3])}"
                      f"{'; ...' if len(apart) > 3 else '.'}", soft_wrap=True, highlight=False)
    alone = {key[0] for table in tables for key in table} - shown - set(named)
    if alone:
        console.print(f"note: {len(alone)} numbers that only some of the runs have are left out.", highlight=False)
    return rows


def difference(name: str, tables: list[dict[tuple, Result]]) -> str:
    """In which conditions the numbers of one name differ: what it is, and its value in each run (of its first such number)."""
    found = [conditions(next(r for key, r in table.items() if key[0] == name)) for table in tables]
    return ", ".join(f"{words}: {' / '.join('not noted' if f[words] == '' else str(f[words]) for f in found)}"
                     for words in found[0] if len({f[words] for f in found}) > 1)


def beyond(first: Result, other: Result) -> bool:
    """Whether two numbers differ by more than two standard errors of their difference."""
    if first.error is None or other.error is None:
        return False
    return abs(other.value - first.value) > 2 * (first.error**2 + other.error**2) ** 0.5


def show(rows: list[Row], folders: list[Path], console: Console, out: Path | None) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    for folder in folders:
        table.add_column(escape(str(folder)), justify="right", overflow="fold")
    texts = [[told(r) + (" *" if mark else "") for r, mark in zip(row.results, row.differs, strict=True)] for row in rows]
    for row, text in zip(rows, texts, strict=True):
        table.add_row(escape(row.name), *text)
    legend = f"* differs from {folders[0]} by more than 2 standard errors; numbers without ± are not judged."
    console.print(table)
    console.print(legend, soft_wrap=True, highlight=False, markup=False)
    if out is not None:
        drawn = [(row.name, row.results, text) for row, text in zip(rows, texts, strict=True)]
        console.print(f"table: {write_side_by_side(out, [str(f) for f in folders], drawn, legend)}", soft_wrap=True)
