"""Starting from weights that are there: of a run, of a file, or of timm, fitted to the size and channels at hand.

C channels, D width, N patches, p patch size in pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from .errors import Refused
from .export.backbone import Backbone, load
from .nn.encoder import Encoder

WRAPPERS = ("state_dict", "model", "teacher", "student", "backbone", "encoder")  # tables in which a checkpoint keeps its tensors
PREFIXES = ("module.", "backbone.", "encoder.", "model.")  # put before names by what wrapped the model
NAMED = 5  # names said of each kind


@dataclass(frozen=True)
class Match:
    """Names of tensors: loaded as they are, loaded after fitting, wanted and not there, there and not wanted."""

    loaded: list[str]
    fitted: list[str]
    missing: list[str]
    unexpected: list[str]

    def sentence(self) -> str:
        """Such as "150 tensors loaded, 2 fitted (pos_embed, patch_embed.proj.weight), 0 missing, 2 unexpected (...)"."""
        parts = [f"{len(self.loaded)} tensors loaded as they are"]
        for word in ("fitted", "missing", "unexpected"):
            found = getattr(self, word)
            more = ", ..." if len(found) > NAMED else ""
            parts.append(f"{len(found)} {word}" + (f" ({', '.join(found[:NAMED])}{more})" if found else ""))
        return ", ".join(parts)


def start_from(encoder: Encoder, origin: str, *, partial: bool = False) -> Match:
    """Fill the encoder with the weights of ``origin``.

    Args:
        origin: the folder of a run or a backbone, a ``.safetensors`` or PyTorch file, or ``timm:NAME``.
        partial: leave what is missing or does not fit at its random start instead of refusing.

    Raises:
        Refused: nothing there, or weights that do not fill the encoder.
    """
    return fill(encoder, read_weights(origin), origin, partial=partial)


def fill(encoder: Encoder, state: Mapping[str, Tensor], origin: str, *, partial: bool = False) -> Match:
    """As ``start_from``, with the tensors that ``origin`` gave."""
    wanted = encoder.model.state_dict()
    frozen = {name for name, parameter in encoder.model.named_parameters() if not parameter.requires_grad}
    loaded, fitted, missing, ready = [], [], [], {}
    for name, own in wanted.items():
        if name in frozen:  # fixed positions are those of this encoder's grid already
            continue
        given = state.get(name)
        if given is not None and given.shape == own.shape:
            loaded.append(name)
        elif given is not None and (given := fit(name, given, own, encoder)) is not None:
            fitted.append(name)
        else:
            missing.append(name)
            continue
        ready[name] = given.to(own.dtype)
    match = Match(loaded, fitted, missing, sorted(state.keys() - wanted.keys()))
    if not ready or (missing and not partial):
        raise Refused(f"{origin}: does not fill {encoder.name} of width {encoder.dim}: {match.sentence()}. Choose the --encoder "
                      "it was made with" + ("." if not ready else ", or take what fits with --init-partial."))
    encoder.model.load_state_dict(ready, strict=False)
    return match


def fit(name: str, given: Tensor, own: Tensor, encoder: Encoder) -> Tensor | None:
    """A tensor at another patch size, grid or number of channels, or None where it can't be fitted."""
    if name == "pos_embed" and given.ndim == 3 and given.shape[2] == own.shape[2]:
        prefix = own.shape[1] - math.prod(encoder.grid(*encoder.image_size))  # rows that are no patch's
        side = math.isqrt(given.shape[1] - prefix)
        if side * side != given.shape[1] - prefix:  # the grid it was made for is not known
            return None
        return resample_abs_pos_embed(given, list(encoder.grid(*encoder.image_size)), [side, side], num_prefix_tokens=prefix)
    is_first = given.ndim == 4 and own.ndim == 4 and given.shape[0] == own.shape[0] and own.shape[1] == encoder.channels
    if is_first and (name == "patch_embed.proj.weight" or given.shape[2:] == own.shape[2:]):
        given = fit_channels(given.float(), encoder.channels)
        return given if given.shape == own.shape else resample_patch_embed(given, list(own.shape[2:]))
    return None


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """(D, C, p, p) for another number of channels; the same grey image in each channel gives about what it gave before."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    before = weight.shape[1]
    return weight[:, torch.arange(channels) % before] * (before / channels)


def read_weights(origin: str) -> dict[str, Tensor]:
    """The tensors of ``origin`` by timm's names."""
    if origin.startswith("timm:"):
        return timm_weights(origin.removeprefix("timm:"))
    path = Path(origin)
    if path.is_dir():
        return load(path).encoder.model.state_dict()
    if not path.is_file():
        raise Refused(f"{origin}: no such run or file; --init takes the folder of a run, a file of weights or timm:NAME.")
    try:
        tree = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise Refused(f"{origin}: can't be read as weights ({str(error).splitlines()[0]}).") from None
    except Exception as error:  # pickle's own errors have no common base
        raise Refused(f"{origin}: can't be read as tensors alone ({type(error).__name__}); save its state_dict.") from None
    state = tensors_of(tree)
    if not state:
        raise Refused(f"{origin}: holds no tensors by name; expected the state_dict of a timm model.")
    return state


