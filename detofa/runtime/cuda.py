"""The few calls of the CUDA runtime that timing an engine needs, through its shared library.

A device that has TensorRT may have no PyTorch, but it has this library.
"""

import ctypes
import ctypes.util
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from detofa.errors import UserError

_NAMES = (
    "libcudart.so.13",
    "libcudart.so.12",
    "libcudart.so",
    "cudart64_13.dll",
    "cudart64_12.dll",
)
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_NON_BLOCKING, _USUAL_STREAM = 1, 0
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # cudaDeviceAttr
_NAME_BYTES, _PROPERTIES_BYTES = 256, 1 << 14  # its record begins with the name; far more than all


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Which GPU this is, and what drives it.

    Attributes:
        name: The full name that its maker gives it.
        compute_capability: Such as `9.0`.
        driver_cuda: The newest CUDA version that the driver knows, such as `13.0`.
        runtime_cuda: The version of the CUDA runtime in use.
    """

    name: str
    compute_capability: str
    driver_cuda: str
    runtime_cuda: str


class Cuda:
    """One GPU.

    Args:
        index: Which one, as CUDA counts them.
        library: The CUDA runtime; found if not given.

    Raises:
        UserError: the library or the GPU is not there.
    """

    def __init__(self, index: int = 0, library: Any = None) -> None:
        self._library = _load() if library is None else library
        self._index = index
        self._call("cudaSetDevice", ctypes.c_int(index))

    def gpu(self) -> Gpu:
        """Return which GPU this is."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        index = ctypes.c_int(self._index)
        # CUDA 12 kept the old name for programs built with CUDA 11, whose record is another one;
        # the name comes first in all of them.
        self._call("cudaGetDeviceProperties", properties, index)
        capability = [
            self._number("cudaDeviceGetAttribute", ctypes.c_int(which), index)
            for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        ]
        name = properties.raw[:_NAME_BYTES].split(b"\0")[0]
        return Gpu(
            name=name.decode(errors="replace"),
            compute_capability=".".join(map(str, capability)),
            driver_cuda=_version(self._number("cudaDriverGetVersion")),
            runtime_cuda=_version(self._number("cudaRuntimeGetVersion")),
        )

    def _number(self, name: str, *arguments: Any) -> int:
        """Return the number that a call writes to its first argument."""
        value = ctypes.c_int()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value

    def allocate(self, count: int) -> int:
        """Return the address of so many bytes on the GPU, of any content."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(count))
        return pointer.value or 0

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def upload(self, pointer: int, data: bytes) -> None:
        """Copy bytes to the GPU; they are there when this returns, for any stream.

        The copy alone does not promise that (CUDA's documentation, "API synchronization behavior").
        """
        count = ctypes.c_size_t(len(data))
        kind = ctypes.c_int(_HOST_TO_DEVICE)
        self._call("cudaMemcpy", ctypes.c_void_p(pointer), ctypes.c_char_p(data), count, kind)
        self.finish(_USUAL_STREAM)

    def download(self, pointer: int, array: NDArray[Any]) -> None:
        """Copy what lies at an address on the GPU into an array."""
        assert array.flags.c_contiguous, "the array's bytes must lie in one piece"
        place, count = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        kind = ctypes.c_int(_DEVICE_TO_HOST)
        self._call("cudaMemcpy", place, ctypes.c_void_p(pointer), count, kind)

    def finish(self, stream: int) -> None:
        """Wait until a stream has done all that was queued."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def stream(self) -> int:
        """Return a new stream that waits for no other."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        return stream.value or 0

    def drop_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def drop_event(self, event: int) -> None:
        """Give an event back."""
        self._call("cudaEventDestroy", ctypes.c_void_p(event))

    def event(self) -> int:
        """Return a new event that can be timed."""
        event = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(event))
        return event.value or 0

    def clear(self, pointer: int, count: int, stream: int) -> None:
        """Set so many bytes to zero, in a stream."""
        address, size = ctypes.c_void_p(pointer), ctypes.c_size_t(count)
        self._call("cudaMemsetAsync", address, ctypes.c_int(0), size, ctypes.c_void_p(stream))

    def record(self, event: int, stream: int) -> None:
        """Note the time when a stream gets here."""
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def wait(self, event: int) -> None:
        """Wait until a stream has got to an event."""
        self._call("cudaEventSynchronize", ctypes.c_void_p(event))

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the time between two events that have been waited for."""
        milliseconds = ctypes.c_float()
        first, last = ctypes.c_void_p(start), ctypes.c_void_p(end)
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), first, last)
        return milliseconds.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            describe = self._library.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            said = describe(ctypes.c_int(code)) or b"unknown"
            raise UserError(
                f"{name} of the CUDA runtime failed with {code} ({said.decode()}); check the GPU "
                "with `nvidia-smi`"
            )


def _version(number: int) -> str:
    """Return CUDA's number of a version as it is written: 12080 is 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _load() -> Any:
    """Return the CUDA runtime: of the system, of NVIDIA's Python packages, or an old one."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]
    packed = [str(path) for place in places for path in place.glob("*/lib/libcudart.so.*")]
    found = ctypes.util.find_library("cudart")
    for name in [*_NAMES, *sorted(packed, reverse=True), *([found] if found else [])]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise UserError(
        "the CUDA runtime (libcudart) is not here; install the CUDA toolkit's runtime, or "
        "`pip install nvidia-cuda-runtime`, or add the folder that holds it to LD_LIBRARY_PATH"
    )
