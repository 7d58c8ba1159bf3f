"""The encoder: any ViT or CNN of timm behind one face, for images of any height, width and channels.

B batch, P prefix tokens (class and registers), N patches, K kept patches, D width, C channels, H W height and
width in pixels, h w the same in patches.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import Refused
from .presets import resolve

# What timm and torch raise when a model does not take an argument or an image size.
UNFIT = (AssertionError, AttributeError, TypeError, ValueError, RuntimeError)


class Tokens(NamedTuple):
    """Prefix tokens (B, P, D), where P may be 0, and patch tokens (B, N, D), or the kept ones (B, K, D)."""

    prefix: Tensor
    patches: Tensor


class Keep(nn.Module):
    """Stands where timm drops patches at random, and keeps those that ``indices`` names, in that order."""

    def __init__(self, num_prefix: int, returns_indices: bool):
        super().__init__()
        self.num_prefix, self.returns_indices = num_prefix, returns_indices
        self.indices: Tensor | None = None  # (B, K) during one call of Encoder.tokens

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        if self.indices is not None:  # (B, P + N, D) -> (B, P + K, D)
            prefix, patches = x[:, : self.num_prefix], x[:, self.num_prefix :]
            kept = patches.gather(1, self.indices[:, :, None].expand(-1, -1, x.shape[-1]))
            x = torch.cat([prefix, kept], dim=1)
        return (x, self.indices) if self.returns_indices else x


class Encoder(nn.Module):
    """A backbone of timm with random weights; ``model`` is timm's own module and holds all parameters.

    The final normalisation stands before pooling whatever the pool, so ``pooled`` is a plain function of the
    tokens (or of the map, in a CNN) and equals what ``model(images)`` returns.

    Args:
        name: a preset (``vit_micro``, ``vit_mini``, ``vit_small``, ``convnext_mini``) or a timm name.
        image_size: height and width in pixels at which the positions are made; others work afterwards.
        patch_size, width, depth, heads: replace the model's own; ViTs only. With a width and no heads, heads
            are 64 wide.
        drop_path: stochastic depth in [0, 1), growing linearly with depth.
        pool: "cls" takes the class token where the model has one (the mean of class and distillation token
            in distilled models, as in timm), else the mean of the patches; "mean" the mean of the patches.
        positions: "fixed" puts 2-D sin-cos positions without gradient in the place of learned ones; rotary
            positions stay as they are.
        init: "xavier" is that of MAE; a CNN keeps timm's own.

    Attributes:
        model, dim (D), patch and stride (pixels, equal), channels, num_prefix (P), depth (blocks; 0: a CNN),
        is_vit, image_size, pooling ("cls" | "mean", the one in force), timm_name, arguments (timm's),
        settings (those of this class that make an encoder of the same shape).

    Raises:
        Refused: unknown name, a class of model that can't serve, a size that the patch does not divide.

    >>> Encoder("vit_micro", image_size=(32, 48)).grid(32, 48)
    (8, 12)
    """

    def __init__(self, name: str, *, image_size: tuple[int, int], channels: int = 3,
                 patch_size: int | None = None, width: int | None = None, depth: int | None = None,
                 heads: int | None = None, drop_path: float = 0.0, pool: Literal["cls", "mean"] = "cls",
                 positions: Literal["learned", "fixed"] = "learned",
                 init: Literal["timm", "xavier"] = "timm"):
        super().__init__()
        height, columns = image_size  # one number alone would fail here, not deep inside timm
        self.name, self.image_size, self.channels = name, (int(height), int(columns)), channels
        self.settings = dict(name=name, image_size=self.image_size, channels=channels, patch_size=patch_size,
                             width=width, depth=depth, heads=heads, pool=pool, positions=positions)
        self.timm_name, arguments = resolve(name, self.image_size)
        arguments |= {"in_chans": channels} | ({"drop_path_rate": drop_path} if drop_path > 0 else {})
        probe = build(self.timm_name, arguments, device="meta")  # without weights: costs no time or memory
        self.is_vit = isinstance(probe, VisionTransformer | Eva)
        changes = {"patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": heads}
        if self.is_vit:
            check_vit(name, probe, pool)
            changes["num_heads"] = heads_of(name, width, heads)
            arguments |= {key: value for key, value in changes.items() if value is not None}
            arguments |= {"img_size": self.image_size, **vit_arguments(probe, pool)}
            self.patch = int(arguments.get("patch_size", probe.patch_embed.patch_size[0]))
        else:
            if isinstance(probe, ConvNeXt):
                arguments |= {"head_norm_first": True}  # else it normalises after the pool
                probe = build(self.timm_name, arguments, device="meta")
            self._bare = (probe.eval(),)  # for grid; in a tuple, so that it is no part of this module
            self.patch = cnn_stride(name, probe, channels)
        self.stride = self.patch
        if not self.is_vit and any(value is not None for value in changes.values()):
            raise Refused(f"{name} is a CNN ({type(probe).__name__}), and patch_size, width, depth and heads "
                          "are settings of ViTs; leave them out, or choose a ViT, such as vit_mini.")
        self.arguments: dict[str, Any] = arguments
        self.parts = 1  # micro-batches; see in_parts
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}  # of a CNN, by image size
        self.grid(*self.image_size)  # refuses a size that can't be

        self.model: Any = build(self.timm_name, arguments)
        self.dim = int(self.model.num_features)
        self.num_prefix = int(self.model.num_prefix_tokens) if self.is_vit else 0
        self.depth = len(self.model.blocks) if self.is_vit else 0
        self.pooling = "cls" if self.is_vit and arguments["global_pool"] == "token" else "mean"
        if self.is_vit:
            self.model.patch_drop = Keep(self.num_prefix, returns_indices=isinstance(probe, Eva))
            if init == "xavier":
                self._xavier()
            if positions == "fixed" and self.model.pos_embed is not None:
                self._fix_positions()
        else:
            check_head(name, self.model)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map for an image of this size in pixels.

        Raises:
            Refused: the patch of a ViT does not divide the size, or a CNN can't take it.
        """
        if self.is_vit:
            if height % self.patch or width % self.patch:
                near = [max(1, round(side / self.patch)) * self.patch for side in (height, width)]
                raise Refused(f"{self.name} has patches of {self.patch} px, which do not divide an image of "
                              f"{height} x {width}; the nearest size that works is {near[0]} x {near[1]}.")
            return height // self.patch, width // self.patch
        if (height, width) not in self._grids:
            rows, columns = map_shape(self.name, self._bare[0], self.channels, height, width)[2:]
            self._grids[height, width] = rows, columns
        return self._grids[height, width]

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tokens:
        """Tokens after the final normalisation.

        Args:
            images: (B, C, H, W), normalised.
            keep: (B, K) int64 positions of the patches that the blocks see, in row-major order of the grid;
                patches are dropped after the positions are added. None keeps all.
        """
        self._need_vit("tokens", images)
        x = self._in_parts(self._features, images, keep)  # (B, P + K, D)
        return Tokens(x[:, : self.num_prefix], x[:, self.num_prefix :])

    def _features(self, images: Tensor, keep: Tensor | None) -> Tensor:
        if not self.is_vit:
            return self.model.forward_features(images)
        try:
            self.model.patch_drop.indices = keep
            return self.model.forward_features(images)
        finally:
            self.model.patch_drop.indices = None

    def pool(self, tokens: Tokens) -> Tensor:
        """(B, D), the feature that the backbone is used by."""
        if self.pooling == "mean":
            return tokens.patches.mean(1)
        if isinstance(self.model, VisionTransformerDistilled):
            return tokens.prefix[:, :2].mean(1)
        return tokens.prefix[:, 0]

    def pooled(self, images: Tensor) -> Tensor:
        """(B, D) of normalised images (B, C, H, W); of a CNN, the mean over its map."""
        return self.pool(self.tokens(images)) if self.is_vit else self.map(images).mean((2, 3))

    forward = pooled

    def map(self, images: Tensor) -> Tensor:
        """(B, D, h, w) of normalised images (B, C, H, W)."""
        if not self.is_vit:
            return self._in_parts(self._features, images, None)
        patches = self.tokens(images).patches.transpose(1, 2)  # (B, D, N)
        return patches.unflatten(2, self.grid(*images.shape[-2:]))

    def levels(self, images: Tensor, blocks: list[int]) -> list[Tokens]:
        """What the blocks of these numbers (from 0) give, before the final normalisation, in that order."""
        self._need_vit("levels", images)
        wrong = [b for b in blocks if not 0 <= b < self.depth]
        if wrong:
            raise Refused(f"block {wrong[0]} of {self.name} was asked for, and it has 0 to {self.depth - 1}.")
        numbers = sorted(set(blocks))

        def read(images: Tensor, _keep: None) -> Tensor:  # (L, B, P + N, D)
            found = self.model.forward_intermediates(images, indices=numbers, output_fmt="NLC", norm=False,
                                                     intermediates_only=True, stop_early=True,
                                                     return_prefix_tokens=self.num_prefix > 0)
            return torch.stack([torch.cat([x[1], x[0]], dim=1) if self.num_prefix else x for x in found])

        found = self._in_parts(read, images, None, dim=1)
        return [Tokens(x[:, : self.num_prefix], x[:, self.num_prefix :]) for x in (found[numbers.index(b)] for b in blocks)]

    def checkpointing(self, on: bool) -> None:
        """Recompute the activations of the blocks in the backward pass (slower, less memory), or keep them.

        Raises:
            Refused: timm has no checkpointing for this model.
        """
        try:
            self.model.set_grad_checkpointing(on)
        except (AssertionError, AttributeError):
            if on:
                raise Refused(f"{self.name} has no gradient checkpointing in timm; leave it off.") from None

    def in_parts(self, parts: int) -> None:
        """Encode each batch in so many micro-batches, whose activations are computed again in the backward pass.

        What follows the encoder, heads and loss, sees the whole batch at once, so a loss that compares its
        images stays the same; memory is that of one micro-batch.

        Raises:
            Refused: the encoder normalises over the batch, so micro-batches would change it.
        """
        if parts > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules()):
            raise Refused(f"training.accumulate = {parts}: {self.name} has batch normalisation, which would see "
                          "micro-batches instead of the batch; use a ViT or a ConvNeXt, or a smaller --batch-size.")
        self.parts = parts

    def _in_parts(self, function: Callable[..., Tensor], images: Tensor, keep: Tensor | None, dim: int = 0) -> Tensor:
        if self.parts == 1 or not torch.is_grad_enabled():
            return function(images, keep)
        keeps = [None] * self.parts if keep is None else keep.chunk(self.parts)
        return torch.cat([checkpoint(function, x, k, use_reentrant=False)
                          for x, k in zip(images.chunk(self.parts), keeps, strict=False)], dim)

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks of a ViT, or the stages of a CNN, each on its own and in place; ``options`` are torch.compile's.

        The model as a whole is never called, only its ``forward_features``, so ``model.compile()`` would do
        nothing; blocks of one shape also share what was compiled.
        """
        for block in self.model.blocks if self.is_vit else self.model.children():
            block.compile(**options)

    def _need_vit(self, what: str, images: Tensor) -> None:
        if not self.is_vit:
            raise Refused(f"{self.name} is a CNN ({type(self.model).__name__}) and has no {what}; "
                          "choose a ViT, such as vit_mini.")
        self.grid(*images.shape[-2:])

    def _xavier(self) -> None:
        model = self.model
        model.apply(initialise_xavier)
        weight = model.patch_embed.proj.weight  # (D, C, p, p), a linear layer of each patch
        nn.init.xavier_uniform_(weight.data.view(len(weight), -1))
        if model.patch_embed.proj.bias is not None:
            nn.init.zeros_(model.patch_embed.proj.bias)
        for name in ("cls_token", "reg_token", "dist_token"):
            if getattr(model, name, None) is not None:
                nn.init.normal_(getattr(model, name), std=0.02)

    def _fix_positions(self) -> None:
        table = self.model.pos_embed  # (1, N, D) or (1, P + N, D)
        patches = sincos_positions(self.dim, *self.grid(*self.image_size))  # (N, D)
        with torch.no_grad():
            table.zero_()  # the rows of prefix tokens, which come first, stay zero
            table[0, -len(patches) :] = patches
        table.requires_grad_(False)


def build(timm_name: str, arguments: dict[str, Any], device: str = "cpu") -> Any:
    """The model of timm without a classifier.

    Raises:
        Refused: timm does not take these arguments.
    """
    try:
        with torch.device(device):
            return timm.create_model(timm_name, pretrained=False, num_classes=0, **arguments)
    except UNFIT as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise Refused(f"timm's {timm_name} can't be built with {given}: {error}.") from error


def check_vit(name: str, probe: Any, pool: str) -> None:
    """Refuse a ViT that can't take any size, pool after its final normalisation or keep only some patches."""
    plain = "choose a plain ViT, such as vit_mini."
    if type(probe) not in (VisionTransformer, VisionTransformerDistilled, Eva):
        raise Refused(f"{name} is a {type(probe).__name__}, not proven to take only some of the patches; "
                      f"{plain}")
    if type(probe.patch_embed) is not PatchEmbed:
        raise Refused(f"{name} makes its patches with a CNN ({type(probe.patch_embed).__name__}), so it "
                      f"can't take only some of them; {plain}")
    if isinstance(probe, VisionTransformerDistilled) and pool != "cls":
        raise Refused(f"{name} is distilled, and timm pools such models by their tokens, not by '{pool}'; "
                      f"choose {name.replace('_distilled', '')}.")


