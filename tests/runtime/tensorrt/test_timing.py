"""Engines opened and timed, against the names of the real bindings and a CUDA runtime made up."""

import ctypes
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.profiling.parts import time_of_places
from detofa.runtime.cuda import Cuda
from detofa.runtime.tensorrt.timing import TensorRt
from tests.fake_tensorrt import fake_tensorrt


class Library:
    """A CUDA runtime that notes its calls and hands out addresses; `fails` names one that fails."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        assert name.startswith("cuda"), name

        def call(*arguments: Any) -> Any:
            if name == "cudaGetErrorString":
                return b"out of memory"
            self.calls.append((name, arguments))
            if name == self.fails:
                return 2
            if name in ("cudaMalloc", "cudaStreamCreateWithFlags", "cudaEventCreate"):
                arguments[0]._obj.value = 1000 + len(self.calls)
            if name == "cudaEventElapsedTime":
                arguments[0]._obj.value = 1.5
            return 0

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def opened(
    listing: Path, monkeypatch: pytest.MonkeyPatch, library: Library, **changes: Any
) -> tuple[Any, Any, TensorRt]:
    module = fake_tensorrt(listing)
    make = module.make
    module.Runtime = make("Runtime")
    shapes = {"images": (-1, 3, 96, 160), "scores": (-1, 300, 4)}
    module.answers |= {
        "Runtime.deserialize_cuda_engine": make("ICudaEngine"),
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.get_tensor_name": lambda index: list(shapes)[index],
        "ICudaEngine.get_tensor_mode": lambda name: 1 if name == "images" else 2,
        "ICudaEngine.get_tensor_shape": shapes.get,
        "ICudaEngine.get_tensor_dtype": module.DataType.FLOAT,
        "ICudaEngine.get_tensor_profile_shape": lambda name, index: [(2, 3, 96, 160)] * 3,
        "ICudaEngine.create_execution_context": make("IExecutionContext"),
        "IExecutionContext.set_input_shape": True,
        "IExecutionContext.infer_shapes": list,
        "IExecutionContext.get_tensor_shape": lambda name: (2, *shapes[name][1:]),
        "IExecutionContext.set_tensor_address": True,
        "IExecutionContext.execute_async_v3": True,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    runtime = TensorRt(batch=2, cuda=Cuda(1, library=library))
    return module, runtime.open(b"onnx"), runtime


def test_an_engine_is_built_for_the_batch_bound_and_timed_by_events(
    listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    module, timed, runtime = opened(listing, monkeypatch, library)
    assert (runtime.version, runtime.clock) == (module.__version__, "events")
    np.testing.assert_array_equal(timed(3), [1.5] * 3)
    calls = module.calls
    shape = (2, 3, 96, 160)
    assert ("IOptimizationProfile.set_shape", ("images", shape, shape, shape)) in calls
    assert ("IExecutionContext.set_input_shape", ("images", shape)) in calls
    runs = [arguments for name, arguments in calls if name == "IExecutionContext.execute_async_v3"]
    assert len(runs) == 3
    assert runs[0][0] > 0  # a stream of its own, not the default one
    names = library.names()
    assert names[0] == "cudaSetDevice"
    assert names.count("cudaMalloc") == 3  # the cache's, the input's and the output's
    one_run = ["cudaMemsetAsync", "cudaEventRecord", "cudaEventRecord", "cudaEventSynchronize"]
    assert names[-15:] == [*one_run, "cudaEventElapsedTime"] * 3
    del timed
    assert library.names().count("cudaFree") == 2


def test_builds_start_from_the_timings_of_the_one_before(
    listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, runtime = opened(listing, monkeypatch, Library())
    runtime.open(b"onnx")
    given = [args for name, args in module.calls if name == "IBuilderConfig.create_timing_cache"]
    assert given == [(b"",), (b"timings",)]


def test_the_profiler_tells_what_layers_take(
    listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, runtime = opened(listing, monkeypatch, Library())
    clock = itertools.count(1)

    def execute(stream: int) -> bool:
        profiler = module.answers["IExecutionContext.profiler"]
        profiler.report_layer_time("backbone/0/conv_0 + backbone/0/relu_1", float(next(clock)))
        profiler.report_layer_time("Reformatting CopyNode", 0.5)
        return True

    module.answers["IExecutionContext.execute_async_v3"] = execute
    operator_ms = runtime.operator_ms(b"onnx")
    assert list(operator_ms.values()) == [9.5, 0.5]  # the median of 4 to 15
    assert time_of_places(operator_ms) == {"backbone/0": 10.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Runtime__deserialize_cuda_engine": None}, "could not open the engine"),
        ({"ICudaEngine__create_execution_context": None}, "could not create an execution context"),
        ({"IExecutionContext__set_input_shape": False}, "refuses the shape"),
        ({"IExecutionContext__infer_shapes": lambda: ["scores"]}, "shapes of scores"),
        ({"IExecutionContext__set_tensor_address": False}, "refuses the memory for images"),
    ],
)
def test_every_way_of_saying_no_is_heard(
    listing: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened(listing, monkeypatch, Library(), **changes)


def test_a_run_that_fails_is_no_time(listing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = {"IExecutionContext__execute_async_v3": False}
    _, timed, _ = opened(listing, monkeypatch, Library(), **refuses)
    with pytest.raises(UserError, match="could not run the engine"):
        timed(1)


def test_what_cuda_says_is_given(listing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cudaMalloc .* failed with 2 \(out of memory\)"):
        opened(listing, monkeypatch, Library(fails="cudaMalloc"))


def test_without_the_cuda_runtime_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UserError, match="libcudart"):
        Cuda()
