"""What a supernet's file says about its weights, read without them and without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from detofa.errors import UserError
from detofa.files import check_schema, parse_json
from detofa.imaging import Preprocessing
from detofa.space import SearchSpace

TRAIN = "`detofa train`"
"""What makes a supernet's file."""


@dataclass(frozen=True, kw_only=True)
class SupernetRecord:
    """What a supernet's file says about its weights.

    Attributes:
        space: The search space.
        categories: (id, name) of each class, in label order.
        preprocessing: How images were prepared.
        step: Optimiser steps behind the weights.
        recalibration: Fixed recalibration set, as in subnet.json.
        data: Folder of the data set it was trained on.
    """

    space: SearchSpace
    categories: tuple[tuple[int, str], ...]
    preprocessing: Preprocessing
    step: int
    recalibration: dict[str, Any]
    data: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return {
            "space": self.space.to_json(),
            "categories": [list(pair) for pair in self.categories],
            "preprocessing": self.preprocessing.to_json(),
            "step": self.step,
            "recalibration": self.recalibration,
            "data": self.data,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], path: Path) -> "SupernetRecord":
        """Read what `to_json` wrote.

        Raises:
            UserError: something is missing or of the wrong kind; names the file at `path`.
        """
        try:
            return cls(
                space=SearchSpace.from_json(record["space"]),
                categories=tuple((int(number), str(name)) for number, name in record["categories"]),
                preprocessing=Preprocessing.from_json(record["preprocessing"]),
                step=int(record["step"]),
                recalibration=dict(record["recalibration"]),
                data=str(record["data"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path} does not hold a whole supernet: {error}; see {TRAIN}"
            ) from error


def read_supernet_record(path: Path) -> SupernetRecord:
    """Read the record of a supernet's file.

    Raises:
        UserError: missing, truncated, of another kind, or not whole.
    """
    return SupernetRecord.from_json(read_header(path, "supernet", remake=TRAIN), path)


def read_header(path: Path, kind: str, *, remake: str) -> dict[str, Any]:
    """Read the header of a safetensors file of detofa.

    Raises:
        UserError: missing, truncated, from elsewhere, of another kind or schema.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with {remake}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = parse_json((file.metadata() or {}).get("detofa", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); make it again with {remake}"
        ) from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise UserError(f"{path} is not a {kind} file of detofa; make one with {remake}")
    check_schema(header, str(path), remake=remake)
    return header


def earlier_state(state: Path) -> Path:
    """Return where the training state before the newest one lies."""
    return state.with_name(f"{state.stem}.earlier{state.suffix}")
