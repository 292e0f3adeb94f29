"""An opened engine: its inputs and outputs, and runs of it on memory of the GPU."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.runtime.cuda import Cuda
from detofa.runtime.session import Port
from detofa.runtime.tensorrt.build import checked, import_tensorrt, logger_of, made

_TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
"""The array type of each of TensorRT's types, by its name."""


class OpenedEngine:
    """An engine that is ready to run, with a stream of its own.

    What is deserialised runs as native code: open only engines of your own making.

    Args:
        data: A serialised engine.
        cuda: The GPU.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
        batch_sizes: The smallest and the largest batch.

    Raises:
        UserError: TensorRT is missing, or refuses the engine.
    """

    def __init__(self, data: bytes, cuda: Cuda) -> None:
        self._trt, self._cuda = import_tensorrt(), cuda
        self._runtime = made(self._trt, self._trt.Runtime, logger_of(self._trt))
        self._engine = checked(self._runtime.deserialize_cuda_engine(data), "open the engine")
        self.context = checked(
            self._engine.create_execution_context(), "create an execution context"
        )
        self._memory: dict[str, tuple[int, int]] = {}  # address and bytes of each tensor
        self.stream = cuda.stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        of_input = self._trt.TensorIOMode.INPUT
        is_input = {name: self._engine.get_tensor_mode(name) == of_input for name in names}
        self.inputs = [self._port(name) for name in names if is_input[name]]
        self.outputs = [self._port(name) for name in names if not is_input[name]]
        first = self.inputs[0].name
        smallest, _, largest = self._engine.get_tensor_profile_shape(first, 0)
        self.batch_sizes = (int(smallest[0]), int(largest[0]))

    def bind(self, batch: int) -> None:
        """Give every input and output memory for so many images.

        Raises:
            UserError: TensorRT refuses this batch, or the GPU has no memory left.
        """
        for port in self.inputs:
            shape = (batch, *(size or 0 for size in port.shape[1:]))
            if not self.context.set_input_shape(port.name, shape):
                raise UserError(f"TensorRT refuses the shape {shape} for {port.name}")
        missing = self.context.infer_shapes()
        if missing:
            raise UserError(f"TensorRT cannot tell the shapes of {', '.join(missing)}")
        for port in (*self.inputs, *self.outputs):
            wanted = math.prod(self._shape(port)) * np.dtype(port.kind).itemsize
            if min(self._shape(port)) < 0:
                raise UserError(
                    f"the size of {port.name} depends on the image ({self._shape(port)}), which no "
                    "exported detector's does; build it again with `detofa export --to tensorrt`"
                )
            address, held = self._memory.get(port.name, (0, 0))
            if wanted > held:
                self._release(port.name)
                address = self._cuda.allocate(wanted)
                self._memory[port.name] = (address, wanted)
            if not self.context.set_tensor_address(port.name, address):
                raise UserError(f"TensorRT refuses the memory for {port.name}")

    def fill(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Copy inputs to the GPU; `bind` must have been called for their batch."""
        ports = {port.name: port for port in self.inputs}
        for name, array in values.items():
            wanted = (self._shape(ports[name]), np.dtype(ports[name].kind))
            assert (array.shape, array.dtype) == wanted, (name, array.shape, array.dtype, wanted)
            self._cuda.upload(self._memory[name][0], np.ascontiguousarray(array).tobytes())

    def start(self) -> None:
        """Queue one run in the stream, without waiting for it.

        Raises:
            UserError: TensorRT says that it could not.
        """
        if not self.context.execute_async_v3(self.stream):
            raise UserError("TensorRT could not run the engine; its log above says why")

    def read(self, names: Sequence[str]) -> list[NDArray[Any]]:
        """Wait for the stream, and return outputs of the last run."""
        self._cuda.finish(self.stream)
        ports = {port.name: port for port in self.outputs}
        found = []
        for name in names:
            array = np.empty(self._shape(ports[name]), ports[name].kind)
            self._cuda.download(self._memory[name][0], array)
            found.append(array)
        return found

    def layers(self) -> str:
        """Return what the engine's inspector says of its layers, as JSON."""
        inspector = checked(self._engine.create_engine_inspector(), "create an inspector")
        said: str = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return said

    def close(self) -> None:
        """Give the GPU's memory back; running it afterwards is an error."""
        for name in list(self._memory):
            self._release(name)
        self.context = self._engine = self._runtime = None
        if self.stream:
            self._cuda.drop_stream(self.stream)
            self.stream = 0

    def __del__(self) -> None:
        """Give the GPU's memory back."""
        if getattr(self, "stream", 0):
            with contextlib.suppress(UserError):
                self.close()

    def _release(self, name: str) -> None:
        address, _ = self._memory.pop(name, (0, 0))
        if address:
            with contextlib.suppress(UserError):
                self._cuda.free(address)

    def _shape(self, port: Port) -> tuple[int, ...]:
        return tuple(self.context.get_tensor_shape(port.name))

    def _port(self, name: str) -> Port:
        known = {getattr(self._trt.DataType, kind): kind for kind in _TYPES}
        found = self._engine.get_tensor_dtype(name)
        if found not in known:
            raise UserError(
                f"{name} of this engine is of type {found}, which no exported detector has; build "
                "it again with `detofa export --to tensorrt`"
            )
        shape = tuple(self._engine.get_tensor_shape(name))
        return Port(
            name=name,
            kind=np.dtype(_TYPES[known[found]]).name,
            shape=tuple(size if size >= 0 else None for size in shape),
        )
