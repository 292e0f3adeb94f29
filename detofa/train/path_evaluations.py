"""Figures of paths evaluated on one supernet, kept on disk so that none is evaluated twice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detofa.arch import Arch
from detofa.errors import UserError
from detofa.files import read_json, write_json
from detofa.space import Genes, SearchSpace
from detofa.train.evaluate import HalfFigures, PathFigures

_KIND = "path_evaluations"
_REMAKE = "`detofa search`"


@dataclass(kw_only=True)
class PathEvaluations:
    """Figures of paths on the validation split.

    Attributes:
        path: The file; figures found there of other weights, or recalibrated otherwise, are left
            and written over.
        space: The search space.
        supernet_sha256: Hash of the supernet's file, whose paths these are.
        recalibration: How their batch norms are recalibrated; see `Recalibration.to_json`.
        evaluate: Evaluates paths for real, one after another or side by side; told whether the
            figures of both halves of the images are wanted too.
        saves: Whether what is evaluated is written; of several processes one does.
    """

    path: Path
    space: SearchSpace
    supernet_sha256: str
    recalibration: Mapping[str, Any]
    evaluate: Callable[[Sequence[Arch], bool], Iterator[PathFigures]]
    saves: bool = True
    _figures: dict[bytes, PathFigures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what was evaluated earlier.

        Raises:
            UserError: the file was changed by hand.
        """
        if not self.path.is_file():
            return
        record = read_json(self.path, _KIND, remake=_REMAKE)
        if any(record.get(name) != value for name, value in self._identity.items()):
            return
        try:
            for item in record["paths"]:
                key = self.space.genes(Arch.from_json(item["arch"])).tobytes()
                self._figures[key] = _figures_from_json(item)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path} was changed ({error}); remove it, and {_REMAKE} makes it again"
            ) from error

    def of(
        self,
        genes: Sequence[Genes],
        on_progress: Callable[[float], None],
        *,
        halves: bool = False,
    ) -> list[PathFigures]:
        """Return the figures of paths, evaluating those that are new; each is saved at once.

        Args:
            genes: Each (num_genes,).
            on_progress: Told the share done.
            halves: Whether the figures of both halves of the images are wanted too.
        """
        keys = [row.tobytes() for row in genes]
        new = [key for key in dict.fromkeys(keys) if self._lacks(key, halves)]
        on_progress(0.0)
        results = self.evaluate([self._arch(key) for key in new], halves) if new else ()
        for index, (key, figures) in enumerate(zip(new, results, strict=True)):
            self._figures[key] = figures
            if self.saves:
                self._write()
            on_progress((index + 1) / len(new))
        return [self._figures[key] for key in keys]

    def best_first(self) -> Genes:
        """Return all paths evaluated so far, best AP first: (N, num_genes)."""
        keys = sorted(self._figures, key=lambda key: -self._figures[key].ap)
        rows = [np.frombuffer(key, np.int8) for key in keys]
        return np.stack(rows) if rows else np.empty((0, self.space.num_genes), np.int8)

    def _lacks(self, key: bytes, halves: bool) -> bool:
        known = self._figures.get(key)
        return known is None or (halves and known.halves is None)

    def _arch(self, key: bytes) -> Arch:
        return self.space.arch(np.frombuffer(key, np.int8))

    def _write(self) -> None:
        paths = [
            {"arch": self._arch(key).to_json()} | asdict(figures)
            for key, figures in self._figures.items()
        ]
        write_json(self.path, _KIND, {**self._identity, "paths": paths})

    @property
    def _identity(self) -> dict[str, Any]:
        return {
            "supernet_sha256": self.supernet_sha256,
            "recalibration": dict(self.recalibration),
        }


def stored_evaluations(path: Path, space: SearchSpace) -> PathEvaluations:
    """Return what a file holds, whichever weights it was of; nothing more can be evaluated.

    Raises:
        UserError: missing, broken, or of another space.
    """

    def refuse(archs: Sequence[Arch], halves: bool) -> Iterator[PathFigures]:
        raise UserError(
            f"{path} lacks {len(archs)} paths, and the weights that it was made with have been "
            "trained further; train again for other labels"
        )

    record = read_json(path, _KIND, remake=_REMAKE)
    recalibration = record.get("recalibration")
    if not isinstance(recalibration, dict):
        raise UserError(
            f"{path} does not say how its paths were recalibrated, as files of before do not; "
            "train again for labels that can be compared"
        )
    return PathEvaluations(
        path=path,
        space=space,
        supernet_sha256=str(record.get("supernet_sha256")),
        recalibration=recalibration,
        evaluate=refuse,
    )


def _figures_from_json(record: dict[str, Any]) -> PathFigures:
    halves = record["halves"]
    if halves is not None:
        first, second = (
            HalfFigures(ap=float(half["ap"]), loss=float(half["loss"])) for half in halves
        )
        halves = first, second
    return PathFigures(
        ap=float(record["ap"]),
        ap50=float(record["ap50"]),
        seconds=float(record["seconds"]),
        halves=halves,
    )
