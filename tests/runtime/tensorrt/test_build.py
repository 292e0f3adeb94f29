"""The builder against a fake `tensorrt` that has exactly the names of the real bindings."""

import sys

import pytest

from detofa.errors import UserError
from detofa.runtime.tensorrt.build import BatchSizes, serialized_engine
from tests.fake_tensorrt import Fake, fake_tensorrt


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"onnx")
    return path


def build(model, **options):
    options = {"batch_sizes": BatchSizes(smallest=1, tuned=2, largest=4)} | options
    return serialized_engine(model, **options)


def test_an_engine_is_built_strongly_typed(listing, model, monkeypatch):
    module = fake_tensorrt(listing)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    engine = build(model)
    assert (engine.data, engine.timings) == (b"engine", b"timings")
    assert engine.tensorrt == module.__version__
    shapes = ((1, 3, 96, 160), (2, 3, 96, 160), (4, 3, 96, 160))
    assert engine.input_shapes == {"images": shapes}
    calls = dict(module.calls)
    strongly_typed = module.listing["NetworkDefinitionCreationFlag"]["enum"]["STRONGLY_TYPED"]
    assert calls["Builder.create_network"] == (1 << strongly_typed,)
    assert calls["IOptimizationProfile.set_shape"] == ("images", *shapes)
    assert calls["IBuilderConfig.create_timing_cache"] == (b"",)
    assert calls["IBuilderConfig.clear_flag"] == (module.BuilderFlag.TF32,)
    detailed = module.ProfilingVerbosity.DETAILED
    assert module.answers["IBuilderConfig.profiling_verbosity"] == detailed
    build(model, timings=b"timings")
    assert dict(module.calls)["IBuilderConfig.create_timing_cache"] == (b"timings",)


def test_a_fixed_batch_stays_as_it_is(listing, model, monkeypatch):
    module = fake_tensorrt(listing, ITensor__shape=(3, 3, 96, 160))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert build(model).input_shapes == {"images": ((3, 3, 96, 160),) * 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Builder__create_network": None}, "could not create a network"),
        ({"Builder__create_builder_config": None}, "could not create a configuration"),
        ({"Builder__create_optimization_profile": None}, "could not create a profile"),
        ({"Builder__build_serialized_network": None}, "could not build an engine"),
        ({"IBuilderConfig__add_optimization_profile": -1}, "refuses the shapes"),
        ({"IBuilderConfig__create_timing_cache": None}, "could not make a timing cache"),
        ({"IBuilderConfig__set_timing_cache": False}, "could not make a timing cache"),
        ({"ITimingCache__serialize": None}, "could not save timings"),
        ({"ITensor__shape": (-1, 3, -1, 160)}, "only the batch size may be free"),
        ({"OnnxParser__parse_from_file": False}, "it does not say why"),
    ],
)
def test_every_way_of_saying_no_is_heard(listing, model, monkeypatch, changes, message):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(listing, **changes))
    with pytest.raises(UserError, match=message):
        build(model)


def test_every_message_of_the_parser_is_given(listing, model, monkeypatch):
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
        build(model)


def test_no_gpu_is_a_plain_message(listing, model, monkeypatch):
    module = fake_tensorrt(listing)

    def no_gpu(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Builder = no_gpu
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(UserError, match="finds no GPU"):
        build(model)


def test_a_missing_onnx_file_is_named(listing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(listing))
    with pytest.raises(UserError, match=r"no\.onnx does not exist"):
        build(tmp_path / "no.onnx")


def test_without_tensorrt_the_message_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"pip install 'detofa\[tensorrt\]'.*NVIDIA's own index"):
        build(model)


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 2), (1, 3, 2)])
def test_batch_sizes_ascend(sizes):
    with pytest.raises(UserError, match="at least 1 and ascend"):
        BatchSizes(smallest=sizes[0], tuned=sizes[1], largest=sizes[2])


@pytest.mark.parametrize(("text", "sizes"), [("1,2,4", (1, 2, 4)), ("3", (3, 3, 3))])
def test_batch_sizes_are_read(text, sizes):
    read = BatchSizes.parse(text)
    assert (read.smallest, read.tuned, read.largest) == sizes


@pytest.mark.parametrize("text", ["", "1,2", "1,x,3", "1,-1,2", "1,2,3,4"])
def test_what_is_no_batch_sizes_is_refused(text):
    with pytest.raises(UserError, match="written as 1,1,8"):
        BatchSizes.parse(text)
