"""The builder against a fake `tensorrt` that has exactly the names of the real bindings.

The names, arguments and enum values come from listings of the bindings of two versions. The fake
refuses any other name, so a call that one of the versions lacks fails here.
"""

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from detofa.errors import UserError
from detofa.export.to_tensorrt import BatchSizes, build_engine
from detofa.files import read_json, sha256_file

VERSIONS = ["10.16", "11.4"]


def read_listing(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the version, and per class its enum values, methods and properties."""
    text = path.read_text()
    version = re.search(r"__version__ = '(.+)'", text)
    assert version is not None
    classes: dict[str, Any] = {}
    for block in re.split(r"\n(?=class )", text):
        head = re.match(r"class (\w+)\(", block)
        if head is None:
            continue
        enum = re.search(r"# enum: (.*)", block)
        values = dict(pair.split("=") for pair in enum.group(1).split()) if enum else {}
        methods: dict[str, list[str] | None] = {}
        for name, arguments in re.findall(r"^ {4}(\w+)\((.*)\)(?: -> .*)?$", block, re.MULTILINE):
            plain = re.sub(r"\[[^\]]*\]", "", arguments)
            names = [part.split(":")[0].strip() for part in plain.split(",")]
            methods[name] = None if "*args" in arguments else names[1:]
        classes[head.group(1)] = {
            "enum": {name: int(value) for name, value in values.items()},
            "methods": methods,
            "properties": set(re.findall(r"^ {4}(\w+): property", block, re.MULTILINE)),
        }
    return version.group(1), classes


class Fake:
    """An object of one class of the listing; `answers` say what its methods return."""

    def __init__(self, module, kind):
        self.__dict__.update(module=module, kind=kind)

    def __getattr__(self, name):
        listing = self.module.listing[self.kind]
        key = f"{self.kind}.{name}"
        if name in listing["properties"]:
            return self.module.answers[key]
        assert name in listing["methods"], f"TensorRT {self.module.__version__} has no {key}"

        def call(*arguments):
            names = listing["methods"][name]
            assert names is None or len(arguments) <= len(names), (key, arguments, names)
            self.module.calls.append((key, arguments))
            answer = self.module.answers.get(key)
            return answer(*arguments) if callable(answer) else answer

        return call

    def __setattr__(self, name, value):
        raise AssertionError(f"{self.kind}.{name} is not to be set")


def fake_tensorrt(path, **changes):
    """Make a module that builds b"engine" from a network with one input (-1, 3, 96, 160)."""
    module: Any = types.ModuleType("tensorrt")
    module.__version__, module.listing = read_listing(path)
    module.calls = []

    def make(kind):
        return lambda *arguments: Fake(module, kind)

    for name, content in module.listing.items():
        if content["enum"]:
            setattr(module, name, types.SimpleNamespace(**content["enum"]))
    module.Logger = make("Logger")
    module.Logger.Severity = types.SimpleNamespace(WARNING=2)
    module.Builder = make("Builder")
    module.OnnxParser = make("OnnxParser")
    module.answers = {
        "Builder.create_network": make("INetworkDefinition"),
        "Builder.create_builder_config": make("IBuilderConfig"),
        "Builder.create_optimization_profile": make("IOptimizationProfile"),
        "Builder.build_serialized_network": b"engine",
        "OnnxParser.parse_from_file": True,
        "OnnxParser.num_errors": 0,
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.get_input": make("ITensor"),
        "ITensor.name": "images",
        "ITensor.shape": (-1, 3, 96, 160),
        "IBuilderConfig.add_optimization_profile": 0,
        "IBuilderConfig.create_timing_cache": make("ITimingCache"),
        "IBuilderConfig.set_timing_cache": True,
        "ITimingCache.serialize": b"timings",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return module


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
    with pytest.raises(UserError, match=r"pip install 'detofa\[tensorrt\]'.*pypi\.nvidia\.com"):
        build_engine(model, tmp_path / "a.engine")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx"]


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 2), (1, 3, 2)])
def test_batch_sizes_ascend(sizes):
    with pytest.raises(UserError, match="at least 1 and ascend"):
        BatchSizes(smallest=sizes[0], tuned=sizes[1], largest=sizes[2])
