"""Runtimes that open models to be timed."""

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.export.onnx_from_blocks import detector_onnx
from detofa.presets import preset
from detofa.runtime.runtimes import OnnxRuntimeCpu, OnnxRuntimeCuda

pytest.importorskip("onnxruntime")
SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 64)])
MODEL = detector_onnx(SPACE.blocks(SPACE.smallest), top_k=300, rng=np.random.default_rng(0))


class OnCpu(OnnxRuntimeCuda):
    """What runs on a GPU, on the processor: the calls are the same, and they are real."""

    provider, device_type = "CPUExecutionProvider", "cpu"


@pytest.mark.parametrize("batch", [1, 3])
def test_both_runtimes_time_every_run(batch: int) -> None:
    for runtime in (OnnxRuntimeCpu(batch=batch), OnnxRuntimeCpu(threads=2), OnCpu(batch=batch)):
        ms = runtime.open(MODEL)(5)
        assert ms.shape == (5,)
        assert (ms > 0).all()


def test_one_thread_is_timed_by_its_own_clock_and_more_by_the_walls() -> None:
    assert OnnxRuntimeCpu().clock == "thread"
    assert OnnxRuntimeCpu(threads=2).clock == OnnxRuntimeCuda().clock == "wall"


def test_a_gpu_that_this_onnx_runtime_cannot_use_is_no_silent_fall_back() -> None:
    import onnxruntime

    if OnnxRuntimeCuda.provider in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(UserError, match="this ONNX Runtime has no CUDAExecutionProvider"):
        OnnxRuntimeCuda().open(MODEL)
