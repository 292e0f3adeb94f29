"""The builder against a fake `tensorrt` that has exactly the names of the real bindings."""

import sys

import pytest

from detofa.errors import UserError
from detofa.export.to_tensorrt import build_engine
from detofa.files import read_json, sha256_file
from detofa.runtime.tensorrt_engine import BatchSizes
from tests.fake_tensorrt import VERSIONS, Fake, fake_tensorrt


@pytest.fixture(params=VERSIONS)
def listing(request, data_dir):
    path = data_dir.parent / "tensorrt" / f"api_{request.param}.txt"
    if not path.is_file():
        pytest.skip(f"the listing {path} of TensorRT's bindings is not there")
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"onnx")
    return path


def test_an_engine_is_built_strongly_typed_with_its_record_beside(
    listing, model, tmp_path, monkeypatch
):
    module = fake_tensorrt(listing)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    engine, cache = tmp_path / "a.engine", tmp_path / "timings.bin"
    beside = build_engine(
        model,
        engine,
        batch_sizes=BatchSizes(smallest=1, tuned=2, largest=4),
        timing_cache_path=cache,
    )
    assert engine.read_bytes() == b"engine"
    assert cache.read_bytes() == b"timings"
    record = read_json(beside, "tensorrt_engine", remake="`detofa export`")
    assert record["engine_sha256"] == sha256_file(engine)
    assert record["onnx_sha256"] == sha256_file(model)
    assert record["tensorrt"] == module.__version__
    shapes = [[1, 3, 96, 160], [2, 3, 96, 160], [4, 3, 96, 160]]
    assert record["input_shapes"] == {"images": shapes}
    calls = dict(module.calls)
    strongly_typed = module.listing["NetworkDefinitionCreationFlag"]["enum"]["STRONGLY_TYPED"]
    assert calls["Builder.create_network"] == (1 << strongly_typed,)
    assert calls["IOptimizationProfile.set_shape"] == ("images", *map(tuple, shapes))
    assert calls["IBuilderConfig.create_timing_cache"] == (b"",)
    assert calls["IBuilderConfig.clear_flag"] == (module.BuilderFlag.TF32,)
    build_engine(model, engine, timing_cache_path=cache)
    assert dict(module.calls)["IBuilderConfig.create_timing_cache"] == (b"timings",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Builder__create_network": None}, "could not create a network"),
        ({"Builder__create_builder_config": None}, "could not create a configuration"),
        ({"Builder__create_optimization_profile": None}, "could not create a profile"),
        ({"Builder__build_serialized_network": None}, "could not build an engine"),
        ({"IBuilderConfig__add_optimization_profile": -1}, "refuses the shapes"),
        ({"IBuilderConfig__create_timing_cache": None}, "another GPU or another TensorRT"),
        ({"IBuilderConfig__set_timing_cache": False}, "another GPU or another TensorRT"),
        ({"ITimingCache__serialize": None}, "could not save timings"),
        ({"ITensor__shape": (-1, 3, -1, 160)}, "only the batch size may be free"),
        ({"OnnxParser__parse_from_file": False}, "it does not say why"),
    ],
)
def test_every_way_of_saying_no_is_heard(listing, model, tmp_path, monkeypatch, changes, message):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(listing, **changes))
    with pytest.raises(UserError, match=message):
        build_engine(model, tmp_path / "a.engine", timing_cache_path=tmp_path / "timings.bin")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx"]


def test_every_message_of_the_parser_is_given(listing, model, tmp_path, monkeypatch):
    module = fake_tensorrt(listing)
    errors = iter(["first", "second"])
    module.answers |= {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 2,
        "OnnxParser.get_error": lambda index: Fake(module, "ParserError"),
        "ParserError.node_operator": "TopK",
        "ParserError.node_name": "node_topk",
        "ParserError.desc": lambda: next(errors),
    }
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(UserError, match="TopK node_topk: first; TopK node_topk: second"):
        build_engine(model, tmp_path / "a.engine")


def test_no_gpu_is_a_plain_message(listing, model, tmp_path, monkeypatch):
    module = fake_tensorrt(listing)

    def no_gpu(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Builder = no_gpu
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(UserError, match="finds no GPU"):
        build_engine(model, tmp_path / "a.engine")


def test_a_missing_onnx_file_is_named(listing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(listing))
    with pytest.raises(UserError, match=r"no\.onnx does not exist"):
        build_engine(tmp_path / "no.onnx", tmp_path / "a.engine")


def test_without_tensorrt_the_message_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"pip install 'detofa\[tensorrt\]'.*NVIDIA's own index"):
        build_engine(model, tmp_path / "a.engine")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx"]


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 2), (1, 3, 2)])
def test_batch_sizes_ascend(sizes):
    with pytest.raises(UserError, match="at least 1 and ascend"):
        BatchSizes(smallest=sizes[0], tuned=sizes[1], largest=sizes[2])
