"""Going on with a run: what a checkpoint puts back, what a failure leaves behind, and the way past it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import Images
from ..data.loader import Loader
from ..errors import Refused
from ..methods.base import Batch, Method, Step
from . import checkpoint
from .schedules import Budget


def restore(state: dict[str, Any], method: Method, optimizer: torch.optim.Optimizer, loader: Loader, budget: Budget,
            images: Images, *, force: bool = False) -> str | None:
    """Put everything back where the checkpoint left it.

    Args:
        force: go on although the data are others; weights that do not fit are refused all the same.

    Returns:
        What ``force`` overrode, as a sentence.

    Raises:
        Refused: other data, or weights of another shape.
    """
    forced = None
    if state["fingerprint"] != images.fingerprint:
        forced = (f"{state.get('count', 'unknown')} images with fingerprint {state['fingerprint']} then, {len(images)} with "
                  f"{images.fingerprint} now")
        if not force:
            raise Refused(f"{images.source.path}: the data changed since the run began: {forced}; resume with the same images, "
                          "start another run with --out, or add --force to go on with these.")
    options: list[dict[str, Any]] = [{k: group[k] for k in ("betas", "momentum") if k in group} for group in optimizer.param_groups]
    try:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise Refused("the weights of the checkpoint do not fit the settings now, and --force can't make them "
                      f"({str(error).splitlines()[-1].strip()}); start another run with --out.") from error
    for group, mine in zip(optimizer.param_groups, options, strict=True):
        group.update(mine)  # the run's settings, which --force may have changed; rates are set at each step
    settings = state["config"]
    if forced or (settings["seed"], settings["training"]["batch_size"]) != (loader.seed, loader.batch_size * loader.world):
        state["skipped"] = []  # they are positions in an order that is no more
    loader.load_state_dict(place(state, loader))
    budget.load_state_dict(state["budget"])
    set_generators(state["generators"])
    return forced


def place(state: dict[str, Any], loader: Loader) -> dict[str, int]:
    """Epoch and position in batches; those of the checkpoint, unless batch or data were changed by force."""
    epoch, position = state["loader"]["epoch"], state["loader"]["position"]
    position = position * state["config"]["training"]["batch_size"] // (loader.batch_size * loader.world)
    return {"epoch": epoch, "position": position} if position < loader.steps_per_epoch else {"epoch": epoch + 1, "position": 0}


def generators() -> dict[str, Tensor]:
    """The states of torch's generators, which drop path and dropout draw from."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return found


def set_generators(states: dict[str, Tensor]) -> None:
    """Put torch's generators back to what ``generators`` gave; those of a GPU that is not here are passed by."""
    for name, generator in states.items():
        if name == "cpu":
            torch.set_rng_state(generator)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(generator, int(name.removeprefix("cuda")))


class Finite:
    """Holds losses until they are looked at: each step on a CPU, ``every`` steps together where a look waits for the device."""

    def __init__(self, every: int):
        self.every = every
        self.held: list[tuple[dict[str, int], Tensor]] = []

    def first_bad(self, where: dict[str, int], value: Tensor, *, now: bool = False) -> dict[str, int] | None:
        """Where the first step stood whose 0-d ``value`` is not finite; None if there is none, or it is not yet looked."""
        self.held.append((where, value))
        if len(self.held) < self.every and not now:
            return None
        held, self.held = self.held, []
        fine = torch.isfinite(torch.stack([value for _, value in held])).tolist()
        return next((place for (place, _), good in zip(held, fine, strict=True) if not good), None)


def keep_failure(folder: Path, state: dict[str, Any], raw: Batch, where: dict[str, int], loss: Tensor,
                 blame: Callable[[], str]) -> str:
    """Keep weights, generators and the batch that gave a loss which is not finite; returns the sentence to say.

    Args:
        where: epoch, position and images seen of the batch that is to blame.
        blame: names the first tensor that is not finite; called when all is on the disk.
    """
    kept = folder / "failure"
    batch = {"images": [x.clone() for x in raw.images], "index": raw.index.clone()}
    path = checkpoint.save(kept, state | {"batch": batch, "failed": where}, state["images_seen"])
    for older in checkpoint.every(kept):
        if older != path:
            older.unlink(missing_ok=True)
    what = "the gradient was not finite" if torch.isfinite(loss) else f"the loss became {float(loss)}"
    return (f"{what} after {where['images']:,} images; the first that is not finite is {blame()}. Weights, generators and the "
            f"batch are in {kept}. Go on past the batch with: daybreak pretrain --resume {folder} --skip-failure; if it comes "
            "again, try a lower rate (--set training.learning_rate) or --set training.precision=32-true, with --force.")


def first_broken(method: Method, module: nn.Module, batch: Batch, step: Step) -> str:
    """Name what is not finite: a view, a weight, else the first output in the order of computation, a gradient, a buffer.

    The step is computed once more for it, so it belongs after all that must be kept.
    """
    for i, view in enumerate(batch.images):
        if not finite(view):
            return f"view {i} of the batch"
    for name, value in method.named_parameters():  # buffers come last: a bad batch has moved them already
        if not finite(value):
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str):
        def hook(_part, _inputs, out) -> None:
            if not found and not all(finite(x) for x in (out if isinstance(out, tuple | list) else [out])):
                found.append(f"the output of {name}")
        return hook

    hooks = [part.register_forward_hook(look(name)) for name, part in method.named_modules() if name]
    try:
        with torch.no_grad():
            module(batch, step)
    finally:
        for handle in hooks:
            handle.remove()
    found += [f"the gradient of {n}" for n, p in method.named_parameters() if p.grad is not None and not finite(p.grad)]
    found += [f"the buffer {name}" for name, value in method.named_buffers() if not finite(value)]
    return found[0] if found else "the loss itself: weights, outputs and gradients are finite"


def finite(x: Any) -> bool:
    return not isinstance(x, Tensor) or not x.is_floating_point() or bool(torch.isfinite(x).all())


def past_failure(folder: Path) -> tuple[dict[str, Any], str]:
    """The state to go on from after a loss that was not finite, and what is skipped, as a sentence.

    That is the state before the failed batch if its weights are finite, else the last checkpoint; the batch is
    in the state's ``skipped``, so no later resume takes it either.

    Raises:
        Refused: no failure is kept, or the run has gone past it.
    """
    if not checkpoint.every(folder / "failure"):
        raise Refused(f"{folder / 'failure'}: no failure is kept there, so there is none to skip; leave out --skip-failure.")
    state = checkpoint.load_last(folder / "failure")
    failed = state["failed"]
    last = checkpoint.every(folder / "checkpoints")
    if last and checkpoint.images_seen(last[-1]) > state["images_seen"]:
        raise Refused(f"{folder}: the run has gone past the failure at image {failed['images']:,}; leave out --skip-failure.")
    if not all(finite(value) for value in state["method"].values()):
        state = checkpoint.load_last(folder / "checkpoints")
    batch = [failed["epoch"], failed["position"]]
    kept = {k: v for k, v in state.items() if k not in ("batch", "failed")}
    kept["skipped"] = [b for b in state.get("skipped", []) if b != batch] + [batch]
    return kept, (f"skipping batch {failed['position']} of epoch {failed['epoch']}, whose loss or gradient was not finite after "
                  f"{failed['images']:,} images")
