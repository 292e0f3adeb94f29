"""The profiling kit: everything that measures a space on a device without torch or a network."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

import detofa
from detofa.errors import UserError
from detofa.files import read_json, sha256_json, write_bytes, zipped
from detofa.profiling.conditions import RUNTIMES, Conditions, check_threads
from detofa.profiling.measure import ProfilePlan, table_of
from detofa.profiling.on_device import DATA, FILES, RECORD, RESULTS
from detofa.profiling.priors import Builder
from detofa.profiling.table import LatencyTable
from detofa.profiling.torch_cuda import TorchCuda
from detofa.runtime.measuring import LONGEST, STANDARD, Pass, Progress, Samples, Schedule
from detofa.runtime.runtimes import OnnxRuntimeCpu
from detofa.space import SearchSpace

_REMAKE = "`python3 kit.zip` on the device"
_README = """\
A profiling kit of detofa {version}, for {device}: it measures {count} models of the search space
{space} on the device it runs on with {runtime}, and needs that there, numpy, and Python 3.10 or
newer; no network.

    python3 kit.zip                        (or, unpacked: python3 FOLDER)
    python3 kit.zip --budget-seconds 300   (at most about five minutes)

It reads the models inside the kit, checks that they are whole, and writes kit-results.json into
the current folder and nothing elsewhere. When stopped, the same command goes on. Keep the device
quiet meanwhile. Then, on the machine with detofa:

    detofa profile --from kit-results.json
"""


def make_kit(
    plan: ProfilePlan,
    path: Path,
    *,
    device: str,
    runtime: str = OnnxRuntimeCpu.name,
    schedule: Schedule = STANDARD,
    threads: int = 1,
    batch: int = 1,
    on_progress: Progress = lambda doing, done: None,
) -> int:
    """Write a kit that measures a plan.

    Args:
        plan: What is to be measured.
        path: The zip to write.
        device: `cpu`, or words of the name of the device it is for.
        runtime: Name of what is to run the models there.
        schedule: How models are visited.
        threads: Threads inside an operator.
        batch: Images of one call.
        on_progress: Told how far it is.

    Returns:
        The number of models in it.

    Raises:
        UserError: no such runtime, or the file cannot be written.
    """
    fitting = [name for name in RUNTIMES if name != TorchCuda.name]  # kits hold ONNX models
    if runtime not in fitting:
        raise UserError(f"a kit measures with {' or '.join(fitting)}, not with {runtime!r}")
    package = Path(detofa.__file__).parent
    check_threads(runtime, threads)
    models = plan.models(runtime)
    files: dict[str, bytes] = {}
    entries = {}
    for index, (name, build) in enumerate(models.items()):
        on_progress("packing models", index / len(models))
        model, file_name = build(), f"{index:04d}.onnx"
        files[f"{DATA}/{file_name}"] = model
        entries[name] = {
            "file": file_name,
            "sha256": hashlib.sha256(model).hexdigest(),
            "structure": structure_of(model),
        }
    record = {
        "device": device,
        "runtime": runtime,
        "threads": threads,
        "batch": batch,
        "schedule": asdict(schedule),
        "plan": plan.to_json(),
        "models": entries,
        "looked_at": plan.looked_at,
        "detofa_version": detofa.__version__,
    }
    record["sha256"] = sha256_json(record)
    readme = _README.format(
        version=detofa.__version__,
        device=device,
        runtime=runtime,
        count=len(models),
        space=plan.space.name,
    )
    files |= {
        f"{DATA}/{RECORD}": json.dumps(record, indent=1).encode(),
        f"{DATA}/__init__.py": b"",
        **{f"detofa/{name}": (package / name).read_bytes() for name in FILES},
        "__main__.py": b"from detofa.profiling.on_device import main\n\nmain()\n",
        "README.txt": readme.encode(),
    }
    write_bytes(path, zipped(files))
    return len(models)


def table_from_kit(path: Path, *, space: SearchSpace | None = None) -> LatencyTable:
    """Fit a latency table to the results that a kit wrote.

    Args:
        path: The results.
        space: The space they must be of, if given.

    Raises:
        UserError: not whole, changed, of another space, or measured with other models than this
            version makes.
    """
    record = read_json(path, RESULTS, remake=_REMAKE)
    content = {key: record[key] for key in record if key not in ("schema", "kind", "sha256")}
    if record.get("sha256") != sha256_json(content):
        raise UserError(
            f"{path} has been changed since it was measured; copy it from the device again, or "
            f"make it again with {_REMAKE}"
        )
    try:
        plan = ProfilePlan.from_json(record["plan"])
        conditions = Conditions.from_json(record["conditions"])
        builders, runs = plan.models(), conditions.schedule.runs_per_visit
        passes = [Pass.from_json(one, builders, runs) for one in record["passes"]]
        models, state = dict(record["models"]), dict(record["state"])
        operators_ms = {name: _times(record["operators_ms"][name]) for name in plan.looked_at}
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{path} is not what a kit writes: {error}; make it again with {_REMAKE}"
        ) from error
    if space is not None and space.digest != plan.space.digest:
        raise UserError(
            f"{path} was measured for the space {plan.space.name} ({plan.space.digest[:8]}), but "
            f"{space.name} ({space.digest[:8]}) is wanted; make a kit for that with `detofa "
            "profile --make-kit`"
        )
    _check_models(path, builders, models, str(record.get("detofa_version")))
    samples = Samples(names=tuple(builders), passes=passes)
    if not samples.count:
        raise UserError(f"{path} holds no whole pass; make it again with {_REMAKE}")
    return table_of(plan, samples, conditions, state=state, operators_ms=operators_ms)


def _times(record: Any) -> dict[str, float]:
    """Return times of operators, by name, as JSON has them; raises ValueError for others."""
    times = dict(record)
    if not all(0 <= ms <= LONGEST for ms in times.values()):  # a whole number may be no float
        raise ValueError(f"operators should take times up to {LONGEST:g} ms, not negative ones")
    return {str(name): float(ms) for name, ms in times.items()}


def structure_of(model: bytes) -> str:
    """Return a hash of what bears on a model's time: operators, attributes, shapes of weights.

    Values of weights and what wrote the file are left out: another version of a library may write
    them otherwise.
    """
    graph = onnx.load_from_string(model).graph
    weights = [(constant.data_type, list(constant.dims)) for constant in graph.initializer]
    nodes = [
        (node.op_type, sorted(str(attribute) for attribute in node.attribute), len(node.input))
        for node in graph.node
    ]
    inputs = [str(entry.type) for entry in graph.input]
    return sha256_json({"weights": weights, "nodes": nodes, "inputs": inputs})


def _check_models(
    path: Path, builders: Mapping[str, Builder], models: Mapping[str, Any], version: str
) -> None:
    built = {name: structure_of(build()) for name, build in builders.items()}
    if built != models:
        differing = sum(built.get(name) != models.get(name) for name in {*built, *models})
        raise UserError(
            f"{path} was measured with other models ({differing} of {len(built)} differ) than "
            f"this version makes for its plan; its kit was made by detofa {version}, this is "
            f"{detofa.__version__}: make a new kit with `detofa profile --make-kit`"
        )
