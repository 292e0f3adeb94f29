"""An engine as a session: exported detectors on an NVIDIA GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.runtime.cuda import Cuda
from detofa.runtime.session import FileSession, Port, filled
from detofa.runtime.tensorrt.build import import_tensorrt
from detofa.runtime.tensorrt.opened import OpenedEngine
from detofa.runtime.tensorrt.record import EngineRecord
from detofa.runtime.tensorrt.timing import EngineTimer


class TensorRtSession(FileSession):
    """An exported detector as an engine; see `FileSession`.

    Args:
        data: The engine. What it says of itself must have been checked: see `EngineRecord`.
        name: What messages call it.
        cuda: The GPU; the first one if not given.

    Raises:
        UserError: TensorRT or its GPU is missing, it refuses the engine, or that is no detector's.
    """

    def __init__(self, data: bytes, *, name: str, cuda: Cuda | None = None) -> None:
        self._cuda = Cuda() if cuda is None else cuda
        self._engine = OpenedEngine(data, self._cuda)
        super().__init__(name, self._engine.inputs, [port.name for port in self._engine.outputs])

    @property
    def input(self) -> Port:
        """Return the input for images."""
        return self._engine.inputs[0]

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Return the smallest and the largest batch that it takes at once."""
        return self._engine.batch_sizes

    @property
    def metadata(self) -> dict[str, str]:
        """Return nothing: an engine holds no texts."""
        return {}

    def milliseconds(self, images: NDArray[Any], runs: int) -> NDArray[np.float64]:
        """Return what each of so many runs takes on the GPU, without copies: (runs,).

        Args:
            images: What goes in, as for `run`, no more than the engine takes at once.
            runs: How often.
        """
        self._engine.bind(len(images))
        self._engine.fill({self._engine.inputs[0].name: images})
        timer = EngineTimer(self._cuda)
        try:
            return timer.milliseconds(self._engine, runs)
        finally:
            timer.close()

    def _run_batch(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        smallest, largest = self._engine.batch_sizes
        parts = []
        for start in range(0, len(images), largest):
            some = images[start : start + largest]
            whole = filled(some, max(smallest, len(some)))
            self._engine.bind(len(whole))
            self._engine.fill({self._engine.inputs[0].name: whole})
            self._engine.start()
            parts.append([array[: len(some)] for array in self._engine.read(names)])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def close(self) -> None:
        """Free the engine; running it afterwards is an error."""
        self._engine.close()


def open_engine(path: Path) -> tuple[TensorRtSession, EngineRecord]:
    """Open an engine after its record has been found to fit this machine.

    Raises:
        UserError: the engine or its record is missing, damaged, or of another GPU, driver or
            TensorRT; or see `TensorRtSession`.
    """
    record, data = EngineRecord.load_with_engine(path)
    version, cuda = import_tensorrt().__version__, Cuda()
    record.check_fits(cuda.gpu(), version)
    return TensorRtSession(data, name=str(path), cuda=cuda), record
