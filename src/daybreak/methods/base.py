"""What every method is: a module that declares its views and turns a batch of them into a loss.

B images, V views, C channels. A method is one file; it knows nothing of devices, precision, ranks, loggers,
epochs or files.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Training
from ..data.batch import Batch
from ..data.philox import Random
from ..data.views import View
from ..errors import Refused, nearest
from ..nn.encoder import Encoder
from ..nn.label_tokens import LabelTokens
from ..nn.latent import Latent
from ..nn.momentum import Teacher

__all__ = ["Batch", "Encoder", "Loss", "Method", "Picture", "Step", "Training", "View", "find", "names", "register",
           "repainting"]


class Loss(NamedTuple):
    """A scalar to minimise (fp32) and named numbers to record (detached, 0-d)."""

    value: Tensor
    numbers: dict[str, Tensor]


@dataclass
class Step:
    """Where the run stands. ``random(name, shape)`` draws uniform numbers, a function of seed, epoch and sample."""

    progress: float  # share of the budget, in [0, 1]
    images_seen: int
    random: Random
    rank: int = 0
    world: int = 1
    mask_ratio: float | None = None  # of the stage, where the training has stages; None: the method's own


@dataclass
class Picture:
    """What a method can show: rows of images (C, H, W) in the units of the normalised views, a title a column."""

    caption: str
    columns: list[str]
    rows: list[list[Tensor]] = field(default_factory=list)
    normalised: bool = True  # False: pixels in [0, 1] instead


def repainting(view: Tensor, corrupted: Tensor, hidden: Tensor, painted: Tensor) -> Picture:
    """What a method shows that repaints corrupted blocks: a row for each image of ``view`` (B, C, H, W).

    The first B of ``corrupted``, ``hidden`` (one channel, True = hidden) and ``painted`` are those of this view.
    """
    count = len(view)
    whole = torch.where(hidden[:count], painted[:count].float(), view)
    rows = zip(view, corrupted[:count], whole, painted[:count].float(), strict=True)
    return Picture("Corrupted blocks repainted: the view, what the network sees, its blocks filled in, all it painted.",
                   ["view", "corrupted", "filled in", "painted"], [list(r) for r in rows])


class Method(nn.Module):
    """Base of every method; ``register`` sets the declarations."""

    name: ClassVar[str]
    Config: ClassVar[type]
    pool: ClassVar[Literal["cls", "mean"]]  # "cls" | "mean": which feature the backbone is used by
    # "none" | "class" | "multi" (several an image, or one class) | "value"; a setting ``classes`` is filled in by the data
    labels: ClassVar[str]
    positions: ClassVar[Literal["learned", "fixed"]]
    init: ClassVar[Literal["timm", "xavier"]]
    backbone_of: ClassVar[str]  # "student" | "teacher": which of the two is evaluated and exported
    drop_path: ClassVar[float]  # stochastic depth of the student where the encoder's settings name none
    needs_tokens: ClassVar[bool]  # refuses a CNN
    exact_accumulation: ClassVar[bool]  # the loss is a sum over samples, so micro-batches add up
    recipe: ClassVar[Training]  # the defaults of a run without a recipe (``training`` is the mode of torch's modules)
    small: ClassVar[Mapping[str, Any]]  # settings that replace the defaults for images of at most 128 px

    views: list[View]
    batch_size: int = 1  # images a step over all devices; set by the loop, for ``degenerate``
    teacher: Teacher  # of methods whose backbone is the teacher
    label_tokens: LabelTokens  # of methods that have a token for each label; written beside the backbone
    latent: Latent  # of methods that have a latent code; written beside the backbone

    def __init__(self, encoder: Encoder, config: Any):
        super().__init__()
        if self.needs_tokens and not encoder.is_vit:
            raise Refused(f"method '{self.name}' works on the tokens of a ViT, and {encoder.name} has none; "
                          "choose a ViT, such as --encoder vit_mini.")
        self.encoder = encoder
        self.config = config

    def forward(self, batch: Batch, step: Step) -> Loss:
        """The loss of a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def before_update(self, step: Step) -> None:
        """Between backward and the optimiser: clear gradients of frozen layers."""

    def after_step(self, step: Step) -> None:
        """After the optimiser: move a teacher, fill a queue."""

    def degenerate(self) -> dict[str, float]:
        """Loss values that mean collapse, each under its reading, ``value: meaning``.

        A reading ``name: value: meaning`` is of that number of the ``Loss`` instead. A method with prototypes logs
        ``assignment_entropy`` and ``mean_entropy`` and has a setting ``prototypes``.
        """
        return {}

    def picture(self, batch: Batch, step: Step) -> Picture | None:
        """Something to look at, from a batch of augmented views."""
        return None

    def assignments(self, images: Tensor) -> Tensor | None:
        """Scores (B, K) of a method's prototypes for whole images (B, C, H, W), the highest being an image's own."""
        return None

    @property
    def backbone(self) -> Encoder:
        """The encoder that is evaluated and exported."""
        if self.backbone_of == "teacher":
            return self.teacher["encoder"]
        return self.encoder


def register(name: str, *, config: type, training: Training, pool: str, labels: str = "none",
             positions: str = "learned", init: str = "timm", backbone: str = "student", drop_path: float = 0.0,
             needs_tokens: bool = False,
             exact_accumulation: bool = False, small: Mapping[str, Any] | None = None):
    """Declare a method: its short name, its settings and what it asks of encoder and data."""

    def declare(cls: type[Method]) -> type[Method]:
        for key, value in dict(name=name, Config=config, recipe=training, pool=pool, labels=labels,
                               positions=positions, init=init, backbone_of=backbone, drop_path=drop_path,
                               needs_tokens=needs_tokens,
                               exact_accumulation=exact_accumulation, small=small or {}).items():
            setattr(cls, key, value)
        return cls

    return declare


def names() -> list[str]:
    """Short names of all methods: the files of this folder."""
    folder = Path(__file__).parent
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if m.name != "base")


def find(name: str) -> type[Method]:
    """The method of that name, or the one in a file of your own (``path/to/file.py``).

    Raises:
        Refused: no such method, or a file that registers none.
    """
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None or not Path(name).is_file():
            raise Refused(f"{name}: no such file; --method takes a name or the path of a method file.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif name in names():
        module = importlib.import_module(f"{__package__}.{name}")
    else:
        raise Refused(f"unknown method '{name}'; {nearest(name, names())}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and value.__dict__.get("name"):
            return value
    raise Refused(f"{name}: no class in it is declared with @register(...).")
