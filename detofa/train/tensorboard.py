"""A run's metrics as event files, for TensorBoard."""

import shutil
from collections.abc import Mapping
from typing import Any, Self

from detofa.runtime.session import Closing
from detofa.train.run import RunFolder

_SECONDS_BETWEEN_FLUSHES = 10


class EventFiles(Closing):
    """Writes what a run logs into its `tensorboard` folder, while the run goes on.

    The folder always shows the run's metrics.jsonl: it is written anew where training begins,
    resumes, or goes back to an earlier step.

    Args:
        run: A run that this process has claimed.
    """

    def __init__(self, run: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open, self._run, self._folder = SummaryWriter, run, run.path / "tensorboard"
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        self._begin()
        return self

    def close(self) -> None:
        """Write out what is held back."""
        if self._writer is not None:
            self._writer.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line of the metrics: its numbers, at its step."""
        if "went_back_from" in record:
            self._begin()
        else:
            self._add(record)

    def _begin(self) -> None:
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = self._open(str(self._folder), flush_secs=_SECONDS_BETWEEN_FLUSHES)
        for record in self._run.read_metrics():
            self._add(record)

    def _add(self, record: Mapping[str, Any]) -> None:
        assert self._writer is not None
        for name, value in record.items():
            parts = value.items() if isinstance(value, Mapping) else [("", value)]
            for part, number in parts:
                if name != "step" and number is not None:
                    tag = f"{name}/{part}" if part else name
                    self._writer.add_scalar(tag, number, record["step"])
