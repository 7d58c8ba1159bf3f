"""Runs side by side as one HTML file that needs nothing else: a row a number, a column a run, each row on one scale.

On a phone each number stands above its runs, one a line.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from ..evaluate.protocols import Result
from .plots import reach, strip


def write_side_by_side(path: Path, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Result], Sequence[str]]],
                       note: str) -> Path:
    """Write the table and return its path.

    Args:
        heads: a name for each run.
        rows: the name of a number, its results and their texts, one of each a run. Those with errors are drawn with
            two standard errors to either side.
        note: a sentence below the table.
    """
    style = Markup((Path(__file__).parent / "report.css").read_text())
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(name) for name in heads)
    lines = []
    for name, results, texts in rows:
        marks = [("trained", r.value, r.error) for r in results]
        drawn = all(r.error is not None and 0 <= r.value <= 1 for r in results)
        strips = [strip([mark], *reach(marks)) if drawn else Markup("") for mark in marks]
        cells = (Markup("<td data-run='{}'><span>{}</span>{}</td>").format(*parts)
                 for parts in zip(heads, texts, strips, strict=True))
        lines.append(Markup("<tr><th scope='row'>{}</th>{}</tr>").format(name, Markup("").join(cells)))
    page = Markup("<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Runs side by side</title>\n"
                  "<meta name='viewport' content='width=device-width, initial-scale=1'>\n<style>{}</style></head>\n"
                  "<body><main><h1>Runs side by side</h1>\n<div class='scroll'><table class='runs'>\n"
                  "<thead><tr><td></td>{}</tr></thead>\n<tbody>\n{}\n</tbody></table></div>\n"
                  "<p class='small'>{}</p></main></body></html>\n"
                  ).format(style, head, Markup("\n").join(lines), note)
    beside = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(page, encoding="utf-8")
    os.replace(beside, path)
    return path
