"""PyTorch on an NVIDIA GPU: channels last, a CUDA graph for each model, three number formats.

Unlike the other runtimes it opens no ONNX model but the spec of a detector, which PyTorch then
builds; see `detector_spec`.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.runtime.runtimes import FLUSHED_BYTES, KEPT_ON_GPU, Timed, first_line
from detofa.timer import Clock

if TYPE_CHECKING:
    from torch import nn

    from detofa.space import Genes, SearchSpace

FORMATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Number formats, by the names PyTorch has for them."""

_EAGER_RUNS = 3  # before a graph is captured, so that kernels are chosen and memory is there


def detector_spec(space: "SearchSpace", genes: "Genes", *, top_k: int) -> bytes:
    """Return what `TorchCuda.open` builds a detector from, with random weights."""
    record = {"space": space.to_json(), "genes": genes.tolist(), "top_k": top_k}
    return json.dumps(record).encode()


def detector_of(spec: bytes) -> tuple["nn.Module", tuple[int, int]]:
    """Return the detector of a spec, decoding included as in the export, and its input size."""
    from detofa.space import SearchSpace
    from detofa.supernet.decode import DecodedDetector
    from detofa.supernet.detector import StaticDetector

    record = json.loads(spec)
    space = SearchSpace.from_json(record["space"])
    arch = space.arch(np.array(record["genes"], np.int8))
    detector = StaticDetector(space, arch)
    decoded = DecodedDetector(detector, space.neck_head(arch), record["top_k"])
    return decoded.eval(), arch.image_size


class TorchCuda:
    """PyTorch on an NVIDIA GPU.

    Each model is one CUDA graph, so the processor makes one call for it. Before each run the
    GPU's cache is overwritten. Inputs and outputs stay on the GPU, so copies are not timed. Batch
    norms are not folded: models are as they are extracted. cuDNN chooses convolutions by its
    heuristics; trying them out (its benchmark mode) was slower on an H100, and chose differently
    in every process.

    Args:
        index: Which GPU, as CUDA counts them.
        batch: Images of one call.
        precision: One of `FORMATS`; fp32 is full, without TF32.

    Raises:
        UserError: PyTorch or its GPU is not there, or there is no such precision.
    """

    name = "torch-cuda"
    device_type = "cuda"
    threads = 1
    clock: Clock = "events"
    kept_bytes = KEPT_ON_GPU

    def __init__(self, *, index: int = 0, batch: int = 1, precision: str = "fp32") -> None:
        if precision not in FORMATS:
            raise UserError(f"{self.name} computes in {', '.join(FORMATS)}, not in {precision!r}")
        self.batch, self.precision = batch, precision
        self._torch = self._import(index)
        self.version: str = self._torch.__version__
        self.settings: Mapping[str, Any] = {
            "cuda_graph": True,
            "tf32": False,
            "cache_flushed": True,
            "channels_last": True,
        }
        self._device = self._torch.device(self.device_type, index)
        self._flushed = self._torch.empty(
            FLUSHED_BYTES, dtype=self._torch.int8, device=self._device
        )

    def open(self, model: bytes) -> Timed:
        """Build the detector of a `detector_spec` and capture its graph; see `Runtime.open`."""
        torch = self._torch
        how = {
            "device": self._device,
            "dtype": getattr(torch, FORMATS[self.precision]),
            "memory_format": torch.channels_last,
        }
        with _as_user_error(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # of the processor, and of no GPU
            module, image_size = detector_of(model)
            module, images = module.to(**how), torch.randn(self.batch, 3, *image_size).to(**how)
            replay = self._captured(module, images)

        def timed(runs: int) -> NDArray[np.float64]:
            with _as_user_error():
                return self._timed(replay, runs)

        return timed

    def operator_ms(self, model: bytes) -> dict[str, float]:
        """Return nothing: a graph has no operators; see `Runtime.operator_ms`."""
        return {}

    def _captured(self, module: "nn.Module", images: Any) -> Callable[[], None]:
        """Return what runs a module on images as a CUDA graph."""
        torch, cuda = self._torch, self._torch.cuda
        full = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
        side, graph = cuda.Stream(self._device), cuda.CUDAGraph()
        with full, torch.inference_mode(), cuda.device(self._device):
            side.wait_stream(cuda.current_stream())
            with cuda.stream(side):
                for _ in range(_EAGER_RUNS):
                    module(images)
            cuda.current_stream().wait_stream(side)
            with cuda.graph(graph):
                outputs = module(images)

        def replay(held: Any = (module, images, outputs)) -> None:
            graph.replay()  # it reads and writes memory of theirs, and does not hold it

        return replay

    def _timed(self, replay: Callable[[], None], runs: int) -> NDArray[np.float64]:
        cuda = self._torch.cuda
        with cuda.device(self._device):
            events = [[cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
            for begin, end in events:
                self._flushed.zero_()
                begin.record()
                replay()
                end.record()
            cuda.synchronize()
        return np.array([begin.elapsed_time(end) for begin, end in events])

    def _import(self, index: int) -> Any:
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"PyTorch is not here ({error}); install it with `pip install 'detofa[train]'`"
            ) from error
        if index >= torch.cuda.device_count():
            raise UserError(
                f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs, and GPU "
                f"{index} is wanted; install a build of PyTorch for CUDA, and check the driver "
                "with `nvidia-smi`"
            )
        return torch


@contextlib.contextmanager
def _as_user_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of CUDA, cuDNN or memory
        raise UserError(
            f"PyTorch failed on the GPU: {first_line(error)}; check it with `nvidia-smi`, "
            "and run the same command again: whole passes are kept"
        ) from error
