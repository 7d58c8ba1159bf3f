"""Anonymous memory of the loader over many epochs: it must not grow.

    python benchmarks/loader_memory.py --data FOLDER --json loader_memory.json

The views are multi-crop, 2 x 224 and 8 x 96.  After each epoch RssAnon of /proc/self/status is read: memory that
is the process's own, without mapped files, which the system takes back as it likes.  Reported are the
median of the first tenth of the epochs after the first, in which all that is used again is made, that of the last
tenth, and the growth from one to the other, which may be 1 % and no more.  Linux only.
"""

import argparse
import contextlib
import json
import platform
import re
import statistics
import sys
import time
from pathlib import Path

from daybreak.data.images import open_images
from daybreak.data.loader import Loader
from daybreak.data.views import View

VIEWS = [View(size=224, scale=(0.25, 1), count=2), View(size=96, scale=(0.05, 0.25), count=8)]
MOST = 0.01  # growth, as a share


def anonymous() -> int:
    """Bytes of anonymous memory that this process holds."""
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or archive of images")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=20, help="images in a batch")
    parser.add_argument("--threads", type=int, help="of the loader")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("RssAnon is Linux's; run it there")
    images, found, start = open_images(options.data), [], time.perf_counter()
    with contextlib.closing(Loader(images, VIEWS, options.batch, seed=0, threads=options.threads)) as loader:
        for epoch in range(options.epochs):
            for _ in range(loader.steps_per_epoch):
                next(loader)
            found.append(anonymous())
            if epoch % max(1, options.epochs // 10) == 0:
                print(f"epoch {epoch + 1:4}: {found[-1] / 2**20:.1f} MiB", flush=True)
        threads = loader.threads
    tenth = max(1, options.epochs // 10)
    first, last = statistics.median(found[1 : 1 + tenth]), statistics.median(found[-tenth:])
    growth = last / first - 1
    print(f"{first / 2**20:.1f} MiB at first, {last / 2**20:.1f} MiB at last: {growth:+.2%} over {options.epochs} epochs")
    if options.json:
        record = {"machine": platform.processor() or platform.machine(), "images": len(images), "epochs": options.epochs,
                  "batch": options.batch, "threads": threads, "seconds": round(time.perf_counter() - start, 1),
                  "first_bytes": first, "last_bytes": last, "growth": growth, "anonymous_bytes": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if growth > MOST:
        sys.exit(f"anonymous memory grew by {growth:.1%}; {MOST:.0%} is the most")


if __name__ == "__main__":
    main()
