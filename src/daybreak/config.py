"""The one configuration: frozen dataclasses, filled from TOML recipes, flags and ``--set``, saved whole.

Every setting has a default, a type and, where it matters, a range. An unknown name is refused with the
nearest one; the resolved configuration can be printed as its difference from the defaults.
"""

import dataclasses
import json
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import Refused, nearest

Tree = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included; ``None`` leaves a side open."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"at least {self.low}" if self.high is None else f"at most {self.high}"
        return f"from {self.low} to {self.high}"


Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are and how they are read."""

    path: str = ""  # folder, archive, list, table or saved data set
    val: str | None = None  # labelled images that are the queries of the evaluation
    label: str | None = None  # name of the label column; None takes the first one
    group: str | None = None  # name of the column that says which images belong together
    channels: Annotated[int, Range(1, 4)] | None = None  # None: 1 if all images are grey, else 3
    background: Annotated[int, Range(0, 255)] = 255  # grey level under transparent pixels
    max_bad: Share = 0.05  # share of unreadable images above which the run stops
    threads: Count | None = None  # of the loader; None: one a core


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which network, at which size."""

    name: str = "auto"  # a preset or any of timm's ViTs and CNNs; auto chooses by image size and device
    image_size: tuple[int, ...] | None = None  # pixels, one number or height and width; None: from the data
    patch_size: Count | None = None  # pixels
    width: Count | None = None
    depth: Count | None = None
    heads: Count | None = None
    drop_path: Share | None = None  # stochastic depth; None: the method's
    init: str | None = None  # weights to start from: a run, a file or timm:NAME; None: random
    init_partial: bool = False  # take what fits of them and leave the rest random


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a loss becomes weights; every method declares its own defaults, so a run without a recipe is defined.

    Schedules are shares of the budget and the budget is in images seen.
    """

    images: Count | None = None  # the budget in images seen
    epochs: Positive | None = None  # the budget in passes over the data
    minutes: Positive | None = None  # the budget in minutes of training
    batch_size: Count = 128  # images a step, over all devices
    optimizer: str = "adamw"  # any of timm's
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: Share = 0.9  # of sgd and lars
    learning_rate: Positive = 5e-4  # base rate; see the rule
    learning_rate_rule: Literal["linear", "sqrt", "fixed"] = "linear"  # base x batch / 256, x sqrt(batch), or as it is
    final_learning_rate: Positive = 1e-6
    warmup: Share = 0.1  # share of the budget
    weight_decay: Positive = 0.05
    final_weight_decay: Positive | None = None  # None: constant; otherwise reached by a cosine
    no_decay: Literal["1d", "1d-and-tokens", "none"] = "1d"  # which parameters are never decayed
    clip: Positive | None = None  # largest norm of a gradient
    clip_mode: Literal["global", "per-tensor"] = "global"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    scheme: Literal["constant", "daily-1", "daily-2", "daily-3", "daily-4", "daily-5", "daily-6"] = "constant"  # of stages
    accumulate: Count = 1  # micro-batches a step
    devices: Count = 1  # processes, one a device, that share each batch
    compile: bool = False
    gradient_checkpointing: bool = False
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is looked at while the run goes on, and how often."""

    log_steps: Count = 10  # steps between two lines of metrics.jsonl
    probes: Annotated[int, Range(0)] = 10  # times in a run that health and online accuracy are measured
    probe_bank: Count = 2000  # images in the bank of the online kNN and of the health measures
    probe_queries: Count = 500
    linear: bool = False  # a linear classifier at each probe too, which takes longer than all else in it
    on_collapse: Literal["warn-then-stop", "warn", "stop"] = "warn-then-stop"  # what an alarm of ``train/watch.py`` does
    save_minutes: Positive = 10.0  # between two checkpoints; 0 saves after each step


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run; ``config.toml`` in the run folder is this."""

    method_name: str
    method: Any  # the method's own Config
    data: DataConfig
    encoder: EncoderConfig
    training: Training
    watch: WatchConfig
    seed: Annotated[int, Range(0)] = 0


def read_toml(path: str | Path) -> Tree:
    """Read a recipe; its ``[claim]`` table is a record of what was measured and is left out."""
    try:
        tree = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise Refused(f"{path}: no such recipe; give the path of a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: not valid TOML ({error}).") from None
    tree.pop("claim", None)
    return tree


def parse_override(text: str) -> Tree:
    """Turn ``a.b=value`` into a tree; the value is TOML, or a bare string."""
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise Refused(f"--set {text}: expected key=value, such as --set method.mask_ratio=0.7.")
    try:
        parsed = tomllib.loads(f"x = {value.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = None if value.strip().lower() == "none" else value.strip()
    for part in reversed(name.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Join nested tables; a later tree wins."""
    out: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, Mapping) and isinstance(out.get(key), dict):
                out[key] = merge(out[key], value)
            else:
                out[key] = merge(value) if isinstance(value, Mapping) else value
    return out