def tensors_of(tree: Any) -> dict[str, Tensor]:
    """Tensors by name, out of the tables and prefixes that training code wraps them in."""
    while isinstance(tree, Mapping) and (key := next((k for k in WRAPPERS if isinstance(tree.get(k), Mapping)), None)):
        tree = tree[key]
    state = {k: v for k, v in tree.items() if isinstance(v, Tensor)} if isinstance(tree, Mapping) else {}
    while state and (prefix := next((p for p in PREFIXES if any(k.startswith(p) for k in state)), None)):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def timm_backbone(name: str) -> tuple[Backbone, nn.Linear | None]:
    """A pretrained model of timm at the size it was trained at, and its class head.

    The head is None where there is none, or where it does not stand on the pooled vector (the last normalisation after
    the pool, or a head of several layers).

    Raises:
        Refused: no such model or weights, or one that can't be an encoder here.
    """
    model = timm_model(name)
    channels, height, width = model.pretrained_cfg["input_size"]
    with torch.random.fork_rng(devices=[]):  # the random start that is overwritten moves no generator
        encoder = Encoder(name, image_size=(height, width), channels=channels,
                          pool="mean" if getattr(model, "global_pool", None) == "avg" else "cls")
    try:
        fill(encoder, model.state_dict(), f"timm:{name}")
    except Refused as error:
        raise Refused(f"timm:{name}: its weights don't fill an encoder here, which pools after the final normalisation; choose a "
                      f"model that does so, such as timm:vit_small_patch16_224.augreg_in1k or timm:resnet18.a1_in1k.") from error
    backbone = Backbone(encoder, mean=model.pretrained_cfg["mean"], std=model.pretrained_cfg["std"], info={"timm": name})
    head = model.requires_grad_(False).get_classifier()
    if not isinstance(head, nn.Linear) or head.in_features != encoder.dim:
        return backbone, None
    image = torch.linspace(-1, 1, channels * height * width).view(1, channels, height, width)
    with torch.inference_mode():
        own = model.eval()(image)
        same = torch.allclose(own, head(backbone.pooled(image)), atol=1e-3, rtol=1e-3)
    return backbone, head if same else None


def timm_weights(name: str) -> dict[str, Tensor]:
    return timm_model(name, num_classes=0).state_dict()


def timm_model(name: str, **arguments: Any) -> Any:
    """A pretrained model of timm."""
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # an unknown name, no weights of that name, no network: timm has no common base for them
        raise Refused(f"timm:{name}: could not be had ({str(error).splitlines()[0]}); give the name of a timm model with "
                      "weights and a way to fetch them, or a file.") from None
