"""What methods and protocols measure on CIFAR-10 and CamVid: commands, run one by one, and their numbers in one file.

    python benchmarks/cifar10.py pretrain|hydra --data DATA --work WORK --json benchmarks/results/cifar10_cpu.json
    python benchmarks/cifar10.py protocols|masks|finetune --data DATA --work WORK --json benchmarks/results/cifar10_cpu.json
    python benchmarks/cifar10.py tables --json benchmarks/results/cifar10_cpu.json

DATA holds ``cifar10-train.parquet``, ``cifar10-test.parquet``, ``camvid.zip`` and ``animals-val.parquet``. Each command is run
in WORK as it is written in the file, on one thread, and not again if its numbers are in the file already. So the steps can
be interrupted, and a run that is in WORK/runs is not trained again. ``tables`` prints what the documentation shows.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from daybreak.compare import NO_SHARES

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("mae", "simclr", "sit", "mmc", "gmml", "dino", "pseudo_mae", "mcssl", "hydra")
DENSE = ("mae", "simclr", "sit", "mmc")  # methods that are judged by masks
TWINS = {  # of Hydra: other pairs, no gate
    "supcon": " --set method.pairs=identical --set method.gated=false",
    "forced": " --set method.pairs=arbitrary --set method.gated=false",
}
ONE = "mae"  # the backbone that every protocol is shown of
SUBSET = "--train train-10k.parquet --test test-2k.parquet"
CAMVID = "--train camvid.zip --test camvid.zip --protocol segment-v1 --protocol patch-prompt-v1 --void 11"
POOLED = ("knn-v1", "linear-v1", "logistic-v1", "fewshot-v1", "nearest-mean-v1", "retrieval-v1", "rank-v1")
SHOWN = {  # protocol: the metrics of the table
    "knn": ("accuracy", "accuracy (standardised)"), "linear": ("accuracy",), "logistic": ("accuracy",),
    "fewshot": ("accuracy (1 a class)", "accuracy (16 a class)", "accuracy (1% of the labels)", "accuracy (10% of the labels)"),
    "nearest-mean": ("accuracy", "average incremental accuracy (5 tasks)", "forgetting (5 tasks)"),
    "retrieval": ("recall@1", "recall@10", "mAP"), "rank": ("rankme", "LiDAR", "alignment", "uniformity", "spread"),
    "ood": ("AUROC (nearest instance)", "AUROC (kNN)", "AUROC (Mahalanobis)", "AUROC (MSP)", "FPR95 (kNN)"),
    "multilabel": ("mean AUC", "mean average precision"), "segment": ("mIoU", "pixel accuracy"),
    "patch-prompt": ("mIoU", "overlap", "AUROC"), "disentangle": ("MIG", "DCI disentanglement"), "finetune": (),
}


def pretraining(name: str, more: str = "", out: str = "") -> str:
    """A run of a method that is compared with others; ``out`` names it, the method if it is empty."""
    return (f"daybreak pretrain train-10k.parquet --val test-2k.parquet --recipe recipes/{name}_micro_cifar10.toml{more} "
            f"--minutes 6 --seed 0 --on-collapse warn --no-pictures --out runs/{out or name}-10k")


def untrained() -> str:
    """The network of ``ONE`` as it starts."""
    return (f"daybreak pretrain train-10k.parquet --val test-2k.parquet --recipe recipes/{ONE}_micro_cifar10.toml --images 128 "
            "--set training.learning_rate=0.0 --set training.final_learning_rate=0.0 --seed 0 "
            "--no-pictures --out runs/random")


def evaluating(run: str, what: str) -> str:
    return f"daybreak evaluate runs/{run} {what} --seed 0"


def commands(step: str, only: str) -> list[str]:
    """The commands of a step, in order; ``only`` is a part of those wanted."""
    found: dict[str, Iterable[str]] = {
        "pretrain": [pretraining(name) for name in METHODS],
        "hydra": [pretraining("hydra", more, f"hydra-{out}") for out, more in TWINS.items()],
        "protocols": [untrained(), *(evaluating(run, what) for what in (
            *(f"{SUBSET} --protocol {name}" for name in POOLED),
            f"{SUBSET} --protocol ood-v1 --ood animals-val.parquet",
            "--train camvid.zip --test camvid.zip --protocol multilabel-v1 --void 11",
            "--train dsprites:500:1 --test dsprites:500:2 --protocol disentangle-v1") for run in (f"{ONE}-10k", "random"))],
        "masks": [evaluating(f"{name}-10k", CAMVID) for name in DENSE],
        "finetune": [evaluating(f"{name}-10k", f"{SUBSET} --protocol finetune-v1 --share 0.01 --share 0.1 --set finetune.epochs=20"
                                + ("" if name == ONE else " --set finetune.scratch=false")) for name in METHODS],
    }
    return [line for line in found[step] if only in line]


def lay_out(data: Path, work: Path) -> None:
    """Links to the images and recipes, and the smaller tables made of them."""
    (work / "runs").mkdir(parents=True, exist_ok=True)
    for path in (*data.glob("*.parquet"), *data.glob("*.zip"), ROOT / "recipes"):
        if not (work / path.name).exists():
            (work / path.name).symlink_to(path.resolve())
    for out, source, rows in (("train-10k", "train", 10_000), ("test-2k", "test", 2_000)):
        if not (work / f"{out}.parquet").exists():
            pq.write_table(pq.read_table(work / f"cifar10-{source}.parquet").slice(0, rows), work / f"{out}.parquet")


def measure(line: str, work: Path) -> dict[str, Any]:
    """Run a command in WORK on one thread, unless it is a pretraining that is there, and read its numbers."""
    words = shlex.split(line)
    is_training = words[1] == "pretrain"
    folder = work / (words[words.index("--out") + 1] if is_training else words[2])
    file = folder / ("results.json" if is_training else "evaluations.json")
    start = time.perf_counter()
    if not is_training:
        file.unlink(missing_ok=True)  # so that what it holds afterwards is of this command
    if not file.exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with (work / "log.txt").open("a") as log:
            print(f"\n$ {line}", file=log, flush=True)
            ended = subprocess.run([sys.executable, "-m", *words], cwd=work, env=environment, stdout=log,
                                   stderr=subprocess.STDOUT, check=False)
        if ended.returncode:
            raise SystemExit(f"{line}\nended with {ended.returncode}; see {work / 'log.txt'}")
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"commit": commit(), "seed": 0, "numbers": [
        {key: row[key] for key in ("protocol", "version", "metric", "backbone", "value", "error", "num_train", "num_test", "width",
                                   "settings")} for row in json.loads(file.read_text())]}
    if not is_training:
        return found | {"seconds": seconds}
    trained = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return found | {"images_seen": max(row["images"] for row in trained if "images" in row),
                    "alarms": [row["sentence"] for row in trained if row["kind"] == "alarm"]}


def written(record: dict) -> str:
    """The file: JSON with a line for each number."""
    whole = json.dumps(record, indent=1) + "\n"
    return re.sub(r'\{\s+"protocol".*?\}', lambda row: json.dumps(json.loads(row[0])), whole, flags=re.S)


def commit() -> str:
    """The last commit that changed what is run."""
    return subprocess.run(["git", "log", "-1", "--format=%h", "--", "src", "recipes"], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip()


def number(record: dict, line: str, protocol: str, metric: str, backbone: str = "trained") -> str:
    """A number with its error as the tables show it; "" where the command gave none."""
    rows = record["measured"].get(line, {"numbers": []})["numbers"]
    row = next((r for r in rows if (r["protocol"], r["metric"], r["backbone"]) == (protocol, metric, backbone)), None)
    if row is None:
        return ""
    scale, digits = (1, 2) if plain(protocol, metric) else (100, 1)
    error = "" if row["error"] is None else f" ± {scale * row['error']:.{digits}f}"
    return f"{scale * row['value']:.{digits}f}{error}"


def plain(protocol: str, metric: str) -> bool:
    """Whether a number is no share, which is shown in per cent."""
    return protocol in ("rank", "disentangle") or metric.startswith(NO_SHARES)


def methods_table(record: dict) -> str:
    rows = ["| method | images seen | kNN | random weights | linear | random weights |",
            "| --- | --- | --- | --- | --- | --- |"]
    for name in METHODS:
        if (line := pretraining(name)) in record["measured"]:
            cells = [number(record, line, protocol, "accuracy", backbone) for protocol in ("knn", "linear")
                     for backbone in ("trained", "random")]
            seen = f"{record['measured'][line]['images_seen']:,}"
            rows.append(f"| `{name}` | {seen} | {' | '.join(cells)} |")
    return "\n".join(rows)


def protocols_table(record: dict) -> str:
    """Every protocol on one backbone, and on the same network as it starts; seconds are those of the first that was measured."""
    rows = ["| protocol | number | trained | random weights | raw pixels | `daybreak evaluate runs/mae-10k ...` | seconds |",
            "| --- | --- | --- | --- | --- | --- | --- |"]
    for line in (line for step in ("protocols", "masks", "finetune") for line in commands(step, f"evaluate runs/{ONE}-10k ")):
        other = line.replace(f"runs/{ONE}-10k ", "runs/random ")
        if (measured := record["measured"].get(line) or record["measured"].get(other)) is None:
            continue
        last = [f"`{line.removeprefix(f'daybreak evaluate runs/{ONE}-10k').strip()}`", f"{measured['seconds']:.0f}"]
        for protocol, metric in shown(measured["numbers"]):
            beside = number(record, line, protocol, metric, "random") or number(record, other, protocol, metric)
            pixels = number(record, line, protocol, metric, "pixels") or number(record, untrained(), protocol, metric, "pixels")
            cells = [f"`{protocol}-v1`", metric, number(record, line, protocol, metric), beside, pixels, *last]
            rows.append(f"| {' | '.join(cells)} |")
            last = ["", ""]
    return "\n".join(rows)


def shown(numbers: list[dict]) -> list[tuple[str, str]]:
    """Protocol and metric of the numbers that the table shows, in its order; all of protocols that name none."""
    held = dict.fromkeys((row["protocol"], row["metric"]) for row in numbers if row["backbone"] == "trained")
    return [key for key in held if not SHOWN[key[0]] or key[1] in SHOWN[key[0]]]


def masks_table(record: dict) -> str:
    """CamVid by masks: each backbone, and beside them what needs no training."""
    rows = ["| backbone | segment mIoU | pixel accuracy | prompt mIoU | less mean | overlap | less mean | AUROC | less mean |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    wanted = [("segment", "mIoU"), ("segment", "pixel accuracy"), *(("patch-prompt", f"{metric}{less}") for metric in (
        "mIoU", "overlap", "AUROC") for less in ("", ", less mean"))]
    done = [name for name in DENSE if evaluating(f"{name}-10k", CAMVID) in record["measured"]]
    beside = [("pixels", "raw pixels"), ("constant", "a constant")]
    own = [(name, *which) for name in done for which in (("trained", f"`{name}`"), ("random", f"`{name}`, as it starts"))]
    for name, backbone, said in [*own, *((done[0], *which) for which in beside if done)]:
        cells = [number(record, evaluating(f"{name}-10k", CAMVID), *key, backbone) for key in wanted]
        rows.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(rows)


def finetuning_table(record: dict) -> str:
    lines = [line for line in commands("finetune", "") if line in record["measured"]]
    metrics = list(dict.fromkeys(row["metric"] for line in lines for row in record["measured"][line]["numbers"]
                                 if row["metric"].startswith("accuracy")))
    rows = [f"| start | {' | '.join(metrics)} |", "| --- |" + " --- |" * len(metrics)]
    for line in lines:
        name = line.split()[2].removeprefix("runs/").removesuffix("-10k")
        rows.append(f"| `{name}` | {' | '.join(number(record, line, 'finetune', m) for m in metrics)} |")
        if any(row["backbone"] == "random" for row in record["measured"][line]["numbers"]):
            rows.append(f"| random weights | {' | '.join(number(record, line, 'finetune', m, 'random') for m in metrics)} |")
    return "\n".join(rows)


TABLES = {"methods": methods_table, "protocols": protocols_table, "masks": masks_table, "finetune": finetuning_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("pretrain", "hydra", "protocols", "masks", "finetune", "tables"))
    parser.add_argument("--only", default="", help="part of a command")
    parser.add_argument("--most", type=int, default=1000, help="commands run in this call")
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--work", type=Path, help="folder that commands are run in")
    parser.add_argument("--json", type=Path, required=True, help="file of numbers, which is added to")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"measured": {}}
    if arguments.step == "tables":
        print("\n\n".join(f"{name}\n{table(record)}" for name, table in TABLES.items()))
        return
    if not arguments.data or not arguments.work:
        parser.error("--data and --work are needed to measure")
    lay_out(arguments.data, arguments.work)
    record |= {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    left = [line for line in commands(arguments.step, arguments.only) if line not in record["measured"]]
    for line in left[: arguments.most]:
        record["measured"][line] = measure(line, arguments.work)
        arguments.json.write_text(written(record))
        print(f"{line}: {len(record['measured'][line]['numbers'])} numbers", flush=True)


if __name__ == "__main__":
    main()
