"""Pictures for the page "Is my run healthy?": curves of two healthy runs, and of one that collapses.

    python benchmarks/health_pictures.py --seed 0 --out docs/health-curves.svg

The runs are those of ``planted_failures.py``: SiT and MAE as they should be, and SiT with a thousand times its learning rate,
on the demo's images, in tiny networks on one core. Charts are those of the report.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from planted_failures import PLANTS, Plant, demo_split, run

from daybreak.report.plots import HEIGHT, WIDTH, line_chart

RUNS = {"SiT, healthy": ("sit", None), "MAE, healthy": ("mae", None),
        "SiT, learning rate x 1000": ("sit", PLANTS["sit", "learning rate x 1000"])}
CURVES = {"loss": "loss", "rankme": "rank (RankMe)", "spread": "spread", "knn_accuracy": "kNN accuracy"}
TITLE = 24  # height of a line of text
STYLE = """text { font: 12px system-ui, sans-serif; fill: #667080; } .title { font-size: 13px; font-weight: 600; fill: #1f2733; }
.paper { fill: #fcfbf8; } .grid { stroke: #e4e0d8; } .tick { font-size: 10.5px; }
.curve { fill: none; stroke: #4467c4; stroke-width: 1.8; stroke-linejoin: round; } .dot { fill: #4467c4; }
.bad .curve { stroke: #c8502c; } .bad .dot { fill: #c8502c; }"""


def curves(name: str, plant: Plant | None, split, seed: int) -> list[dict]:
    """Lines of ``metrics.jsonl`` of a run."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "metrics.jsonl"
        outcome = run(name, split, plant, seed=seed, keep=path)
        print(name, "spoilt" if plant else "healthy", outcome, flush=True)
        return [json.loads(line) for line in path.read_text().splitlines()]


def drawing(runs: dict[str, list[dict]]) -> str:
    """A row of charts for each run, as one SVG."""
    width, row = WIDTH * len(CURVES), HEIGHT + TITLE
    parts = [f'<rect class="paper" width="{width}" height="{row * len(runs)}"/>']
    for i, (title, lines) in enumerate(runs.items()):
        parts.append(f'<g class="{"good" if title.endswith("healthy") else "bad"}">')
        for j, (key, name) in enumerate(CURVES.items()):
            points = [(line["images"], line[key]) for line in lines if key in line]
            chart = line_chart(name, *zip(*points, strict=True), percent=key == "knn_accuracy", zero=key != "loss",
                               marks=len(points) <= 25)
            parts.append(f'<text class="title" x="{j * WIDTH + 12}" y="{i * row + 17}">{title}: {name}</text>'
                         f'<svg x="{j * WIDTH}" y="{i * row + TITLE}" width="{WIDTH}" height="{HEIGHT}">{chart}</svg>')
        parts.append("</g>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {row * len(runs)}"><style>{STYLE}</style>'
            + "".join(parts) + "</svg>\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/health-curves.svg"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split = demo_split()
    arguments.out.write_text(drawing({title: curves(name, plant, split, arguments.seed)
                                      for title, (name, plant) in RUNS.items()}))


if __name__ == "__main__":
    main()
