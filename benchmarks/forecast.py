"""What a plan foretells against what a run then takes: memory and speed, each in a process of its own.

    python benchmarks/forecast.py --data IMAGES [--rounds 3] [--json FILE]

The forecast tells memory from batches of at most a quarter of the real one and times a step of that; the run then makes many.
Forecast and run take turns, so that a machine whose speed wavers does so under both; shown are the medians over the rounds.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import time

CASES = [  # method, encoder, image size, batch
    ("mae", "vit_micro", 32, 256),
    ("simclr", "vit_micro", 32, 128),
    ("sit", "vit_micro", 32, 128),
    ("mae", "vit_small", 64, 128),
]
STEPS = 12


def prepared(data: str, method: str, encoder: str, size: int, batch: int):
    """What a run would begin with: method, images, configuration, one device."""
    from rich.console import Console

    from daybreak.runs import device_name, resolve
    from daybreak.verbs import make_fabric

    with contextlib.redirect_stdout(io.StringIO()):
        tree = {"data": {"path": data}, "method": {"name": method}, "encoder": {"name": encoder, "image_size": [size, size]},
                "training": {"batch_size": batch, "images": STEPS * batch}}
        _, split, config, made = resolve(Console(quiet=True), device_name(), tree)
    return made, split.train, config, make_fabric(device_name(), config.training.precision)


def foretell(case, data: str, queue) -> None:
    from daybreak.train.forecast import forecast

    start = time.perf_counter()
    found = forecast(*prepared(data, *case))
    queue.put((found.images_per_second, found.peak_bytes, found.tried, time.perf_counter() - start))


def measure(case, data: str, queue) -> None:
    """Whole steps at the real batch: images a second, and the peak of memory of the process."""
    from daybreak.data.loader import Loader
    from daybreak.train.forecast import Peak, step_of
    from daybreak.train.loop import prepare

    method, images, config, fabric = prepared(data, *case)
    module, optimizer = prepare(method, config.training, fabric)
    peak, times = Peak(fabric.device), []
    with contextlib.closing(Loader(images, method.views, case[3], seed=0, labels=False)) as loader:
        for _ in range(STEPS):
            start = time.perf_counter()
            step_of(module, method, optimizer, loader, images, config, fabric)
            times.append(time.perf_counter() - start)
    queue.put((case[3] / statistics.median(times[2:]), peak.read()))


def apart(function, case, data: str):
    """The result of a function in a fresh process, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=function, args=(case, data, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="turns of forecast and run")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        turns = [(*apart(foretell, case, arguments.data), *apart(measure, case, arguments.data)) for _ in range(arguments.rounds)]
        speed, seconds, real_speed = (statistics.median(turn[i] for turn in turns) for i in (0, 3, 4))
        memory, real_memory = (None if turns[0][i] is None else statistics.median(turn[i] for turn in turns) for i in (1, 5))
        tried, speeds = turns[0][2], [{"foretold": turn[0], "real": turn[4]} for turn in turns]
        rows.append({"method": case[0], "encoder": case[1], "image_size": case[2], "batch": case[3], "tried": tried,
                     "foretold_images_per_second": speed, "images_per_second": real_speed, "foretold_bytes": memory,
                     "bytes": real_memory, "seconds_with_start": seconds, "images_per_second_by_round": speeds})
        said = f"{memory / 2**20:,.0f} / {real_memory / 2**20:,.0f} MiB ({memory / real_memory - 1:+.0%})" if memory else "not told"
        print(f"{case[0]:8} {case[1]:10} {case[2]:3} px, batch {case[3]:4}: foretold / real {speed:,.0f} / {real_speed:,.0f} "
              f"images/s ({speed / real_speed - 1:+.0%}), memory {said}")
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
