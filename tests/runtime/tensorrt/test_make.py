"""Engines made, checked and opened, with a TensorRT that runs what it is given."""

import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detofa.errors import UserError
from detofa.files import sha256_file
from detofa.runtime import app
from detofa.runtime.bench import measure_engine
from detofa.runtime.detector import open_detector
from detofa.runtime.gates import Judge
from detofa.runtime.matching import same_detections
from detofa.runtime.tensorrt.build import BatchSizes
from detofa.runtime.tensorrt.make import EnginePlan, make_engine
from detofa.runtime.tensorrt.record import EngineRecord, record_path
from tests.detectors import export_detector, make_pictures
from tests.fake_cuda import engine_of, layers_of
from tests.samples import make_subnet


@pytest.fixture
def exported_suppressed(tmp_path, tensorrt):
    """Give what makes an engine that suppresses, judged on images with true boxes."""
    subnet, pictures = make_subnet((96, 160), score_threshold=0.05), make_pictures()
    done = export_detector(
        subnet,
        tmp_path / "cells.onnx",
        pictures,
        suppress=True,
    )
    plan = EnginePlan(
        onnx_path=done.model_path,
        manifest=done.manifest,
        builds=1,
        timings_folder=tmp_path / "timings",
    )

    def refuses(session):
        raise AssertionError("a file that leaves low scores out cannot be judged")

    judge = Judge(ap=refuses, reference_ap=0.5, about={})
    return lambda: make_engine(plan, tmp_path / "cells.engine", images=pictures, judge=judge)


PRECISIONS = ["fp32", "fp16", "int8"]


@pytest.fixture
def made(exported, tmp_path, tensorrt):
    """Make an engine; give what was made, the ONNX file and the pictures."""

    def make(precision="fp32", judge=None, **changes):
        model, pictures = exported(precision)
        plan = EnginePlan(
            onnx_path=model.model_path,
            manifest=model.manifest,
            timings_folder=tmp_path / "timings",
            **({"builds": 1} | changes),
        )
        path = tmp_path / "cells.engine"
        return make_engine(plan, path, images=pictures, judge=judge), path, model, pictures

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_is_made_with_its_record_and_finds_the_same_boxes(made, precision, gpu):
    record, path, model, pictures = made(precision)
    assert EngineRecord.load(path) == record
    assert record.onnx_sha256 == sha256_file(model.model_path)
    assert record.engine_sha256 == sha256_file(path)
    assert (record.precision, record.gpu.name) == (precision, gpu.name)
    assert record.gpu.compute_capability == "9.0"
    assert (record.gpu.driver_cuda, record.gpu.runtime_cuda) == ("13.0", "13.2")
    assert record.share_of_macs >= 0.9
    assert set(record.convolutions) == set(model.manifest.convolutions)
    assert record.verified["num_matched"] == record.verified["num_compared"] >= 100
    with open_detector(path) as engine, open_detector(model.model_path) as file:
        assert engine.categories == file.categories
        images = list(pictures.values()) * 4  # more than the engine takes at once
        for first, second in zip(
            engine.detect(images, batch_size=12, score_threshold=0.01),
            file.detect(images, score_threshold=0.01),
            strict=True,
        ):
            assert len(first)
            assert same_detections(first, second)


def test_no_memory_of_the_gpu_is_left_behind(made, gpu):
    _, path, _, pictures = made()
    assert not gpu.held
    assert not gpu.opened
    with open_detector(path) as engine:
        engine.detect(list(pictures.values()))
        assert gpu.held
    assert not gpu.held
    measure_engine(path, runs=2)
    assert not gpu.held
    assert not gpu.opened


def test_the_fastest_of_several_builds_is_kept_and_the_spread_told(made, gpu):
    slow, fast = [3.0] * 60, [2.0] * 60
    gpu.milliseconds = itertools.chain(slow, fast, [2.5] * 60, itertools.repeat(1.0))
    record = made(builds=3)[0]
    assert [build["milliseconds"] for build in record.builds] == [3.0, 2.0, 2.5]
    assert record.spread == pytest.approx(0.5)
    assert "spread 50.0%" in record.summary


def test_timings_are_kept_by_gpu_and_versions(made, tensorrt, tmp_path):
    assert made(builds=2)[0].timing_cache["was_enough"] is False
    assert made()[0].timing_cache["was_enough"] is True
    given = [args for name, args in tensorrt.calls if name == "IBuilderConfig.create_timing_cache"]
    assert given == [(b"",), (b"",), (b"timings",)]
    (kept,) = (tmp_path / "timings").iterdir()
    assert kept.name.startswith("nvidia-h100-80gb-hbm3-9.0-tensorrt-")
    assert kept.name.endswith("-cuda-13.2.bin")


