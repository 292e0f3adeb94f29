"""Making an engine: several builds, the fastest kept, checked, and only then given its name."""

import contextlib
import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.files import write_bytes
from detofa.runtime.cuda import Cuda, Gpu
from detofa.runtime.detector import Detector
from detofa.runtime.gates import (
    BARS,
    FEWEST_BOXES,
    Judge,
    check_precision,
    faults_of_ap,
    faults_of_share,
)
from detofa.runtime.manifest import Manifest
from detofa.runtime.session import OnnxSession
from detofa.runtime.tensorrt.build import (
    UP_TO_EIGHT,
    WORKSPACE_BYTES,
    BatchSizes,
    import_tensorrt,
    serialized_engine,
)
from detofa.runtime.tensorrt.layers import UNKNOWN, precision_of_convs, share_in
from detofa.runtime.tensorrt.opened import OpenedEngine
from detofa.runtime.tensorrt.record import EngineRecord, is_version, record_path, this_system
from detofa.runtime.tensorrt.session import TensorRtSession
from detofa.runtime.tensorrt.timing import EngineTimer, noisy
from detofa.runtime.tensorrt.trtexec import Trtexec

Via = Literal["python", "trtexec"]
_RUNS, _WARM_RUNS = 50, 10


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """What engine is to be made.

    Attributes:
        onnx_path: A file that `detofa export` wrote.
        manifest: What is known of it.
        batch_sizes: What its batch size may be, where it is free.
        workspace_bytes: Memory that a layer may use for its work.
        builds: How often it is built; the fastest is kept.
        via: What builds it: TensorRT's Python bindings, or trtexec.
        timings_folder: Where timings are kept from one build to the next, by GPU and versions;
            the user's cache if not given.
    """

    onnx_path: Path
    manifest: Manifest
    batch_sizes: BatchSizes = UP_TO_EIGHT
    workspace_bytes: int = WORKSPACE_BYTES
    builds: int = 3
    via: Via = "python"
    timings_folder: Path | None = None

    def __post_init__(self) -> None:
        """Check the number of builds."""
        if self.builds < 1:
            raise UserError(f"an engine is built at least once, got {self.builds}")

    def timings_path(self, gpu: Gpu, tensorrt: str) -> Path:
        """Return where timings are kept: each GPU, TensorRT and CUDA has a file of its own."""
        folder = self.timings_folder or _cache_folder() / "tensorrt_timings"
        words = f"{gpu.name} {gpu.compute_capability} tensorrt {tensorrt} cuda {gpu.runtime_cuda}"
        return folder / (re.sub(r"[^a-z0-9.]+", "-", words.lower()) + ".bin")

    def trtexec(self, engine_path: Path, folder: Path) -> Trtexec:
        """Return the command of NVIDIA's own tool that builds the same."""
        return Trtexec(
            onnx_path=self.onnx_path,
            engine_path=engine_path,
            inputs=self.manifest.inputs,
            batch_sizes=self.batch_sizes,
            workspace_bytes=self.workspace_bytes,
            timings_path=folder / "timings.bin",
            layers_path=folder / "layers.json",
        )


@dataclass(frozen=True, kw_only=True)
class _Build:
    data: bytes
    layers: str
    milliseconds: float
    tensorrt: str
    timings: bytes
    input_shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    enqueue_ms: float | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def about(self) -> dict[str, Any]:
        """Return what a record says of it."""
        times = {"milliseconds": self.milliseconds, "enqueue_milliseconds": self.enqueue_ms}
        return times | {"sha256": self.sha256}


