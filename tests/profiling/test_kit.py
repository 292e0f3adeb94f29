"""The profiling kit, run as on a device: with numpy and ONNX Runtime, and without torch."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.export.onnx_from_blocks import detector_onnx
from detofa.files import sha256_json
from detofa.presets import preset
from detofa.profiling.device import this_cpu
from detofa.profiling.kit import make_kit, structure_of, table_from_kit
from detofa.profiling.measure import ProfilePlan
from detofa.runtime.measuring import Schedule
from tests.bare import newer_than_python_3_10, only_packages, run_bare

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 64)])
PLAN = ProfilePlan.draw(SPACE, num_fit=6, num_held_out=5)
SCHEDULE = Schedule(passes=2, extra_passes=0)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "kit.zip"
    assert make_kit(PLAN, path, device="cpu", schedule=SCHEDULE) == len(PLAN.models())
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_packages(tmp_path_factory.mktemp("packages"), "numpy", "onnxruntime")


@pytest.fixture(scope="module")
def results(kit: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    done = run_bare(kit, packages, folder)
    assert done.returncode == 0, done.stderr
    assert "detofa profile --from kit-results.json" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["kit-results.json"]
    return folder / "kit-results.json"


def test_the_interpreter_of_these_tests_has_no_torch(packages: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import numpy, onnxruntime\nimport torch\n")
    done = run_bare(program, packages, tmp_path)
    assert "No module named 'torch'" in done.stderr


def test_results_of_a_kit_make_a_table(results: Path) -> None:
    table = table_from_kit(results, space=SPACE)
    assert table.device.name == this_cpu().name
    assert table.runtime == "onnxruntime-cpu"
    assert table.method["passes"] == 2
    assert len(table.detectors) == 11
    assert table.shares is not None
    assert table.shares["head"] > table.shares["decoding"] > 0
    smallest, largest = table.predict(SPACE.ends)
    assert smallest < largest


def test_an_unpacked_kit_does_the_same_and_goes_on_where_it_was_stopped(
    kit: Path, packages: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(kit) as packed:
        names = packed.namelist()
        assert "README.txt" in names
        assert all(not name.startswith(("/", "..")) and ".." not in name for name in names)
        packed.extractall(tmp_path / "kit")
    done = run_bare(tmp_path / "kit", packages, tmp_path, "--passes", "1")
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "kit-results.json").read_text())
    (tmp_path / "kit-results.json").unlink()
    with subprocess.Popen(
        [sys.executable, "-S", str(tmp_path / "kit"), "--passes", "1000"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)},
        stdout=subprocess.DEVNULL,
    ) as process:
        while not (found := [*tmp_path.glob("*.jsonl")]) or not found[0].stat().st_size:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    (unfinished,) = found
    kept = unfinished.read_bytes().count(b"\n") - 1
    done = run_bare(tmp_path / "kit", packages, tmp_path, "--passes", str(kept + 1))
    assert done.returncode == 0, done.stderr
    assert f"{kept} passes are there already" in done.stdout
    results = json.loads((tmp_path / "kit-results.json").read_text())
    assert len(results["passes"]) == kept + 1
    assert results["conditions"] == first["conditions"] | {
        "schedule": first["conditions"]["schedule"] | {"passes": kept + 1}
    }
    assert not unfinished.exists()


def test_a_damaged_kit_and_another_device_are_refused(
    kit: Path, packages: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(kit) as packed:
        packed.extractall(tmp_path / "kit")
    model = next((tmp_path / "kit" / "kit_data").glob("*.onnx"))
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    record = tmp_path / "kit" / "kit_data" / "kit.json"
    whole = record.read_text()
    for text in (whole, whole.replace('"threads": 1', '"threads": 2'), whole[:100]):
        record.write_text(text)
        done = run_bare(tmp_path / "kit", packages, tmp_path)
        assert done.returncode == 1
        assert "copy the kit to this device again" in done.stderr
        assert "Traceback" not in done.stderr
    record.write_text(whole)
    done = run_bare(tmp_path / "kit", packages, tmp_path, "--passes", "0")
    assert done.returncode == 1
    assert "error: passes should be a whole number" in done.stderr
    make_kit(PLAN, tmp_path / "orin.zip", device="orin", schedule=SCHEDULE)
    done = run_bare(tmp_path / "orin.zip", packages, tmp_path)
    assert done.returncode == 1
    assert "this kit is for 'orin', but this machine is" in done.stderr
    assert not (tmp_path / "kit-results.json").exists()


def test_a_kit_holds_nothing_newer_than_python_3_10(kit: Path) -> None:
    """JetPack 6 has Python 3.10."""
    assert newer_than_python_3_10(kit) == []


def test_equal_plans_make_equal_kits(kit: Path, tmp_path: Path) -> None:
    make_kit(PLAN, tmp_path / "again.zip", device="cpu", schedule=SCHEDULE)
    assert (tmp_path / "again.zip").read_bytes() == kit.read_bytes()


def changed(results: Path, target: Path, **changes: Any) -> Path:
    """Write results that were changed by someone who knows of the hash."""
    record = json.loads(results.read_text())
    content = {key: record[key] for key in record if key not in ("schema", "kind", "sha256")}
    content |= changes
    target.write_text(json.dumps(record | content | {"sha256": sha256_json(content)}))
    return target


def test_results_that_cannot_be_trusted_are_refused(results: Path, tmp_path: Path) -> None:
    record = json.loads(results.read_text())
    path = tmp_path / "results.json"
    first = dict(record["passes"][0]["ms"])
    name = next(iter(first))
    conditions = dict(record["conditions"])

    def passes(ms: dict[str, Any]) -> dict[str, Any]:
        return {"passes": [{"seconds": 1.0, "ms": ms}]}

    nonsense: list[tuple[dict[str, Any], str]] = [
        ({"models": dict(record["models"]) | {name: "0" * 64}}, "measured with other models"),
        ({"passes": []}, "no whole pass"),
        (passes({name: first[name]}), "no whole pass"),
        (passes(first | {name: [-1.0, 1.0, 1.0]}), "should hold 3 times, from 1e-09 to "),
        (passes(first | {name: [1.0]}), "should hold 3 times, from 1e-09 to "),
        (passes(first | {name: [[1.0], 1.0, 1.0]}), "should hold 3 times, from 1e-09 to "),
        (passes(first | {"another": [1.0, 1.0, 1.0]}), "should hold 3 times, from 1e-09 to "),
        ({"plan": {}}, "not a plan"),
        ({"conditions": conditions | {"device": {"kind": "toaster"}}}, "record of a device"),
        ({"conditions": conditions | {"threads": "many"}}, "threads of at least 1"),
        ({"conditions": conditions | {"runtime": "../../x"}}, "should be by one of"),
        ({"conditions": conditions | {"schedule": {"passes": 0}}}, "passes should be a whole"),
        ({"conditions": {}}, "not the conditions"),
        ({"operators_ms": {}}, "not what a kit writes"),
        ({"operators_ms": {key: {"a": -1} for key in PLAN.looked_at}}, "not negative"),
        ({"operators_ms": {key: {"a": 10**400} for key in PLAN.looked_at}}, "not negative"),
        ({"operators_ms": {key: {"a": "b"} for key in PLAN.looked_at}}, "not what a kit writes"),
        ({"state": 5}, "not what a kit writes"),
    ]
    for changes, message in nonsense:
        with pytest.raises(UserError, match=message):
            table_from_kit(changed(results, path, **changes))
    table_from_kit(changed(results, path))  # that much is sound
    edited = record | {"passes": [record["passes"][0] | {"seconds": 2.0}]}
    path.write_text(json.dumps(edited))
    with pytest.raises(UserError, match="has been changed since it was measured"):
        table_from_kit(path)
    other = preset("tiny", num_classes=4, image_sizes=[(64, 64)])
    with pytest.raises(UserError, match="was measured for the space"):
        table_from_kit(results, space=other)
    path.write_text(results.read_text()[:500])
    with pytest.raises(UserError, match="truncated"):
        table_from_kit(path)
    with pytest.raises(UserError, match="does not exist"):
        table_from_kit(tmp_path / "missing.json")


def test_no_name_leads_out_of_the_folder_of_tables(results: Path, tmp_path: Path) -> None:
    plan = dict(json.loads(results.read_text())["plan"])
    plan["space"] = dict(plan["space"]) | {"name": "../../up"}
    table = table_from_kit(changed(results, tmp_path / "results.json", plan=plan))
    path = table.save(tmp_path / "tables")
    assert path.parent == tmp_path / "tables"
    assert path.is_file()


def test_values_of_weights_do_not_count_but_shapes_do() -> None:
    first, second = (SPACE.blocks(arch) for arch in (SPACE.smallest, SPACE.largest))
    models = [
        detector_onnx(blocks, top_k=300, rng=np.random.default_rng(seed))
        for blocks, seed in ((first, 0), (first, 1), (second, 0))
    ]
    hashes = [structure_of(model) for model in models]
    assert models[0] != models[1]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"models": {"a": None}},
        {"looked_at": ["b"]},
        {"schedule": {"speed": 3}},
        {"threads": "1"},
        {"device": None},
    ],
)
def test_a_kit_whose_record_is_of_another_kind_is_damaged(
    kit: Path, packages: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with zipfile.ZipFile(kit) as packed:
        packed.extractall(tmp_path / "kit")
    path = tmp_path / "kit" / "kit_data" / "kit.json"
    record = json.loads(path.read_text()) | changes
    del record["sha256"]
    path.write_text(json.dumps(record | {"sha256": sha256_json(record)}))
    done = run_bare(tmp_path / "kit", packages, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: kit.json of this kit is damaged")
