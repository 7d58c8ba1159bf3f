"""Neighbours kept under ``--init``: how far a healthy continuation and a destroyed one go from the starting weights.

    python benchmarks/continuation.py --seeds 0 1 --json continuation.json

Each method is trained on the demo's images as in ``planted_failures.py``; its backbone is then continued from, with the same
budget, at its own learning rate, at 10, 100 and 1,000 times it, and by another method. At ten moments of each continuation
the share of an image's 20 nearest neighbours that it had under the starting weights is measured as a run without labels
does (``neighbours_kept``, on 2,000 images), and beside it the online kNN accuracy (knn-v1, 500 queries), which says whether the
features were in truth hurt. The networks are tiny, so that all of it takes minutes on one core.
"""

import argparse
import dataclasses
import io
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from planted_failures import COMMON, HEALTHY, demo_split
from rich.console import Console

from daybreak.data.images import Split
from daybreak.methods.base import find
from daybreak.review import make_probe
from daybreak.runs import make_method, settings_tree
from daybreak.train.loop import train
from daybreak.train.plan import choose, make_budget

CONTINUED = {"simclr": "mae", "mae": "simclr"}  # method, and the other one that continues from its weights too
TIMES = (1, 10, 100, 1000)  # the learning rate
RATE = 1e-3  # of COMMON
ERRORS = 3  # standard errors below the starting weights from which on kNN counts as hurt, as in a run with labels


def trained(name: str, split: Split, seed: int, weights: Path, *settings: str, init: Path | None = None) -> list[dict]:
    """Train a method from its random start or from a file, leave its backbone in ``weights``; its lines of health."""
    images, mine = HEALTHY[name]
    overrides = [*COMMON, *mine, "watch.probes=10", *settings]
    tree = settings_tree(method=name, recipe=None, overrides=overrides, images=images, seed=seed, threads=1,
                         init=init and str(init), init_partial=True)  # MAE's positions are fixed, SimCLR's learned
    config, _ = choose(find(name), tree, split.train, "cpu")
    console = Console(file=io.StringIO())
    method, fabric = make_method(config, split.train.channels, console), Fabric(accelerator="cpu", devices=1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bare = dataclasses.replace(split, bank=dataclasses.replace(split.bank, labels=None))
        labelled, blind = make_probe(split, config, fabric), make_probe(bare, config, fabric, folder / "start.pt")
        budget = make_budget(config.training, len(split.train), time.monotonic)
        train(method, split.train, config, folder, fabric=fabric, budget=budget, console=console,
              probe=lambda backbone: blind(backbone) | labelled(backbone))
        torch.save(method.backbone.model.state_dict(), weights)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "health"]


def judged(lines: list[dict]) -> dict[str, Any]:
    """What a continuation kept, least and at the end, and how far kNN accuracy went below that of the starting weights."""
    first, later = lines[0], lines[1:]
    score, error = "knn_accuracy", "knn_error"
    hurt = [(first[score] - line[score]) / (first[error] ** 2 + line[error] ** 2) ** 0.5 for line in later]
    return {"kept": [round(line["neighbours_kept"], 4) for line in later], "rankme": [line["rankme"] for line in lines],
            "knn": [line[score] for line in lines], "hurt": max(hurt) >= ERRORS, "errors_below": round(max(hurt), 2)}


def table(record: dict) -> str:
    """The page's table of what was measured."""
    rows = ["| start | continued by | seed | kNN, start | kNN, end | lowest kNN | neighbours kept, least | RankMe kept, least |",
            "| --- " * 8 + "|"]
    for row in record["continued"]:
        knn, rank = row["knn"], row["rankme"]
        rows.append(f"| {row['start']} | {row['by']} | {row['seed']} | {knn[0]:.1%} | {knn[-1]:.1%} | {min(knn):.1%}"
                    f"{', hurt' if row['hurt'] else ''} | {min(row['kept']):.1%} | {min(rank) / rank[0]:.1%} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split = demo_split()
    record: dict[str, Any] = {
        "command": f"python benchmarks/continuation.py --seeds {' '.join(map(str, arguments.seeds))}",
        "torch": torch.__version__, "machine": platform.machine(), "continued": []}
    for seed in arguments.seeds:
        for name, other in CONTINUED.items():
            with tempfile.TemporaryDirectory() as place:
                start, end = Path(place) / "start.pth", Path(place) / "end.pth"
                trained(name, split, seed, start)
                runs = [(f"{name}, learning rate x {times}" if times > 1 else name, name,
                         (f"training.learning_rate={times * RATE}",)) for times in TIMES] + [(other, other, ())]
                for by, method, settings in runs:
                    found = judged(trained(method, split, seed + 100, end, *settings, init=start))
                    record["continued"].append({"start": name, "by": by, "seed": seed, **found})
                    print(record["continued"][-1], flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
