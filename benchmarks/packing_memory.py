"""Memory that packing takes: what is anonymous (not mapped files) at few and at many distinct images.

    python benchmarks/packing_memory.py --records 1000000 --json packing_memory.json

Tiny raw images, no two alike, lie in an Arrow stream, so that what is measured is what grows with their number
and not their pixels.  Each size is packed in a process of its own, which reads RssAnon from /proc/self/status
every 20 ms; shown is the largest.  The aim: at 1,000,000 images at most 300 MB more than at 10,000.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa

FEW = 10_000
AIM_MB = 300
BATCH = 10_000
START = b"P5\n8 8\n255\n"


def generate(path: Path, records: int) -> None:
    """Write ``records`` distinct 8 x 8 images in 10 classes."""
    random = np.random.default_rng(0)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    form = pa.schema([("image", image), ("label", pa.int64())])
    with pa.ipc.new_stream(str(path), form) as writer:
        for start in range(0, records, BATCH):
            n = min(BATCH, records - start)
            pixels = random.integers(0, 256, (n, 64), np.uint8)
            pixels[:, :4] = np.arange(start, start + n, dtype=">u4").view(np.uint8).reshape(n, 4)  # a number of its own
            rows = [{"bytes": START + row.tobytes(), "path": None} for row in pixels]
            labels = pa.array(np.arange(start, start + n) % 10)
            writer.write_batch(pa.record_batch([pa.array(rows, image), labels], schema=form))


def anonymous() -> float:
    """Anonymous memory of this process in MB (of 1,000,000 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/self/status has no RssAnon; this needs Linux 4.5 or newer.")


class Peak:
    """The largest anonymous memory while it is watched."""

    def __init__(self):
        self.value, self.done = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.done.wait(0.02):
            self.value = max(self.value, anonymous())

    def __enter__(self) -> "Peak":
        self.value = anonymous()
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.done.set()
        self.thread.join()
        self.value = max(self.value, anonymous())


def measure(step: str, data: Path, out: Path) -> dict[str, float]:
    """Pack in this process, or open what is packed as a run does; return what that took."""
    from daybreak.data.encode import PackSettings
    from daybreak.data.images import open_images
    from daybreak.data.pack import write_pack
    from daybreak.data.sources import open_source

    if step == "read":
        before = anonymous()
        with Peak() as reading:
            images = open_images(out)
        return {"read": len(images), "before reading": before, "reading": reading.value}
    before = anonymous()
    with Peak() as opening:
        source = open_source(data)
    with Peak() as packing:
        packed = write_pack(source, out, PackSettings(), workers=2)
    return {"packed": packed.images, "before": before, "opening": opening.value, "packing": packing.value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000, help="the larger number of images")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        step, *paths = given.measure
        print(json.dumps(measure(step, *map(Path, paths))))
        return
    found = []
    for records in (FEW, given.records):
        told: dict[str, float] = {"records": records}
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder, "images.arrow"), Path(folder, "pack")
            generate(data, records)
            for step in ("pack", "read"):
                command = [sys.executable, __file__, "--measure", step, str(data), str(out)]
                told |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if told["packed"] != records or told["read"] != records:
            raise SystemExit(f"{told}: not all {records} images were packed and read")
        found.append(told)
        print(f"{records:>10,} images, MB of anonymous memory: "
              + ", ".join(f"{name} {told[name]:,.0f}" for name in ("before", "opening", "packing", "before reading", "reading")),
              flush=True)
    for name in ("opening", "packing", "reading"):
        print(f"{name}: {found[1][name] - found[0][name]:+,.0f} MB; the aim for packing: at most +{AIM_MB}")
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