def make_engine(
    plan: EnginePlan,
    engine_path: Path,
    *,
    images: Mapping[str, NDArray[np.uint8]],
    judge: Judge | None = None,
    cuda: Cuda | None = None,
    on_progress: Callable[[str, float], None] = lambda doing, done: None,
) -> EngineRecord:
    """Build an engine for this machine's GPU, check it, and write it with its record beside.

    All builds start from the timings of earlier exports, if there are any. The fastest is kept, and
    so are its timings. Its convolutions must be in the precision of the ONNX file, by what the
    engine itself says; it must find the boxes that ONNX Runtime finds in that file, and be as good
    as PyTorch where there are true boxes.

    Args:
        plan: What to make.
        engine_path: The engine to write.
        images: Real images, (H, W, 3) uint8, by name, on which it is checked.
        judge: Compares average precision too.
        cuda: The GPU; the first one if not given.
        on_progress: Told how far it is.

    Raises:
        UserError: TensorRT or its GPU is missing or refuses the file, or the engine is not what it
            should be: it is then kept as NAME.engine.rejected.
    """
    if plan.via == "python":
        import_tensorrt()
    cuda = Cuda() if cuda is None else cuda
    gpu = cuda.gpu()
    kept = _kept_timings(plan, gpu)
    builds: list[_Build] = []
    for number in range(plan.builds):
        on_progress(f"building {number + 1} of {plan.builds}", 0.8 * number / plan.builds)
        builds.append(_by_python(plan, kept, cuda) if plan.via == "python" else _by_tool(plan))
    best = min(builds, key=lambda build: build.milliseconds)
    on_progress("comparing with ONNX Runtime", 0.8)
    precision = check_precision(plan.manifest.precision)
    convs = plan.manifest.convolutions
    convolutions = precision_of_convs(best.layers, convs)
    share = share_in(precision, convolutions, convs)
    verified = _verified(plan, best, cuda, images, judge)
    faults = [*faults_of_share(share, precision), *verified["faults"]]
    rejected = engine_path.with_name(engine_path.name + ".rejected")
    place = rejected if faults else engine_path
    slowest = max(build.milliseconds for build in builds)
    record = EngineRecord(
        engine_file=place.name,
        engine_sha256=best.sha256,
        onnx_file=plan.onnx_path.name,
        onnx_sha256=plan.manifest.model_sha256,
        precision=precision,
        tensorrt=best.tensorrt,
        built_by="tensorrt" if plan.via == "python" else "trtexec",
        gpu=gpu,
        system=this_system(),
        input_shapes=best.input_shapes,
        workspace_bytes=plan.workspace_bytes,
        builds=[build.about for build in builds],
        spread=slowest / best.milliseconds - 1,
        convolutions=convolutions,
        share_of_macs=share,
        verified=verified,
        timing_cache={
            "sha256": hashlib.sha256(best.timings).hexdigest(),
            "was_enough": best.timings == kept,
        },
        subnet=plan.manifest.subnet,
    )
    record_path(place).unlink(missing_ok=True)  # an earlier one is not this engine's
    write_bytes(place, best.data)
    record.save(place)
    if faults:
        silent = sum(kind == UNKNOWN for kind in convolutions.values())
        note = f" ({silent} do not say what they are in)" if silent else ""
        raise UserError(
            f"{engine_path.name} is not what it should be, so it is kept as {rejected} and must "
            f"not be used; {record_path(rejected).name} says more. {'; '.join(faults[:5])}; "
            f"convolutions: {len(convolutions)}{note}"
        )
    for old in (rejected, record_path(rejected)):
        old.unlink(missing_ok=True)
    _keep_timings(plan.timings_path(gpu, best.tensorrt), best.timings)
    return record


def _kept_timings(plan: EnginePlan, gpu: Gpu) -> bytes:
    """Return the timings of earlier exports; empty if there are none, or if trtexec builds.

    What trtexec does with timings of another machine is its own affair, so it gets none.
    """
    if plan.via != "python":
        return b""
    try:
        return plan.timings_path(gpu, import_tensorrt().__version__).read_bytes()
    except OSError:
        return b""


def _keep_timings(path: Path, timings: bytes) -> None:
    """Keep timings for later exports; a cache that cannot be written is no reason to fail."""
    if timings:
        with contextlib.suppress(UserError):
            write_bytes(path, timings)


