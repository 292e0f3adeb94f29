"""The record beside an engine, as anyone may have written it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from detofa.errors import UserError
from detofa.files import sha256_file, write_json
from detofa.runtime.cuda import Gpu
from detofa.runtime.tensorrt.record import KIND, EngineRecord, record_path
from tests.samples import make_subnet

GPU = Gpu(name="H100", compute_capability="9.0", driver_cuda="13.0", runtime_cuda="13.0")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "a.engine"
    path.write_bytes(b"engine")
    record = EngineRecord(
        engine_file=path.name,
        engine_sha256=sha256_file(path),
        onnx_file="a.onnx",
        onnx_sha256="0" * 64,
        precision="fp16",
        tensorrt="10.16.0",
        built_by="tensorrt",
        gpu=GPU,
        system="Linux x86_64",
        input_shapes={"images": ((1, 3, 96, 128),) * 3},
        workspace_bytes=1 << 30,
        builds=[{"milliseconds": 1.0, "sha256": "0" * 64}],
        spread=0.01,
        convolutions={"conv": "fp16"},
        share_of_macs=1.0,
        verified={"num_matched": 9, "num_compared": 9},
        timing_cache={},
        subnet=make_subnet(),
    )
    record.save(path)
    return path


def test_a_record_comes_back_as_it_was(engine: Path) -> None:
    record = EngineRecord.load(engine)
    assert record.gpu == GPU
    assert "9 of 9 boxes" in record.summary


@pytest.mark.parametrize(
    "changes",
    [
        {"verified": {}},
        {"builds": []},
        {"builds": [{"milliseconds": "1"}]},
        {"gpu": asdict(GPU) | {"driver_cuda": 13}},
        {"gpu": asdict(GPU) | {"driver_cuda": "1" * 5000}},
        {"spread": "a"},
        {"onnx_file": None},
        {"convolutions": []},
    ],
)
def test_fields_of_another_kind_are_refused(engine: Path, changes: dict[str, Any]) -> None:
    path = record_path(engine)
    record = json.loads(path.read_text()) | changes
    write_json(path, KIND, record)
    with pytest.raises(UserError, match=f"{next(iter(changes))} in .* build it again"):
        EngineRecord.load(engine)
