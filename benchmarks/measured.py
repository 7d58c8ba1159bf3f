"""What measurements by commands share: each command is run as it is written, and its numbers go into one file.

A command that is in the file already is not run again, and a pretraining that is in WORK/runs is not repeated, so a list of
commands can be interrupted. Each runs in WORK, on one thread.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from daybreak.compare import NO_SHARES

ROOT = Path(__file__).resolve().parents[1]


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
    found: dict[str, Any] = {"commit": commit(), "seed": int(words[words.index("--seed") + 1]), "numbers": [
        {key: row[key] for key in ("protocol", "version", "metric", "backbone", "value", "error", "num_train", "num_test", "width",
                                   "settings")} for row in json.loads(file.read_text())]}
    if not is_training:
        return found | {"seconds": seconds}
    trained = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return found | {"images_seen": max(row["images"] for row in trained if "images" in row),
                    "alarms": [row["sentence"] for row in trained if row["kind"] == "alarm"]} | (
                        curves(trained) if "--set watch.linear=true" in line else {})


def curves(trained: list[dict]) -> dict[str, list[dict]]:
    """Speed and loss at the lines that a run logs, and accuracies at its probes."""
    return {"steps": [{name: row[name] for name in ("images", "images_per_second", "loss")}
                      for row in trained if row["kind"] == "train"],
            "probes": [{name: row[name] for name in ("images", "knn_accuracy", "linear_accuracy", "linear_error")}
                       for row in trained if row["kind"] == "health"]}


def written(record: dict) -> str:
    """The file: JSON with a line for each number."""
    whole = json.dumps(record, indent=1) + "\n"
    return re.sub(r'\{\s+"(protocol|images)".*?\}', lambda row: json.dumps(json.loads(row[0])), whole, flags=re.S)


def commit() -> str:
    """The last commit that changed what is run."""
    return subprocess.run(["git", "log", "-1", "--format=%h", "--", "src", "recipes"], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip()


def value_of(record: dict, line: str, protocol: str, metric: str, backbone: str = "trained") -> dict | None:
    """A number of a command as it stands in the file; None where there is none."""
    rows = record["measured"].get(line, {"numbers": []})["numbers"]
    return next((r for r in rows if (r["protocol"], r["metric"], r["backbone"]) == (protocol, metric, backbone)), None)


def number(record: dict, line: str, protocol: str, metric: str, backbone: str = "trained") -> str:
    """A number with its error as the tables show it; "" where the command gave none."""
    row = value_of(record, line, protocol, metric, backbone)
    if row is None:
        return ""
    scale, digits = (1, 2) if plain(protocol, metric) else (100, 1)
    error = "" if row["error"] is None else f" ± {scale * row['error']:.{digits}f}"
    return f"{scale * row['value']:.{digits}f}{error}"


def spread(rows: Sequence[dict | None]) -> str:
    """Mean and standard deviation of shares over seeds, in per cent; "" of fewer than two."""
    found = [100 * row["value"] for row in rows if row is not None]
    return "" if len(found) < 2 else f"{statistics.mean(found):.1f}, {statistics.stdev(found):.1f}"


def plain(protocol: str, metric: str) -> bool:
    """Whether a number is no share, which is shown in per cent."""
    return protocol in ("rank", "disentangle") or metric.startswith(NO_SHARES)


def main(title: str, steps: Mapping[str, Callable[[], list[str]]], tables: Mapping[str, Callable[[dict], str]],
         lay_out: Callable[[Path, Path], None], others: Mapping[str, Callable[[Path, Path], None]] | None = None) -> None:
    """The command line of such a list: measure the commands of a step, or print the tables of what was measured.

    Args:
        steps: the commands of each, in order.
        lay_out: given DATA and WORK, puts into WORK what the commands name.
        others: steps that are no commands; each is given WORK, as it was laid out before, and the file.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("step", choices=(*steps, *(others or ()), "tables"))
    parser.add_argument("--only", default="", help="part of a command")
    parser.add_argument("--most", type=int, default=1000, help="commands run in this call")
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--work", type=Path, help="folder that commands are run in")
    parser.add_argument("--json", type=Path, required=True, help="file of numbers, which is added to")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"measured": {}}
    if arguments.step == "tables":
        print("\n\n".join(f"{name}\n{table(record)}" for name, table in tables.items()))
        return
    if others and arguments.step in others:
        others[arguments.step](arguments.work, arguments.json)
        return
    if not arguments.data or not arguments.work:
        parser.error("--data and --work are needed to measure")
    (arguments.work / "runs").mkdir(parents=True, exist_ok=True)
    for path in (*arguments.data.glob("*.parquet"), *arguments.data.glob("*.zip"), ROOT / "recipes"):
        if not (arguments.work / path.name).exists():
            (arguments.work / path.name).symlink_to(path.resolve())
    lay_out(arguments.data, arguments.work)
    record |= {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    left = [line for line in steps[arguments.step]() if arguments.only in line and line not in record["measured"]]
    for line in left[: arguments.most]:
        record["measured"][line] = measure(line, arguments.work)
        arguments.json.write_text(written(record))
        print(f"{line}: {len(record['measured'][line]['numbers'])} numbers", flush=True)
