"""A backbone as a folder that Hugging Face's transformers opens: ``AutoModel.from_pretrained(FOLDER)``.

A ViT becomes a ViTModel, without a class token an IJepaModel, with registers a Dinov2WithRegistersModel; a ResNet becomes a
ResNetModel. Only what gives the same numbers is written; a part that has no counterpart there is refused by its name. The
names of the tensors are those of the checkpoints on the hub, which old and new versions of transformers read.
transformers itself is not needed to write.

D width, N patches, P prefix tokens, R registers, H W height and width in pixels.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from safetensors.torch import save_file
from timm.layers import Attention, Mlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..errors import Refused
from ..nn.encoder import Encoder
from .backbone import CONFIG, README, WEIGHTS, Backbone, replace_folder, tensors_of, timm_config
from .card import transformers_card

PREPROCESSOR = "preprocessor_config.json"
BICUBIC = 3  # Pillow's number
EPSILON = 1e-5  # of ResNetModel's batch normalisation, which its configuration does not hold
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu"}


class Translation(NamedTuple):
    """A backbone in the words of transformers."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    feature: str  # the backbone's feature (B, D), as a line of Python that reads ``outputs``


def export_huggingface(backbone: Backbone, folder: str | Path) -> Path:
    """Write weights, ``config.json``, ``preprocessor_config.json`` and a model card; a former backbone there is replaced.

    Raises:
        Refused: a part without a counterpart in transformers, or the folder holds something else. Failed: the disk did not
            take it.
    """
    encoder = backbone.encoder
    config, tensors, feature = translate_vit(encoder) if encoder.is_vit else translate_resnet(encoder)
    ours = timm_config(encoder, backbone.mean, backbone.std, backbone.info)
    config |= {"torch_dtype": "float32", "daybreak": ours["daybreak"]}
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", PREPROCESSOR: json.dumps(preprocessor(backbone), indent=2) + "\n",
             README: transformers_card(ours, config["architectures"][0], feature)}

    def fill(beside: Path) -> None:
        save_file({name: value.contiguous() for name, value in tensors.items()}, beside / WEIGHTS, metadata={"format": "pt"})
        for name, text in texts.items():
            (beside / name).write_text(text)

    return replace_folder(Path(folder), fill)


def refuse(encoder: Encoder, part: str) -> NoReturn:
    raise Refused(f"{encoder.name}: transformers has no counterpart of its {part}; the nearest export is --to timm, whose folder "
                  "AutoModel opens too where timm is installed.")


def translate_vit(encoder: Encoder) -> Translation:
    """A ViT. Layer scale, which ViTModel and IJepaModel lack, is multiplied into the layers before it.

    Raises:
        Refused: see ``refuse``.
    """
    model = encoder.model
    if type(model) is not VisionTransformer:
        known = {Eva: "rotary positions (Eva)", VisionTransformerDistilled: "distillation token"}
        refuse(encoder, known.get(type(model), f"architecture ({type(model).__name__})"))
    state, width, (height, columns), blocks = tensors_of(model), encoder.dim, encoder.image_size, list[Any](model.blocks)
    for block in blocks:
        check_block(encoder, block)
    block, hidden = blocks[0], blocks[0].mlp.fc1.out_features
    has_class, registers = "cls_token" in state, state.pop("reg_token", torch.zeros(1, 0, width))
    if registers.shape[1] and not has_class:
        refuse(encoder, "register tokens without a class token")
    if registers.shape[1] and height != columns:
        refuse(encoder, f"register tokens at {height} x {columns} pixels: Dinov2WithRegistersModel takes positions of a square")
    if registers.shape[1] and hidden % width:
        refuse(encoder, "register tokens with an MLP whose width is no multiple of the model's")
    found: dict[str, Tensor] = {}
    if "pos_embed" not in state:
        refuse(encoder, "blocks without a table of positions")
    positions, num_patches = state.pop("pos_embed"), encoder.grid(height, columns)[0] * encoder.grid(height, columns)[1]
    before = torch.zeros(1, encoder.num_prefix, width)  # positions of the prefix: none where timm adds them to patches alone
    if positions.shape[1] > num_patches:
        before, positions = positions[:, :-num_patches], positions[:, -num_patches:]
    if has_class:
        found["embeddings.cls_token"] = state.pop("cls_token")
        positions = torch.cat([before[:, :1], positions], 1)
    if registers.shape[1]:
        found |= {"embeddings.register_tokens": registers + before[:, 1:], "embeddings.mask_token": torch.zeros(1, width)}
    found |= {"embeddings.position_embeddings": positions,
              "embeddings.patch_embeddings.projection.weight": state.pop("patch_embed.proj.weight"),
              "embeddings.patch_embeddings.projection.bias": state.pop("patch_embed.proj.bias", torch.zeros(width))}
    for i in range(encoder.depth):
        found |= translate_block(state, f"blocks.{i}.", f"encoder.layer.{i}.", width, own_scale=registers.shape[1] > 0)
    found |= {f"layernorm.{part}": state.pop(f"norm.{part}") for part in ("weight", "bias") if f"norm.{part}" in state}
    if state or not isinstance(model.norm, nn.LayerNorm):
        refuse(encoder, next(iter(state), "final normalisation").removesuffix(".weight").removesuffix(".bias"))
    name, architecture = (("dinov2_with_registers", "Dinov2WithRegistersModel") if registers.shape[1]
                          else ("vit", "ViTModel") if has_class else ("ijepa", "IJepaModel"))
    config = {
        "architectures": [architecture], "model_type": name, "hidden_size": width, "num_hidden_layers": encoder.depth,
        "num_attention_heads": block.attn.num_heads, "hidden_act": activation(block.mlp.act),
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": model.norm.eps,
        "image_size": height if height == columns else [height, columns], "patch_size": encoder.patch,
        "num_channels": encoder.channels, "qkv_bias": block.attn.qkv.bias is not None,
    }
    config |= {"num_register_tokens": registers.shape[1], "mlp_ratio": hidden // width} if registers.shape[1] else {
        "intermediate_size": hidden}
    if name == "vit":  # its pooler then hands on the class token
        config |= {"pooler_act": "linear", "pooler_output_size": width}
        found |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    return Translation(config, found, "outputs.last_hidden_state[:, 0]" if encoder.pooling == "cls"
                       else f"outputs.last_hidden_state[:, {encoder.num_prefix}:].mean(1)")