def test_a_timing_cache_that_is_damaged_or_cannot_be_written_stops_nothing(
    made, tensorrt, tmp_path
):
    made()
    (kept,) = (tmp_path / "timings").iterdir()
    kept.write_bytes(b"damaged")
    working = tensorrt.answers["IBuilderConfig.create_timing_cache"]
    refusing = {
        "IBuilderConfig.create_timing_cache": lambda data: (
            None if data else tensorrt.make("ITimingCache")()
        )
    }
    assert working
    tensorrt.answers |= refusing
    made()
    assert kept.read_bytes() == b"timings"
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("in the way")
    made()


def test_the_batch_is_that_of_the_plan(made):
    _, path, _, pictures = made(batch_sizes=BatchSizes(smallest=2, tuned=2, largest=3))
    with open_detector(path) as engine:
        images = list(pictures.values())
        alone = engine.detect(images[:1], score_threshold=0.01)  # filled up to two
        together = engine.detect(images, batch_size=3, score_threshold=0.01)
    assert same_detections(alone[0], together[0])
    assert measure_engine(path, runs=3).batch == 2
    with pytest.raises(UserError, match="batches of 2 to 3, not of 4"):
        measure_engine(path, batch=4)


def rejected(path):
    kept = path.with_name("cells.engine.rejected")
    assert EngineRecord.load(kept).engine_sha256 == sha256_file(kept)
    with pytest.raises(UserError, match=r"should be an \.onnx or \.engine file"):
        open_detector(kept)
    assert not path.exists()
    assert not record_path(path).exists()


def test_a_silent_fp32_engine_is_rejected(made, tensorrt, tmp_path):
    tensorrt.say = "fp32"
    with pytest.raises(UserError, match=r"only 0% of the .* are in fp16"):
        made("fp16")
    rejected(tmp_path / "cells.engine")


def test_an_engine_that_does_not_say_its_precision_is_rejected(made, tensorrt, tmp_path):
    silent = {"EngineInspector.get_engine_information": lambda how: '{"Layers": ["a", "b"]}'}
    tensorrt.answers |= silent
    with pytest.raises(UserError, match=r"\(\d+ do not say what they are in\)"):
        made("fp16")
    rejected(tmp_path / "cells.engine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, values: np.full_like(values, np.nan), "an output is not finite"),
        (lambda name, values: values + (9 if name == "boxes_xyxy" else 0), "not found again"),
        (lambda name, values: values * (0.5 if name == "scores" else 1), "not found again"),
    ],
)
def test_an_engine_that_computes_something_else_is_rejected(
    made, tensorrt, tmp_path, change, message
):
    tensorrt.outputs_become = change
    with pytest.raises(UserError, match=message):
        made()
    rejected(tmp_path / "cells.engine")


def test_an_engine_of_lower_average_precision_is_rejected(made, tmp_path):
    about = {"split": "val", "images": 3}
    record = made(judge=Judge(ap=lambda session: 0.4995, reference_ap=0.5, about=about))[0]
    assert record.verified["average_precision"] == {"engine": 0.4995, "pytorch": 0.5, **about}
    with pytest.raises(UserError, match=r"AP is 0\.4980, PyTorch's 0\.5000"):
        made(judge=Judge(ap=lambda session: 0.498, reference_ap=0.5, about=about))


def test_boxes_that_only_the_engine_has_are_not_let_through(
    exported_suppressed, tensorrt, tmp_path
):
    make = exported_suppressed
    record = make()
    assert record.verified["num_matched"] == record.verified["num_compared"] >= 1
    assert record.verified["average_precision"] is None

    def more(name, values):
        return values + 1 if name == "num_detected" else values

    tensorrt.outputs_become = more
    with pytest.raises(UserError, match="not found again"):
        make()
    tensorrt.outputs_become = lambda name, values: (
        np.full_like(values, np.nan) if name == "detected_scores" else values
    )
    with pytest.raises(UserError, match="not finite"):
        make()


@pytest.mark.parametrize(("precision", "how"), [("fp16", " --precision fp16"), ("fp32", "")])
def test_the_command_that_rebuilds_an_engine_is_the_one_that_made_it(made, gpu, precision, how):
    record, path, _, _ = made(precision)
    named = dataclasses.replace(record, onnx_file=f"cells.{precision}.onnx")
    gpu.name = "Tesla T4"
    named.save(path)
    with pytest.raises(UserError, match=f"`detofa export cells.json --to tensorrt{how}` here"):
        open_detector(path)
    dataclasses.replace(record, onnx_file="model.onnx").save(path)
    with pytest.raises(UserError, match="`build IMAGES` of the packed detector"):
        open_detector(path)


