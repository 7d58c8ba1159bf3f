"""What methods and protocols measure on CIFAR-10 and CamVid: commands, run one by one, and their numbers in one file.

    python benchmarks/cifar10.py STEP --data DATA --work WORK --json benchmarks/results/cifar10_cpu.json
    python benchmarks/cifar10.py tables --json benchmarks/results/cifar10_cpu.json

STEP is pretrain, hydra, protocols, masks, finetune, core or few (see ``STEPS``). DATA holds ``cifar10-train.parquet``,
``cifar10-test.parquet``, ``camvid.zip`` and ``animals-val.parquet``. ``tables`` prints what the documentation shows.
"""

from pathlib import Path

import pyarrow.parquet as pq
from measured import main, number, spread, value_of

METHODS = ("mae", "simclr", "sit", "mmc", "gmml", "dino", "pseudo_mae", "mcssl", "hydra")
CORE = ("mae", "gmml", "mmc", "mcssl", "pseudo_mae", "sit", "simclr", "dino")
DENSE = ("mae", "simclr", "sit", "mmc")  # methods that are judged by masks
TWINS = {  # Hydra, and others without its gate: pairs of one class (supervised contrast), and pairs of any two
    "hydra": "", "supcon": " --set method.pairs=identical --set method.gated=false",
    "forced": " --set method.pairs=arbitrary --set method.gated=false",
}
ONE = "mae"  # the backbone that every protocol is shown of
SUBSET = "--train train-10k.parquet --test test-2k.parquet"
FINETUNE = f"{SUBSET} --protocol finetune-v1 --share 0.01 --share 0.1 --set finetune.epochs=20"
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


def pretraining(name: str) -> str:
    """A run of a method that is compared with others."""
    return (f"daybreak pretrain train-10k.parquet --val test-2k.parquet --recipe recipes/{name}_micro_cifar10.toml "
            f"--minutes 6 --seed 0 --on-collapse warn --no-pictures --out runs/{name}-10k")


def untrained() -> str:
    """The network of ``ONE`` as it starts."""
    return (f"daybreak pretrain train-10k.parquet --val test-2k.parquet --recipe recipes/{ONE}_micro_cifar10.toml --images 128 "
            "--set training.learning_rate=0.0 --set training.final_learning_rate=0.0 --seed 0 "
            "--no-pictures --out runs/random")


def evaluating(run: str, what: str) -> str:
    return f"daybreak evaluate runs/{run} {what} --seed 0"


def twin(name: str) -> str:
    """Hydra or one of its twins, with patches of 8 px, so that many images are seen."""
    return (f"daybreak pretrain train-10k.parquet --val test-2k.parquet --recipe recipes/hydra_micro_cifar10.toml{TWINS[name]} "
            "--set encoder.patch_size=8 --minutes 8 --seed 0 --on-collapse warn --out runs/twin-" + name)


def few(seed: int) -> tuple[str, str]:
    """SiT on 4,000 images, and fine-tuned on the same, beside random weights."""
    run = f"runs/sit-4k-{seed}"
    return (f"daybreak pretrain train-4k.parquet --val test-2k.parquet --recipe recipes/sit_micro_cifar10.toml "
            f"--set encoder.patch_size=8 --minutes 4 --seed {seed} --on-collapse warn --no-pictures --out {run}",
            f"daybreak evaluate {run} --train train-4k.parquet --test test-2k.parquet --protocol finetune-v1 "
            "--set finetune.epochs=10 --set finetune.batch_size=64 --set finetune.mixup=0 --set finetune.cutmix=0 "
            f"--seed {seed}")


def core(name: str) -> tuple[str, str]:
    """A method with patches of 8 px, so that many images are seen, and its backbone fine-tuned; random weights beside ``ONE``."""
    scratch = "" if name == ONE else " --set finetune.scratch=false"
    return (f"daybreak pretrain train-10k.parquet --val test-2k.parquet --recipe recipes/{name}_micro_cifar10.toml "
            f"--set encoder.patch_size=8 --minutes 5 --seed 0 --on-collapse warn --no-pictures --out runs/core-{name}",
            evaluating(f"core-{name}", f"{FINETUNE}{scratch}"))


