"""subnet.json: one chosen detector, described well enough to run it on any machine."""

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from detofa.arch import Arch
from detofa.errors import UserError
from detofa.files import check_companion, is_number, read_json, write_json
from detofa.imaging import Preprocessing
from detofa.space import SearchSpace

KIND = "subnet"
_REMAKE = "`detofa search`"
_SOURCES = ("predicted", "measured", "exact")


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """What turns a model's outputs into boxes.

    Attributes:
        score_threshold: Boxes below it are not shown; `eval` keeps them.
        nms_threshold: Intersection over union above which the weaker box goes.
        class_aware_nms: Whether only boxes of one class suppress each other.
        top_k: Candidate boxes that leave the network.
        max_detections: Boxes kept per image.
    """

    score_threshold: float = 0.3
    nms_threshold: float = 0.6
    class_aware_nms: bool = True
    top_k: int = 300
    max_detections: int = 100

    def __post_init__(self) -> None:
        """Check kinds and ranges.

        Raises:
            UserError: a field is of the wrong kind or out of range.
        """
        for name in ("score_threshold", "nms_threshold"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise UserError(f"{name} should be a number from 0 to 1, got {value!r}")
        for name in ("top_k", "max_detections"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{name} should be a whole number, at least 1, got {value!r}")
        if type(self.class_aware_nms) is not bool:
            raise UserError(
                f"class_aware_nms should be true or false, got {self.class_aware_nms!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with its unit and where it came from.

    Attributes:
        value: The number.
        unit: For example `ms`, `MACs`, `AP`.
        source: `predicted`, `measured` or `exact`.
        conditions: What it holds for, e.g. device, runtime, precision, batch, split, date.
        low: Lower edge of the interval of a prediction, if known.
        high: Upper edge of the interval of a prediction, if known.
    """

    value: float
    unit: str
    source: str
    conditions: Mapping[str, Any] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Check kinds.

        Raises:
            UserError: a field is of the wrong kind, or a number is not finite.
        """
        if not is_number(self.value):
            raise UserError(f"the value of a figure should be a finite number, got {self.value!r}")
        for name in ("low", "high"):
            edge = getattr(self, name)
            if not (edge is None or is_number(edge)):
                raise UserError(f"{name} of a figure should be a finite number, got {edge!r}")
        if not isinstance(self.unit, str):
            raise UserError(f"the unit of a figure should be text, got {self.unit!r}")
        if self.source not in _SOURCES:
            raise UserError(
                f"the source of a figure should be one of {', '.join(_SOURCES)}, "
                f"got {self.source!r}"
            )
        if not isinstance(self.conditions, Mapping):
            raise UserError(f"the conditions of a figure should be named, got {self.conditions!r}")


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """The content of subnet.json.

    Attributes:
        space: The search space, whole.
        arch: The point of it.
        preprocessing: How an image becomes the network's input.
        postprocessing: How its outputs become boxes.
        categories: (id, name) of each class, with the data set's own ids, in label order.
        weights_file: Name of the safetensors file beside subnet.json.
        weights_sha256: Hash of that file.
        supernet_sha256: Hash of the supernet file the weights were cut from.
        recalibration: How BN was recalibrated: images, seed, split, class balance, augmentation.
        figures: Named figures, e.g. `macs`, `params`, `latency_predicted`, `latency`, `ap_val`.
        device: Identity of the device the budget was about, or None.
        table_sha256: Hash of the latency table used, or None.
        command: The command line that made this file.
    """

    space: SearchSpace
    arch: Arch
    preprocessing: Preprocessing
    postprocessing: PostProcessing
    categories: tuple[tuple[int, str], ...]
    weights_file: str
    weights_sha256: str
    supernet_sha256: str
    recalibration: Mapping[str, Any]
    figures: Mapping[str, Figure]
    device: str | None
    table_sha256: str | None
    command: str

    def __post_init__(self) -> None:
        """Check kinds, and that classes and weights fit.

        Raises:
            UserError: a field is of the wrong kind, the arch is outside the space, or there are
                not as many categories as classes; names the field.
        """
        self.space.check(self.arch)
        for name in ("weights_file", "weights_sha256", "supernet_sha256", "command"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name} should be text, got {getattr(self, name)!r}")
        for name in ("device", "table_sha256"):
            if not isinstance(getattr(self, name), str | None):
                raise UserError(f"{name} should be text or null, got {getattr(self, name)!r}")
        if not isinstance(self.recalibration, Mapping):
            raise UserError(f"recalibration should be named values, got {self.recalibration!r}")
        if Path(self.weights_file).name != self.weights_file or self.weights_file in ("", ".."):
            raise UserError(
                f"weights_file should be a name in the same folder, got {self.weights_file!r}"
            )
        numbers = [number for number, _ in self.categories]
        if len(numbers) != self.space.num_classes or len(set(numbers)) != len(numbers):
            raise UserError(
                f"categories should be {self.space.num_classes}, one for each class of the space, "
                f"each with its own id; got {len(numbers)} with the ids {sorted(set(numbers))}"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes in label order."""
        return tuple(name for _, name in self.categories)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return record | {
            "space": self.space.to_json(),
            "space_sha256": self.space.digest,
            "arch": self.arch.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "postprocessing": dataclasses.asdict(self.postprocessing),
            "categories": [{"id": number, "name": name} for number, name in self.categories],
            "recalibration": dict(self.recalibration),
            "figures": {name: dataclasses.asdict(value) for name, value in self.figures.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Subnet":
        """Read what `to_json` wrote, and check it against its own space.

        Raises:
            UserError: a field is missing, unknown or of the wrong kind, the space was edited, or
                the arch is outside it; names the field.
        """
        names = {*cls.__dataclass_fields__, "space_sha256"}
        record = _exactly(record, names, "subnet.json", besides={"schema", "kind"})
        space = SearchSpace.from_json(record["space"])
        if space.digest != record.pop("space_sha256"):
            raise UserError(
                f"space_sha256 is not the hash of its space, {space.digest[:12]}: the space was "
                f"edited; make the file again with {_REMAKE}"
            )
        try:
            parts = {
                "space": space,
                "arch": Arch.from_json(record["arch"]),
                "preprocessing": Preprocessing.from_json(record["preprocessing"]),
                "postprocessing": _read(PostProcessing, record["postprocessing"]),
                "categories": _categories(record["categories"]),
                "figures": _figures(record["figures"]),
            }
        except (TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"a field is of the wrong kind: {error}") from error
        return cls(**record | parts)

    def save(self, path: Path) -> None:
        """Write subnet.json atomically; its weights must already lie beside it."""
        write_json(path, KIND, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Subnet":
        """Read subnet.json and check that the weights beside it are the ones it names.

        Raises:
            UserError: see `from_json`; or the weights are missing or have another hash.
        """
        record = read_json(path, KIND, remake=_REMAKE)
        try:
            subnet = cls.from_json(record)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        weights = path.parent / subnet.weights_file
        check_companion(path, weights, subnet.weights_sha256, remake=_REMAKE)
        return subnet


_Record = TypeVar("_Record", PostProcessing, Figure)


def _exactly(
    record: Any, names: set[str], what: str, *, besides: Set[str] = frozenset()
) -> dict[str, Any]:
    """Return a record that has exactly the fields named, without those it may have besides."""
    if not isinstance(record, Mapping):
        raise UserError(f"{what} should be a JSON object, got {record!r}")
    found = set(record) - besides
    if found != names:
        raise UserError(
            f"{what} has missing fields {sorted(names - found)}, unknown fields "
            f"{sorted(found - names)}; make the file again with {_REMAKE}"
        )
    return {name: record[name] for name in names}


def _read(owner: type[_Record], record: Any) -> _Record:
    names = {field.name for field in dataclasses.fields(owner)}
    return owner(**_exactly(record, names, owner.__name__.lower()))


def _figures(record: Any) -> dict[str, Figure]:
    if not isinstance(record, Mapping):
        raise UserError(f"figures should be named, got {record!r}")
    return {name: _read(Figure, value) for name, value in record.items()}


def _categories(record: Any) -> tuple[tuple[int, str], ...]:
    if not isinstance(record, list):
        raise UserError(f"categories should be a list, got {record!r}")
    items = [_exactly(item, {"id", "name"}, "a category") for item in record]
    for item in items:
        if type(item["id"]) is not int or not isinstance(item["name"], str):
            raise UserError(f"a category should have a whole id and a name, got {item!r}")
    return tuple((item["id"], item["name"]) for item in items)