def test_trtexec_of_another_version_than_the_bindings_is_not_compared(trtexec, made):
    trtexec("fp32", "[I] TensorRT version: 9.3.1")
    record = made(via="trtexec")[0]
    (lacking,) = record.verified["not_compared_without"]
    assert lacking.startswith("TensorRT's Python bindings 9.3.1 (here are 1")


def test_a_rejected_engine_leaves_an_earlier_one_alone(made, tensorrt):
    _, path, _, _ = made()
    before = path.read_bytes()
    tensorrt.say = "fp16"
    with pytest.raises(UserError, match="in fp32"):
        made()
    assert path.read_bytes() == before
    assert EngineRecord.load(path).precision == "fp32"


def change_version(gpu, tensorrt):
    tensorrt.__version__ = "9.1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gpu, trt: setattr(gpu, "name", "Tesla T4"), "GPU NVIDIA H100.* this is Tesla T4"),
        (lambda gpu, trt: setattr(gpu, "capability", (7, 5)), r"capability 9\.0 .* is 7\.5"),
        (lambda gpu, trt: setattr(gpu, "driver", 12080), r"CUDA 13\.0 .* goes to 12\.8"),
        (change_version, r"TensorRT 1\d\.\d.* where this is 9\.1"),
    ],
)
def test_an_engine_of_another_machine_is_not_deserialised(made, gpu, tensorrt, change, message):
    _, path, _, _ = made()
    before = [name for name, _ in tensorrt.calls].count("Runtime.deserialize_cuda_engine")
    change(gpu, tensorrt)
    with pytest.raises(UserError, match=message + ".*Rebuild with `detofa export cells.json"):
        open_detector(path)
    after = [name for name, _ in tensorrt.calls].count("Runtime.deserialize_cuda_engine")
    assert after == before


def test_a_newer_driver_will_do(made, gpu):
    _, path, _, _ = made()
    gpu.driver = 13010
    open_detector(path).close()


def test_a_changed_engine_or_record_is_not_deserialised(made, tmp_path):
    _, path, _, _ = made()
    whole, record = path.read_bytes(), json.loads(record_path(path).read_text())
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="SHA-256"):
        open_detector(path)
    path.write_bytes(whole)
    faults: list[dict[str, object]] = [
        {"engine_file": "other.engine"},
        {"gpu": {"name": "x"}},
        {"gpu": None},
        {"subnet": {}},
        {"tensorrt": 11},
        {"input_shapes": 3},
        {"unknown": 1},
    ]
    for fault in faults:
        record_path(path).write_text(json.dumps(record | fault))
        with pytest.raises(UserError, match="build it again"):
            open_detector(path)
    record_path(path).unlink()
    with pytest.raises(UserError, match="does not exist"):
        open_detector(path)


def test_what_tensorrt_cannot_open_is_told(made, tensorrt):
    _, path, _, _ = made()
    tensorrt.answers["Runtime.deserialize_cuda_engine"] = None
    with pytest.raises(UserError, match="could not open the engine"):
        open_detector(path)


def test_an_engine_is_timed_on_the_gpu_and_by_the_wall(made):
    _, path, _, _ = made()
    latency = measure_engine(path, runs=7, batch=2)
    assert latency.gpu is not None
    assert (latency.gpu.count, latency.gpu.p50_ms, latency.wall.count) == (7, 1.5, 7)
    assert latency.thread is None


def test_without_onnx_runtime_it_is_made_and_says_what_was_not_compared(made, monkeypatch):
    def lacking(name):
        return None if name in ("onnxruntime", "scipy") else object()

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lacking)
        record = made()[0]
    assert record.verified == {"not_compared_without": ["onnxruntime", "scipy"], "faults": []}
    assert "not compared for want of onnxruntime, scipy" in record.summary


TRTEXEC = """#!{python}
import pathlib, sys
options = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
here = pathlib.Path({here!r})
(here / "options.txt").write_text("\\n".join(sys.argv[1:]))
if (here / "fail").exists():
    print("[E] Error[4]: no plugin", file=sys.stderr)
    sys.exit(1)
pathlib.Path(options["saveEngine"]).write_bytes((here / "engine").read_bytes())
pathlib.Path(options["exportLayerInfo"]).write_text((here / "layers").read_text())
pathlib.Path(options["timingCacheFile"]).write_bytes(b"timings")
print({banner!r})
print("[I] GPU Compute Time: min = 1.0 ms, max = 2.0 ms, mean = 1.3 ms, median = 1.25 ms")
"""


