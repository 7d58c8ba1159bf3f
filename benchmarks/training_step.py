"""One training step of MAE and SimCLR: this project beside lightly and plain timm.

    python benchmarks/training_step.py --json training_step.json

A step is forward, backward, AdamW and clearing the gradients, on views that are already augmented and on the
device: reading and augmentation are measured elsewhere.  It runs on the GPU if there is one.  The three do the
same work:

- ours: the method's module, called as ``daybreak.train.loop`` calls it (Fabric, our optimiser groups, the norm
  of the gradients that the loop records, the check for a finite loss on a CPU).
- lightly: its own blocks, put together as its examples do (``MaskedVisionTransformerTIMM``, ``random_token_mask``,
  ``MaskedVisionTransformerDecoderTIMM``; ``SimCLRProjectionHead``, ``NTXentLoss``), in a bare torch loop, which
  is quicker than the Trainer of its examples.
- timm: what a user of timm and torch would write by hand; MAE in the order of the paper's code.

Before anything is timed the peers get our weights, and the number of parameters that get a gradient, the loss
(to 1e-4 in fp32, 2e-2 in bf16) and the norm of the gradients (1e-3, 5e-2) must be equal.  For that first pass
the peers hide the patches that we hide; in the timed steps each draws its own, as many, since drawing is part
of the step.  What was adapted, all by public arguments:

- MAE: lightly's encoder owns a mask token that MAE never uses; it is given one that does not learn.  The target
  is normalised by lightly's ``normalize_mean_var``, since its example regresses raw pixels.
- SimCLR: both views pass the network together, as in lightly's ImageNet benchmark; its short example takes one
  after the other, which is another batch normalisation and so another loss.  The offset of the last batch
  normalisation, which ours does not have, stays at zero.
- Peers' ViTs are made for one image size (no ``dynamic_img_size``), as is usual; ours take any.

They take turns, so that whatever else the machine does falls on all; medians over the rounds are reported, and
the ratio of each peer's median to ours: above 1, ours is faster.  Peak memory is what weights, optimiser and
steps add in a fresh process for each: allocated on a GPU, resident on a CPU (Linux).  fp32 on a GPU is torch's
default, without TF32.

B images, N patches, K kept, D encoder width, E decoder or projection width, P pixels of a patch.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities import move_data_to_device
from timm.models.vision_transformer import Block
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

from daybreak.config import Training
from daybreak.data.batch import Batch
from daybreak.data.philox import Random
from daybreak.data.views import expand
from daybreak.methods.base import Method, Step, find
from daybreak.nn.encoder import Encoder, sincos_positions
from daybreak.nn.masking import random_mask
from daybreak.train.loop import backward, plain_attention
from daybreak.train.optim import clip, make_optimizer, peak_rate
from daybreak.train.plan import SMALL

if HAS_LIGHTLY := importlib.util.find_spec("lightly") is not None:
    from lightly.loss import NTXentLoss
    from lightly.models import utils
    from lightly.models.modules import (
        MaskedVisionTransformerDecoderTIMM,
        MaskedVisionTransformerTIMM,
        SimCLRProjectionHead,
    )

FABRIC = {"fp32": "32-true", "bf16": "bf16-mixed"}
TOLERANCE = {"fp32": {"parameters": 0.0, "loss": 1e-4, "gradient_norm": 1e-3},
             "bf16": {"parameters": 0.0, "loss": 2e-2, "gradient_norm": 5e-2}}


def timm_vit(encoder: Encoder) -> nn.Module:
    """timm's own model of our encoder's shape, for one image size."""
    arguments = {k: v for k, v in encoder.arguments.items() if k != "dynamic_img_size"}
    return timm.create_model(encoder.timm_name, num_classes=0, **arguments)


class LightlyMAE(nn.Module):
    def __init__(self, ours: Method):
        super().__init__()
        vit, width = timm_vit(ours.encoder), ours.decoder.embed.out_features
        unused = nn.Parameter(torch.zeros(1, 1, vit.embed_dim), requires_grad=False)
        self.mask_ratio, self.patch = ours.config.mask_ratio, ours.encoder.patch
        self.backbone = MaskedVisionTransformerTIMM(vit, mask_token=unused)
        self.decoder_embed = nn.Linear(vit.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            embed_dim=width,
            depth=len(ours.decoder.blocks),
            num_heads=ours.decoder.blocks[0].attn.num_heads,
            num_prefix_tokens=vit.num_prefix_tokens,
        )
        self.prediction_head = nn.Linear(width, ours.decoder.predict.out_features)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        size = (len(images), self.backbone.sequence_length)
        if keep is None:
            kept, masked = utils.random_token_mask(size, mask_ratio=self.mask_ratio, device=images.device)
        else:  # its indices count the class token
            hidden = torch.ones(size, device=images.device).scatter(1, keep + 1, 0.0)[:, 1:].bool()
            masked = hidden.nonzero()[:, 1].view(len(images), -1) + 1
            kept = F.pad(keep + 1, (1, 0))
        x = self.decoder_embed(self.backbone.encode(images, idx_keep=kept))  # (B, 1 + K, E)
        everywhere = utils.set_at_index(x.new_zeros(*size, x.shape[-1]), kept, x)
        x = utils.get_at_index(self.decoder(everywhere, idx_mask=masked), masked)  # (B, N - K, E)
        target = utils.get_at_index(utils.patchify(images, self.patch), masked - 1)  # (B, N - K, P)
        return F.mse_loss(self.prediction_head(x), utils.normalize_mean_var(target))

class LightlySimCLR(nn.Module):
    def __init__(self, ours: Method):
        super().__init__()
        self.backbone = timm_vit(ours.encoder)
        self.projection_head = SimCLRProjectionHead(ours.encoder.dim, ours.config.hidden, ours.config.output)
        self.projection_head.layers[-1].bias.requires_grad_(False)
        self.criterion = NTXentLoss(temperature=ours.config.temperature)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        features = self.backbone(torch.cat([one, two])).flatten(start_dim=1)  # (2B, D)
        return self.criterion(*self.projection_head(features).chunk(2))

class TimmMAE(nn.Module):
    def __init__(self, ours: Method):
        super().__init__()
        self.vit, width = timm_vit(ours.encoder), ours.decoder.embed.out_features
        self.vit.pos_embed.requires_grad_(False)
        self.mask_ratio, self.patch = ours.config.mask_ratio, ours.encoder.patch
        self.embed = nn.Linear(self.vit.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = F.pad(sincos_positions(width, *self.vit.patch_embed.grid_size), (0, 0, 1, 0))
        self.register_buffer("positions", positions[None])  # (1, 1 + N, E)
        self.blocks = nn.Sequential(*(Block(width, b.attn.num_heads, qkv_bias=True) for b in ours.decoder.blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.paint = nn.Linear(width, ours.decoder.predict.out_features)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        vit = self.vit
        x = vit.patch_embed(images) + vit.pos_embed[:, 1:]  # (B, N, D)
        batch, patches, _ = x.shape
        noise = torch.rand(batch, patches, device=x.device)
        if keep is not None:
            noise.scatter_(1, keep, -1.0)
        order = noise.argsort(dim=1)
        restore, num_kept = order.argsort(dim=1), int(patches * (1 - self.mask_ratio))
        x = x.gather(1, order[:, :num_kept, None].expand(-1, -1, x.shape[-1]))  # (B, K, D)
        x = torch.cat([(vit.cls_token + vit.pos_embed[:, :1]).expand(batch, -1, -1), x], dim=1)
        x = self.embed(vit.norm(vit.blocks(x)))  # (B, 1 + K, E)
        everywhere = torch.cat([x[:, 1:], self.mask_token.expand(batch, patches - num_kept, -1)], dim=1)
        everywhere = everywhere.gather(1, restore[:, :, None].expand(-1, -1, x.shape[-1]))  # (B, N, E)
        x = torch.cat([x[:, :1], everywhere], dim=1) + self.positions
        x = self.paint(self.norm(self.blocks(x)))[:, 1:]  # (B, N, P)
        side, p = images.shape[-1] // self.patch, self.patch
        target = images.reshape(batch, -1, side, p, side, p).permute(0, 2, 4, 3, 5, 1)
        target = target.reshape(batch, patches, -1)  # (B, N, P)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = (restore >= num_kept).float()  # (B, N)
        return ((x - target).square().mean(-1) * hidden).sum() / hidden.sum()


class TimmSimCLR(nn.Module):
    def __init__(self, ours: Method):
        super().__init__()
        dim, hidden, output = ours.encoder.dim, ours.config.hidden, ours.config.output
        self.vit, self.temperature = timm_vit(ours.encoder), ours.config.temperature
        self.head = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, output, bias=False), nn.BatchNorm1d(output),
        )
        self.head[-1].bias.requires_grad_(False)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        z = F.normalize(self.head(self.vit(torch.cat([one, two]))), dim=1)  # (2B, E)
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / self.temperature).masked_fill(own, float("-inf"))  # (2B, 2B)
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(one)))


# By library and method: its module, and where our weights go: the beginnings of names, ours to theirs.
PEERS: dict[tuple[str, str], tuple[type[nn.Module], dict[str, str]]] = {
    ("timm", "mae"): (TimmMAE, {"encoder.model.": "vit.", "decoder.predict.": "paint.", "decoder.": ""}),
    ("timm", "simclr"): (TimmSimCLR, {"encoder.model.": "vit."}),
    ("lightly", "simclr"): (LightlySimCLR, {"encoder.model.": "backbone.", "head.": "projection_head.layers."}),
    ("lightly", "mae"): (LightlyMAE, {
        "encoder.model.": "backbone.vit.", "decoder.embed.": "decoder_embed.", "decoder.predict.": "prediction_head.",
    }),
}


@dataclass
class Contestant:
    """One implementation of the step."""

    module: nn.Module
    first: Callable[[], Tensor]  # forward and backward with the mask that all share; gives the loss
    step: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all implementations have in common."""

    method: str
    precision: str
    encoder: str
    size: int
    batch: int
    device: str
    seed: int

    def settings(self, part: str) -> dict[str, Any]:
        """What the method changes of its defaults ("method" or "training") for images of this size."""
        return dict(find(self.method).small.get(part, {})) if self.size <= SMALL else {}

    @property
    def training(self) -> Training:
        here = {"batch_size": self.batch, "precision": FABRIC[self.precision]}
        return replace(find(self.method).recipe, **(self.settings("training") | here))

    def make_method(self) -> Method:
        cls = find(self.method)
        torch.manual_seed(self.seed)
        encoder = Encoder(self.encoder, image_size=(self.size, self.size), pool=cls.pool, init=cls.init,
                          positions=cls.positions)
        return cls(encoder, cls.Config(**self.settings("method")))

    def make_batch(self, method: Method) -> Batch:
        """Normalised noise for each view: what is seen does not matter to the time."""
        random, num_views = torch.Generator().manual_seed(self.seed), len(expand(method.views))
        shape = (self.batch, method.encoder.channels, self.size, self.size)
        batch = Batch(images=[torch.randn(shape, generator=random) for _ in range(num_views)],
                      boxes=torch.zeros(num_views, self.batch, 4), labels=None, epoch=0,
                      flips=torch.zeros(num_views, self.batch, dtype=torch.bool),
                      index=torch.arange(self.batch), sizes=torch.full((self.batch, 2), self.size))
        return move_data_to_device(batch, self.device)

    def make_ours(self, method: Method, batch: Batch) -> Contestant:
        training = self.training
        fabric = Fabric(accelerator=self.device, devices=1, precision=training.precision)
        if self.device == "cpu" and training.precision == "bf16-mixed":
            plain_attention(method)  # as the loop does
        module, optimizer = fabric.setup(method, make_optimizer(method, training))
        here = Step(0.5, 0, Random(self.seed, batch.epoch, batch.index))

        def step() -> None:
            loss, _ = backward(module, batch, here, fabric, 1)
            if self.device == "cpu" and not torch.isfinite(loss):
                raise FloatingPointError(f"our loss became {float(loss)}")
            method.before_update(here)
            clip(method, training.clip, training.clip_mode)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(here)

        return Contestant(method, lambda: backward(module, batch, here, fabric, 1)[0], step)

    def make_peer(self, library: str, method: Method, batch: Batch) -> Contestant:
        """The same in another library, with the weights of ``method``."""
        kind, names = PEERS[library, self.method]
        module = kind(method)
        copy_weights(method, module, names)
        module.to(self.device).train()
        training = self.training
        adam = {"lr": peak_rate(training), "weight_decay": training.weight_decay, "betas": training.betas}
        if library == "lightly":
            decayed, spared = utils.get_weight_decay_parameters([module])
            optimizer = torch.optim.AdamW([{"params": decayed}, {"params": spared, "weight_decay": 0.0}], **adam)
        else:
            optimizer = create_optimizer_v2(module, "adamw", **adam)

        def passes(*keep: Tensor) -> Tensor:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = module(*batch.images, *keep)
            loss.backward()
            return loss.detach()

        def step() -> None:
            passes()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return Contestant(module, lambda: passes(*self.our_mask(method, batch)), step)

    def our_mask(self, method: Method, batch: Batch) -> tuple[Tensor, ...]:
        """The (B, K) patches that our MAE keeps; nothing for SimCLR."""
        if self.method != "mae":
            return ()
        height, width = method.encoder.grid(self.size, self.size)
        noise = Random(self.seed, batch.epoch, batch.index)("mask", (self.batch, height * width))
        return (random_mask(noise, method.config.mask_ratio).keep,)