def fill(cls: type, tree: Mapping[str, Any], where: str = "") -> Any:
    """Make the dataclass ``cls`` from a table.

    Raises:
        Refused: an unknown name, a value of another type, or a number out of its range.
    """
    if not isinstance(tree, Mapping):
        raise Refused(f"{where or 'the configuration'}: expected a table of settings, got {tree!r}.")
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for key, value in tree.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            raise Refused(f"unknown setting '{name}'; {nearest(key, list(hints))}")
        values[key] = coerce(hints[key], value, name)
    return cls(**values)


def coerce(kind: Any, value: Any, name: str) -> Any:
    """Check ``value`` against a type hint and return it in that type; raises Refused with the name."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else fill(kind, value, name)
    origin, options = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = coerce(options[0], value, name)
        if isinstance(value, int | float) and not options[1].holds(value):
            raise Refused(f"{name} = {value}: expected {options[1]}.")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return coerce(next(o for o in options if o is not type(None)), value, name)
    if origin is Literal:
        if value not in options:
            raise Refused(f"{name} = {value!r}: {nearest(str(value), [str(o) for o in options])}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            value = [value]
        value, many = list(value), options[-1] is Ellipsis
        if not many and len(value) != len(options):
            raise Refused(f"{name} = {value!r}: expected {len(options)} values.")
        return tuple(coerce(options[0] if many else o, v, name) for o, v in zip(options * len(value), value, strict=False))
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Refused(f"{name} = {value!r}: expected {kind.__name__}.")
    return value


def to_tree(config: Any) -> Tree:
    """Nested tables of a dataclass, tuples as lists; settings that are None are left out."""
    tree: Tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tree[field.name] = to_tree(value)
        elif value is not None:
            tree[field.name] = list(value) if isinstance(value, tuple) else value
    return tree


def recipe_tree(config: "RunConfig") -> Tree:
    """The tree of a run as a recipe has it: the method's name stands in its own table."""
    tree = to_tree(config)
    name = tree.pop("method_name")
    return {"seed": tree.pop("seed"), "method": {"name": name, **tree.pop("method")}, **tree}


def from_tree(tree: Mapping[str, Any], method: type) -> "RunConfig":
    """What ``to_tree`` made a tree of; ``method`` is the class of the method's own settings."""
    return fill(RunConfig, {**tree, "method": fill(method, tree["method"], "method")})


def to_toml(tree: Mapping[str, Any]) -> str:
    """Write nested tables of strings, numbers, booleans and lists as TOML."""
    plain = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in tree.items() if not isinstance(v, Mapping)]
    tables = [f"\n[{k}]\n{to_toml(v)}" for k, v in tree.items() if isinstance(v, Mapping)]
    return "\n".join(plain + tables)


def write_config(folder: Path, config: RunConfig) -> None:
    """Write ``config.toml`` of a run, which is a recipe."""
    (folder / "config.toml").write_text(to_toml(recipe_tree(config)) + "\n")


def difference(config: Any, default: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Settings that differ: (dotted name, default, value), in the order of the fields."""
    out = []
    for field in dataclasses.fields(config):
        name = f"{where}.{field.name}" if where else field.name
        mine, theirs = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(mine):
            out += difference(mine, theirs, name)
        elif mine != theirs:
            out.append((name, theirs, mine))
    return out
