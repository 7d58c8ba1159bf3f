"""Hydra: learn from labels by pulling any two classes together in the dimensions that a gate opens for the pair.

Wu, Atito, Feng, Mo, Kittler, Awais, "Rethinking Positive Pairs in Contrastive Learning", 2024, arXiv 2410.18200; its
second version calls it SimLAP. It is supervised: it needs a class for each image, and its numbers stand beside those of
other methods that saw labels, not beside self-supervised ones.

Built from the author's later code (SimLAP): which of its forms the paper used, two views as in SimCLR, and the
probability of the blur are inferred. Differs from that code: the partner of an image comes from its cell of 16 samples
instead of the whole batch (so that ranks agree); an image is not its own key; no linear classifier is trained along, since
a run measures its backbone by itself; images of unknown class are left out of the loss. B images, M images of all ranks,
D encoder width, E projection width, L classes.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Count, Range, Share
from ..errors import Refused
from ..nn.heads import BatchNorm, initialise_linear
from ..nn.losses import fp32, gather, masked_mean, rank, sizes_over_ranks
from ..nn.masking import partners
from .base import Batch, Encoder, Loss, Method, Picture, Step, Training, View, register

SHOWN, SIDE = 64, (128, 128)  # classes in the picture of their relations, and its pixels
NONE = -1e4  # the logit of a key that is no negative: far below any other, and finite, so that its gradient is 0 and not NaN


@dataclass(frozen=True, kw_only=True)
class Config:
    classes: Annotated[int, Range(2)] | None = None  # of the labels; None: as many as the data have
    pairs: Literal["arbitrary", "identical", "distinct"] = "arbitrary"  # the partner's class: of another image, one's own, another
    gated: bool = True  # False: every dimension is open to every pair; with identical pairs that is supervised contrast
    gate_first: bool = False  # gate, then normalise (the older form), instead of normalise, then gate
    temperature: Annotated[float, Range(0.01, 10)] = 0.1
    hidden: Count = 2048  # width of the middle layer of the head
    output: Count = 256  # width of the projection, and of the gate
    embedding: Count = 512  # width of the embedding of a class
    gate_hidden: Count = 1024  # width of the middle layer of the gate
    blur: Share = 0.5  # probability
    scale: tuple[float, float] = (0.4, 1.0)  # area of the crop


@register("hydra", config=Config, pool="mean", labels="class",
          training=Training(learning_rate=5e-4, weight_decay=0.05, warmup=0.05, batch_size=512),
          small={"method": {"hidden": 512, "blur": 0.0}, "training": {"learning_rate": 2e-3, "batch_size": 256}})
class Hydra(Method):
    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        if config.classes is None:
            raise Refused("method.classes is not set; hydra learns from labels and must know how many classes there are.")
        if config.pairs == "distinct" and config.classes < 3:
            raise Refused(f"method.pairs = 'distinct' with {config.classes} classes leaves no class to push away; use 'identical', "
                          "or labels of 3 classes or more.")
        jitter: dict[str, Any] = dict(size=encoder.image_size, scale=config.scale, flip=0.5, color=(0.4, 0.4, 0.2, 0.1),
                                      color_probability=0.8, gray=0.1, blur=config.blur)
        self.views = [View(**jitter), View(solarize=0.2, **jitter)]
        self.head = nn.Sequential(
            nn.Linear(encoder.dim, config.hidden, bias=False), BatchNorm(config.hidden), nn.ReLU(),
            nn.Linear(config.hidden, config.output, bias=False), nn.LayerNorm(config.output),
        )
        self.head.apply(initialise_linear)
        self.gate = (Gate(config.classes, config.output, embedding=config.embedding, hidden=config.gate_hidden)
                     if config.gated else None)

    def forward(self, batch: Batch, step: Step) -> Loss:
        config, labels = self.config, batch.labels  # (B,), -1: unknown
        assert labels is not None
        other = self.partner_classes(labels, step)  # (B,)
        z = self.head(self.encoder.pooled(torch.cat(batch.images)))  # (2B, E)
        gates = (self.gate(labels.clamp(min=0), other.clamp(min=0)) if self.gate is not None  # (B, E), one for both views
                 else z.new_ones(len(labels), config.output))
        loss = pair_contrast(z, gates.repeat(2, 1), labels.repeat(2), other.repeat(2), config.temperature, config.gate_first)
        g = gates.detach().float()
        doubt = (torch.special.entr(g) + torch.special.entr(1 - g)).mean()
        spread = F.normalize(z.detach().float(), dim=-1).std(0).mean()
        return Loss(loss, {"gate": g.mean(), "gate_entropy": doubt, "projection_spread": spread})

    def partner_classes(self, labels: Tensor, step: Step) -> Tensor:
        """(B,) the class that each image is paired with; -1 where that is unknown."""
        if self.config.pairs == "identical":
            return labels
        if self.config.pairs == "arbitrary":
            return labels[partners(step.random, "pair")]
        offset = 1 + (step.random("pair", (len(labels), 1))[:, 0] * (self.config.classes - 1)).long()
        return torch.where(labels < 0, labels, (labels + offset) % self.config.classes)

    def degenerate(self) -> dict[str, float]:
        return {"0: the batch holds no class beside the pair's": 0.0}

    def picture(self, batch: Batch, step: Step) -> Picture | None:
        """How the gate relates the first classes: maps of (classes, classes), one row."""
        if self.gate is None:
            return None
        classes = torch.arange(min(self.gate.embedding.num_embeddings, SHOWN), device=batch.images[0].device)
        one, two = torch.cartesian_prod(classes, classes).T
        gates = self.gate(one, two).float().unflatten(0, (len(classes), -1))  # (L, L, E)
        away = F.normalize(gates.diagonal().T - gates.mean((0, 1)), dim=-1)  # (L, E), of each class paired with itself
        opened, alike = gates.mean(-1), away @ away.T
        maps = [F.interpolate(((x - x.min()) / (x.max() - x.min()).clamp(min=1e-6))[None, None], SIDE)[0].expand(3, -1, -1)
                for x in (opened, alike)]
        return Picture(f"Pairs of the first {len(classes)} classes, in the order of their names from the top and from the left. "
                       f"Left: share of the dimensions that the gate opens, {float(opened.min()):.2f} black to "
                       f"{float(opened.max()):.2f} white. Right: cosine of the gates of two classes, less their mean, "
                       f"{float(alike.min()):.2f} to {float(alike.max()):.2f}.",
                       ["open to the pair", "alike"], [maps], normalised=False)


class Gate(nn.Module):
    """How far each dimension is open for a pair of classes: (B,) and (B,) to (B, output) in (0, 1), in either order."""

    def __init__(self, classes: int, output: int, *, embedding: int = 512, hidden: int = 1024):
        super().__init__()
        self.embedding = nn.Embedding(classes, embedding)  # standard normal
        self.mlp = nn.Sequential(nn.ReLU(), BatchNorm(embedding), nn.Linear(embedding, hidden),
                                 nn.ReLU(), BatchNorm(hidden), nn.Linear(hidden, output))

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.mlp((self.embedding(one) + self.embedding(two)) / 2).sigmoid()


@fp32
def pair_contrast(z: Tensor, gates: Tensor, labels: Tensor, other: Tensor, temperature: float, gate_first: bool) -> Tensor:
    """Each image of the partner's class against all of third classes, in the subspace of the anchor's pair.

    With l_ij = sum_d g_id^2 u_id u_jd / temperature (u normalised), or cos(g_i z_i, g_i z_j) / temperature, the mean over the
    positives ij of log(exp(l_ij) + sum over negatives k of exp(l_ik)) - l_ij. Images of the anchor's own class are
    neither, unless it is the partner's; nor is the anchor itself, nor an image of unknown class.

    Args:
        z: (B, E) projections.
        gates: (B, E) of each anchor's pair, in [0, 1]; they are applied to anchor and keys.
        labels, other: (B,) int64, class of the anchor and of its partner; -1 unknown.
    """
    squared, keys, key_labels = gates.square(), gather(z), gather(labels)  # (B, E), (M, E), (M,)
    if gate_first:
        lengths = (squared * z.square()).sum(1, keepdim=True) * (squared @ keys.square().T)  # (B, M)
        logits = (squared * z) @ keys.T / lengths.clamp(min=1e-12).sqrt()
    else:
        logits = (squared * F.normalize(z, dim=-1)) @ F.normalize(keys, dim=-1).T
    logits = logits / temperature  # (B, M)
    own = torch.arange(len(z), device=z.device) + sum(sizes_over_ranks(z)[: rank()])
    counts = ((key_labels >= 0) & (labels >= 0)[:, None]).scatter(1, own[:, None], False)  # (B, M)
    is_partner, is_own = key_labels == other[:, None], key_labels == labels[:, None]
    against = logits.masked_fill(~(counts & ~is_partner & ~is_own), NONE).logsumexp(1, keepdim=True)  # (B, 1)
    return masked_mean(torch.logaddexp(logits, against) - logits, counts & is_partner)