def copy_weights(ours: Method, peer: nn.Module, names: dict[str, str]) -> None:
    """Load our weights into ``peer``; ``names`` maps the beginnings of names."""
    state = {}
    for name, value in ours.state_dict().items():
        start = next((s for s in names if name.startswith(s)), "")
        state[names.get(start, "") + name.removeprefix(start)] = value
    homeless = peer.load_state_dict(state, strict=False).unexpected_keys
    if homeless:
        raise AssertionError(f"{type(peer).__name__} has no place for our {', '.join(homeless)}")


def check(contestants: dict[str, Contestant], precision: str) -> dict[str, dict[str, float]]:
    """Assert that all do the same work.

    Returns:
        By implementation: parameters that got a gradient, loss, norm of the gradients.
    """
    found: dict[str, dict[str, float]] = {}
    for name, contestant in contestants.items():
        loss = contestant.first()
        gradients = [p.grad for p in contestant.module.parameters() if p.grad is not None]
        norm = torch.stack([g.float().norm() for g in gradients]).norm()
        found[name] = {"parameters": sum(g.numel() for g in gradients), "loss": float(loss),
                       "gradient_norm": float(norm)}
        contestant.module.zero_grad(set_to_none=True)
    for what, tolerance in TOLERANCE[precision].items():
        for name in contestants:
            theirs, ours = found[name][what], found["ours"][what]
            if not abs(theirs - ours) <= tolerance * abs(ours):
                raise AssertionError(f"{what}: {theirs:.8g} in {name}, {ours:.8g} in ours ({precision})")
    return found


