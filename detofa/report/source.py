"""What a report is made from: the files of a run, read and checked once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detofa.arch import Arch
from detofa.errors import UserError
from detofa.files import sha256_file
from detofa.profiling.cost import macs_cost
from detofa.profiling.table import LatencyTable
from detofa.space import Genes, SearchSpace
from detofa.subnet import Subnet
from detofa.train.config import TrainConfig
from detofa.train.evaluate import PathFigures
from detofa.train.path_evaluations import stored_evaluations
from detofa.train.run import RunFolder
from detofa.train.supernet_record import SupernetRecord, read_supernet_record

_NOT_SUBNETS = (".manifest.json", ".engine.json")  # what exports leave beside a subnet.json


@dataclass(frozen=True, kw_only=True)
class Written:
    """A subnet of the run that is written as a file.

    Attributes:
        path: Its subnet.json.
        subnet: The content.
    """

    path: Path
    subnet: Subnet

    @property
    def name(self) -> str:
        """Return what it is called in the report."""
        return self.path.stem

    @property
    def ap(self) -> float:
        """Return its AP on the validation split, from 0 to 1."""
        return self.subnet.figures["ap"].value

    def measured_ms(self, table: LatencyTable) -> float | None:
        """Return the p50 that was measured when it was chosen by this very table, or None."""
        measured = self.subnet.figures.get("latency")
        of_table = self.subnet.table_sha256 == table.sha256
        return measured.value if measured is not None and of_table else None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a run.

    Attributes:
        run: Its folder.
        config: Its settings.
        record: What its supernet says of itself; None until there is one.
        supernet_sha256: Hash of the supernet's file; empty until there is one.
        tables: Latency tables of its space.
        data: Where its data set is now.
        genes: (N, num_genes) paths evaluated on the supernet as it is now, best AP first.
        figures: Of each.
        written: Detectors of the run that are written as files, cheapest first.
        notes: What was left out, and why.
    """

    run: RunFolder
    config: TrainConfig
    record: SupernetRecord | None
    supernet_sha256: str
    tables: tuple[LatencyTable, ...]
    data: Path
    genes: Genes
    figures: tuple[PathFigures, ...] = ()
    written: tuple[Written, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def space(self) -> SearchSpace | None:
        """Return the search space; None until there is a supernet."""
        return None if self.record is None else self.record.space

    @property
    def chosen(self) -> Written | None:
        """Return the best detector written for a budget, or else of the front."""
        asked = [item for item in self.written if not item.name.startswith("front-")]
        return max(asked or self.written, key=lambda item: item.ap, default=None)

    @classmethod
    def of(
        cls, run: RunFolder, tables: Sequence[LatencyTable] = (), data: Path | None = None
    ) -> "Source":
        """Read a run.

        Args:
            run: The run; its training need not have ended.
            tables: Latency tables of its space.
            data: Where its data set is, if no longer where it was trained.

        Raises:
            UserError: this is no run, or a file of it is broken.
        """
        config = run.load_config()
        record = read_supernet_record(run.supernet) if run.supernet.is_file() else None
        found = cls(
            run=run,
            config=config,
            record=record,
            supernet_sha256="" if record is None else sha256_file(run.supernet),
            tables=tuple(tables),
            data=Path(config.data) if data is None else data,
            genes=np.empty((0, 0), np.int8),
        )
        return found if record is None else _with_paths(found, record.space)


def _with_paths(source: Source, space: SearchSpace) -> Source:
    """Add what was evaluated and written of the supernet as it is now."""
    notes = []
    genes, figures = space.ends[:0], []
    evaluated = source.run.path / "path_evaluations.json"
    if evaluated.is_file():
        evaluations = stored_evaluations(evaluated, space)
        if evaluations.supernet_sha256 == source.supernet_sha256:
            genes = evaluations.best_first()
            figures = evaluations.of(list(genes), lambda share: None)
        else:
            notes.append(f"{evaluated} is of earlier weights, and left out.")
    written = []
    for path in sorted(source.run.subnets.glob("*.json")):
        if path.name.endswith(_NOT_SUBNETS):
            continue
        try:
            item = Written(path=path, subnet=Subnet.load(path))
        except UserError as error:
            notes.append(f"{path} is left out: {error}.")
            continue
        if item.subnet.supernet_sha256 != source.supernet_sha256:
            notes.append(f"{path} was cut from earlier weights, and is left out.")
        elif "ap" in item.subnet.figures:
            written.append(item)
    macs = macs_cost(space)(genes_of(space, [item.subnet.arch for item in written]))
    return replace(
        source,
        genes=genes,
        figures=tuple(figures),
        written=tuple(written[index] for index in np.argsort(macs, kind="stable")),
        notes=tuple(notes),
    )


def genes_of(space: SearchSpace, archs: Sequence[Arch]) -> Genes:
    """Return the genes of archs: (N, num_genes), N may be zero."""
    return np.stack([space.genes(arch) for arch in archs]) if archs else space.ends[:0]
