"""TrainConfig: the settings of a training run, as TOML and as flags."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from detofa.data.transforms import Augmentation
from detofa.errors import UserError
from detofa.files import SCHEMA, check_schema, refuse_deep, write_text
from detofa.path_filter.rank_quality import FEWEST_PER_BIN
from detofa.supernet.loss import LossWeights

_MOST_CHARACTERS, _LONGEST_LINE = 100_000, 4_000  # of a recipe; one of all settings has 1,200
METHODS = ("ofa", "detofa", "random-pruned")


@dataclass(frozen=True, kw_only=True)
class FilterPlan:
    """How a run uses the path filter; of no account for method `ofa`.

    Attributes:
        warm_up: Share of the steps in the whole space, before labels are evaluated.
        bins: Budget bins.
        labels_per_bin: Paths evaluated in each bin.
        label_images: Validation images that they are evaluated on, at most; a fixed choice.
        keep: Share of each bin that training goes on with.
        prune: `advised`: only where the filter ranks better than MACs alone; or `always`.
        table: A latency table whose latency divides the bins; MACs do if empty.
    """

    warm_up: float = 0.5
    bins: int = 5
    labels_per_bin: int = 12
    label_images: int = 200
    keep: float = 0.25
    prune: str = "advised"
    table: str = ""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: a setting is out of its range.
        """
        if not (0 < self.warm_up < 1 and 0 < self.keep <= 1):
            raise UserError(
                "warm_up of the filter should lie between 0 and 1, and keep above 0 and up to 1; "
                f"got {self.warm_up} and {self.keep}"
            )
        if self.bins < 1 or self.labels_per_bin < FEWEST_PER_BIN:
            raise UserError(
                f"the filter needs at least one bin and {FEWEST_PER_BIN} labels in each, got "
                f"{self.bins} and {self.labels_per_bin}"
            )
        if self.label_images < 2:
            raise UserError(f"a label needs 2 images or more, for two halves: {self.label_images}")
        if self.prune not in ("advised", "always"):
            raise UserError(f"prune should be advised or always, got {self.prune!r}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
        data: Folder of the data set.
        task: `detection`, or `classification` to pre-train a backbone.
        method: Where random paths come from: `ofa`, the whole space; `detofa`, what the path
            filter leaves of it; `random-pruned`, what chance leaves, as a control.
        space: Name of the search space.
        image_sizes: (height, width) choices of the network's input.
        init: What the weights start from: `random`, `efficientnet-lite0`, the path of a
            once-for-all checkpoint, or of an earlier run's supernet.safetensors.
        seed: Decides weights, batches and archs.
        steps: Optimiser steps in all.
        batch_size: Images a step.
        largest_first: Share of the steps, at the start, that train the largest path alone.
        random_paths: Random paths a step, beside the largest and the smallest.
        distillation: Weight of the loss towards the largest path's outputs, in detection for paths
            of its input size; 0 turns it off.
        learning_rate: Peak rate of AdamW, for neck and head.
        backbone_rate: The backbone's rate as a multiple of `learning_rate`.
        warm_up: Share of the steps over which the rate rises.
        weight_decay: Of AdamW, on weights that are not norms or biases.
        clip_norm: Largest norm of the summed gradients.
        ema_decay: Decay of the averaged weights, which are the ones that count.
        class_balance: 0 shows every image equally often; 1 favours rare classes most.
        recalibration_images: Size of the fixed set for BN recalibration.
        evaluations: How often paths are evaluated during training.
        checkpoint_steps: Steps between checkpoints: the most a crash loses.
        workers: Threads that prepare batches.
        augmentation: How images are varied.
        losses: Weights of the parts of the loss.
        filter: How the path filter is used.
    """

    data: str
    task: str = "detection"
    method: str = "ofa"
    space: str = "lite0"
    image_sizes: tuple[tuple[int, int], ...] = ((320, 320),)
    init: str = "random"
    seed: int = 0
    steps: int = 1500
    batch_size: int = 16
    largest_first: float = 0.2
    random_paths: int = 1
    distillation: float = 1.0
    learning_rate: float = 2e-3
    backbone_rate: float = 1.0
    warm_up: float = 0.05
    weight_decay: float = 0.05
    clip_norm: float = 10.0
    ema_decay: float = 0.998
    class_balance: float = 0.0
    recalibration_images: int = 64
    evaluations: int = 5
    checkpoint_steps: int = 50
    workers: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    losses: LossWeights = field(default_factory=LossWeights)
    filter: FilterPlan = field(default_factory=FilterPlan)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.task not in ("detection", "classification"):
            raise UserError(f"task should be detection or classification, got {self.task!r}")
        if self.method not in METHODS:
            raise UserError(f"method should be {', '.join(METHODS)}, got {self.method!r}")
        if self.method != "ofa" and self.task != "detection":
            raise UserError(f"method {self.method} is for detection; pre-training is by ofa")
        if self.method != "ofa" and self.filter.warm_up <= self.largest_first:
            raise UserError(
                f"method {self.method} needs steps in the whole space before it prunes: warm_up of "
                f"the filter ({self.filter.warm_up}) should be above largest_first "
                f"({self.largest_first})"
            )
        for name in ("steps", "batch_size", "recalibration_images", "checkpoint_steps"):
            _check(self, name, 1, 10**9)
        for name in ("seed", "random_paths", "evaluations", "workers"):
            _check(self, name, 0, 10**9)
        for name in ("largest_first", "warm_up", "class_balance", "ema_decay"):
            _check(self, name, 0, 1)
        for name in ("distillation", "learning_rate", "backbone_rate", "weight_decay", "clip_norm"):
            _check(self, name, 0, 1e6)

    def to_json(self) -> dict[str, Any]:
        """Return nested plain values, as `from_json` and TOML take them."""
        record = dataclasses.asdict(self)
        record["image_sizes"] = [list(size) for size in self.image_sizes]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], source: str) -> "TrainConfig":
        """Build a config from plain values; fields not named keep their defaults.

        A `schema` may be named, as it is in what `save` writes.

        Raises:
            UserError: a field is unknown or of the wrong kind, names it and `source`; or another
                schema.
        """
        check_schema({"schema": SCHEMA} | dict(record), source, remake="`detofa train`")
        record = {name: value for name, value in record.items() if name != "schema"}
        if "data" not in record:
            raise UserError(f"{source} names no data; set data to the folder of a data set")
        return cls(**_fields(cls, record, source))

    def save(self, path: Path) -> None:
        """Write the config as TOML."""
        write_text(path, tomli_w.dumps({"schema": SCHEMA} | self.to_json()))


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a TOML recipe: some or all fields of `TrainConfig`.

    Raises:
        UserError: missing, or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # What tomllib takes for a line grows as the square of the dots in it.
        if len(text) > _MOST_CHARACTERS or max(map(len, text.split("\n"))) > _LONGEST_LINE:
            raise ValueError("it is far longer than settings are")
        recipe = tomllib.loads(text)
        refuse_deep(recipe)
        repr(recipe)  # a number of thousands of digits cannot be shown
    except FileNotFoundError:
        raise UserError(f"recipe {path} does not exist") from None
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"recipe {path} is not TOML: {error}") from error
    return recipe


def _fields(owner: Any, record: Mapping[str, Any], source: str) -> dict[str, Any]:
    known = {item.name: item for item in dataclasses.fields(owner)}
    unknown = sorted(set(record) - set(known))
    if unknown:
        raise UserError(f"{source} has unknown settings {unknown}; known are {sorted(known)}")
    values: dict[str, Any] = {}
    for name, value in record.items():
        kind = known[name].type
        if name == "image_sizes":
            values[name] = _image_sizes(value, source)
        elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            assert isinstance(kind, type)
            values[name] = kind(**_fields(kind, value, f"{source}, {name}"))
        elif kind is float and type(value) is int and abs(value) < 2**63:
            values[name] = float(value)
        elif isinstance(kind, type) and type(value) is kind:
            values[name] = value
        else:
            expected = kind.__name__ if isinstance(kind, type) else str(kind)
            raise UserError(f"{source}: {name} should be {expected}, got {value!r}")
    return values


def _image_sizes(value: Any, source: str) -> tuple[tuple[int, int], ...]:
    pairs = isinstance(value, list | tuple) and all(
        isinstance(size, list | tuple) and len(size) == 2 and all(type(s) is int for s in size)
        for size in value
    )
    if not pairs or not value:
        raise UserError(f"{source}: image_sizes should be a list of [height, width], got {value!r}")
    return tuple((size[0], size[1]) for size in value)


def _check(config: TrainConfig, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if not low <= value <= high:
        raise UserError(f"{name} should be from {low} to {high:g}, got {value!r}")
