"""`detofa bench`: how long a detector takes here."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import print_record, show_table
from detofa.cli.models import Model, open_model
from detofa.cli.options import Json, ModelRuntime, RuntimeOfModel, Seed, Threads

if TYPE_CHECKING:
    from detofa.runtime.bench import Latency
    from detofa.runtime.gates import Tolerance
    from detofa.runtime.tensorrt.record import EngineRecord
    from detofa.timer import Timing

_UNKNOWN = "unknown precision"
# What `Latency` holds, as it is shown.
_CLOCKS = {"gpu": "GPU time", "thread": "thread CPU time", "wall": "wall time"}


def bench(
    model: Model,
    runs: Annotated[int, typer.Option(min=1, help="Calls that are timed.")] = 100,
    threads: Threads = 1,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of one call.  [default: what the file takes]")
    ] = None,
    runtime: RuntimeOfModel = ModelRuntime.ONNXRUNTIME,
    seed: Seed = 0,
    _json: Json = False,
) -> None:
    """Measure a detector's latency here: percentiles of thread CPU time and of wall time.

    An .onnx file is measured as latency tables are: several sessions, visits with warm-up. An
    engine is timed by the GPU's events, and with copies by the clock on the wall.
    """
    detector, subnet = open_model(model, threads, runtime)
    with detector:
        height, width = detector.session.image_size
    engine = _engine_record(model)
    precision = _precision(model) if engine is None else engine.precision
    latency = _measured(model, runs, threads, batch, runtime, seed)
    ran = {".onnx": runtime.value, ".engine": "tensorrt"}.get(model.suffix, "torch")
    device = _device(model, runtime) if engine is None else engine.gpu.name
    times = {
        _CLOCKS[name].lower().replace(" ", "_"): None if timing is None else _percentiles(timing)
        for name, timing in _timings(latency).items()
    }
    about = {
        "model": model,
        "weights_sha256": None if subnet is None else subnet.weights_sha256,
        "device": device,
        "image_size": [height, width],
        "runtime": ran,
        "precision": precision,
        "batch": latency.batch,
        "threads": threads,
        "runs": latency.wall.count,
        "p50_error": latency.p50_error,
    }
    print_record("bench", about | times)
    how = f"input {height}x{width}, batch {latency.batch}, threads {threads}, {ran}, {precision}"
    print(f"{model} on {device}: {how}")
    rows = [
        [_CLOCKS[name], *(f"{ms:.2f}" for ms in _percentiles(timing).values())]
        for name, timing in _timings(latency).items()
        if timing is not None
    ]
    show_table("", [f"of {latency.wall.count} calls", "p50 ms", "p90 ms", "p99 ms"], rows)
    if latency.p50_error is not None:
        print(f"standard error of the median: {latency.p50_error:.1%}")
    if latency.batch > 1:
        print(f"{1000 * latency.batch / latency.wall.p50_ms:.0f} images/s")


def _measured(
    model: Path, runs: int, threads: int, batch: int | None, runtime: ModelRuntime, seed: int
) -> "Latency":
    """Measure a model; one in another runtime than ONNX Runtime must first find its boxes."""
    import numpy as np

    from detofa.runtime.bench import measure_engine, measure_file, measure_latency
    from detofa.runtime.matching import check_same

    rng = np.random.default_rng(seed)
    if model.suffix == ".engine":
        return measure_engine(model, runs=runs, batch=batch)
    if model.suffix == ".onnx":
        if runtime is not ModelRuntime.ONNXRUNTIME:
            with (
                open_model(model, threads, runtime)[0] as detector,
                open_model(model, threads)[0] as reference,
            ):
                compared = check_same(detector, reference, rng, _tolerance(model))
            print(f"{compared} boxes are those of ONNX Runtime", file=sys.stderr)
        return measure_file(model, runs=runs, batch=batch, threads=threads, runtime=runtime.value)
    with open_model(model, threads)[0] as detector:
        return measure_latency(
            detector.session, rng=rng, runs=runs, batch=batch or 1, threads=threads
        )


def _engine_record(model: Path) -> "EngineRecord | None":
    """Return what lies beside an engine; None for another kind of model."""
    if model.suffix != ".engine":
        return None
    from detofa.runtime.tensorrt.record import EngineRecord

    return EngineRecord.load(model)


def _tolerance(model: Path) -> "Tolerance":
    """Return how far two runtimes of a file may be apart: lower precision rounds otherwise."""
    from detofa.runtime.gates import BARS, check_precision

    precision = _precision(model)
    return BARS["fp32" if precision == _UNKNOWN else check_precision(precision)].tolerance


def _precision(model: Path) -> str:
    """Return the number format of a model's network, by the manifest that lies beside it."""
    if model.suffix == ".onnx":
        from detofa.runtime.manifest import Manifest, manifest_path

        return Manifest.of(model).precision if manifest_path(model).is_file() else _UNKNOWN
    return "fp32"


def _device(model: Path, runtime: ModelRuntime) -> str:
    """Return the name of what a model was measured on."""
    from detofa.profiling.device import find_device

    on_gpu = model.suffix == ".onnx" and runtime is ModelRuntime.ONNXRUNTIME_CUDA
    return find_device("cuda" if on_gpu else "cpu").name


def _timings(latency: "Latency") -> "dict[str, Timing | None]":
    return {name: getattr(latency, name) for name in _CLOCKS}


def _percentiles(timing: "Timing") -> dict[str, float]:
    return {"p50_ms": timing.p50_ms, "p90_ms": timing.p90_ms, "p99_ms": timing.p99_ms}
