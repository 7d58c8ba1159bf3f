"""How far each transferability score puts backbones in the order of their linear accuracy.

    python benchmarks/transferability.py --data A-TRAIN A-TEST --data B-TRAIN B-TEST --data C-TRAIN C-TEST \\
        --backbones runs/sit-1 runs/mae-1 runs/dino-1 ... --json transferability.json

For each pair of labelled sets, ``daybreak.rank`` scores the backbones on the training images, and linear-v1 is trained on
them and measured on the test images. Printed is the rank correlation of score and accuracy over the backbones: Spearman's
rho, Kendall's tau and the weighted tau of the papers (hyperbolic weights, errors at the top count more), with whether
the best by the score is the best by accuracy. Fewer than 6 backbones or 3 data sets say little and are marked. A score
that some backbone lacks (LEEP without a class head) has no correlation.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict

import numpy as np
import torch
from rich.console import Console
from scipy.stats import kendalltau, spearmanr, weightedtau

import daybreak
from daybreak.data.images import open_images
from daybreak.errors import Refused
from daybreak.evaluate.protocols import evaluate_features
from daybreak.evaluate.transfer import SCORES
from daybreak.ranking import open_backbone

FEWEST_BACKBONES, FEWEST_DATA = 6, 3
MEASURES = {"spearman": spearmanr, "kendall": kendalltau, "weighted tau": weightedtau}


def linear_accuracy(name: str, train: str, test: str, seed: int) -> float:
    """Accuracy of linear-v1 on the vectors of a backbone."""
    opened = open_backbone(name)
    bank, queries = (open_images(path, channels=opened.backbone.channels).of_split(*names)
                     for path, names in ((train, ("train",)), (test, ("val", "test"))))
    results, skipped = evaluate_features(opened.vectors(bank)[0], bank.labels, opened.vectors(queries)[0], queries.labels,
                                         protocols=("linear-v1",), seed=seed)
    if not results:
        raise SystemExit(f"{name}: no accuracy on {test}: {skipped[0].reason}")
    return next(r.value for r in results if r.metric == "accuracy")


def correlations(scores: list[float], accuracies: list[float]) -> dict[str, float | bool]:
    """Rank correlations of a score with accuracy over backbones, NaN where one of them is constant; and a hit at the top."""
    if len(set(scores)) < 2 or len(set(accuracies)) < 2:
        return {name: float("nan") for name in MEASURES} | {"best found": False}
    found = {name: float(measure(accuracies, scores).statistic) for name, measure in MEASURES.items()}
    return found | {"best found": bool(accuracies[int(np.argmax(scores))] == max(accuracies))}


def table(rows: list[dict]) -> str:
    """The documentation's table: Spearman's rho on each set, then the means of all measures over the sets."""
    data = list(dict.fromkeys(row["train"] for row in rows))
    lines = [f"| score | {' | '.join(f'`{name}`' for name in data)} | mean rho | mean tau | mean weighted tau | best found |",
             "| --- " * (len(data) + 5) + "|"]
    for score in dict.fromkeys(row["score"] for row in rows):
        some = {row["train"]: row for row in rows if row["score"] == score}
        means = [float(np.mean([row[measure] for row in some.values()])) for measure in MEASURES]
        cells = [f"{number:.2f}" for number in [*(some[name]["spearman"] for name in data), *means]]
        lines.append(f"| {score} | {' | '.join(cells)} | {sum(row['best found'] for row in some.values())} of {len(some)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs=2, action="append", required=True, metavar=("TRAIN", "TEST"))
    parser.add_argument("--backbones", nargs="+", required=True, metavar="RUN|timm:NAME")
    parser.add_argument("--reference", help="images that PED scales by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if len(set(arguments.backbones)) < 2:
        parser.error("two or more backbones have an order")
    torch.set_num_threads(arguments.threads)
    rows, tables = [], []
    for train, test in arguments.data:
        try:
            ranked = daybreak.rank(train, arguments.backbones, reference=arguments.reference, console=Console(quiet=True))
            accuracies = [linear_accuracy(row.backbone, train, test, arguments.seed) for row in ranked]
        except Refused as error:
            raise SystemExit(f"error: {error}") from error
        tables += [{"train": train, "test": test, "accuracy": accuracy, **asdict(row)}
                   for row, accuracy in zip(ranked, accuracies, strict=True)]
        print(f"{train} -> {test}: accuracy " + ", ".join(f"{r.backbone} {a:.3f}" for r, a in zip(ranked, accuracies, strict=True)))
        for name in SCORES:
            if all(name in row.scores for row in ranked):
                seconds = float(np.mean([row.seconds[name] for row in ranked]))
                rows.append({"train": train, "score": name, "seconds": seconds,
                             **correlations([row.scores[name] for row in ranked], accuracies)})
    print(f"\n{'data':40} {'score':8} " + " ".join(f"{name:>12}" for name in MEASURES) + f" {'best found':>11} {'seconds':>8}")
    for row in rows:
        print(f"{row['train'][-40:]:40} {row['score']:8} " + " ".join(f"{row[name]:12.3f}" for name in MEASURES)
              + f" {'yes' if row['best found'] else 'no':>11} {row['seconds']:8.2f}")
    print()
    for name in dict.fromkeys(row["score"] for row in rows):
        some = [row for row in rows if row["score"] == name]
        print(f"{f'mean of {len(some)}':40} {name:8} " + " ".join(f"{np.mean([r[m] for r in some]):12.3f}" for m in MEASURES)
              + f" {sum(r['best found'] for r in some):8} of {len(some)}")
    if len(set(arguments.backbones)) < FEWEST_BACKBONES or len(arguments.data) < FEWEST_DATA:
        print(f"{len(set(arguments.backbones))} backbones on {len(arguments.data)} data sets: fewer than {FEWEST_BACKBONES} on "
              f"{FEWEST_DATA}, so these correlations say little.")
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        with open(arguments.json, "w") as file:
            rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]  # JSON has no NaN
            json.dump({"machine": machine, "settings": vars(arguments), "backbones": tables, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
