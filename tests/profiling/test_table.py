import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.files import sha256_json
from detofa.presets import preset
from detofa.profiling import device
from detofa.profiling.cost import all_blocks, arch_macs, block_macs
from detofa.profiling.device import Device, this_cpu
from detofa.profiling.table import (
    LatencyTable,
    Wanted,
    find_table,
    load_table,
    read_tables,
    table_name,
)

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 64)])
OTHER_SPACE = preset("tiny", num_classes=4, image_sizes=[(64, 64)])


def _table(**changes: Any) -> LatencyTable:
    costs = {key: block_macs(block) / 1e6 for key, block in all_blocks(SPACE).items()}
    table = LatencyTable(
        device=this_cpu(),
        runtime="onnxruntime-cpu",
        runtime_version="1.0",
        precision="fp32",
        batch=1,
        threads=1,
        method={"clock": "thread", "passes": 3, "seconds": 1.0},
        noise_floor=0.01,
        unstable=[],
        entries={
            key: {"p50_ms": ms, "p90_ms": ms, "p99_ms": ms, "count": 3} for key, ms in costs.items()
        },
        detectors=[{"role": "fit", "genes": row.tolist(), "p50_ms": 1.0} for row in SPACE.ends],
        prior_ms=costs,
        block_ms=costs,
        model={"kind": "sum", "prior": "isolated"},
        shares=None,
        suppression_ms=None,
        held_out={"count": 5, "mape": 0.01, "kendall_tau": 0.9},
        interval=0.25,
        verification=None,
        space=SPACE,
        date="2026-01-01T00:00:00+00:00",
        detofa_version="0",
    )
    return dataclasses.replace(table, **changes)


A100 = Device(kind="gpu", name="NVIDIA A100-SXM4-80GB", details={})


def test_a_table_predicts_the_sum_of_its_block_costs() -> None:
    genes = SPACE.sample(np.random.default_rng(0), 5)
    predicted = _table().predict(genes)
    macs = [arch_macs(SPACE, SPACE.arch(row)) for row in genes]
    np.testing.assert_allclose(predicted, np.array(macs) / 1e6)


def test_the_columns_add_up_to_the_prediction() -> None:
    genes = SPACE.sample(np.random.default_rng(0), 5)
    shares = {"neck": 0.3, "head": 0.5, "decoding": 0.2}
    for table in (_table(), _table(shares=shares, suppression_ms=0.7)):
        parts = table.columns(genes)
        after = parts.pop("suppression", None)
        assert (after is None) == (table.suppression_ms is None)
        np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), table.predict(genes))


def test_interval_holds_every_latency_whose_relative_error_is_within_the_promise() -> None:
    genes = SPACE.sample(np.random.default_rng(0), 5)
    table = _table()
    low, high = table.predict_interval(genes)
    np.testing.assert_allclose(table.predict(genes) / low - 1, 0.25)
    np.testing.assert_allclose(table.predict(genes) / high - 1, -0.25)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = _table()
    path = table.save(tmp_path)
    assert path.name == table_name(this_cpu(), SPACE)
    assert load_table(path, space=SPACE, device=this_cpu()) == table
    assert json.loads(path.read_text())["sha256"] == table.sha256


def test_a_truncated_table_says_so_and_what_makes_a_new_one(tmp_path: Path) -> None:
    path = _table().save(tmp_path)
    path.write_text(path.read_text()[:2000])
    with pytest.raises(UserError, match=r"truncated.*detofa profile"):
        load_table(path)


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    path = _table().save(tmp_path)
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 2'))
    with pytest.raises(UserError, match=r"changed since.*detofa profile"):
        load_table(path)


def test_a_table_without_a_field_names_it(tmp_path: Path) -> None:
    path = _table().save(tmp_path)
    content = json.loads(path.read_text())
    del content["block_ms"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"missing \['block_ms'\]"):
        load_table(path)


def test_a_table_without_the_cost_of_a_block_is_refused(tmp_path: Path) -> None:
    costs = dict(list(_table().block_ms.items())[1:])
    path = _table(block_ms=costs).save(tmp_path)
    with pytest.raises(UserError, match="lacks the cost"):
        load_table(path)


