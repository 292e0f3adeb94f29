"""Sessions: opened models that map images to candidate boxes; the one place that opens ONNX."""

import contextlib
import importlib.metadata
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.runtime.detections import Detections

if TYPE_CHECKING:  # a profiling kit runs this on older Pythons too
    from typing import Self

RuntimeName = Literal["onnxruntime", "openvino", "onnxruntime-cuda"]
"""What may run an exported ONNX file: on the processor, and the last one on an NVIDIA GPU."""
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
BOXES_NAME = "boxes_xyxy"
SCORES_NAME = "scores"
PIXELS_NAME = "pixels"
"""Name of an input of images as they are; any other name means normalised ones."""
_KINDS = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
DETECTION_NAMES = ("detected_boxes_xyxy", "detected_scores", "detected_labels", "num_detected")
"""Outputs of a file that suppresses by itself."""


class Session(Protocol):
    """An opened model, whatever runs it."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the (height, width) of the input, in pixels."""
        ...

    @property
    def takes_pixels(self) -> bool:
        """Return whether images go in as they are, (B, H, W, 3) uint8, and not normalised."""
        ...

    @property
    def suppresses(self) -> bool:
        """Return whether detections come out, and not candidates."""
        ...

    def run(self, images: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run a model that gives candidates.

        Args:
            images: (B, 3, H, W) float32, normalised; or see `takes_pixels`.

        Returns:
            boxes_xyxy: (B, K, 4) float32, pixels of the input, not clipped.
            scores: (B, K, C) float32, from 0 to 1.
        """
        ...

    def run_suppressed(self, images: NDArray[Any]) -> list[Detections]:
        """Run a model that suppresses; return the detections of each image, pixels of the input."""
        ...

    def close(self) -> None:
        """Free the model; running it afterwards is an error."""
        ...

    def __enter__(self) -> "Self": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Closing:
    """What is closed when it is left as a context manager."""

    def close(self) -> None:
        """Free what is held; nothing by default."""

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of an opened file.

    Attributes:
        name: Its name.
        kind: Type of its values, as numpy calls it.
        shape: Its sizes; None for one that is free.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]


class FileSession(Closing, ABC):
    """An exported detector in some runtime.

    Args:
        name: What messages call it.
        inputs: Its inputs.
        outputs: Names of its outputs.

    Attributes:
        image_size: (height, width) of the input, in pixels.
        batch: Images of one call, where the file takes no other number; else None.
        takes_pixels: See `Session.takes_pixels`.
        suppresses: See `Session.suppresses`.

    Raises:
        UserError: inputs and outputs are not a detector's.
    """

    def __init__(self, name: str, inputs: Sequence[Port], outputs: Sequence[str]) -> None:
        port = _image_port(name, inputs)
        self.takes_pixels = port.name == PIXELS_NAME
        height, width = port.shape[1:3] if self.takes_pixels else port.shape[2:]
        assert height is not None
        assert width is not None
        self.image_size, self.batch = (height, width), port.shape[0]
        self.suppresses = set(DETECTION_NAMES) <= set(outputs)
        if not self.suppresses and not {BOXES_NAME, SCORES_NAME} <= set(outputs):
            raise UserError(
                f"{name} has the outputs {', '.join(outputs)}, but a detector has {BOXES_NAME} and "
                f"{SCORES_NAME}; give a file made by `detofa export`"
            )

    @property
    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Return the texts that are stored inside the file."""

    @abstractmethod
    def _run_batch(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        """Return outputs for images that the file takes at once."""

    def run(self, images: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the model; see `Session.run`."""
        boxes_xyxy, scores = self._run([BOXES_NAME, SCORES_NAME], images)
        return boxes_xyxy, scores

    def run_suppressed(self, images: NDArray[Any]) -> list[Detections]:
        """Run the model; see `Session.run_suppressed`."""
        boxes_xyxy, scores, labels, counts = self._run(DETECTION_NAMES, images)
        return [
            Detections(
                boxes_xyxy=boxes_xyxy[row, :count],
                scores=scores[row, :count],
                labels=labels[row, :count],
            )
            for row, count in enumerate(counts)
        ]

    def _run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        height, width = self.image_size
        shape = (height, width, 3) if self.takes_pixels else (3, height, width)
        dtype = np.uint8 if self.takes_pixels else np.float32
        assert images.dtype == dtype and images.shape[1:] == shape, (images.dtype, images.shape)
        images = np.ascontiguousarray(images)
        if self.batch is None:
            return self._run_batch(names, images)
        parts = [
            self._run_batch(names, filled(images[start : start + self.batch], self.batch))
            for start in range(0, len(images), self.batch)
        ]
        return [np.concatenate(arrays)[: len(images)] for arrays in zip(*parts, strict=True)]


class OnnxSession(FileSession):
    """An exported detector in ONNX Runtime; see `FileSession`.

    Args:
        model: An .onnx file that `detofa export` wrote, or its bytes.
        threads: Threads used inside an operator.
        provider: ONNX Runtime's name of what runs it; never another one silently.

    Raises:
        UserError: see `open_onnx`; or the model's inputs and outputs are not a detector's.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 1, provider: str = CPU) -> None:
        self._session: Any = open_onnx(model, threads=threads, provider=provider)
        self.threads = threads
        self.provider = provider
        with _as_user_error(model_name(model)):  # names may be no text
            inputs = onnx_ports(self._session)
            outputs = [output.name for output in self._session.get_outputs()]
            self._metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        super().__init__(model_name(model), inputs, outputs)
        self._input_name = inputs[0].name

    @property
    def metadata(self) -> dict[str, str]:
        """Return the texts that are stored inside the file."""
        return self._metadata

    def _run_batch(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._opened.run(list(names), {self._input_name: images})
        return found

    def close(self) -> None:
        """Free the model; running it afterwards is an error."""
        self._session = None

    @property
    def _opened(self) -> Any:
        assert self._session is not None, "this session is closed"
        return self._session


def open_onnx(
    model: Path | bytes,
    *,
    threads: int = 1,
    provider: str = CPU,
    device_index: int = 0,
    profile_prefix: Path | None = None,
) -> Any:
    """Open any ONNX model in ONNX Runtime, with settings that make timings comparable.

    Operators run one after the other, each on `threads` threads.

    Args:
        model: A file, or the bytes of one.
        threads: Threads used inside an operator.
        provider: ONNX Runtime's name of what runs it, e.g. `CUDAExecutionProvider`.
        device_index: Which GPU, for a provider that uses one.
        profile_prefix: Begin of the name of the file that gets the time of each operator; see
            `InferenceSession.end_profiling`.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        UserError: ONNX Runtime is not installed or lacks the provider, the file does not exist or
            is not a model that it can run, or the provider could not be used.
    """
    runtime = _onnxruntime()
    name = model_name(model)
    if threads < 1:
        raise UserError(f"threads should be at least 1, got {threads}")
    available = runtime.get_available_providers()
    if provider not in available:
        raise UserError(
            f"this ONNX Runtime has no {provider}; it has {', '.join(available)}. Choose one of "
            "these, or install the build of onnxruntime that has it"
        )
    if isinstance(model, Path) and not model.is_file():
        raise UserError(f"{name} does not exist; make it with `detofa export`")
    said = _load_cuda(runtime) if provider == CUDA else ""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors: warnings would go straight to the terminal
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    source = str(model) if isinstance(model, Path) else model
    with _as_user_error(name):
        chosen = provider if provider == CPU else (provider, _options(provider, device_index))
        session = runtime.InferenceSession(source, options, providers=[chosen])
    used = session.get_providers()
    if used[0] != provider:
        raise UserError(
            f"{provider} could not be used for {name} (ONNX Runtime fell back to {used[0]}). "
            "Check the driver with `nvidia-smi`, and that the libraries that this build of ONNX "
            f"Runtime needs are installed{said}"
        )
    if provider != CPU:
        _check_index(session, provider, device_index)
    return session


def _check_index(session: Any, provider: str, device_index: int) -> None:
    """Raise UserError if a session says that it is on another GPU than was asked for."""
    used = session.get_provider_options().get(provider, {}).get("device_id")
    if used not in (None, str(device_index)):
        raise UserError(
            f"ONNX Runtime put the model on GPU {used}, not on GPU {device_index} as asked; unset "
            "CUDA_VISIBLE_DEVICES, or report this with the version of ONNX Runtime"
        )


def _options(provider: str, device_index: int) -> dict[str, str]:
    """Return the settings of a provider that uses a GPU.

    CUDA's fp32 is full, without TF32. Its convolutions are chosen by cuDNN's heuristics: the
    exhaustive search, which is the default, takes seconds for each model.
    """
    of_cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    return {"device_id": str(device_index)} | (of_cuda if provider == CUDA else {})


def _load_cuda(runtime: ModuleType) -> str:
    """Load CUDA's and cuDNN's libraries from Python packages; return what failed, in words.

    ONNX Runtime finds by itself only those that the system's loader knows.
    """
    printed, load = io.StringIO(), getattr(runtime, "preload_dlls", None)  # since 1.21
    with contextlib.redirect_stdout(printed):
        if load is not None:
            load()
    return "".join(f". {line}" for line in printed.getvalue().splitlines())


def onnx_ports(session: Any) -> list[Port]:
    """Return the inputs of an `onnxruntime.InferenceSession`."""
    return [
        Port(
            name=entry.name,
            kind=_KINDS.get(entry.type, entry.type),
            shape=tuple(size if type(size) is int else None for size in entry.shape),
        )
        for entry in session.get_inputs()
    ]


def runtime_version() -> str:
    """Return the version of ONNX Runtime, whichever of its packages is installed.

    Raises:
        UserError: it is not installed.
    """
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise UserError("ONNX Runtime is not installed; install it with: pip install 'detofa[onnx]'")


@contextlib.contextmanager
def _as_user_error(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime has a dozen types without a common base of its own
        advice = "it may be damaged or of another kind: export it again with `detofa export`"
        if "opset" in str(error):
            advice = (
                f"its opset is newer than ONNX Runtime {runtime_version()} knows: install a newer "
                "onnxruntime"
            )
        raise UserError(
            f"{name} is not a model that ONNX Runtime can open; {advice}. ONNX Runtime says: "
            f"{error}"
        ) from error


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"running an .onnx file needs ONNX Runtime ({error}); install it with "
            "`pip install 'detofa[onnx]'`"
        ) from error
    onnxruntime.set_default_logger_severity(3)  # errors, as for sessions
    return onnxruntime  # type: ignore[no-any-return]


def filled(images: NDArray[Any], count: int) -> NDArray[Any]:
    """Return so many images, the last one again where there are too few."""
    missing = count - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images


def model_name(model: Path | bytes) -> str:
    """Return what messages call a model."""
    return str(model) if isinstance(model, Path) else f"a model of {len(model)} bytes"


def _image_port(name: str, inputs: Sequence[Port]) -> Port:
    """Return the one input of a detector, for images."""
    port = inputs[0] if len(inputs) == 1 else None
    if port is not None and len(port.shape) == 4:
        is_pixels = port.name == PIXELS_NAME
        channels = port.shape[3] if is_pixels else port.shape[1]
        sizes = port.shape[1:3] if is_pixels else port.shape[2:]
        if (channels, port.kind) == (3, "uint8" if is_pixels else "float32") and None not in sizes:
            return port
    found = ", ".join(f"{one.name} {one.kind} {list(one.shape)}" for one in inputs)
    raise UserError(
        f"{name} has the inputs {found or 'none'}, but a detector has one of (batch, 3, height, "
        f"width) float32, or {PIXELS_NAME} of (batch, height, width, 3) uint8; give a file made by "
        "`detofa export`"
    )
