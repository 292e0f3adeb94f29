"""The few calls of the CUDA runtime that timing an engine needs, through its shared library.

A device that has TensorRT may have no PyTorch, but it has this library.
"""

import ctypes
import ctypes.util
from typing import Any

from detofa.errors import UserError

_NAMES = (
    "libcudart.so.13",
    "libcudart.so.12",
    "libcudart.so",
    "cudart64_13.dll",
    "cudart64_12.dll",
)
_HOST_TO_DEVICE = 1
_NON_BLOCKING = 1


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
        self._call("cudaSetDevice", ctypes.c_int(index))

    def allocate(self, count: int) -> int:
        """Return the address of so many bytes on the GPU, of any content."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(count))
        return pointer.value or 0

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def upload(self, pointer: int, data: bytes) -> None:
        """Copy bytes to the GPU."""
        count = ctypes.c_size_t(len(data))
        kind = ctypes.c_int(_HOST_TO_DEVICE)
        self._call("cudaMemcpy", ctypes.c_void_p(pointer), ctypes.c_char_p(data), count, kind)

    def stream(self) -> int:
        """Return a new stream that waits for no other."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        return stream.value or 0

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


def _load() -> Any:
    found = ctypes.util.find_library("cudart")
    for name in [*([found] if found else []), *_NAMES]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise UserError(
        "the CUDA runtime (libcudart) is not here; install the CUDA toolkit's runtime, or add the "
        "folder that holds it to LD_LIBRARY_PATH"
    )