def test_a_table_of_another_space_names_both(tmp_path: Path) -> None:
    path = _table().save(tmp_path)
    with pytest.raises(UserError) as caught:
        load_table(path, space=OTHER_SPACE)
    assert SPACE.digest[:8] in str(caught.value)
    assert OTHER_SPACE.digest[:8] in str(caught.value)


def test_a_table_of_another_device_is_refused(tmp_path: Path) -> None:
    path = _table(device=A100).save(tmp_path)
    with pytest.raises(UserError, match=r"measured on NVIDIA A100.*detofa profile"):
        load_table(path, device=this_cpu())


def test_this_machines_table_is_found_as_cpu_and_by_its_name(tmp_path: Path) -> None:
    table = _table()
    path = table.save(tmp_path)
    assert find_table(tmp_path, SPACE) == (path, table)
    assert find_table(tmp_path, SPACE, Wanted(device=this_cpu().name)) == (path, table)


def test_a_table_copied_from_another_machine_is_found_by_its_devices_name(tmp_path: Path) -> None:
    path = _table(device=A100).save(tmp_path)
    found, table = find_table(tmp_path, SPACE, Wanted(device="a100"))
    assert (found, table.device) == (path, A100)


def test_a_missing_table_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no latency table.*detofa profile"):
        find_table(tmp_path, SPACE)
    with pytest.raises(UserError, match=r"no device named 'a100'"):
        find_table(tmp_path, SPACE, Wanted(device="a100"))
    _table(device=A100).save(tmp_path)
    with pytest.raises(UserError, match=r"there is one of tiny \(3 classes"):
        find_table(tmp_path, OTHER_SPACE, Wanted(device="a100"))


def test_tables_of_several_runtimes_and_formats_are_told_apart(tmp_path: Path) -> None:
    onnx = _table(device=A100, runtime="onnxruntime-cuda")
    half = _table(device=A100, runtime="torch-cuda", precision="fp16")
    full = _table(device=A100, runtime="torch-cuda")
    for table in (onnx, half, full):
        table.save(tmp_path)
    with pytest.raises(UserError, match="several ways: onnxruntime-cuda fp32, torch-cuda fp16, to"):
        find_table(tmp_path, SPACE, Wanted(device="a100"))
    for wanted, table in (
        (Wanted(device="a100", runtime="onnxruntime-cuda"), onnx),
        (Wanted(device="a100", precision="fp16"), half),
        (Wanted(device="a100", runtime="torch-cuda", precision="fp32"), full),
    ):
        assert find_table(tmp_path, SPACE, wanted)[1] == table
    with pytest.raises(UserError, match=r"with tensorrt, threads=1, batch=1 in .*there is one of"):
        find_table(tmp_path, SPACE, Wanted(device="a100", runtime="tensorrt"))


def test_a_gpu_may_be_meant_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = (this_cpu(), dataclasses.replace(A100, details={"index": 0}))
    monkeypatch.setattr(device, "devices_here", lambda: here)
    table = _table(device=A100, runtime="torch-cuda")
    table.save(tmp_path)
    assert find_table(tmp_path, SPACE, Wanted(device="cuda:0"))[1] == table
    with pytest.raises(UserError, match="no device named 'cuda:1'"):
        find_table(tmp_path, SPACE, Wanted(device="cuda:1"))


def test_damaged_files_are_listed_beside_whole_ones(tmp_path: Path) -> None:
    path = _table().save(tmp_path)
    (tmp_path / "a.json").write_text("{")
    found = dict(read_tables(tmp_path))
    assert isinstance(found[tmp_path / "a.json"], UserError)
    assert found[path] == _table()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"clock": "sundial", "passes": 1, "seconds": 1.0}},
        {"detectors": [{"role": "fit", "genes": [0, 1], "p50_ms": 1.0}]},
        {"detectors": [3]},
        {"held_out": {}},
        {"block_ms": []},
        {"shares": {"neck": "a"}},
        {"interval": 10**400},
        {"verification": {"passed": True}},
        {"date": "yesterday"},
        {"entries": {"a": None}},
    ],
)
def test_a_table_signed_anew_with_fields_of_another_kind_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = _table().save(tmp_path)
    record = json.loads(path.read_text()) | changes
    content = {key: record[key] for key in record if key not in ("schema", "kind", "sha256")}
    path.write_text(json.dumps(record | {"sha256": sha256_json(content)}))
    with pytest.raises(UserError, match="make it again with"):
        load_table(path)
