"""Files of another schema: each reader says which was found, which it reads, what makes a new one.

A reader asks for the schema before anything else, so that files hold no more than that here.
"""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from safetensors.numpy import save_file

from detofa.choose.history import SearchHistory
from detofa.data.dataset import SPLITS_FILE, read_splits
from detofa.demo.outcome import evaluated_paths
from detofa.errors import UserError
from detofa.files import SCHEMA, sha256_file
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.pruned_space import PrunedSpace
from detofa.presets import preset
from detofa.profiling.cost import macs_cost
from detofa.profiling.kit import table_from_kit
from detofa.profiling.table import load_table
from detofa.report.provenance import read_environment
from detofa.runtime.detector import SUBNET_KEY, open_detector
from detofa.runtime.manifest import Manifest
from detofa.runtime.tensorrt.record import EngineRecord
from detofa.subnet import Subnet
from detofa.train.checkpoint import load_any_supernet, load_subnet
from detofa.train.config import TrainConfig
from detofa.train.filtering import saved_seconds
from detofa.train.path_evaluations import stored_evaluations
from detofa.train.run import RunFolder
from detofa.train.supernet_record import read_supernet_record
from tests.runtime.conftest import brightness_model
from tests.samples import make_subnet
from tests.test_cli import fake_table

PACKAGE = Path(__file__).resolve().parent.parent / "detofa"
SPACE = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
REMAKE = re.compile(r"`(detofa \w+|python3 kit\.zip)[^`]*`")


def of_weights(path: Path) -> object:
    """Read the weights of a subnet whose own record is in order."""
    subnet = make_subnet().to_json() | {"weights_file": path.name}
    record = {"schema": SCHEMA, "kind": "subnet"} | subnet | {"weights_sha256": sha256_file(path)}
    (path.parent / "subnet.json").write_text(json.dumps(record))
    return load_subnet(path.parent / "subnet.json")


def of_demo(path: Path) -> object:
    from detofa.profiling.device import this_cpu

    return evaluated_paths(RunFolder(path=path.parent), fake_table(SPACE, this_cpu()))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: where it lies, and what reads it; `module` is where that asks for it."""

    kind: str
    module: str
    name: str
    read: Any


KINDS = [
    Kind(kind="subnet", module="subnet.py", name="subnet.json", read=Subnet.load),
    Kind(kind="latency_table", module="profiling/table.py", name="a.json", read=load_table),
    Kind(kind="kit_results", module="profiling/kit.py", name="a.json", read=table_from_kit),
    Kind(
        kind="pruned_space",
        module="path_filter/pruned_space.py",
        name="pruned_space.json",
        read=lambda path: PrunedSpace.load(path, SPACE, macs_cost(SPACE)),
    ),
    Kind(
        kind="path_filter",
        module="path_filter/filter.py",
        name="path_filter.json",
        read=lambda path: PathFilter.load(path.parent, SPACE),
    ),
    Kind(
        kind="filter_report",
        module="train/filtering.py",
        name="report.json",
        read=lambda path: saved_seconds(path, assessed=True),
    ),
    Kind(
        kind="path_evaluations",
        module="train/path_evaluations.py",
        name="path_evaluations.json",
        read=lambda path: stored_evaluations(path, SPACE),
    ),
    Kind(
        kind="path_evaluations",
        module="demo/outcome.py",
        name="path_evaluations.json",
        read=of_demo,
    ),
    Kind(
        kind="search_history",
        module="choose/history.py",
        name="macs-front.json",
        read=SearchHistory.load,
    ),
    Kind(
        kind="environment",
        module="report/provenance.py",
        name="environment.json",
        read=read_environment,
    ),
    Kind(
        kind="export_manifest",
        module="runtime/manifest.py",
        name="a.manifest.json",
        read=Manifest.load,
    ),
    Kind(
        kind="tensorrt_engine",
        module="runtime/tensorrt/record.py",
        name="a.engine.json",
        read=lambda path: EngineRecord.load(path.with_name("a.engine")),
    ),
    Kind(
        kind="splits",
        module="data/dataset.py",
        name=SPLITS_FILE,
        read=lambda path: read_splits(path.parent),
    ),
    Kind(
        kind="supernet",
        module="train/supernet_record.py",
        name="supernet.safetensors",
        read=read_supernet_record,
    ),
    Kind(
        kind="supernet",
        module="train/checkpoint.py",
        name="supernet.safetensors",
        read=load_any_supernet,
    ),
    Kind(
        kind="subnet_weights",
        module="train/checkpoint.py",
        name="a.safetensors",
        read=of_weights,
    ),
    Kind(
        kind="training_state",
        module="train/run.py",
        name="state/training.safetensors",
        read=lambda path: RunFolder(path=path.parent.parent).saved_step(),
    ),
    Kind(kind="subnet", module="runtime/detector.py", name="a.onnx", read=open_detector),
]


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a file that says no more than its kind and schema."""
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(record)
    if path.suffix == ".safetensors":
        save_file({"a": np.zeros(1, np.float32)}, path, metadata={"detofa": text})
    elif path.suffix == ".onnx":
        model = onnx.load(brightness_model(path))
        helper.set_model_props(model, {SUBNET_KEY: text})
        onnx.save(model, path)
    else:
        path.write_text(text)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}, {kind.module}")
@pytest.mark.parametrize(
    "schema",
    [{"schema": SCHEMA + 1}, {"schema": SCHEMA - 1}, {}, {"schema": str(SCHEMA)}],
    ids=["newer", "older", "without", "text"],
)
def test_a_file_of_another_schema_is_refused_with_what_makes_it_again(tmp_path, kind, schema):
    path = tmp_path / kind.name
    write(path, {"kind": kind.kind} | schema)
    with pytest.raises(UserError) as caught:
        kind.read(path)
    message = str(caught.value)
    assert f"schema {schema.get('schema')!r}, this version reads {SCHEMA}" in message
    assert path.name in message
    assert REMAKE.search(message), message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}, {kind.module}")
def test_the_right_schema_is_not_complained_of(tmp_path, kind):
    path = tmp_path / kind.name
    write(path, {"kind": kind.kind, "schema": SCHEMA})
    message = ""
    try:
        kind.read(path)
    except (UserError, KeyError) as error:
        message = str(error)
    assert "this version reads" not in message


def test_these_are_all_the_modules_that_read_a_versioned_file():
    calls = re.compile(r"(?<!def )\b(read_json|read_header|read_tensors|check_schema)\(")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if calls.search(path.read_text(encoding="utf-8"))
    }
    others = {"files.py", "train/config.py"}  # settings are TOML; the test below is theirs
    assert found - others == {kind.module for kind in KINDS}


def test_settings_name_their_schema_and_those_of_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config = TrainConfig(data="photos", steps=7)
    config.save(path)
    assert tomllib.loads(path.read_text())["schema"] == SCHEMA
    run = RunFolder(path=tmp_path)
    assert run.load_config() == config
    text = path.read_text()
    path.write_text(text.replace(f"schema = {SCHEMA}\n", ""))  # of an earlier version, or a recipe
    assert run.load_config() == config
    path.write_text(text.replace(f"schema = {SCHEMA}", f"schema = {SCHEMA + 1}"))
    with pytest.raises(UserError, match=rf"has schema {SCHEMA + 1}, this version reads {SCHEMA}"):
        run.load_config()