@pytest.fixture
def trtexec(exported, tmp_path, monkeypatch):
    """Put a trtexec on the PATH that notes its options and writes an engine made before."""
    here = tmp_path / "tool"
    here.mkdir()

    def put(precision="fp32", banner="[I] TensorRT version: 10.16.1"):
        model, _ = exported(precision)
        sizes = ((1, 3, 96, 160), (1, 3, 96, 160), (8, 3, 96, 160))
        (here / "engine").write_bytes(engine_of(model.model_path, {"images": sizes}))
        (here / "layers").write_text(layers_of(model.model_path.read_bytes(), False))
        tool = here / "trtexec"
        tool.write_text(TRTEXEC.format(python=sys.executable, here=str(here), banner=banner))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(here))
        return here

    return put


@pytest.mark.parametrize(
    "banner", ["[I] TensorRT version: 10.16.1", "&&&& RUNNING TensorRT.trtexec [TensorRT v101601]"]
)
def test_trtexec_builds_the_same(trtexec, made, banner):
    here = trtexec("fp16", banner)
    record, path, model, _ = made("fp16", via="trtexec")
    assert (record.built_by, record.tensorrt) == ("trtexec", "10.16.1")
    assert record.builds[0]["milliseconds"] == 1.25
    options = (here / "options.txt").read_text().splitlines()
    assert options[0] == f"--onnx={model.model_path}"
    assert {
        "--stronglyTyped",
        "--noTF32",
        "--memPoolSize=workspace:1024",
        "--profilingVerbosity=detailed",
        "--minShapes=images:1x3x96x160",
        "--optShapes=images:1x3x96x160",
        "--maxShapes=images:8x3x96x160",
    } <= set(options)
    assert EngineRecord.load(path) == record


def test_a_fixed_batch_gets_no_shapes_from_trtexec(exported, tmp_path):
    model, _ = exported("fp32")
    inputs = {"images": (4, 3, 96, 160)}
    manifest = dataclasses.replace(model.manifest, inputs=inputs)
    plan = EnginePlan(onnx_path=model.model_path, manifest=manifest)
    command = plan.trtexec(tmp_path / "a.engine", tmp_path).command
    assert not [word for word in command if "Shapes" in word]


def test_what_trtexec_says_of_a_failure_is_told(trtexec, made):
    (trtexec() / "fail").touch()
    with pytest.raises(UserError, match=r"exit code 1: \[E\] Error\[4\]: no plugin"):
        made(via="trtexec")


def test_trtexec_must_say_its_version(trtexec, made):
    trtexec(banner="hello")
    with pytest.raises(UserError, match="does not say its version"):
        made(via="trtexec")


def test_without_trtexec_the_message_says_where_it_comes_from(made, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="not on the PATH"):
        made(via="trtexec")


def test_a_packed_detector_builds_and_runs_its_own_engine(
    exported, tensorrt, tmp_path, monkeypatch, capsys
):
    model, pictures = exported("fp32")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).save(photos / f"{name}.png")
    monkeypatch.setattr(app, "_packed", lambda: (model.model_path.read_bytes(), model.manifest))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["cells.zip", *words])
        app.main()
        return capsys.readouterr().out

    with pytest.raises(SystemExit, match=r"cells\.engine does not exist; make it here"):
        run("predict", str(photos), "--runtime", "tensorrt")
    assert "wrote cells.engine" in run("build", str(photos), "--builds", "1")
    for runtime in ("tensorrt", "onnxruntime"):
        words = ("predict", str(photos), "--score", "0.01", "--output", runtime)
        assert "boxes in 3 images" in run(*words, "--runtime", runtime)
    found = [
        json.loads((tmp_path / runtime / "predictions.json").read_text())
        for runtime in ("tensorrt", "onnxruntime")
    ]
    assert found[0] == found[1]
    assert "GPU time: p50 1.50 ms" in run("bench", "--runtime", "tensorrt", "--runs", "3")
    other = dataclasses.replace(EngineRecord.load(Path("cells.engine")), onnx_sha256="0" * 64)
    other.save(Path("cells.engine"))
    with pytest.raises(SystemExit, match="built from another model"):
        run("predict", str(photos), "--runtime", "tensorrt")