def vit_arguments(probe: Any, pool: str) -> dict[str, Any]:
    """timm's arguments for any image size and for pooling after the final normalisation.

    timm moves that normalisation behind the pool of models that average; here it stays before it.
    """
    token = pool == "cls" and probe.cls_token is not None
    common = {"dynamic_img_size": True, "global_pool": "token" if token else "avg"}
    if isinstance(probe, Eva):
        return common | {"use_fc_norm": False}
    return common | {"fc_norm": False, "pool_include_prefix": False}


def heads_of(name: str, width: int | None, heads: int | None) -> int | None:
    """The number of heads; heads of 64 where only a width is given."""
    if width is None:
        return heads
    per = 64 if heads is None else heads
    near = max(1, round(width / per)) * per
    if heads is None and width % 64:
        raise Refused(f"a width of {width} is no multiple of 64, the usual width of a head; say how many "
                      f"heads {name} shall have, or use a width of {near}.")
    if width % per:
        raise Refused(f"{heads} heads do not divide a width of {width}; the nearest width is {near}.")
    return width // 64 if heads is None else heads


def map_shape(name: str, bare: Any, channels: int, height: int, width: int) -> torch.Size:
    """Shape (1, D, h, w) of a CNN's map, found without data or weights: ``bare`` is on torch's meta device.

    Raises:
        Refused: the model can't take this size, or gives no such map.
    """
    kind = type(bare).__name__
    images = torch.empty(1, channels, height, width, device="meta")
    try:
        with torch.no_grad():
            found = bare.forward_features(images)
    except UNFIT as error:
        reason = str(error).rstrip(".")
        raise Refused(f"{name} ({kind}) can't take an image of {height} x {width}, and an encoder must take "
                      f"many sizes: {reason}; choose a plain ViT or CNN, such as vit_mini.") from error
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[1] != bare.num_features:
        raise Refused(f"{name} ({kind}) is neither a plain ViT nor a CNN with a map of shape (batch, width, "
                      "rows, columns); choose another, such as vit_mini or resnet18.")
    return found.shape


