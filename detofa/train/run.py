"""RunFolder: where a run keeps its files."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from detofa.errors import UserError
from detofa.files import SCHEMA, check_schema, parse_json, write_json, write_text
from detofa.train.config import TrainConfig, read_recipe
from detofa.train.supernet_record import TRAIN, earlier_state, read_header

RUNS = Path("runs")
_BYTES_OF_BLOCK = 512  # of st_blocks, whatever the file system's own are
_METRICS_BEGIN = json.dumps({"schema": SCHEMA, "kind": "metrics"}) + "\n"
_PACKAGES = ("detofa", "numpy", "torch", "torchvision", "onnxruntime", "faster-coco-eval")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Return the path of the resolved settings."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """Return the path of the log: one JSON object a line, the first of which has its schema."""
        return self.path / "metrics.jsonl"

    @property
    def supernet(self) -> Path:
        """Return the path of the averaged weights."""
        return self.path / "supernet.safetensors"

    @property
    def classifier(self) -> Path:
        """Return the path of the averaged weights of a pre-training run."""
        return self.path / "classifier.safetensors"

    def weights(self, task: str) -> Path:
        """Return the path of the averaged weights of a run on a task; see `TrainConfig.task`."""
        return self.supernet if task == "detection" else self.classifier

    @property
    def state(self) -> Path:
        """Return the path of the training state."""
        return self.path / "state" / "training.safetensors"

    @property
    def states(self) -> list[Path]:
        """Return the paths of the training states that are there, the newest first."""
        return [path for path in (self.state, earlier_state(self.state)) if path.is_file()]

    def saved_step(self) -> int:
        """Return the step that the newest whole training state was written at; 0 without any.

        Raises:
            UserError: there are states, and none is whole.
        """
        broken: UserError | None = None
        for path in self.states:
            try:
                return int(read_header(path, "training_state", remake=TRAIN)["step"])
            except (UserError, KeyError, TypeError, ValueError, OverflowError) as error:
                broken = broken or UserError(
                    f"{path} is not a whole training state ({error}); remove it to start this run "
                    "again, or train under another --name"
                )
        if broken is not None:
            raise broken
        return 0

    def missing_steps(self) -> int:
        """Return how many steps the supernet lacks to the end of the run.

        0 as well where that cannot be told, since the settings or the supernet are broken.
        """
        try:
            trained = read_header(self.supernet, "supernet", remake=TRAIN)["step"]
            return max(0, self.load_config().steps - int(trained))
        except (UserError, KeyError, TypeError, ValueError, OverflowError):
            return 0

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the system forgets it with this one.

        Raises:
            UserError: another process trains there, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror or error}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"another process is training in {self.path}; wait for it, stop it, or choose "
                    "another --name"
                ) from error
            yield

    def disk_bytes(self) -> int:
        """Return the space that the folder takes on the disk, without what links lead to.

        A file with several names counts once.
        """
        found = {}
        for inside, folders, names in os.walk(self.path):
            for name in (".", *folders, *names):
                with contextlib.suppress(OSError):  # a file that has gone since it was listed
                    one = os.lstat(os.path.join(inside, name))
                    found[one.st_dev, one.st_ino] = one.st_blocks * _BYTES_OF_BLOCK
        return sum(found.values())

    def remove(self) -> int:
        """Remove the folder; of links, the links alone.

        The settings go last, so that a removal that is cut short can be repeated.

        Returns:
            What it took on the disk, in bytes.

        Raises:
            UserError: another process trains there, or something cannot be removed.
        """
        with self.claimed():
            taken = self.disk_bytes()
            try:
                for path in sorted(self.path.iterdir(), key=lambda path: path == self.config):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                self.path.rmdir()
            except OSError as error:
                raise UserError(
                    f"cannot remove all of {self.path}: {error.strerror or error} "
                    f"({error.filename}); mend that and repeat the command"
                ) from error
        return taken

    @property
    def path_filter(self) -> Path:
        """Return the folder of the path filter and its labels."""
        return self.path / "path_filter"

    @property
    def filter_report(self) -> Path:
        """Return the path of what the path filter is worth."""
        return self.path_filter / "report.json"

    @property
    def pruned_space(self) -> Path:
        """Return the path of the record of the pruned space."""
        return self.path / "pruned_space.json"

    @property
    def subnets(self) -> Path:
        """Return the folder of chosen subnets."""
        return self.path / "subnets"

    @property
    def searches(self) -> Path:
        """Return the folder of what searches did."""
        return self.path / "searches"

    def load_config(self) -> TrainConfig:
        """Return the run's settings.

        Raises:
            UserError: this is no run.
        """
        if not self.config.is_file():
            raise UserError(
                f"{self.path} is no run: it has no config.toml; make one with `detofa train`"
            )
        return TrainConfig.from_json(read_recipe(self.config), str(self.config))

    def write_environment(self, command: str) -> None:
        """Record machine, versions and command."""
        versions = {}
        for package in _PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                versions[package] = "not installed"
        record = {
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "versions": versions,
            "commit": _commit(),
        }
        write_json(self.path / "environment.json", "environment", record)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to the metrics.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                begin = "" if file.tell() else _METRICS_BEGIN
                file.write(begin + json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.metrics}: {error.strerror or error}; free some space or make "
                "the folder writable, and the same command goes on from the last checkpoint"
            ) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of the metrics; one that a crash cut short or damaged is left out.

        Those of earlier versions have no schema, and are read too.

        Raises:
            UserError: they are of an unknown schema.
        """
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_bytes().splitlines():
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "schema" in record:
                check_schema(record, str(self.metrics), remake=TRAIN)
            elif isinstance(record, dict) and type(record.get("step")) is int:
                records.append(record)
        return records

    def share_waited(self) -> float | None:
        """Return for what share of the time of its steps training waited for data.

        None where no step says so: those of an earlier version do not, nor does the folder of
        another machine than the one that writes.
        """
        steps = [record for record in self.read_metrics() if "waited" in record]
        if not steps:
            return None
        batch_size = self.load_config().batch_size
        total = sum(batch_size / record["images_per_s"] for record in steps)
        return float(sum(record["waited"] for record in steps) / total)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after `step`, which a resumed run will write again.

        Raises:
            UserError: see `read_metrics`; or the folder cannot be written.
        """
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        text = _METRICS_BEGIN + "".join(json.dumps(record) + "\n" for record in kept)
        if not self.metrics.is_file() or self.metrics.read_bytes() != text.encode():
            write_text(self.metrics, text)


def newest_run(runs: Path = RUNS) -> RunFolder:
    """Return the run whose supernet was written last, of those that are trained to their end.

    Where none is, the newest of those that were stopped.

    Raises:
        UserError: there is none.
    """
    paths = sorted(runs.glob("*/supernet.safetensors"), key=lambda path: path.stat().st_mtime)
    found = [RunFolder(path=path.parent) for path in paths]
    if not found:
        raise UserError(f"no trained run under {runs}/; make one with `detofa train --data DIR`")
    finished = [run for run in found if run.missing_steps() == 0]
    return (finished or found)[-1]


def _commit() -> str | None:
    """Return the commit of the checkout this package lies in, if it lies in one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def command_line() -> str:
    """Return the command that is running, as typed but for the program's folder."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
