import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from detofa.errors import UserError
from detofa.runtime.bench import measure_latency
from detofa.runtime.session import OnnxSession, open_onnx

from .conftest import brightness_model


@pytest.mark.parametrize("image_size", [(320, 512), (512, 320)])
def test_height_and_width_keep_their_places(tmp_path, image_size):
    path = brightness_model(tmp_path / "a.onnx", image_size=image_size)
    with OnnxSession(path) as session:
        assert session.image_size == image_size
        boxes, scores = session.run(np.zeros((2, 3, *image_size), np.float32))
        assert boxes.shape == (2, 1, 4)
        assert scores.shape == (2, 1, 2)
        with pytest.raises(AssertionError):
            session.run(np.zeros((2, 3, *image_size[::-1]), np.float32))
    with pytest.raises(AssertionError, match="closed"):
        session.run(np.zeros((2, 3, *image_size), np.float32))


def test_a_session_runs_on_the_threads_and_the_provider_asked_for(tmp_path):
    path = brightness_model(tmp_path / "a.onnx")
    session = open_onnx(path, threads=2)
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert open_onnx(path.read_bytes()).get_session_options().intra_op_num_threads == 1


def test_a_provider_that_is_not_there_is_refused_not_replaced(tmp_path):
    path = brightness_model(tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"no NoSuchProvider; it has .*CPUExecutionProvider"):
        open_onnx(path, provider="NoSuchProvider")
    with pytest.raises(UserError, match="at least 1, got 0"):
        open_onnx(path, threads=0)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a\xff\xff\xff", None])
def test_a_damaged_file_is_named_without_a_word_on_the_terminal(tmp_path, content, capfd):
    path = brightness_model(tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(UserError, match=r"a\.onnx .*damaged.*detofa export"):
        OnnxSession(path)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_an_opset_from_the_future_is_told(tmp_path):
    path = brightness_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 99
    onnx.save(model, path)
    with pytest.raises(UserError, match="opset is newer than ONNX Runtime"):
        OnnxSession(path)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.onnx does not exist"):
        open_onnx(tmp_path / "no.onnx")
    with pytest.raises(UserError, match="does not exist"):
        open_onnx(tmp_path)


def test_a_model_that_is_no_detector_is_refused(tmp_path):
    path = brightness_model(tmp_path / "a.onnx", output_names=("dets", "labels"))
    with pytest.raises(UserError, match="outputs dets, labels, but a detector has boxes_xyxy"):
        OnnxSession(path)
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "height", "width"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [info], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    with pytest.raises(UserError, match="a detector has one of"):
        OnnxSession(path)
    open_onnx(path)  # which opens any model


def test_latency_has_both_clocks_unless_threads_hide_some_of_the_work(tmp_path):
    path = brightness_model(tmp_path / "a.onnx")
    rng = np.random.default_rng(0)
    with OnnxSession(path) as session:
        latency = measure_latency(session, rng=rng, runs=5, warm_up=1, batch=3)
        assert latency.batch == 3
        assert latency.thread is not None
        assert (latency.wall.clock, latency.thread.clock) == ("wall", "thread")
        assert latency.wall.count == latency.thread.count == 5
        assert 0 < latency.wall.p50_ms <= latency.wall.p90_ms <= latency.wall.p99_ms
        assert measure_latency(session, rng=rng, runs=2, warm_up=0, threads=2).thread is None