def cnn_stride(name: str, bare: Any, channels: int) -> int:
    """Pixels of the image to a step of a CNN's map."""
    return 256 // map_shape(name, bare, channels, 256, 512)[2]  # not square: some take only squares


def check_head(name: str, model: Any) -> None:
    """Refuse a CNN that does more than average its map, since what timm gives would not be the map's mean."""
    x = torch.linspace(-1, 1, 4 * model.num_features).square().view(1, model.num_features, 2, 2)
    training = model.training
    with torch.no_grad():
        given = model.eval().forward_head(x, pre_logits=True)  # (1, D, 2, 2) -> (1, D)
    model.train(training)
    if given.shape != (1, model.num_features) or not torch.allclose(given, x.mean((2, 3)), atol=1e-5):
        raise Refused(f"{name} ({type(model).__name__}) has layers after its pooling, and only the mean of a "
                      "map is offered here; choose another CNN, such as resnet18 or convnext_mini.")


def initialise_xavier(module: nn.Module) -> None:
    """For ``Module.apply``: xavier-uniform weights and zero biases in linear layers, LayerNorm at rest."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_positions(width: int, rows: int, columns: int) -> Tensor:
    """Fixed 2-D positions of a grid (He et al. 2021, MAE): (rows * columns, width) float32.

    The first half of the width encodes the column, the second the row; each half is sines, then cosines, of
    the coordinate times 10000^(-k / (width / 4)).

    Raises:
        Refused: ``width`` is no multiple of 4.
    """
    if width % 4:
        raise Refused(f"2-D sin-cos positions need a width that 4 divides, not {width}; the nearest is "
                      f"{max(1, round(width / 4)) * 4}.")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D / 4,)

    def half(coordinate: Tensor) -> Tensor:
        angle = coordinate.flatten().double()[:, None] * omega  # (N, D / 4)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([half(column), half(row)], dim=1).float()