def time_steps(contestants: dict[str, Contestant], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step, by implementation: one number a round, after a round that is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            wait()
            start = time.perf_counter()
            for _ in range(steps):
                contestant.step()
            wait()
            if turn:
                seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (the peak) of this process.

    Not ``ru_maxrss``: on Linux that of a new process starts at the peak of the one that started it.
    """
    return 1024 * int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def peak_memory(task: Task, name: str) -> int | None:
    """Bytes that building one implementation and stepping adds to this process; None off Linux on a CPU."""
    if task.device == "cpu" and sys.platform != "linux":
        return None
    model = task.make_method()  # kept to the end, so that no implementation can reuse its memory
    batch = task.make_batch(model)
    before = torch.cuda.memory_allocated() if task.device == "cuda" else resident("VmRSS")
    ours = name == "ours"
    contestant = task.make_ours(task.make_method(), batch) if ours else task.make_peer(name, model, batch)
    for _ in range(3):  # the optimiser's state comes with the first
        contestant.step()
    return (torch.cuda.max_memory_allocated() if task.device == "cuda" else resident("VmHWM")) - before


def peak_memory_apart(task: Task, name: str, threads: int) -> int | None:
    """``peak_memory`` in a fresh process."""
    flags = {"methods": task.method, "precision": task.precision, "encoder": task.encoder, "size": task.size,
             "batch": task.batch, "seed": task.seed, "threads": threads, "one": name}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    packages = ["torch", "timm", "lightning", *(["lightly"] if HAS_LIGHTLY else [])]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def compare(task: Task, names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one method at one precision and print it; a dictionary for each implementation."""
    memory = {name: peak_memory_apart(task, name, options.threads) for name in names}
    method = task.make_method().to(task.device)
    batch = task.make_batch(method)
    peers = {name: task.make_peer(name, method, batch) for name in names if name != "ours"}
    contestants = {"ours": task.make_ours(method, batch)} | peers
    work = check(contestants, task.precision)
    seconds = time_steps(contestants, options.rounds, options.steps)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    loss, parameters = work["ours"]["loss"], work["ours"]["parameters"]
    print(f"{task.method}, {task.precision}: loss {loss:.5f}, {parameters:,} trained parameters in each")
    results = []
    for name in names:
        ratio, peak = medians[name] / medians["ours"], memory[name]
        shown = "unknown" if peak is None else f"{peak / 2**20:.0f} MiB"
        print(f"  {name:8} {medians[name] * 1e3:9.1f} ms {ratio:6.2f} x ours   peak {shown}", flush=True)
        results.append({"method": task.method, "precision": task.precision, "implementation": name, **work[name],
                        "median_seconds": medians[name], "ratio": ratio, "peak_bytes": peak,
                        "seconds": seconds[name]})
    return results


def parse() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--encoder", default="vit_base_patch16_224" if cuda else "vit_micro", help="a name of ours or timm's")
    add("--size", type=int, default=224 if cuda else 32, help="image size in pixels")
    add("--batch", type=int, default=256 if cuda else 128, help="images in a batch")
    add("--methods", nargs="+", choices=["mae", "simclr"], default=["mae", "simclr"])
    add("--precision", nargs="+", choices=list(FABRIC), default=list(FABRIC))
    add("--rounds", type=int, default=7, help="turns of each, after one unmeasured")
    add("--steps", type=int, default=10 if cuda else 1, help="steps in a turn")
    add("--threads", type=int, default=os.cpu_count(), help="torch threads, the same for all")
    add("--seed", type=int, default=0, help="of weights, views and masks")
    add("--json", type=Path, help="file for the numbers")
    add("--one", choices=["ours", "lightly", "timm"], help="only print the peak memory of this one, in bytes")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    shared = {key: getattr(options, key) for key in ("encoder", "size", "batch", "seed")}
    shared["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    tasks = [Task(method=m, precision=p, **shared) for m in options.methods for p in options.precision]
    if options.one:
        print(json.dumps(peak_memory(tasks[0], options.one)))
        return
    names = ["ours", "lightly", "timm"]
    if not HAS_LIGHTLY:
        names.remove("lightly")
        print("lightly is not installed and is left out: pip install lightly[timm]")
    setting = shared | {key: getattr(options, key) for key in ("rounds", "steps", "threads")}
    here = machine()
    print(", ".join(f"{key} {value}" for key, value in (here | setting).items() if value is not None))
    results = [result for task in tasks for result in compare(task, names, options)]
    if options.json:
        record = {"machine": here, "setting": setting, "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
