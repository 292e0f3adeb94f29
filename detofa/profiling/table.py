"""LatencyTable: what a search space costs on one device; predicts the latency of any arch."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.files import check_fields, read_json, sha256_json, write_bytes, write_json
from detofa.profiling.cost import AdditiveCost, all_blocks
from detofa.profiling.device import Device, find_device, holds_words, slug, this_cpu
from detofa.reachable import Reachable, reachable_range
from detofa.space import Genes, SearchSpace
from detofa.timer import Clock

KIND = "latency_table"
REMAKE = "`detofa profile`"
_LISTED = 3  # blocks named in a message
_CLOCKS = get_args(Clock)
_LARGEST = 1e15  # of any number of a table


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured latencies of one search space on one device, and what predicts further ones.

    Attributes:
        device: What was measured.
        runtime: What ran the models.
        runtime_version: Its version.
        precision: Number format of weights and activations.
        batch: Images at once.
        threads: Threads inside an operator.
        method: How it was timed: clock, passes, runs per visit, seconds.
        noise_floor: Relative error of a quarter of the passes against the others; None if there
            was only one.
        unstable: Names of models whose time stayed uncertain after they were measured again.
        entries: Per model that the prior needs, such as a block alone: p50_ms, p90_ms, p99_ms,
            count, and p50_error, the relative standard error of the median, where it is known.
        detectors: Whole detectors measured: role (fit or held-out), genes, and as `entries`.
        prior_ms: Per block key, what it was thought to cost before the fit.
        block_ms: Per block key, the fitted cost inside a detector.
        model: What was fitted, and its settings.
        shares: Of neck, head and decoding in what the three take together, from the runtime's own
            profile; None where that was not looked at.
        suppression_ms: What threshold, clipping and suppression take after the network, for
            crowded images; None where it was not measured.
        held_out: Errors on detectors not used in the fit; see `fit.prediction_errors`.
        interval: Half-width, relative, of the interval that is promised with a prediction.
        verification: What measuring fresh detectors said later; see `detofa.profiling.verify`.
        space: The search space, whole.
        date: When, ISO 8601 with time zone.
        detofa_version: Version that measured.
    """

    device: Device
    runtime: str
    runtime_version: str
    precision: str
    batch: int
    threads: int
    method: Mapping[str, Any]
    noise_floor: float | None
    unstable: Sequence[str]
    entries: Mapping[str, Mapping[str, float]]
    detectors: Sequence[Mapping[str, Any]]
    prior_ms: Mapping[str, float]
    block_ms: Mapping[str, float]
    model: Mapping[str, Any]
    shares: Mapping[str, float] | None
    suppression_ms: float | None
    held_out: Mapping[str, float]
    interval: float
    verification: Mapping[str, Any] | None
    space: SearchSpace
    date: str
    detofa_version: str

    def predict(self, genes: Genes) -> NDArray[np.float64]:
        """Return the predicted p50 latency in milliseconds: (N, num_genes) to (N,)."""
        return self.cost(genes)

    def predict_interval(self, genes: Genes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the (N,) lower and upper edges that hold 95 % of measured p50, in milliseconds.

        They come from detectors of this table that the fit did not see, timed in the same
        minutes; at another time the device may be a few percent faster or slower as a whole.
        """
        predicted = self.cost(genes)
        return predicted / (1 + self.interval), predicted / (1 - min(self.interval, 0.9))

    @cached_property
    def reach(self) -> Reachable:
        """Return which budgets can be met: the range of the interval's slow edge, in ms."""
        rng = np.random.default_rng(0)
        return reachable_range(
            self.space, lambda genes: self.predict_interval(genes)[1], rng, unit="ms"
        )

    def columns(self, genes: Genes) -> dict[str, NDArray[np.float64]]:
        """Return what each part of (N, num_genes) detectors takes: per part (N,) milliseconds.

        All but `suppression`, which follows the network, add up to `predict`.
        """
        parts = self.cost.per_part(genes)
        if self.shares is not None:
            together = parts.pop("neck_head")
            parts |= {name: together * share for name, share in self.shares.items()}
        if self.suppression_ms is not None:
            parts["suppression"] = np.full(len(genes), self.suppression_ms)
        return parts

    @property
    def unseen_blocks(self) -> list[str]:
        """Return the keys of blocks that no detector of the fit has.

        Their costs come from the prior, and from what the fit found for blocks like them.
        """
        archs = [
            self.space.arch(np.array(entry["genes"], np.int8))
            for entry in self.detectors
            if entry["role"] == "fit"
        ]
        seen = {block.key for arch in archs for block in self.space.blocks(arch)}
        return [key for key in all_blocks(self.space) if key not in seen]

    @cached_property
    def cost(self) -> AdditiveCost:
        """Return the prediction as a cost, which also gives the part of stem, stages and head."""
        return AdditiveCost(self.space, lambda block: self.block_ms[block.key])

    @property
    def clock(self) -> Clock:
        """Return the clock that it was timed by."""
        clock: Clock = self.method["clock"]
        return clock

    @property
    def file_name(self) -> str:
        """Return the name under which the table is kept."""
        return table_name(
            self.device,
            self.space,
            runtime=self.runtime,
            precision=self.precision,
            threads=self.threads,
            batch=self.batch,
        )

    @property
    def options(self) -> str:
        """Return what `detofa search` needs to find this table, each option after a space."""
        usual = {"threads": 1, "batch": 1, "precision": "fp32", "runtime": "onnxruntime-cpu"}
        words = [
            f" --{name} {getattr(self, name)}"
            for name in usual
            if getattr(self, name) != usual[name]
        ]
        if self.device.name != this_cpu().name:
            words.append(f" --device {shlex.quote(self.device.name)}")
        return "".join(words)

    @property
    def sha256(self) -> str:
        """Return the hash of what was measured and fitted; a later verification changes nothing."""
        return sha256_json(self._record() | {"verification": None})

    def save(self, folder: Path) -> Path:
        """Write the table into `folder`, over an earlier one of the same name; return its path.

        Raises:
            UserError: the folder cannot be written.
        """
        path = folder / self.file_name
        record = self._record()
        write_json(path, KIND, record | {"sha256": sha256_json(record)})
        return path

    def save_beside_earlier(self, folder: Path) -> tuple[Path, Path | None]:
        """Write the table into `folder`; one of the same name goes to `folder/earlier` first.

        Returns:
            The table's path, and that of the earlier one, named after the time it was written;
            None if there was none.

        Raises:
            UserError: the folder cannot be written.
        """
        path, kept = folder / self.file_name, None
        if path.is_file():
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            kept = folder / "earlier" / f"{path.stem}-{written:%Y%m%dT%H%M%S}.json"
            write_bytes(kept, path.read_bytes())
        return self.save(folder), kept

    def check(
        self, path: Path, *, space: SearchSpace | None = None, device: Device | None = None
    ) -> None:
        """Raise UserError unless the table is of `space` and of `device`, where given."""
        if space is not None and space.digest != self.space.digest:
            raise UserError(
                f"{path} is of space {_describe(self.space)}, but {_describe(space)} is wanted; "
                f"measure that with {REMAKE}"
            )
        if device is not None and device.name != self.device.name:
            raise UserError(
                f"{path} was measured on {self.device.name}, but {device.name} is wanted; make "
                f"a table on that with {REMAKE}"
            )

    def _record(self) -> dict[str, Any]:
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        record["device"] = self.device.to_json()
        record["space"] = self.space.to_json()
        record["space_sha256"] = self.space.digest
        return record


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_date(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _holds(value: Any, *names: str) -> bool:
    """Return whether a value is a record that has numbers of these names."""
    return isinstance(value, dict) and all(_is_number(value.get(name)) for name in names)


def _of_numbers(value: Any) -> bool:
    return _holds(value, *value) if isinstance(value, dict) else False


def _is_verification(value: Any) -> bool:
    return (
        _holds(value, "noise_floor")
        and _holds(value.get("errors"), "mape")
        and type(value.get("passed")) is bool
        and _is_date(value.get("date"))
    )


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "runtime": _is_text,
    "runtime_version": _is_text,
    "precision": _is_text,
    "batch": _is_count,
    "threads": _is_count,
    "method": lambda value: _holds(value, "passes", "seconds") and value.get("clock") in _CLOCKS,
    "noise_floor": lambda value: value is None or _is_amount(value),
    "unstable": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "entries": lambda value: isinstance(value, dict) and all(map(_of_numbers, value.values())),
    "detectors": lambda value: isinstance(value, list) and bool(value),
    "prior_ms": _of_numbers,
    "block_ms": _of_numbers,
    "model": lambda value: isinstance(value, dict) and _is_text(value.get("prior")),
    "shares": lambda value: value is None or _of_numbers(value),
    "suppression_ms": lambda value: value is None or _is_amount(value),
    "held_out": lambda value: _holds(value, "count", "mape", "kendall_tau"),
    "interval": _is_amount,
    "verification": lambda value: value is None or _is_verification(value),
    "date": _is_date,
    "detofa_version": _is_text,
}
"""What the fields of a table's file are checked for; space and device check themselves."""


def _check_detectors(path: Path, table: LatencyTable) -> None:
    for entry in table.detectors:
        genes = entry.get("genes") if _holds(entry, "p50_ms") else None
        if not isinstance(genes, list) or not all(type(gene) is int for gene in genes):
            raise UserError(f"{path} holds a detector that is none; make it again with {REMAKE}")
        in_range = len(genes) == table.space.num_genes and all(
            -1 <= gene < count for gene, count in zip(genes, table.space.num_choices, strict=True)
        )
        if not in_range or entry["p50_ms"] <= 0:
            raise UserError(
                f"{path} holds a detector that is not of its space; make it again with {REMAKE}"
            )


def load_table(
    path: Path, *, space: SearchSpace | None = None, device: Device | None = None
) -> LatencyTable:
    """Read a table that `LatencyTable.save` wrote.

    Args:
        path: The file.
        space: The space it must be of, if given.
        device: The device it must be of, if given.

    Raises:
        UserError: missing, truncated, changed by hand, of another space or device; says how to
            make a new one.
    """
    content = read_json(path, KIND, remake=REMAKE)
    record = {key: content[key] for key in content if key not in ("schema", "kind", "sha256")}
    wanted = {field.name for field in fields(LatencyTable)} | {"space_sha256"}
    if set(record) != wanted:
        raise UserError(
            f"{path} is not a whole latency table: missing {sorted(wanted - set(record))}, "
            f"unknown {sorted(set(record) - wanted)}; make it again with {REMAKE}"
        )
    if content.get("sha256") != sha256_json(record):
        raise UserError(
            f"{path} has been changed since it was measured; make it again with {REMAKE}"
        )
    check_fields(record, _FITS, path, "a latency table", advice=f"make it again with {REMAKE}")
    record.pop("space_sha256")
    record["space"] = SearchSpace.from_json(record["space"])
    record["device"] = Device.from_json(record["device"])
    table = LatencyTable(**record)
    _check_detectors(path, table)
    lacking = [key for key in all_blocks(table.space) if not _is_cost(table.block_ms.get(key))]
    if lacking:
        more = ", ..." if len(lacking) > _LISTED else ""
        raise UserError(
            f"{path} lacks the cost of {len(lacking)} blocks of its space "
            f"({', '.join(lacking[:_LISTED])}{more}); make it again with {REMAKE}"
        )
    table.check(path, space=space, device=device)
    return table


def _is_cost(value: object) -> bool:
    return isinstance(value, float) and isfinite(value) and value > 0


def table_name(
    device: Device,
    space: SearchSpace,
    *,
    runtime: str = "onnxruntime-cpu",
    precision: str = "fp32",
    threads: int = 1,
    batch: int = 1,
) -> str:
    """Return the file name of the table of a space on a device."""
    how = f"{runtime}-{precision}-t{threads}-b{batch}"
    return f"{device.slug}-{slug(how)}-{slug(space.name)}-{space.digest[:8]}.json"


class NoTableError(UserError):
    """There is no table of what is wanted."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which table a user means.

    Attributes:
        device: `cpu` for this machine's, `cuda:N` for its GPUs, or whole words of the name of any
            device that there is a table of.
        runtime: What ran the models; any if not given, but ONNX Runtime for `cpu`.
        precision: Number format; any if not given.
        threads: Threads inside an operator.
        batch: Images of one call.
    """

    device: str = "cpu"
    runtime: str | None = None
    precision: str | None = None
    threads: int = 1
    batch: int = 1

    def of_device(self, table: LatencyTable) -> bool:
        """Return whether a table is of a device of that name."""
        if re.fullmatch(r"cpu|cuda(:\d+)?", self.device.strip().lower()):
            return table.device.name == find_device(self.device).name
        return holds_words(table.device.name, self.device)

    def measured_so(self, table: LatencyTable) -> bool:
        """Return whether a table was measured as wanted."""
        return (
            self.runtime in (None, table.runtime)
            and self.precision in (None, table.precision)
            and (self.threads, self.batch) == (table.threads, table.batch)
        )

    def __str__(self) -> str:
        """Return how it is to be measured, in words."""
        named = [word for word in (self.runtime, self.precision) if word is not None]
        return ", ".join([*named, f"threads={self.threads}", f"batch={self.batch}"])


THIS_CPU = Wanted()
"""The table of this machine's processor, one thread, one image."""


def find_table(
    folder: Path, space: SearchSpace, wanted: Wanted = THIS_CPU, *, remake: str = REMAKE
) -> tuple[Path, LatencyTable]:
    """Return the table of a space that a user means, and where it is.

    Args:
        folder: Where tables are.
        space: The space.
        wanted: Device, runtime and settings.
        remake: What makes such a table, for the message where there is none.

    Raises:
        NoTableError: there is none; says what makes one.
        UserError: several fit, or it is broken.
    """
    if wanted.device.strip().lower() == "cpu":  # a broken file is then told, and no other is read
        path = folder / table_name(
            this_cpu(),
            space,
            runtime=wanted.runtime or "onnxruntime-cpu",
            precision=wanted.precision or "fp32",
            threads=wanted.threads,
            batch=wanted.batch,
        )
        if path.exists():
            return path, load_table(path, space=space, device=this_cpu())
    found = {
        path: table
        for path, table in read_tables(folder)
        if isinstance(table, LatencyTable) and wanted.of_device(table)
    }
    exact = {path: table for path, table in found.items() if table.device.name == wanted.device}
    found = exact or found
    fitting = [
        (path, table)
        for path, table in found.items()
        if table.space.digest == space.digest and wanted.measured_so(table)
    ]
    names = sorted({table.device.name for _, table in fitting})
    if len(names) > 1:
        raise UserError(f"{wanted.device!r} fits {', '.join(names)}; give more of the name")
    if len(fitting) > 1:
        ways = ", ".join(f"{table.runtime} {table.precision}" for _, table in fitting)
        raise UserError(
            f"{names[0]} was measured in several ways: {ways}; choose with --runtime and "
            "--precision"
        )
    if fitting:
        return fitting[0]
    known = sorted({table.device.name for table in found.values()})
    device = ", ".join(known) if known else find_device(wanted.device).name
    others = "".join(
        f"; there is one of {_describe(table.space)} with {table.runtime}, {table.precision}, "
        f"threads={table.threads}, batch={table.batch}"
        for table in found.values()
    )
    raise NoTableError(
        f"no latency table of {_describe(space)} on {device} with {wanted} in {folder}{others}; "
        f"make it with {remake} on that machine"
    )


def read_tables(folder: Path) -> Iterator[tuple[Path, LatencyTable | UserError]]:
    """Yield every file of `folder` that should be a table, and the table or what is wrong."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, load_table(path)
        except UserError as error:
            yield path, error


def _describe(space: SearchSpace) -> str:
    sizes = ", ".join(f"{height}x{width}" for height, width in space.image_sizes)
    return f"{space.name} ({space.num_classes} classes, {sizes}, {space.digest[:8]})"
