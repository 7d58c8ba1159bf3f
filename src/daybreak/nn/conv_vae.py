"""The convolutional encoder of the disentanglement literature, as a model that timm makes by its name, ``conv_vae``.

Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations", 2018,
arXiv 1811.12359: made for 64 x 64 pixels. timm knows the name once this module is imported; weights of it are opened by
``daybreak.load``, or by timm after ``import daybreak.nn.encoder``. B batch, C channels, H W height and width in pixels.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "conv_vae"
WIDTHS = (32, 32, 64, 64)  # of the layers that halve
LAST = 256
SIDE = 4  # of the map that the last layer joins into one vector


class ConvVAE(nn.Module):
    """Four convolutions that halve, one that joins 4 x 4 places into one, a ReLU after each; the mean over what is left.

    At 64 pixels nothing is left to average. Other sizes work too: where 64 does not divide them, zeros fill the last map.
    """

    def __init__(self, in_chans: int = 3, num_classes: int = 0, global_pool: str = "avg"):
        super().__init__()
        self.num_classes, self.num_features, self.global_pool = num_classes, LAST, global_pool
        widths = (in_chans, *WIDTHS)
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, WIDTHS, strict=False))
        self.join = nn.Conv2d(WIDTHS[-1], LAST, SIDE, stride=SIDE)
        self.head: nn.Module = nn.Linear(LAST, num_classes) if num_classes else nn.Identity()
        self.apply(initialise_glorot)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^halve\.0", "blocks": [(r"^halve\.(\d+)", None), (r"^join", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        assert not enable, "gradient checkpointing is not supported"

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 256, h, w), h and w a 64th of H and W, rounded up; each side 16 pixels or more."""
        for layer in self.halve:
            x = layer(x).relu()
        return self.join(F.pad(x, (0, -x.shape[3] % SIDE, 0, -x.shape[2] % SIDE))).relu()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def initialise_glorot(module: nn.Module) -> None:
    """For ``Module.apply``: Glorot's uniform weights and zero biases, TensorFlow's usual start, in which that paper's code is."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs({f"{NAME}.untrained": {
    "input_size": (3, 64, 64), "pool_size": (1, 1), "num_classes": 0, "first_conv": "halve.0", "classifier": "head"}})


@register_model
def conv_vae(pretrained: bool = False, **arguments: Any) -> ConvVAE:
    """What ``timm.create_model("conv_vae")`` calls."""
    return build_model_with_cfg(ConvVAE, NAME, pretrained, **arguments)
