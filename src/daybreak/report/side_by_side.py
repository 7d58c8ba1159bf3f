"""Runs side by side as one HTML file that needs nothing else: a row a number, a column a run, each row on one scale."""

import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

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
    lines = [Markup("<tr><th></th>{}</tr>").format(Markup("").join(Markup("<th>{}</th>").format(head) for head in heads))]
    for name, results, texts in rows:
        marks = [("trained", r.value, r.error) for r in results]
        drawn = all(r.error is not None and 0 <= r.value <= 1 for r in results)
        strips = [strip([mark], *reach(marks)) if drawn else Markup("") for mark in marks]
        cells = (Markup("<td>{}{}</td>").format(text, drawing) for text, drawing in zip(texts, strips, strict=True))
        lines.append(Markup("<tr><th scope='row'>{}</th>{}</tr>").format(name, Markup("").join(cells)))
    page = Markup("<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Runs side by side</title>\n"
                  "<style>{}</style></head>\n<body><main><h1>Runs side by side</h1>\n<table>\n{}\n</table>\n<p>{}</p></main></body>"
                  "</html>\n").format(style, Markup("\n").join(lines), escape(note))
    beside = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(page, encoding="utf-8")
    os.replace(beside, path)
    return path