def _by_python(plan: EnginePlan, timings: bytes, cuda: Cuda) -> _Build:
    """Build with TensorRT's Python bindings, and time the engine on noise."""
    built = serialized_engine(
        plan.onnx_path,
        batch_sizes=plan.batch_sizes,
        workspace_bytes=plan.workspace_bytes,
        timings=timings,
    )
    engine, timer = OpenedEngine(built.data, cuda), EngineTimer(cuda)
    try:
        tuned = next(iter(built.input_shapes.values()))[1][0]
        timer.milliseconds(noisy(engine, tuned), _WARM_RUNS)
        milliseconds = timer.milliseconds(engine, _RUNS)
        layers = engine.layers()
    finally:
        engine.close()
        timer.close()
    return _Build(
        data=built.data,
        layers=layers,
        milliseconds=float(np.median(milliseconds)),
        tensorrt=built.tensorrt,
        timings=built.timings,
        input_shapes=built.input_shapes,
        enqueue_ms=float(np.median(timer.enqueue_ms[_WARM_RUNS:])),
    )


def _by_tool(plan: EnginePlan) -> _Build:
    """Build with trtexec, which also times the engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tool = plan.trtexec(folder / "model.engine", folder)
        version, milliseconds = tool.run()
        timings = tool.timings_path.read_bytes() if tool.timings_path.is_file() else b""
        return _Build(
            data=tool.engine_path.read_bytes(),
            layers=tool.layers_path.read_text(encoding="utf-8", errors="replace"),
            milliseconds=milliseconds,
            tensorrt=version,
            timings=timings,
            input_shapes=tool.input_shapes,
        )


def _lacking(tensorrt: str) -> list[str]:
    """Return what is not here of what comparing an engine of a version needs, in words."""
    lacking = [name for name in ("onnxruntime", "scipy") if importlib.util.find_spec(name) is None]
    try:
        found: str = import_tensorrt().__version__
    except UserError:
        return [*lacking, "TensorRT's Python bindings"]
    if not is_version(found, tensorrt):
        lacking.append(f"TensorRT's Python bindings {tensorrt} (here are {found})")
    return lacking


def _verified(
    plan: EnginePlan,
    built: _Build,
    cuda: Cuda,
    images: Mapping[str, NDArray[np.uint8]],
    judge: Judge | None,
) -> dict[str, Any]:
    """Return how an engine compares with the file that it was built from, and what is wrong.

    What is not here (ONNX Runtime and SciPy on a small device, the Python bindings where trtexec
    built) is not compared, and the record says so.
    """
    lacking = _lacking(built.tensorrt)
    if lacking:
        return {"not_compared_without": lacking, "faults": []}
    from detofa.runtime.matching import compare_detectors, made_images

    bar = BARS[check_precision(plan.manifest.precision)]
    subnet, faults = plan.manifest.subnet, list[str]()
    with (
        TensorRtSession(built.data, name="the engine", cuda=cuda) as session,
        OnnxSession(plan.onnx_path) as reference,
    ):
        rng = np.random.default_rng(0)
        found = compare_detectors(
            Detector.of_subnet(session, subnet),
            Detector.of_subnet(reference, subnet),
            dict(images) | made_images(images, session.image_size, rng),
            bar.tolerance,
        )
        faults += found.faults
        fewest = 1 if session.suppresses else FEWEST_BOXES
        if not faults and found.num_matched < fewest:
            faults.append(f"only {found.num_matched} boxes were compared, {fewest} are needed")
        judged = None
        if judge is not None and not session.suppresses:  # which leaves low scores out
            ap = judge.ap(session)
            faults += faults_of_ap(ap, judge.reference_ap, bar)
            judged = {"engine": ap, "pytorch": judge.reference_ap, **judge.about}
    return {
        "num_compared": found.num_compared,
        "num_matched": found.num_matched,
        "worst_iou": found.worst_iou,
        "worst_score_difference": found.worst_score_difference,
        "average_precision": judged,
        "faults": faults,
    }


def _cache_folder() -> Path:
    """Return where this user's caches lie."""
    kept = os.environ.get("XDG_CACHE_HOME")
    return (Path(kept) if kept else Path.home() / ".cache") / "detofa"
