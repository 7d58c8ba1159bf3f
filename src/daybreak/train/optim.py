"""From a method's declaration to an optimiser: groups, rates, clipping."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ..config import Training
from ..errors import Refused

TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed", "dist_token")


def peak_rate(training: Training) -> float:
    """The learning rate at the end of the warm-up: base x batch / 256, base x sqrt(batch), or the base itself."""
    base, batch = training.learning_rate, training.batch_size
    return {"linear": base * batch / 256, "sqrt": base * batch**0.5, "fixed": base}[training.learning_rate_rule]


def parameter_groups(module: nn.Module, no_decay: str) -> list[dict]:
    """Parameters that learn, in two groups: decayed, and not (1-D ones, and the tokens where the rule says so)."""
    decayed: list[Tensor] = []
    spared: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_token = name.rpartition(".")[2] in TOKENS
            spare = no_decay != "none" and (parameter.ndim <= 1 or (no_decay == "1d-and-tokens" and is_token))
            (spared if spare else decayed).append(parameter)
    return [{"params": decayed, "decays": True}, {"params": spared, "decays": False, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Any of timm's optimisers, over the two groups."""
    extra: dict[str, Any] = {"betas": training.betas} if "adam" in training.optimizer else {}
    if training.optimizer in ("adam", "adamw"):
        extra["fused"] = True  # one kernel for all tensors: a third of the time, on a CPU too
    try:
        return create_optimizer_v2(parameter_groups(module, training.no_decay), opt=training.optimizer,
                                   lr=peak_rate(training), weight_decay=training.weight_decay,
                                   momentum=training.momentum, **extra)
    except ValueError as error:
        raise Refused(f"training.optimizer = {training.optimizer!r}: timm has no such optimiser ({error}).") from None


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
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