def check_block(encoder: Encoder, block: Any) -> None:
    """Refuse a block that computes something else than transformers does; what has weights of its own is found by these."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        kinds = " with ".join(type(x).__name__ for x in (block, getattr(block, "attn", None), getattr(block, "mlp", None)))
        refuse(encoder, f"blocks ({kinds})")
    if block.attn.num_heads * block.attn.head_dim != encoder.dim:
        refuse(encoder, f"attention, {block.attn.num_heads} heads of {block.attn.head_dim} in a width of {encoder.dim}")
    if activation(block.mlp.act) is None:
        refuse(encoder, f"activation ({type(block.mlp.act).__name__})")
    if any(not isinstance(x, nn.LayerNorm) or x.eps != encoder.model.norm.eps for x in (block.norm1, block.norm2)):
        refuse(encoder, f"norms ({type(block.norm1).__name__}, and not of one epsilon)")


def activation(layer: nn.Module) -> str | None:
    """The name that transformers has for it; None if it has none."""
    if isinstance(layer, nn.GELU) and layer.approximate == "tanh":
        return ACTIVATIONS["GELUTanh"]
    return ACTIVATIONS.get(type(layer).__name__)


def translate_block(state: dict[str, Tensor], old: str, new: str, width: int, *, own_scale: bool) -> dict[str, Tensor]:
    """The tensors of a block under their new names; they are taken out of ``state``.

    Args:
        own_scale: the block there has a layer scale, and other names.
    """
    def take(name: str, size: int | None = None) -> Tensor:
        return state.pop(old + name) if size is None else state.pop(old + name, torch.zeros(size))

    norms, layers = (("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")) if own_scale else (
        ("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense"))
    found = {f"{theirs}.{part}": take(f"{ours}.{part}") for ours, theirs in zip(("norm1", "norm2"), norms, strict=True)
             for part in ("weight", "bias")}
    for part in ("weight", "bias"):
        if f"{old}attn.qkv.{part}" in state:
            thirds = take(f"attn.qkv.{part}").chunk(3)
            found |= {f"attention.attention.{name}.{part}": x for name, x in zip(("query", "key", "value"), thirds, strict=True)}
    found |= {f"{layers[0]}.weight": take("mlp.fc1.weight")}
    found |= {f"{layers[0]}.bias": take("mlp.fc1.bias", len(found[f"{layers[0]}.weight"]))}
    for number, ours, theirs in ((1, "attn.proj", "attention.output.dense"), (2, "mlp.fc2", layers[1])):
        weight, bias = take(f"{ours}.weight"), take(f"{ours}.bias", width)
        scale = state.pop(f"{old}ls{number}.gamma", torch.ones(width))
        if own_scale:
            found[f"layer_scale{number}.lambda1"] = scale
        else:
            weight, bias = weight * scale[:, None], bias * scale
        found |= {f"{theirs}.weight": weight, f"{theirs}.bias": bias}
    return {new + name: value for name, value in found.items()}


def translate_resnet(encoder: Encoder) -> Translation:
    """A ResNet with the stem of one 7 x 7 convolution, the stride of its bottlenecks in the middle, no extra parts.

    Raises:
        Refused: see ``refuse``; a ConvNeXt, whose ConvNextModel normalises behind the mean, among them.
    """
    model = encoder.model
    if type(model) is not ResNet:
        refuse(encoder, f"architecture ({type(model).__name__}, whose features are the mean of a normalised map)"
               if type(model).__name__ == "ConvNeXt" else f"architecture ({type(model).__name__})")
    pool, stem = model.maxpool, model.conv1
    if not (isinstance(stem, nn.Conv2d) and stem.kernel_size == (7, 7) and stem.stride == (2, 2) and isinstance(pool, nn.MaxPool2d)
            and (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)):
        refuse(encoder, "stem, which is not one convolution of 7 x 7 and a maximum")
    stages: list[Any] = [model.layer1, model.layer2, model.layer3, model.layer4]
    kind = type(stages[0][0])
    state, found = tensors_of(model), {}

    def move(old: str, new: str) -> None:
        for name in [name for name in state if name.startswith(f"{old}.")]:
            found[new + name.removeprefix(old)] = state.pop(name)

    move("conv1", "embedder.embedder.convolution")
    move("bn1", "embedder.embedder.normalization")
    for s, stage in enumerate(stages):
        for b, block in enumerate(stage):
            check_resnet_block(encoder, block, kind, 2 if s and not b else 1)
            old, new = f"layer{s + 1}.{b}", f"encoder.stages.{s}.layers.{b}"
            for j in range(3 if kind is Bottleneck else 2):
                move(f"{old}.conv{j + 1}", f"{new}.layer.{j}.convolution")
                move(f"{old}.bn{j + 1}", f"{new}.layer.{j}.normalization")
            move(f"{old}.downsample.0", f"{new}.shortcut.convolution")
            move(f"{old}.downsample.1", f"{new}.shortcut.normalization")
    if state:
        refuse(encoder, next(iter(state)).rpartition(".")[0])
    if any(isinstance(x, nn.BatchNorm2d) and x.eps != EPSILON for x in model.modules()):
        refuse(encoder, f"batch normalisation with another epsilon than {EPSILON}")
    last = "conv3" if kind is Bottleneck else "conv2"
    config = {
        "architectures": ["ResNetModel"], "model_type": "resnet", "num_channels": encoder.channels,
        "embedding_size": stem.out_channels, "hidden_sizes": [getattr(stage[0], last).out_channels for stage in stages],
        "depths": [len(stage) for stage in stages], "layer_type": "bottleneck" if kind is Bottleneck else "basic",
        "hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False,
    }
    return Translation(config, found, "outputs.pooler_output.flatten(1)")


def check_resnet_block(encoder: Encoder, block: Any, kind: type, stride: int) -> None:
    """Refuse a block that computes something else than ResNetModel's of this stride."""
    own: type = type(block)
    if own is not kind or kind not in (BasicBlock, Bottleneck):
        refuse(encoder, f"blocks ({own.__name__})")
    middle = block.conv2 if kind is Bottleneck else block.conv1
    shortcut = None if block.downsample is None else block.downsample[0]
    plain = all(not isinstance(x, nn.Module) or isinstance(x, nn.Identity) for x in (block.se, block.aa, block.drop_block))
    reduced = kind is BasicBlock or block.conv1.out_channels * 4 == block.conv3.out_channels
    if not (plain and reduced and middle.groups == 1 and middle.stride == (stride, stride) and middle.dilation == (1, 1)
            and isinstance(block.act1, nn.ReLU)):
        refuse(encoder, "blocks with groups, other widths, dilation, attention or blurring")
    if shortcut is not None and not (isinstance(shortcut, nn.Conv2d) and shortcut.kernel_size == (1, 1)
                                     and shortcut.stride == (stride, stride)):
        refuse(encoder, "shortcuts, which are not one convolution of 1 x 1")


def preprocessor(backbone: Backbone) -> dict[str, Any]:
    """What ``preprocessor_config.json`` holds: the largest centred square, resized; a box that is no square takes all of it."""
    height, width = backbone.size
    sizes: dict[str, Any] = ({"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
                             if height != width else
                             {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": height},
                              "do_center_crop": True, "crop_size": {"height": height, "width": width}})
    return sizes | {
        "do_resize": True, "resample": BICUBIC, "do_rescale": True,
        "rescale_factor": 1 / (65535 if backbone.info.get("depth", 8) == 16 else 255), "do_normalize": True,
        "image_mean": list(backbone.mean), "image_std": list(backbone.std), "do_convert_rgb": backbone.channels == 3}
