"""OpenVINO runs the same files to the same boxes, and is timed by the same interface."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from detofa.errors import UserError
from detofa.export.onnx_from_blocks import detector_onnx
from detofa.presets import preset
from detofa.profiling.device import this_cpu
from detofa.profiling.measure import ProfilePlan, measure_table
from detofa.profiling.parts import time_of_places
from detofa.profiling.table import Wanted, find_table
from detofa.runtime.bench import measure_file
from detofa.runtime.measuring import Schedule
from detofa.runtime.openvino_cpu import OpenVinoCpu, OpenVinoSession, open_openvino
from detofa.runtime.session import OnnxSession

pytestmark = pytest.mark.openvino

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 96)])
BLOCKS = SPACE.blocks(SPACE.smallest)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = onnx.load_from_string(detector_onnx(BLOCKS, top_k=300, rng=np.random.default_rng(0)))
    model.metadata_props.add(key="who", value="é")
    path = tmp_path / "a.onnx"
    onnx.save(model, str(path))
    return path


def test_both_runtimes_give_the_same_from_the_same_file(file: Path) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 96), np.float32)
    with OnnxSession(file) as onnx_session, OpenVinoSession(file) as session:
        assert session.image_size == onnx_session.image_size == (64, 96)
        assert session.batch is onnx_session.batch is None
        assert session.metadata == onnx_session.metadata == {"who": "é"}
        wanted, found = onnx_session.run(images), session.run(images)
        again = session.run(images[:1])
    for first, second in zip(wanted, found, strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(again[1], found[1][:1], rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError, match="closed"):
        session.run(images)


@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_timed_and_tells_where_the_time_goes(file: Path, batch: int) -> None:
    runtime = OpenVinoCpu(batch=batch)
    assert runtime.clock == "thread"
    assert OpenVinoCpu(threads=2).clock == "wall"
    ms = runtime.open(file.read_bytes())(4)
    assert ms.shape == (4,)
    assert (ms > 0).all()
    took = time_of_places(runtime.operator_ms(file.read_bytes()))
    backbone = [f"backbone/{index}" for index in range(len(BLOCKS) - 1)]
    assert set(took) == {*backbone, "neck", "head", "decoding"}
    latency = measure_file(file, runs=3, batch=batch, runtime="openvino")
    assert latency.thread is not None


def test_a_table_of_openvino_lies_beside_that_of_onnx_runtime(tmp_path: Path) -> None:
    plan = ProfilePlan.draw(SPACE, num_fit=6, num_held_out=5)
    for runtime in (None, OpenVinoCpu()):
        measure_table(plan, runtime=runtime, schedule=Schedule(passes=2)).save(tmp_path)
    usual = find_table(tmp_path, SPACE)[1]
    other = find_table(tmp_path, SPACE, Wanted(runtime="openvino-cpu"))[1]
    assert (usual.runtime, other.runtime) == ("onnxruntime-cpu", "openvino-cpu")
    assert other.device == this_cpu()
    assert other.shares is not None


def test_bad_input_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(UserError, match="does not exist"):
        open_openvino(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a model that OpenVINO can open"):
        open_openvino(path)
    with pytest.raises(UserError, match="threads should be at least 1"):
        open_openvino(path, threads=0)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'detofa\[openvino\]'"):
        OpenVinoCpu()
