"""Images a second from disk to normalised views in memory: this project beside its peers, and beside the ceiling.

    python benchmarks/data_loading.py --data FOLDER --json data_loading.json

FOLDER holds JPEGs (below class folders or not) or is a zip file of such a folder; links under other names make
a thousand of a few.  The work is the same for all: a random box of 20 to 100 % of the area, resized to 224 px,
flipped half the time, normalised, float32, in batches.  Boxes that grow are interpolated linearly, as the peers do it;
"ours, bicubic" is this project's default.  What this project does on the training's device is done
here too and counted.  Further tasks: the two views of SimCLR (with colour, grey and blur) and multi-crop
(2 x 224 and 8 x 96 from one decode).  The forms of the data:

- originals: the files as they are.
- JPEG 256: our pack of short side 256 (JPEG of quality 90), and for the peers the very same bytes: as files
  (ImageFolder, DALI, SPDL), in tars (WebDataset), in its own format (LitData).  FFCV encodes them once more
  itself, at the same quality.
- raw 256: our pack of raw pixels, and FFCV's.

The ceiling is a bare loop on as many threads that decodes JPEG 256 from memory, cuts the box and resizes: no
reading, no batches, no flip, no normalisation.

Everything takes turns on warm files, so that whatever else the machine does falls on all.  In a turn a loader
starts, makes a few batches that are not timed, which empties whatever it made ahead, then those that are; the
next one waits until the machine is quiet.  Threads are the same for all: processes where a loader has those.
Medians over the rounds are reported, the first round left out, and ratios between them.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import torch
from peers import INSTALL, Contestant, Setting, is_here

import daybreak
from daybreak.data.images import Images, open_images
from daybreak.data.sources import SUFFIXES
from daybreak.data.views import View

LINEAR: dict[str, Any] = {"size": 224, "interpolation": "bilinear"}  # as all peers interpolate
TASKS = {
    "view": (View(**LINEAR),),
    "simclr": (View(**LINEAR, color=(0.4, 0.4, 0.2, 0.1), color_order="random", gray=0.2, blur=0.5, count=2),),
    "multi-crop": (View(**LINEAR, scale=(0.25, 1), count=2), View(**LINEAR | {"size": 96}, scale=(0.05, 0.25), count=8)),
}
UNTIMED = 6  # batches: more than any of the loaders makes ahead


def gather(data: Path, place: Path, least: int) -> tuple[Path, dict[str, Any]]:
    """A folder of one class of at least ``least`` images, linked again and again from those of ``data``."""
    if data.suffix == ".zip":
        shutil.unpack_archive(data, place / "unpacked")
        data = place / "unpacked"
    files = sorted(file for file in data.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        sys.exit(f"{data}: no images; expected JPEG files")
    folder, rounds = place / "originals" / "all", -(-least // len(files))
    folder.mkdir(parents=True)
    for turn, (i, file) in itertools.product(range(rounds), enumerate(files)):
        new = folder / f"{turn:03d}-{i:06d}.jpg"
        try:
            os.link(file, new)
        except OSError:  # another disk
            shutil.copyfile(file, new)
    size = sum(file.stat().st_size for file in files) / len(files)
    return folder.parent, {"files": len(files), "times_each": rounds, "mean_bytes": round(size)}


def as_files(images: Images, folder: Path) -> Path:
    """The bytes of a pack as files of one class."""
    (folder / "all").mkdir(parents=True)
    for i in range(len(images)):
        (folder / "all" / f"{i:06d}.jpg").write_bytes(images.read(i).tobytes())
    return folder


def make(task: str, forms: dict[str, Images], folders: dict[str, Path], place: Path, setting: Setting
         ) -> tuple[list[Contestant], dict[str, str]]:
    """The loaders that take part, and why others that are installed can't; the first start processes, before there are threads."""
    jpegs = folders["JPEG 256"]
    makers: list[tuple[str, Callable[[], Contestant]]] = [
        ("torchvision", lambda: peers.image_folder(jpegs, "JPEG 256", setting)),
        ("nvidia.dali", lambda: peers.dali(jpegs, setting)),
    ]
    if task == "view":
        for name in ("webdataset", "litdata", "ffcv"):
            (place / name).mkdir()
        makers = [
            ("torchvision", lambda: peers.image_folder(folders["originals"], "originals", setting)),
            ("webdataset", lambda: peers.webdataset(jpegs, place / "webdataset", setting)),
            ("litdata", lambda: peers.litdata(jpegs, place / "litdata", setting)),
            *makers,
            ("spdl.io", lambda: peers.spdl(jpegs, setting)),
            ("ffcv", lambda: peers.ffcv(jpegs, place / "ffcv", "jpg", setting)),
            ("ffcv", lambda: peers.ffcv(jpegs, place / "ffcv", "raw", setting)),
        ]
    makers += [("daybreak", lambda form=form: peers.ours(forms[form], form, setting))
               for form in (forms if task == "view" else ["JPEG 256"])]
    if task == "view":
        cubic = replace(setting, views=tuple(replace(view, interpolation="bicubic") for view in setting.views))
        makers += [("daybreak", lambda form=form: peers.ours(forms[form], form, cubic, "ours, bicubic")) for form in forms]
    made, broken = [], {}
    for module, maker in makers:
        if not is_here(module):
            continue
        try:
            contestant = maker()
            check(contestant, setting)
            made.append(contestant)
        except Exception as error:  # an old peer beside new libraries fails in any way: it is named, and the others go on
            if module in ("daybreak", "torchvision"):
                raise
            broken[module] = f"{type(error).__name__}: {error}"
            print(f"{module} does not run here and is left out: {broken[module]}")
    return made, broken


