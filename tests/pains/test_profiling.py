"""Latency tables, profiling, devices: entries 1 to 16."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from detofa.cli.export import _show_export
from detofa.errors import UserError
from detofa.export.onnx_from_blocks import detector_onnx
from detofa.presets import preset
from detofa.profiling import conditions
from detofa.profiling.again import difference_here
from detofa.profiling.device import Device, find_device, this_cpu
from detofa.profiling.table import find_table, load_table
from detofa.runtime import runtimes
from detofa.runtime.measuring import Schedule, measure_models
from detofa.runtime.runtimes import OnnxRuntimeCuda
from detofa.runtime.session import CPU, CUDA, open_onnx
from detofa.runtime.tensorrt.make import EnginePlan, make_engine
from detofa.subnet import Subnet
from tests.detectors import make_pictures
from tests.profiling.clockwork import Clockwork
from tests.test_cli import fake_table

SPACE = preset("tiny", num_classes=2, image_sizes=[(64, 64)])


@pytest.fixture
def profiled(detofa, monkeypatch):
    """Give what `detofa profile` printed on a machine that takes what convolutions come to."""
    monkeypatch.setattr(conditions, "runtime_named", lambda *_, **__: Clockwork())
    how = ("--space", "tiny", "--num-classes", 2, "--image-size", "64x64")
    done = detofa("profile", *how, "--prior", "compute", "--budget-seconds", 1)
    assert done.code == 0, done.err
    return done.out


def test_a_table_is_made_by_one_command_and_each_row_has_its_percentiles(
    profiled, detofa, tmp_path
):
    """Entry 1: a table ships for one phone, and nothing makes another."""
    path, table = find_table(tmp_path / "latency_tables", SPACE)
    assert len(table.detectors) == 80
    for row in table.detectors:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["count"] >= 3
    assert f"wrote {path.relative_to(tmp_path)}; next: `detofa search" in profiled
    assert this_cpu().name in detofa("devices").out


def test_blocks_that_a_table_lacks_are_named_before_any_search(tmp_path):
    """Entry 2: a layer that is not in the table ends the search with a KeyError."""
    table = fake_table(SPACE, this_cpu())
    lacking, *rest = table.block_ms
    kept = {key: table.block_ms[key] for key in rest}
    dataclasses.replace(table, block_ms=kept).save(tmp_path)
    with pytest.raises(UserError) as caught:
        find_table(tmp_path, SPACE)
    assert f"lacks the cost of 1 blocks of its space ({lacking})" in str(caught.value)
    assert "`detofa profile`" in str(caught.value)


def test_a_table_is_json_of_a_known_schema_and_needs_no_other_parser(tmp_path, monkeypatch):
    """Entry 3: a newer parser of YAML cannot read the table."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    table = fake_table(SPACE, this_cpu())
    path = table.save(tmp_path)
    assert load_table(path) == table
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    path.write_text(json.dumps(content | {"schema": 2}))
    with pytest.raises(UserError, match=r"schema 2, this version reads 1; make it again"):
        load_table(path)


def test_a_gpu_is_timed_by_its_events_after_a_wait_for_the_last(gpu, tensorrt):
    """Entry 4: is a time on the GPU that of events, warmed up, waited for, of one image?"""
    device = Device(kind="gpu", name="NVIDIA H100 80GB HBM3", details={"index": 0})
    runtime = conditions.runtime_named("tensorrt", device)
    assert (runtime.clock, runtime.batch) == ("events", 1)
    model = detector_onnx(SPACE.blocks(SPACE.smallest), top_k=30, rng=np.random.default_rng(0))
    timed = runtime.open(model)
    gpu.names.clear()
    assert timed(2).tolist() == [1.5, 1.5]
    timing = ["MemsetAsync", "EventRecord", "EventRecord", "EventSynchronize", "EventElapsedTime"]
    assert gpu.names == [f"cuda{name}" for name in timing] * 2
    visited: list[int] = []

    class Visited(Clockwork):
        def open(self, model):
            def timed(runs):
                visited.append(runs)
                return np.full(runs, 1.0)

            return timed

    measure_models({"a": lambda: b"", "b": lambda: b""}, Visited(), Schedule(passes=1))
    assert visited == [5, 5]  # two of them to warm up, three that count


