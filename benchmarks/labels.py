"""X-rays and street scenes of 96 px by their labels: DiCoM and LT-ViT against MAE and from scratch.

    python benchmarks/labels.py STEP --data DATA --work WORK --json benchmarks/results/labels_cpu.json
    python benchmarks/labels.py tables --json benchmarks/results/labels_cpu.json

STEP is xray or camvid. DATA holds ``xray-covid.zip`` (three classes, each a label here; divided by patient as in
docs/medical.md) and ``camvid.zip`` (a label for each class that covers 1 % of an image or more). One network is pretrained by
each method; fine-tuning and the training of label tokens are run with three seeds.
"""

import csv
import functools
import zipfile
import zlib
from pathlib import Path

import numpy as np
from measured import main, number, spread, value_of
from PIL import Image

SEEDS = (0, 1, 2)
SETS = {  # train, test, column of groups, epochs
    "xray": ("xray-train-labels.csv", "xray-test-labels.csv", " --group patient", 8),
    "camvid": ("camvid-train.csv", "camvid-test.csv", "", 10),
}
MINUTES = {"xray": {"mae": 4, "mcssl": 8}, "camvid": {"mae": 3, "mcssl": 6}}
RECIPES = {"mae": "mae_micro_cxr96", "mcssl": "dicom_micro_cxr96"}
FEW_IMAGES = {"mae": "", "mcssl": " --set training.batch_size=32"}  # more steps, since DiCoM sees few images in its minutes
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
COVERED = 0.01  # share of an image


def pretraining(data: str, name: str) -> str:
    train, test, group, _ = SETS[data]
    return (f"daybreak pretrain {train} --val {test}{group} --recipe recipes/{RECIPES[name]}.toml{FEW_IMAGES[name]} "
            f"--minutes {MINUTES[data][name]} --seed 0 --on-collapse warn --out runs/{data}-{name}")


def tuning(data: str, name: str, seed: int) -> str:
    """The whole network by the class token or mean; beside ``mae`` its random weights too."""
    train, test, group, epochs = SETS[data]
    scratch = "" if name == "mae" else " --set finetune.scratch=false"
    return (f"daybreak evaluate runs/{data}-{name} --train {train} --test {test}{group} --protocol finetune-v1 "
            f"--set finetune.epochs={epochs} --set finetune.batch_size=32 --set finetune.learning_rate=2e-3 "
            f"--set finetune.scale=0.5{scratch} --seed {seed}")


def label_tokens(data: str, start: str, seed: int) -> str:
    """LT-ViT, from the weights of ``mae`` or from random ones; the numbers at its end are those of its label tokens too."""
    train, test, group, epochs = SETS[data]
    init = f" --init runs/{data}-mae" if start == "mae" else ""
    return (f"daybreak pretrain {train} --val {test}{group} --method lt_vit --encoder vit_micro --image-size 96 "
            f"--set encoder.patch_size=16{init} --epochs {epochs} --set training.batch_size=32 "
            f"--set training.learning_rate=1e-3 --set training.learning_rate_rule=fixed --seed {seed} --on-collapse warn "
            f"--out runs/{data}-lt-{start}-{seed}")


def commands(data: str) -> list[str]:
    return [*(pretraining(data, name) for name in RECIPES), *(tuning(data, name, seed) for seed in SEEDS for name in RECIPES),
            *(label_tokens(data, start, seed) for seed in SEEDS for start in ("mae", "scratch"))]


def lay_out(data: Path, work: Path) -> None:
    """Images of both archives, and four lists with a column of 0 and 1 for each label."""
    for archive in ("xray-covid", "camvid"):
        if not (work / archive).exists():
            with zipfile.ZipFile(data / f"{archive}.zip") as held:
                held.extractall(work)
    if not (work / "xray-train-labels.csv").exists():
        list_xrays(work)
    if not (work / "camvid-train.csv").exists():
        list_scenes(work)


def list_xrays(work: Path) -> None:
    paths = sorted((work / "xray-covid").rglob("*.jpg"))
    classes = sorted({path.parent.name for path in paths})
    rows: dict[str, list] = {"train": [], "test": []}
    for path in paths:
        label, name = path.parent.name, path.name
        # 00001504_002.jpg is the third image of patient 1504; a figure of an article begins with the article's name
        patient = name[:10] if label == "Covid-19" else name.split("_")[0]
        split = "test" if zlib.crc32(patient.encode()) % 5 == 0 else "train"
        rows[split].append((path.relative_to(work), patient, *(int(label == which) for which in classes)))
    for split, found in rows.items():
        write(work / f"xray-{split}-labels.csv", [("path", "patient", *classes), *found])


def list_scenes(work: Path) -> None:
    for split, folder in (("train", "train"), ("test", "val")):
        rows = []
        for path in sorted((work / "camvid" / folder / "images").iterdir()):
            values = np.array(Image.open(path.parents[1] / "masks" / f"{path.stem}.png"))
            covered = [int((values == value).mean() >= COVERED) for value in range(len(CAMVID))]
            rows.append((path.relative_to(work), *covered))
        write(work / f"camvid-{split}.csv", [("path", *CAMVID), *rows])


def write(path: Path, rows: list) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def compared(data: str) -> list[tuple[str, list[str], str, str]]:
    """What is said of a row, its commands (one, or one a seed), and the protocol and backbone of its numbers."""
    start = {name: [pretraining(data, name)] for name in RECIPES}
    tuned = {name: [tuning(data, name, seed) for seed in SEEDS] for name in RECIPES}
    return [
        ("regression on raw pixels", start["mae"], "multilabel", "pixels"),
        ("regression on `mae`", start["mae"], "multilabel", "trained"),
        ("regression on its random weights", start["mae"], "multilabel", "random"),
        ("regression on DiCoM", start["mcssl"], "multilabel", "trained"),
        ("regression on its random weights", start["mcssl"], "multilabel", "random"),
        ("fine-tuned from `mae`", tuned["mae"], "finetune", "trained"),
        ("fine-tuned from DiCoM", tuned["mcssl"], "finetune", "trained"),
        ("trained from scratch", tuned["mae"], "finetune", "random"),
        ("LT-ViT from `mae`", [label_tokens(data, "mae", seed) for seed in SEEDS], "label-tokens", "trained"),
        ("LT-ViT from scratch", [label_tokens(data, "scratch", seed) for seed in SEEDS], "label-tokens", "trained"),
    ]


def results_table(record: dict) -> str:
    """Mean AUC over the labels: each seed with its error, then mean and standard deviation of the seeds."""
    rows = ["| | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean, deviation |", "| --- |" + " --- |" * (len(SEEDS) + 1)]
    for data in SETS:
        for said, lines, protocol, backbone in compared(data):
            cells = [number(record, line, protocol, "mean AUC", backbone) for line in lines]
            last = spread([value_of(record, line, protocol, "mean AUC", backbone) for line in lines])
            if any(cells):
                rows.append(f"| `{data}`: {said} | {' | '.join(cells + [''] * (len(SEEDS) - len(cells)))} | {last} |")
    return "\n".join(rows)


TABLES = {"results": results_table}

if __name__ == "__main__":
    main(__doc__.splitlines()[0], {data: functools.partial(commands, data) for data in SETS}, TABLES, lay_out)
