"""Protocols on vectors of an ImageNet-like width: this project beside lightly and scikit-learn.

    python benchmarks/evaluation.py --json evaluation.json

knn-v1 labels 10,000 queries by a bank of 50,000, width 384, 10 classes; lightly's ``knn_predict`` in chunks of 1,024
queries and scikit-learn's brute-force ``KNeighborsClassifier`` (cosine, the same weights) do the same on unit vectors, and
their predictions must agree with ours on all but one in a thousand. linear-v1 trains its whole grid of 13 rates on the
bank, logistic-v1 its nine penalties and the last fit; beside them stands one fit of scikit-learn's LogisticRegression
with its defaults on the same standardised vectors, which is less work. Vectors are noise around a centre for each class.
They take turns; medians over the rounds are reported. lightly is not a dependency: pip install lightly
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits
from torch.nn.functional import normalize

from daybreak.evaluate.knn import CHUNK, K, knn_v1
from daybreak.evaluate.linear import linear_v1, standardise_by
from daybreak.evaluate.logistic import logistic_v1

CLASSES, TEMPERATURE = 10, 0.07


def vectors(count: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=random)
    return centres[labels] + 6 * torch.randn(count, width, generator=random), labels


def lightly_knn(bank, labels, queries, truth) -> np.ndarray:
    from lightly.utils.benchmarking import knn_predict

    turned = normalize(bank, dim=1).T.contiguous()
    return torch.cat([knn_predict(chunk, turned, labels, CLASSES, knn_k=K, knn_t=TEMPERATURE)[:, 0]
                      for chunk in normalize(queries, dim=1).split(CHUNK)]).numpy()


def sklearn_knn(bank, labels, queries, truth) -> np.ndarray:
    model = KNeighborsClassifier(K, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / TEMPERATURE))
    return model.fit(bank.numpy(), labels.numpy()).predict(queries.numpy())


def sklearn_logistic(bank, labels, queries, truth) -> np.ndarray:
    bank, queries = standardise_by(bank, bank, queries)
    return LogisticRegression().fit(bank.numpy(), labels.numpy()).predict(queries.numpy())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = (*vectors(arguments.bank, arguments.width, 1), *vectors(arguments.queries, arguments.width, 2))
    entries = {"knn-v1": lambda: knn_v1(*task, CLASSES).prediction, "knn, scikit-learn": lambda: sklearn_knn(*task),
               "linear-v1": lambda: linear_v1(*task, CLASSES).prediction,
               "logistic-v1": lambda: logistic_v1(*task, CLASSES).prediction,
               "one logistic regression, scikit-learn": lambda: sklearn_logistic(*task)}
    if importlib.util.find_spec("lightly"):
        entries["knn, lightly"] = lambda: lightly_knn(*task)
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    predictions = {}
    with threadpool_limits(arguments.threads):
        for _ in range(arguments.rounds):
            for name, entry in entries.items():
                start = time.perf_counter()
                predictions[name] = entry()
                seconds[name].append(time.perf_counter() - start)
    for name, prediction in predictions.items():
        if name.startswith("knn,") and (same := float((prediction == predictions["knn-v1"]).mean())) < 0.999:
            raise SystemExit(f"{name} agrees with knn-v1 on {same:.2%} of the queries only; it does other work")
    truth = task[3].numpy()
    rows = [{"name": name, "seconds": statistics.median(times), "all_seconds": times,
             "accuracy": float((predictions[name] == truth).mean())} for name, times in seconds.items()]
    for row in rows:
        print(f"{row['name']:40} {row['seconds']:8.2f} s   accuracy {row['accuracy']:.3f}")
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "settings": vars(arguments), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