def test_a_winner_is_measured_and_one_over_the_budget_is_none(loop, detofa, monkeypatch):
    """Entry 5: a predictor called accurate is a third too low where it counts."""
    from detofa.choose import chooser
    from detofa.profiling.again import Remeasured

    def one_is_fast(table, models, **_):
        took = dict.fromkeys(models, 54.0) | {list(models)[-1]: 30.0}
        return Remeasured(p50_ms=took, slowdown=1.0, samples=None)  # type: ignore[arg-type]

    monkeypatch.setattr(chooser, "measure_again", one_is_fast)
    space = Subnet.load(loop / "subnet.json").space
    fake_table(space, this_cpu()).save(loop / "latency_tables")
    how = ("--labels", 3, "--top-k", 3, "--output", "a.json")
    done = detofa("search", "--latency", "40ms", *how)
    assert done.code == 0, done.err
    figures = Subnet.load(loop / "a.json").figures
    assert figures["latency"].value == 30.0
    gap = f"{30.0 / figures['latency_predicted'].value - 1:+.1%}"
    (chosen,) = (line for line in done.out.splitlines() if line.strip().startswith("chosen"))
    assert gap in chosen


def test_a_table_of_another_governor_or_of_other_cores_is_told():
    """Entry 6: on the same phone predictions are far off: other cores, other clocks."""
    cpu, table = this_cpu(), fake_table(SPACE, this_cpu())
    assert {"governor", "usable_cores"} <= set(cpu.details)
    here = cpu.details["usable_cores"]
    same = dataclasses.replace(table, runtime_version=conditions.runtime_named(
        "onnxruntime-cpu", cpu).version)  # fmt: skip
    assert difference_here(same) is None
    pinned = dataclasses.replace(cpu, details={**cpu.details, "usable_cores": here + 90})
    told = difference_here(dataclasses.replace(same, device=pinned))
    assert told is not None
    assert f"the number of usable cores {here + 90}, and here is {here}" in told


class Evil:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return exec, ("open('ran', 'w').close()",)


