"""Repositories for Triton, read with the schema that its client ships."""

import dataclasses

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.export.export import export_subnet
from detofa.export.triton import LABELS, README, text_format, write_triton
from detofa.files import sha256_file
from detofa.runtime.cuda import Gpu
from detofa.runtime.manifest import Manifest
from detofa.runtime.session import OnnxSession
from detofa.runtime.tensorrt.record import EngineRecord
from tests.detectors import SmallDetector
from tests.samples import make_subnet

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
text = pytest.importorskip("google.protobuf.text_format")

SUBNET = make_subnet((96, 160))


def read(place):
    config = (place / "config.pbtxt").read_text()
    return text.Parse(config, model_config.ModelConfig())


@pytest.fixture
def exported(tmp_path, images, monkeypatch):
    monkeypatch.setattr("detofa.export.verify.FEWEST_BOXES", 1)

    def export(**how):
        path = tmp_path / "cells.onnx"
        rng = np.random.default_rng(0)
        export_subnet(SmallDetector(), SUBNET, path, images=images, rng=rng, **how)
        return path

    return export


@pytest.mark.parametrize(
    ("how", "limit", "inputs", "outputs"),
    [
        ({}, 8, [(3, 96, 160)], [(15, 4), (15, 2)]),
        ({"pixels": True}, 8, [(96, 160, 3)], [(15, 4), (15, 2)]),
        ({"batch": 4}, 0, [(4, 3, 96, 160)], [(4, 15, 4), (4, 15, 2)]),
        ({"suppress": True}, 8, [(3, 96, 160)], [(30, 4), (30,), (30,), (1,)]),
    ],
)
def test_every_form_of_a_file_is_described(exported, tmp_path, how, limit, inputs, outputs):
    path = exported(**how)
    place = write_triton(path, tmp_path / "models")
    assert sorted(str(one.relative_to(place)) for one in place.rglob("*") if one.is_file()) == [
        "1/model.onnx",
        README,
        "config.pbtxt",
        LABELS,
    ]
    told = (place / README).read_text()
    assert "red cell, platelet" in told
    assert ("(pixel - " in told) == ("pixels" not in how)
    assert ("num_detected says how many" in told) == ("suppress" in how)
    assert (place / "1" / "model.onnx").read_bytes() == path.read_bytes()
    assert (place / LABELS).read_text().splitlines() == [name for _, name in SUBNET.categories]
    config = read(place)
    assert (config.name, config.backend, config.max_batch_size) == ("cells", "onnxruntime", limit)
    assert [tuple(entry.dims) for entry in config.input] == inputs
    assert [tuple(entry.dims) for entry in config.output] == outputs
    kinds = {
        "float": "TYPE_FP32",
        "uint8": "TYPE_UINT8",
        "int64": "TYPE_INT64",
    }
    with OnnxSession(path) as session:
        opened = session._opened
        for ports, entries in (
            (opened.get_inputs(), config.input),
            (opened.get_outputs(), config.output),
        ):
            assert [port.name for port in ports] == [entry.name for entry in entries]
            named = [model_config.DataType.Name(entry.data_type) for entry in entries]
            assert [kinds[port.type[len("tensor(") : -1]] for port in ports] == named
    labelled = [entry.name for entry in config.output if entry.label_filename == LABELS]
    assert labelled == (["detected_labels"] if "suppress" in how else ["scores"])
    assert config.HasField("dynamic_batching") == (limit > 1)
    for warm_up in config.model_warmup:
        assert 1 <= warm_up.batch_size <= max(limit, 1)
        (key,) = warm_up.inputs
        assert tuple(warm_up.inputs[key].dims) == inputs[0]
        assert warm_up.inputs[key].zero_data
    assert len(config.parameters["detofa_model_sha256"].string_value) == 64
    if "suppress" in how:
        assert config.output[3].HasField("reshape")


def test_an_engine_beside_its_file_is_served_by_tensorrt(exported, tmp_path):
    path = exported()
    engine = path.with_suffix(".engine")
    with pytest.raises(UserError, match="does not exist"):
        write_triton(engine, tmp_path / "models")
    engine.write_bytes(b"engine")
    with pytest.raises(UserError, match=r"cells\.engine\.json does not exist"):
        write_triton(engine, tmp_path / "models")
    record = EngineRecord(
        engine_file=engine.name,
        engine_sha256=sha256_file(engine),
        onnx_file=path.name,
        onnx_sha256="0" * 64,
        precision="fp32",
        tensorrt="11.4.0.106",
        built_by="tensorrt",
        gpu=Gpu(name="L4", compute_capability="8.9", driver_cuda="13.0", runtime_cuda="13.0"),
        system="Linux x86_64",
        input_shapes={"images": tuple((count, 3, 96, 160) for count in (1, 2, 3))},
        workspace_bytes=0,
        builds=[{"milliseconds": 1.0, "sha256": "0" * 64}],
        spread=0.0,
        convolutions={},
        share_of_macs=1.0,
        verified={"num_matched": 1, "num_compared": 1},
        timing_cache={},
        subnet=Manifest.of(path).subnet,
    )
    record.save(engine)
    with pytest.raises(UserError, match="built from another ONNX file"):
        write_triton(engine, tmp_path / "models")
    dataclasses.replace(record, onnx_sha256=sha256_file(path)).save(engine)
    assert read(write_triton(engine, tmp_path / "models")).max_batch_size == 3
    two = dataclasses.replace(record, input_shapes={"images": ((2, 3, 96, 160),) * 3})
    dataclasses.replace(two, onnx_sha256=sha256_file(path)).save(engine)
    with pytest.raises(UserError, match="at least 2 images at once"):
        write_triton(engine, tmp_path / "models")
    dataclasses.replace(record, onnx_sha256=sha256_file(path)).save(engine)
    place = write_triton(engine, tmp_path / "models", name="fast", max_batch=1)
    config = read(place)
    assert (config.name, config.backend, config.max_batch_size) == ("fast", "tensorrt", 1)
    assert (place / "1" / "model.plan").read_bytes() == b"engine"
    assert not config.HasField("dynamic_batching")


def test_names_that_triton_does_not_take_are_refused(exported, tmp_path):
    path = exported()
    for name in ("../up", "..", ".", "my cells", "-"):
        with pytest.raises(UserError, match="name of letters"):
            write_triton(path, tmp_path / "models", name=name)
    with pytest.raises(UserError, match="at least 1, got 0"):
        write_triton(path, tmp_path / "models", max_batch=0)
    assert not (tmp_path / "models").exists()


def test_texts_are_escaped():
    name = 'a "quoted" name with \\ and é'
    assert text.Parse(text_format({"name": name}), model_config.ModelConfig()).name == name
