"""Runtimes that open models to be timed."""

from pathlib import Path

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.export.onnx_from_blocks import detector_onnx
from detofa.presets import preset
from detofa.profiling.parts import time_of_places
from detofa.runtime.measuring import SampleLog, Schedule, measure_models
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


def test_a_device_that_vanishes_is_told_and_the_passes_before_it_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import onnxruntime

    run, left = onnxruntime.InferenceSession.run, iter(range(12))

    def vanishing(session: object, *arguments: object) -> object:
        if next(left, None) is None:
            raise RuntimeError("CUDA failure 999: unknown error ; GPU=0\nmore lines")
        return run(session, *arguments)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", vanishing)
    path = tmp_path / "log.jsonl"
    log = SampleLog("ab", 3, path)
    schedule = Schedule(passes=5, extra_passes=0)
    models = {name: lambda: MODEL for name in "ab"}
    with pytest.raises(UserError, match=r"CUDA failure 999: unknown error ; GPU=0; see that"):
        measure_models(models, OnnxRuntimeCpu(), schedule, log)
    assert len(SampleLog("ab", 3, path).samples.passes) == 1


def test_operators_are_told_with_the_place_they_are_at() -> None:
    operator_ms = OnnxRuntimeCpu().operator_ms(MODEL)
    assert min(operator_ms.values()) >= 0
    took = time_of_places(operator_ms)
    blocks = SPACE.blocks(SPACE.smallest)
    backbone = [f"backbone/{index}" for index in range(len(blocks) - 1)]
    assert list(took) == [*backbone, "neck", "head", "decoding"]
    assert sum(took.values()) == pytest.approx(sum(operator_ms.values()))
    assert took["head"] > took["decoding"]