def test_nothing_that_is_written_is_a_pickle_and_none_that_is_read_is_run(loop, detofa):
    """Entry 7: predictors are pickles, which another scikit-learn cannot load."""
    import pickle

    written = [path for path in loop.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(written) > 10
    for path in written:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path
    (loop / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    done = detofa("import", "evil.pth")
    assert done.code == 1
    assert "of tensors only" in done.err
    assert not (loop / "ran").exists()


def test_every_block_has_a_cost_and_profile_says_how_many_were_seen(profiled, tmp_path):
    """Entry 8: a predictor of one's own fails on whole families of models."""
    _, table = find_table(tmp_path / "latency_tables", SPACE)
    genes = SPACE.sample(np.random.default_rng(1), 200)
    assert (table.predict(genes) > 0).all()
    fitted = [row["genes"] for row in table.detectors if row["role"] == "fit"]
    archs = [SPACE.arch(np.array(row, np.int8)) for row in fitted]
    seen = {block.key for arch in archs for block in SPACE.blocks(arch)}
    every = len(table.block_ms)
    assert f"coverage: {len(seen)} of {every} blocks of the space" in profiled
    few = dataclasses.replace(table, detectors=table.detectors[:1])
    assert 0 < len(few.unseen_blocks) < every
    assert (few.predict(genes) > 0).all()


def test_spikes_leave_the_median_and_unsteady_rows_are_made_again_and_named():
    """Entry 9: an engine takes 2 ms mostly, and 70 ms now and then."""

    class Moody(Clockwork):
        visits = 0

        def open(self, model):
            def timed(runs):
                self.visits += model == b"moody"
                ms = {b"moody": 2.0 + self.visits % 3, b"spiky": 2.0}.get(model, 1.0)
                took = np.full(runs, ms)
                if model == b"spiky":
                    took[-1] = 70.0
                return took

            return timed

    models = {name: name.encode() for name in ("moody", "spiky", *"abcdefgh")}
    builders = {name: (lambda data=data: data) for name, data in models.items()}
    schedule = Schedule(passes=9, extra_passes=4, visits_of_a_session=99)
    samples = measure_models(builders, Moody(), schedule)
    pooled = samples.pooled()
    assert np.median(pooled["spiky"]) == pytest.approx(2.0, rel=0.02)
    assert np.percentile(pooled["spiky"], 99) > 60
    assert samples.unstable() == ["moody"]
    assert len(pooled["moody"]) == 3 * (9 + 4)
    assert len(pooled["h"]) < len(pooled["moody"])


def test_builds_start_from_kept_timings_and_their_spread_is_told(cells, gpu, tensorrt, tmp_path):
    """Entry 10: a rebuilt engine has other kernels and another speed."""
    model = cells()
    plan = EnginePlan(onnx_path=model.model_path, manifest=model.manifest, builds=2)
    gpu.milliseconds = iter([3.0] * 60 + [2.0] * 1000)
    record = make_engine(plan, tmp_path / "a.engine", images=make_pictures())
    assert [build["milliseconds"] for build in record.builds] == [3.0, 2.0]
    assert record.spread == pytest.approx(0.5)
    assert record.timing_cache["was_enough"] is False
    again = make_engine(plan, tmp_path / "b.engine", images=make_pictures())
    assert again.timing_cache["was_enough"] is True


def test_a_figure_says_runtime_precision_batch_input_and_device(cells, detofa):
    """Entry 11: eager PyTorch is set beside another's engine in half precision."""
    told = []
    for precision in ("fp32", "fp16"):
        done = detofa("bench", cells(precision=precision).model_path, "--runs", 3, "--json")
        record = json.loads(done.out)
        assert record["device"] == this_cpu().name
        assert (record["runtime"], record["batch"], record["threads"]) == ("onnxruntime", 1, 1)
        assert record["image_size"] == [96, 160]
        told.append(record["precision"])
    assert told == ["fp32", "fp16"]
    shown = detofa("bench", cells().model_path, "--runs", 3).out
    assert "input 96x160, batch 1, threads 1, onnxruntime, fp32" in shown


def fake_onnxruntime(*, used=CUDA, index=None):
    """Return an ONNX Runtime that says it has CUDA, uses `used`, and GPU `index` if given."""

    class InferenceSession:
        def __init__(self, source, options, providers):
            self.asked = dict([providers[0]])[CUDA]

        def get_providers(self):
            return [used, CPU]

        def get_provider_options(self):
            return {used: self.asked if index is None else {"device_id": index}}

    module = types.ModuleType("onnxruntime")
    return_of = {
        "get_available_providers": lambda: [CUDA, CPU],
        "set_default_logger_severity": lambda level: None,
        "SessionOptions": types.SimpleNamespace,
        "ExecutionMode": types.SimpleNamespace(ORT_SEQUENTIAL=0),
        "InferenceSession": InferenceSession,
    }
    module.__dict__.update(return_of)
    return module


def test_a_session_on_another_gpu_than_asked_for_is_refused(monkeypatch):
    """Entry 12: a benchmark of the second GPU runs on the first without a word."""
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime())
    session = open_onnx(b"model", provider=CUDA, device_index=1)
    assert session.asked["device_id"] == "1"
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(index="0"))
    with pytest.raises(UserError, match="on GPU 0, not on GPU 1 as asked"):
        open_onnx(b"model", provider=CUDA, device_index=1)