def check(contestant: Contestant, setting: Setting) -> None:
    """Assert that a loader does the work: its kind, shapes, and the range of normalised images."""
    with contextlib.closing(contestant.start()) as batches:
        found = next(batches)
        for images, view in zip(found, setting.flat, strict=True):
            assert images.shape == (setting.batch, 3, view.height, view.width) and images.dtype == torch.float32, contestant.name
            assert -1 < images.mean() < 1 and 0.5 < images.std() < 2, (contestant.name, images.mean(), images.std())


def quiet(limit: float = 2.0) -> None:
    """Wait until the machine has little to do: what a loader makes ahead after its turn is not the next one's burden."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = busy()
        time.sleep(0.1)
        if before is None or busy() - before < 0.01:  # seconds of a processor
            return


def busy() -> float | None:
    """Seconds that this machine's processors have worked; None off Linux."""
    file = Path("/proc/stat")
    if not file.exists():
        return None
    user, nice, system, *_ = (int(word) for word in file.read_text().splitlines()[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def time_turns(contestants: list[Contestant], bare: Callable[[int], None], options: argparse.Namespace, batches: int
               ) -> dict[tuple[str, str], list[float]]:
    """Images a second, by loader and form: one number a round, after a round that is not measured."""
    found: dict[tuple[str, str], list[float]] = {(c.name, c.data): [] for c in contestants}
    found["ceiling", "JPEG 256"] = []
    count = batches * options.batch
    for turn in range(options.rounds + 1):
        for contestant in contestants:
            torch.set_num_threads(1)  # of the main one; more stand in the way of the loaders' own, and some peers set more
            with contextlib.closing(contestant.start()) as source:
                for _ in range(UNTIMED):
                    next(source)
                start = time.perf_counter()
                for _ in range(batches):
                    next(source)
                seconds = time.perf_counter() - start
            quiet()
            if turn:
                found[contestant.name, contestant.data].append(count / seconds)
        start = time.perf_counter()
        bare(count)
        if turn:
            found["ceiling", "JPEG 256"].append(count / (time.perf_counter() - start))
        quiet()
    return found


def claims(speeds: dict[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """The ratios that the project aims at, from medians: value and aim."""
    packed, raw = speeds["ours", "JPEG 256"], speeds["ours", "raw 256"]
    best = max(speed for (name, data), speed in speeds.items() if data == "JPEG 256" and not name.startswith(("ours", "ceiling")))
    return {
        "our pack / best peer on the same JPEGs": {"value": packed / best, "aim": 1.5, "least": 1.0},
        "our pack / ceiling": {"value": packed / speeds["ceiling", "JPEG 256"], "aim": 0.8},
        "our pack / ImageFolder on the originals": {"value": packed / speeds["ImageFolder", "originals"], "aim": 5.0},
        "our raw pack / best peer on JPEGs": {"value": raw / best, "aim": 2.5},
    }


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    packages = {"torch": "torch", "torchvision": "torchvision", "opencv": "opencv-python-headless", "pillow": "pillow",
                "webdataset": "webdataset", "litdata": "litdata", "dali": "nvidia-dali-cuda120", "spdl": "spdl", "ffcv": "ffcv"}
    versions = {}
    for name, package in packages.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(package)
    return {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "python": platform.python_version(), **versions}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder or zip file of JPEGs")
    add("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    add("--least", type=int, default=1000, help="images in the set; fewer are linked again under other names")
    add("--batch", type=int, default=32, help="images in a batch")
    add("--batches", type=int, default=10, help="timed batches in a turn; a third of it for tasks of several views")
    add("--rounds", type=int, default=5, help="turns of each, after one unmeasured")
    add("--threads", type=int, default=os.cpu_count(), help="threads or processes, the same for all")
    add("--json", type=Path, help="file for the numbers")
    return parser.parse_args()


def main() -> None:
    options = parse()
    missing = {name: line for name, line in INSTALL.items() if not is_here(name)}
    for name, line in missing.items():
        print(f"{name} is not installed and is left out: {line}")
    here = machine()
    print(", ".join(f"{key} {value}" for key, value in here.items()))
    results, ratios, broken = [], {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        originals, known = gather(options.data, place, options.least)
        forms = {"originals": open_images(originals)}
        for form, encoding in (("JPEG 256", "auto"), ("raw 256", "raw")):
            daybreak.pack(originals, place / encoding, short_side=256, encoding=encoding)
            forms[form] = open_images(place / encoding)
        folders = {"originals": originals, "JPEG 256": as_files(forms["JPEG 256"], place / "files")}
        known |= {"images": len(forms["originals"]), "mean_pixels": {
            form: round(float(images.sizes.prod(1).mean())) for form, images in forms.items()}}
        print(", ".join(f"{key} {value}" for key, value in known.items()))
        for task in options.tasks:
            setting = Setting(options.batch, options.threads, TASKS[task])
            contestants, failed = make(task, forms, folders, place, setting)
            broken |= failed
            batches = options.batches if task == "view" else max(2, options.batches // 3)
            found = time_turns(contestants, peers.ceiling(forms["JPEG 256"], setting), options, batches)
            speeds = {key: statistics.median(values) for key, values in found.items()}
            print(f"{task}, images a second (and as a share of our pack's)")
            for (name, data), speed in sorted(speeds.items(), key=lambda item: -item[1]):
                ratio = speed / speeds["ours", "JPEG 256"]
                print(f"  {name:13} {data:10} {speed:9.0f}   {ratio:5.2f}", flush=True)
                results.append({"task": task, "implementation": name, "data": data, "median_images_per_second": speed,
                                "ratio_to_our_pack": ratio, "images_per_second": found[name, data]})
            if task == "view":
                ratios = claims(speeds)
                for name, claim in ratios.items():
                    print(f"  {name}: {claim['value']:.2f} (aim {claim['aim']:g})")
    if options.json:
        setting_said = {key: getattr(options, key) for key in ("batch", "batches", "rounds", "threads")}
        record = {"machine": here, "setting": setting_said, "data": known, "not_installed": missing, "does_not_run": broken,
                  "claims": ratios, "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
