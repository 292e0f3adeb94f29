"""PyTorch on a GPU: really where there is one, and on the processor with CUDA's calls faked."""

import contextlib
import gc
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from detofa.errors import UserError
from detofa.presets import preset
from detofa.profiling.torch_cuda import FORMATS, TorchCuda, detector_of, detector_spec

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 64), (96, 64)])
SPEC = detector_spec(SPACE, SPACE.ends[0], top_k=300)


class FakeCuda:
    """The calls of `torch.cuda` that are made, with the processor's clock; a graph is its calls."""

    def __init__(self) -> None:
        self.real = torch.cuda
        self.replays = 0

    def __getattr__(self, name: str) -> Any:
        assert hasattr(self.real, name), f"torch.cuda has no {name}"
        return lambda *arguments, **named: _Anything()

    def CUDAGraph(self) -> "_Graph":  # noqa: N802, the real name
        return _Graph(self)

    def Event(self, *, enable_timing: bool) -> "_Event":  # noqa: N802, the real name
        assert enable_timing
        return _Event()


class _Anything(contextlib.AbstractContextManager["_Anything"]):
    def __exit__(self, *_: object) -> None:
        return None

    def wait_stream(self, other: object) -> None:
        assert isinstance(other, _Anything)


class _Graph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def replay(self) -> None:
        self.cuda.replays += 1
        time.sleep(0.002)


class _Event:
    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "_Event") -> float:
        return 1000 * (other.at - self.at)


class OnCpu(TorchCuda):
    """What runs on a GPU, on the processor."""

    device_type = "cpu"

    def _import(self, index: int) -> Any:
        module = type("Torch", (), {"__getattr__": lambda _, name: getattr(torch, name)})()
        module.cuda = FakeCuda()
        return module


@pytest.mark.parametrize("precision", list(FORMATS))
def test_every_run_is_one_replay_between_two_events(precision: str) -> None:
    runtime = OnCpu(batch=2, precision=precision)
    timed = runtime.open(SPEC)
    ms = timed(4)
    assert runtime._torch.cuda.replays == 4
    assert ms.shape == (4,)
    assert (ms > 1).all()
    assert runtime.version == torch.__version__
    assert runtime.settings["cuda_graph"]


def test_what_a_graph_reads_and_writes_lives_as_long_as_it() -> None:
    runtime = OnCpu()
    made: list[weakref.ref[Any]] = []
    captured = runtime._captured

    def noted(module: Any, images: Any) -> Any:
        made.extend([weakref.ref(module), weakref.ref(images)])
        return captured(module, images)

    runtime._captured = noted  # type: ignore[method-assign]
    timed = runtime.open(SPEC)
    gc.collect()
    assert [thing() is not None for thing in made] == [True, True]
    timed(1)
    del timed
    gc.collect()
    assert [thing() for thing in made] == [None, None]


def test_a_spec_makes_the_detector_that_is_exported() -> None:
    largest = SPACE.ends[1]
    module, image_size = detector_of(detector_spec(SPACE, largest, top_k=7))
    assert image_size == SPACE.largest.image_size
    with torch.inference_mode():
        boxes_xyxy, scores, *_ = module(torch.zeros(1, 3, *image_size))
    assert boxes_xyxy.shape == (1, 7, 4)
    assert scores.shape == (1, 7, 3)


def test_random_weights_leave_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    OnCpu().open(SPEC)
    assert torch.equal(torch.rand(3), wanted)


def test_what_fails_on_the_gpu_is_told_with_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = OnCpu().open(SPEC)

    def lost(_: object) -> None:
        raise RuntimeError("CUDA error: device-side fault\nmore lines")

    monkeypatch.setattr(_Graph, "replay", lost)
    with pytest.raises(UserError, match=r"device-side fault; check it with .*passes are kept"):
        timed(1)


def test_an_unknown_format_and_an_absent_gpu_are_refused() -> None:
    with pytest.raises(UserError, match="computes in fp32, fp16, bf16, not in 'int8'"):
        TorchCuda(precision="int8")
    with pytest.raises(UserError, match=r"sees \d+ GPUs, and GPU 99 is wanted"):
        TorchCuda(index=99)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("precision", list(FORMATS))
def test_a_gpu_runs_graphs_that_take_longer_for_larger_detectors(precision: str) -> None:
    runtime = TorchCuda(batch=8, precision=precision)
    small, large = (
        np.median(runtime.open(detector_spec(SPACE, row, top_k=300))(20)[5:]) for row in SPACE.ends
    )
    assert 0.01 < small < large


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_many_graphs_on_a_gpu_keep_their_memory() -> None:
    runtime = TorchCuda(precision="fp16")
    opened = [
        runtime.open(detector_spec(SPACE, row, top_k=300)) for row in SPACE.ends for _ in "ab"
    ]
    torch.cuda.empty_cache()
    assert all((timed(3) > 0).all() for timed in opened)
