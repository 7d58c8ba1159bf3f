"""What the advice foretells beside what then happens: three changes, each made and measured.

    python benchmarks/advice.py --data FOLDER --json advice.json

The loader makes views of 224 px on half of the processors; a consumer as quick as copy and normalisation takes them, so the
loader is the limit.  From what a run measures (``train.timing``) and its trial (``data.trial``), the advice
foretells the gain of all processors' threads, of a pack of short side 256, and of one of raw pixels.  Then each
change is made: threads, or ``daybreak.pack``.  Before and after take turns; medians over the rounds.  A gain
that was foretold within a factor of 1.5 holds.

FOLDER may be small: images are loaded again and again, from warm files.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import daybreak
from daybreak.data.images import Images, open_images
from daybreak.data.loader import Loader
from daybreak.data.philox import Random
from daybreak.data.threads import processors
from daybreak.data.trial import try_packings
from daybreak.data.views import View, expand
from daybreak.train.advice import TRIAL_SECONDS, Pace, changes, sentence
from daybreak.train.loop import Window, on_device
from daybreak.train.timing import Meter, Spans

FACTOR = 1.5
UNTIMED = 6  # batches: more than the loader makes ahead, and the first touch of its memory


def run(images: Images, views: Sequence[View], threads: int, batch: int, batches: int) -> Pace:
    """Load and normalise some batches as training does; what was measured."""
    flat, spans = expand(views), Spans(torch.device("cpu"))
    with contextlib.closing(Loader(images, views, batch, seed=0, threads=threads, labels=False)) as loader:
        window, meter = Window(0), Meter(loader, spans, 0)
        for step in range(UNTIMED + batches):
            raw = next(loader)
            on_device(raw, flat, Random(0, raw.epoch, raw.index), images, spans)
            if step == UNTIMED - 1:
                window.close((step + 1) * batch, loader.waited)
                meter.close((step + 1) * batch)
        seen = (UNTIMED + batches) * batch
        (speed, waiting), costs = window.close(seen, loader.waited), meter.close(seen)
    assert costs is not None
    return Pace(waiting=waiting, speed=speed, costs=costs, threads=threads, processors=processors())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or archive of images")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch")
    parser.add_argument("--batches", type=int, default=12, help="timed batches in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="of the view, in pixels")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if processors() < 2:
        sys.exit("one processor: there are no more threads to foretell; run it on two or more")
    images, views, few = open_images(options.data), [View(size=options.size)], processors() // 2
    with tempfile.TemporaryDirectory() as temporary:
        # What a run would say comes first, before there is any pack.
        before = run(images, views, few, options.batch, options.batches)
        packings = try_packings(images, views, TRIAL_SECONDS, before.costs.thread)
        print(sentence(before, changes(before, packings, options.data)))
        foretold = {f"{few} to {processors()} threads": before.gain(processors())}
        cases = {f"{few} to {processors()} threads": (images, processors())}
        for packing in packings:
            name = f"packing to {packing.short_side} px, encoding {packing.encoding}"
            place = Path(temporary) / packing.encoding
            daybreak.pack(options.data, place, short_side=packing.short_side, encoding=packing.encoding)
            foretold[name], cases[name] = before.gain(few, packing), (open_images(place), few)
        speeds: dict[str, list[float]] = {"before": []} | {name: [] for name in cases}
        for _ in range(options.rounds):
            speeds["before"].append(run(images, views, few, options.batch, options.batches).speed)
            for name, (changed, threads) in cases.items():
                speeds[name].append(run(changed, views, threads, options.batch, options.batches).speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    results = []
    for name, gain in foretold.items():
        happened = medians[name] / medians["before"]
        factor = max(gain / happened, happened / gain)
        print(f"  {name:40} foretold {gain:5.2f}x, happened {happened:5.2f}x, apart by a factor of {factor:.2f}")
        results.append({"change": name, "foretold": gain, "happened": happened, "factor": factor,
                        "images_per_second": speeds[name]})
    if options.json:
        record = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "images": len(images),
                  "batch": options.batch, "size": options.size, "rounds": options.rounds, "measured": time.strftime("%Y-%m-%d"),
                  "before_images_per_second": speeds["before"], "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if any(result["factor"] > FACTOR for result in results):
        sys.exit(f"not all within a factor of {FACTOR}")


if __name__ == "__main__":
    main()
