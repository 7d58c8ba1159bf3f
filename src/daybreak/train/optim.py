"""From a method's declaration to an optimiser: groups, rates, clipping."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ..config import Training
from ..errors import Refused
from ..nn.encoder import Encoder

TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed", "dist_token")


def peak_rate(training: Training) -> float:
    """The learning rate at the end of the warm-up: base x batch / 256, base x sqrt(batch), or the base itself."""
    base, batch = training.learning_rate, training.batch_size
    return {"linear": base * batch / 256, "sqrt": base * batch**0.5, "fixed": base}[training.learning_rate_rule]


def layer_scales(encoder: Encoder, decay: float) -> dict[str, float]:
    """The share of the learning rate that each parameter of an encoder gets, by name: decay^(n - i) in layer i.

    Layer n is a classifier upon the encoder. In a ViT the tokens, positions and patch projection are layer 0, block k is
    layer k + 1 and the final normalisation stands with the classifier, so that n = depth + 1 (BEiT, arXiv 2106.08254, as
    MAE fine-tunes); in a CNN timm says what is which layer.

    Args:
        decay: in (0, 1]; 1 gives every layer the whole rate.
    """
    model = encoder.model
    if encoder.is_vit:
        last = encoder.depth + 1
        layers = {}
        for name, _ in model.named_parameters():
            block = re.match(r"blocks\.(\d+)\.", name)
            behind = last if name.startswith(("norm.", "fc_norm.")) else 0
            layers[name] = int(block[1]) + 1 if block else behind
    else:
        head = "?"  # no pattern knows it, so timm gives it the layer of a head
        whole = nn.ModuleDict({**dict(model.named_children()), head: nn.Linear(1, 1, bias=False)})
        for name, parameter in model.named_parameters(recurse=False):
            whole.register_parameter(name, parameter)
        layers = group_parameters(whole, model.group_matcher(), reverse=True)
        last = layers.pop(f"{head}.weight")
    return {f"model.{name}": decay ** (last - layer) for name, layer in layers.items()}


def parameter_groups(module: nn.Module, no_decay: str, scales: Mapping[str, float] | None = None) -> list[dict]:
    """Parameters that learn, in two groups: decayed, and not (1-D ones, and the tokens where the rule says so).

    With ``scales``, shares of the learning rate by name (1 for a name that is not there), two groups for each share.
    """
    groups: dict[float, tuple[list[Tensor], list[Tensor]]] = {1.0: ([], [])}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_token = name.rpartition(".")[2] in TOKENS
            spare = no_decay != "none" and (parameter.ndim <= 1 or (no_decay == "1d-and-tokens" and is_token))
            groups.setdefault((scales or {}).get(name, 1.0), ([], []))[spare].append(parameter)
    found: list[dict] = []
    for scale, (decayed, spared) in groups.items():
        share = {} if scales is None else {"scale": scale}
        found += [{"params": decayed, "decays": True, **share}, {"params": spared, "decays": False, "weight_decay": 0.0, **share}]
    return found


def make_optimizer(module: nn.Module, training: Training, scales: Mapping[str, float] | None = None) -> torch.optim.Optimizer:
    """Any of timm's optimisers, over the groups of ``parameter_groups``."""
    extra: dict[str, Any] = {"betas": training.betas} if "adam" in training.optimizer else {}
    if training.optimizer in ("adam", "adamw"):
        extra["fused"] = True  # one kernel for all tensors: a third of the time, on a CPU too
    try:
        return create_optimizer_v2(parameter_groups(module, training.no_decay, scales), opt=training.optimizer,
                                   lr=peak_rate(training), weight_decay=training.weight_decay,
                                   momentum=training.momentum, **extra)
    except ValueError as error:
        raise Refused(f"training.optimizer = {training.optimizer!r}: timm has no such optimiser ({error}).") from None


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Give every group the rate, times its share where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("scale", 1.0)
        if group["decays"]:
            group["weight_decay"] = weight_decay


def clip(module: nn.Module, limit: float | None, mode: str) -> Tensor:
    """Clip gradients in place, over all parameters or each tensor by itself; returns the global norm before.

    A norm that is not finite clips nothing, so that the tensor to blame can still be told.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    total = torch.linalg.vector_norm(torch.stack(norms))
    if limit is not None:
        if mode == "global":
            torch._foreach_mul_(gradients, (limit / (total + 1e-6)).clamp(max=1.0).where(total.isfinite(), 1.0))
        else:
            torch._foreach_mul_(gradients, [(limit / (n + 1e-6)).clamp(max=1.0) for n in norms])
    return total
