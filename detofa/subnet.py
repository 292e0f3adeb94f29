"""subnet.json: one chosen detector, described well enough to run it on any machine."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detofa.arch import Arch
from detofa.errors import UserError
from detofa.files import read_json, sha256_file, write_json
from detofa.imaging import Preprocessing
from detofa.space import SearchSpace

KIND = "subnet"
_REMAKE = "`detofa search`"


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
        """Check the ranges."""
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} should be from 0 to 1, got {getattr(self, name)!r}")
        for name in ("top_k", "max_detections"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} should be at least 1, got {getattr(self, name)!r}")


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
        recalibration: How BN was recalibrated: images, seed, split.
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
        names = set(cls.__dataclass_fields__) | {"space_sha256"}
        found = set(record) - {"schema", "kind"}
        if found != names:
            raise UserError(
                f"missing fields {sorted(names - found)}, unknown fields {sorted(found - names)}; "
                f"make it again with {_REMAKE}"
            )
        space = SearchSpace.from_json(record["space"])
        if space.digest != record["space_sha256"]:
            raise UserError(
                f"its space has hash {space.digest[:12]} but it was written for "
                f"{str(record['space_sha256'])[:12]}: the space was edited; make the file again "
                f"with {_REMAKE}"
            )
        arch = Arch.from_json(record["arch"])
        space.check(arch)
        try:
            fields = {name: record[name] for name in cls.__dataclass_fields__}
            fields |= {
                "space": space,
                "arch": arch,
                "preprocessing": Preprocessing.from_json(record["preprocessing"]),
                "postprocessing": PostProcessing(**record["postprocessing"]),
                "categories": tuple(
                    (int(item["id"]), str(item["name"])) for item in record["categories"]
                ),
                "figures": {name: Figure(**value) for name, value in record["figures"].items()},
            }
            subnet = cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"a field is of the wrong kind: {error}") from error
        if len(subnet.categories) != space.num_classes:
            raise UserError(
                f"{len(subnet.categories)} categories for a space of {space.num_classes} classes"
            )
        if Path(subnet.weights_file).name != subnet.weights_file:
            raise UserError(
                f"weights_file should be a name in the same folder, got {subnet.weights_file!r}"
            )
        return subnet

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
        if not weights.is_file():
            raise UserError(
                f"{path} needs its weights {weights}, which do not exist; copy them beside it, or "
                f"make both again with {_REMAKE}"
            )
        found = sha256_file(weights)
        if found != subnet.weights_sha256:
            raise UserError(
                f"{weights} has SHA-256 {found[:12]}, but {path.name} was written for "
                f"{subnet.weights_sha256[:12]}: they are not of one search; make both again with "
                f"{_REMAKE}"
            )
        return subnet