def test_the_gpu_that_is_named_is_set_before_any_other_call_of_cuda(gpu, tensorrt):
    """Entry 13: the GPU that was named is ignored when an engine is made or run."""
    names = ("NVIDIA L4", "NVIDIA H100 80GB HBM3")
    gpus = [
        Device(kind="gpu", name=name, details={"index": index}) for index, name in enumerate(names)
    ]
    device = find_device("cuda:1", [this_cpu(), *gpus])
    runtime = conditions.runtime_named("tensorrt", device)
    assert runtime.name == "tensorrt"
    assert gpu.names[0] == "cudaSetDevice"
    assert gpu.index == 1


def test_a_fall_back_to_the_processor_is_an_error_and_no_latency(monkeypatch):
    """Entry 14: ONNX Runtime goes to the processor, and that is what is timed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(used=CPU))
    with pytest.raises(UserError, match=rf"ONNX Runtime fell back to {CPU}"):
        OnnxRuntimeCuda().open(b"model")


def test_nodes_left_to_the_processor_are_counted_and_much_of_them_is_no_latency(monkeypatch):
    """Entry 14: ONNX Runtime goes to the processor, and that is what is timed."""
    monkeypatch.setattr(OnnxRuntimeCuda, "device_type", "cpu")
    monkeypatch.setattr(
        runtimes,
        "open_onnx",
        lambda model, *, profile_prefix, **_: open_onnx(model, profile_prefix=profile_prefix),
    )
    model = detector_onnx(SPACE.blocks(SPACE.smallest), top_k=30, rng=np.random.default_rng(0))
    with pytest.raises(
        UserError,
        match=rf"{CUDA} left (\d+) of \1 nodes of the model, with 100.0% of the data, to {CPU}",
    ):
        OnnxRuntimeCuda().open(model)

    def node(kind, provider, num_bytes):
        about = {"op_name": kind, "provider": provider, "activation_size": str(num_bytes)}
        return {"args": about | {"output_size": "24"}}

    on_gpu = [node("Conv", CUDA, 100_000)] * 20
    shapes = [node("Shape", CPU, 8), node("Gather", CPU, 32), node("Concat", CPU, 48)]
    runtimes.check_placement([*on_gpu, *shapes], CUDA)  # where ONNX Runtime wants them
    with pytest.raises(UserError, match=r"left 4 of 24 nodes.* 4\.8% of the data.*\(2 Gather, 1"):
        runtimes.check_placement([*on_gpu, *shapes, node("Gather", CPU, 100_000)], CUDA)


def test_an_engine_of_another_gpu_is_refused_unread_with_what_rebuilds_it(
    cells, gpu, tensorrt, tmp_path, detofa
):
    """Entry 15: an engine of another GPU or version ends in a cryptic error."""
    model = cells()
    plan = EnginePlan(onnx_path=model.model_path, manifest=model.manifest, builds=1)
    make_engine(plan, tmp_path / "cells.engine", images=make_pictures())
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    assert detofa("predict", "cells.engine", "photo.png").code == 0
    before = [name for name, _ in tensorrt.calls].count("Runtime.deserialize_cuda_engine")
    gpu.name = "Tesla T4"
    done = detofa("predict", "cells.engine", "photo.png")
    assert done.code == 1
    assert "was built for GPU NVIDIA H100 80GB HBM3 where this is Tesla T4" in done.err
    assert "Rebuild with `detofa export cells.json --to tensorrt` here" in done.err
    after = [name for name, _ in tensorrt.calls].count("Runtime.deserialize_cuda_engine")
    assert after == before


def test_int8_is_not_said_to_be_faster_and_is_measured_as_itself(cells, detofa, capsys):
    """Entry 16: int8 is no faster than half precision, or slower."""
    exported = cells(precision="int8")
    _show_export(exported)
    assert "int8 is not faster everywhere: compare `detofa bench`" in capsys.readouterr().out
    record = json.loads(detofa("bench", exported.model_path, "--runs", 3, "--json").out)
    assert record["precision"] == "int8"
    assert exported.manifest.parity["kept_fp32"] == []  # where some are, they are listed
