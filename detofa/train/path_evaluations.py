"""Figures of paths evaluated on one supernet, kept on disk so that none is evaluated twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detofa.arch import Arch
from detofa.data.evaluation import AveragePrecision
from detofa.errors import UserError
from detofa.files import read_json, write_json
from detofa.space import Genes, SearchSpace

_KIND = "path_evaluations"
_REMAKE = "`detofa search`"


@dataclass(kw_only=True)
class PathEvaluations:
    """AP and AP50 of paths on the validation split.

    Attributes:
        path: The file; figures of other weights found there are left and written over.
        space: The search space.
        supernet_sha256: Hash of the supernet's file, whose paths these are.
        evaluate: Evaluates paths for real, one after another or side by side.
    """

    path: Path
    space: SearchSpace
    supernet_sha256: str
    evaluate: Callable[[Sequence[Arch]], Iterator[AveragePrecision]]
    _figures: dict[bytes, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what an earlier search left.

        Raises:
            UserError: the file was changed by hand.
        """
        if not self.path.is_file():
            return
        record = read_json(self.path, _KIND, remake=_REMAKE)
        if record.get("supernet_sha256") != self.supernet_sha256:
            return
        try:
            for item in record["paths"]:
                key = self.space.genes(Arch.from_json(item["arch"])).tobytes()
                self._figures[key] = (float(item["ap"]), float(item["ap50"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path} was changed ({error}); remove it, and {_REMAKE} makes it again"
            ) from error

    def of(
        self, genes: Sequence[Genes], on_progress: Callable[[float], None]
    ) -> list[tuple[float, float]]:
        """Return (AP, AP50) of paths, evaluating those that are new; each is saved at once.

        Args:
            genes: Each (num_genes,).
            on_progress: Told the share done.
        """
        keys = [row.tobytes() for row in genes]
        new = [key for key in dict.fromkeys(keys) if key not in self._figures]
        on_progress(0.0)
        results = self.evaluate([self._arch(key) for key in new]) if new else ()
        for index, (key, result) in enumerate(zip(new, results, strict=True)):
            self._figures[key] = (result.ap, result.ap50)
            self._write()
            on_progress((index + 1) / len(new))
        return [self._figures[key] for key in keys]

    def best_first(self) -> Genes:
        """Return all paths evaluated so far, best AP first: (N, num_genes)."""
        keys = sorted(self._figures, key=lambda key: -self._figures[key][0])
        rows = [np.frombuffer(key, np.int8) for key in keys]
        return np.stack(rows) if rows else np.empty((0, self.space.num_genes), np.int8)

    def _arch(self, key: bytes) -> Arch:
        return self.space.arch(np.frombuffer(key, np.int8))

    def _write(self) -> None:
        paths = [
            {
                "arch": self._arch(key).to_json(),
                "ap": ap,
                "ap50": ap50,
            }
            for key, (ap, ap50) in self._figures.items()
        ]
        write_json(self.path, _KIND, {"supernet_sha256": self.supernet_sha256, "paths": paths})