STEPS = {
    "pretrain": lambda: [pretraining(name) for name in METHODS],
    "hydra": lambda: [twin(name) for name in TWINS],
    "protocols": lambda: [untrained(), *(evaluating(run, what) for what in (
        *(f"{SUBSET} --protocol {name}" for name in POOLED),
        f"{SUBSET} --protocol ood-v1 --ood animals-val.parquet",
        "--train camvid.zip --test camvid.zip --protocol multilabel-v1 --void 11",
        "--train dsprites:500:1 --test dsprites:500:2 --protocol disentangle-v1") for run in (f"{ONE}-10k", "random"))],
    "masks": lambda: [evaluating(f"{name}-10k", CAMVID) for name in DENSE],
    "finetune": lambda: [evaluating(f"{ONE}-10k", FINETUNE)],
    "core": lambda: [line for name in CORE for line in core(name)],
    "few": lambda: [line for seed in range(3) for line in few(seed)],
}


def lay_out(data: Path, work: Path) -> None:
    """The smaller tables: the first rows, since the images come shuffled."""
    for out, source, rows in (("train-10k", "train", 10_000), ("train-4k", "train", 4_000), ("test-2k", "test", 2_000)):
        if not (work / f"{out}.parquet").exists():
            pq.write_table(pq.read_table(data / f"cifar10-{source}.parquet").slice(0, rows), work / f"{out}.parquet")


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
    lines = [line for step in ("protocols", "masks", "finetune") for line in STEPS[step]()]
    for line in (line for line in lines if f"evaluate runs/{ONE}-10k " in line):
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


def core_table(record: dict) -> str:
    """kNN, linear and fine-tuned accuracy of each method; last, the network trained from scratch on the same labels."""
    few = [("finetune", f"accuracy ({share}% of the labels)") for share in (1, 10)]
    rows = ["| method | images seen | kNN | random weights | linear | random weights | fine-tuned, 1 % | 10 % |",
            "| --- |" + " --- |" * 7]
    for name in CORE:
        trained, tuned = core(name)
        if trained in record["measured"]:
            cells = [number(record, trained, protocol, "accuracy", backbone) for protocol in ("knn", "linear")
                     for backbone in ("trained", "random")] + [number(record, tuned, *key) for key in few]
            rows.append(f"| `{name}` | {record['measured'][trained]['images_seen']:,} | {' | '.join(cells)} |")
    scratch = [number(record, core(ONE)[1], *key, "random") for key in few]
    return "\n".join([*rows, f"| from scratch | | | | | | {' | '.join(scratch)} |"])


def hydra_table(record: dict) -> str:
    rows = ["| | images seen | kNN | linear | RankMe |", "| --- | --- | --- | --- | --- |"]
    wanted = [("knn", "accuracy"), ("linear", "accuracy"), ("rank", "rankme")]
    for said, name, backbone in [*((name, name, "trained") for name in TWINS), ("random weights", "hydra", "random")]:
        if (line := twin(name)) in record["measured"]:
            seen = f"{record['measured'][line]['images_seen']:,}" if backbone == "trained" else ""
            rows.append(f"| {said} | {seen} | {' | '.join(number(record, line, *key, backbone) for key in wanted)} |")
    return "\n".join(rows)


def few_table(record: dict) -> str:
    """SiT on 4,000 images, then fine-tuned on them, against the same network from scratch: gain of each seed and their spread."""
    rows = ["| seed | pretrained by `sit` | from scratch | gain |", "| --- | --- | --- | --- |"]
    gains = []
    for seed in range(3):
        line = few(seed)[1]
        found = [value_of(record, line, "finetune", "accuracy", backbone) for backbone in ("trained", "random")]
        if found[0] and found[1]:
            gains.append(found[0] | {"value": found[0]["value"] - found[1]["value"]})
            cells = [number(record, line, "finetune", "accuracy", backbone) for backbone in ("trained", "random")]
            rows.append(f"| {seed} | {' | '.join(cells)} | {100 * gains[-1]['value']:.1f} |")
    return "\n".join([*rows, f"| mean, deviation | | | {spread(gains)} |"])


TABLES = {"methods": methods_table, "protocols": protocols_table, "masks": masks_table, "core": core_table,
          "hydra": hydra_table, "few": few_table}


if __name__ == "__main__":
    main(__doc__.splitlines()[0], STEPS, TABLES, lay_out)
