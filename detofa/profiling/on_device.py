"""What a profiling kit does on the device: measure the models it brings, write one results file.

A kit is a zip that Python runs as it is: `python3 kit.zip`. Beside this module it holds the few
others that are imported here, none of which needs more than numpy and the runtime.
"""

import argparse
import hashlib
import importlib.resources
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from detofa.errors import UserError
from detofa.files import parse_json, sha256_json, write_json
from detofa.profiling.conditions import GPU_RUNTIMES, Conditions, runtime_named
from detofa.profiling.device import Device, devices_here, gpu_state, holds_words, this_cpu
from detofa.runtime.measuring import SampleLog, Schedule, measure_models

DATA = "kit_data"
"""Package inside a kit that holds its models and its record."""
RECORD = "kit.json"
RESULTS = "kit_results"
"""Kind of the results file."""

FILES = (
    "__init__.py",
    "errors.py",
    "files.py",
    "timer.py",
    "profiling/__init__.py",
    "profiling/conditions.py",
    "profiling/device.py",
    "profiling/on_device.py",
    "runtime/__init__.py",
    "runtime/cuda.py",
    "runtime/detections.py",
    "runtime/measuring.py",
    "runtime/openvino_cpu.py",
    "runtime/runtimes.py",
    "runtime/session.py",
    "runtime/tensorrt/__init__.py",
    "runtime/tensorrt/build.py",
    "runtime/tensorrt/opened.py",
    "runtime/tensorrt/timing.py",
    "profiling/torch_cuda.py",
)
"""Files of this package that a kit holds, as paths from its folder."""

_AGAIN = "copy the kit to this device again"


def main() -> None:
    """Measure; see `python3 kit.zip --help`."""
    parser = argparse.ArgumentParser(prog="python3 kit.zip", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("kit-results.json"), help="default %(default)s"
    )
    parser.add_argument("--budget-seconds", type=float, help="time to measure in")
    parser.add_argument("--passes", type=int, help="visits to each model, if time allows")
    parser.add_argument(
        "--any-device", action="store_true", help="measure even if this is another device"
    )
    options = parser.parse_args()
    try:
        _measure(_read_kit(), options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last whole pass")


def _measure(kit: Mapping[str, Any], options: argparse.Namespace) -> None:
    record = dict(kit["schedule"])
    if options.passes is not None:
        record["passes"] = options.passes
    schedule = Schedule(**record)
    device = _this_device(
        str(kit["device"]),
        on_gpu=kit["runtime"] in GPU_RUNTIMES,
        any_device=options.any_device,
    )
    runtime = runtime_named(kit["runtime"], device, threads=kit["threads"], batch=kit["batch"])
    conditions = Conditions.of(device, runtime, schedule)
    about = conditions.same_measurement() | {"kit_sha256": kit["sha256"]}
    path = options.output.with_suffix(f".{sha256_json(about)[:8]}.unfinished.jsonl")
    log = SampleLog(kit["models"], schedule.runs_per_visit, path, about)
    print(f"measuring {len(kit['models'])} models on {device.name}, {runtime.name}", flush=True)
    if log.samples.passes:
        print(f"{len(log.samples.passes)} passes are there already", flush=True)
    models = {name: _reader(entry) for name, entry in kit["models"].items()}
    samples = measure_models(
        models,
        runtime,
        schedule,
        log,
        deadline_seconds=options.budget_seconds,
        on_progress=_Lines(time.monotonic()),
    )
    results = {
        "conditions": conditions.to_json(),
        "state": gpu_state(device),
        "operators_ms": {name: runtime.operator_ms(models[name]()) for name in kit["looked_at"]},
        "plan": kit["plan"],
        "models": {name: entry["structure"] for name, entry in kit["models"].items()},
        "detofa_version": kit["detofa_version"],
        "passes": [asdict(one) for one in samples.passes],
    }
    write_json(options.output, RESULTS, results | {"sha256": sha256_json(results)})
    log.remove()
    print(f"wrote {options.output}; next, where detofa is:")
    print(f"detofa profile --from {options.output}")


def _read_kit() -> dict[str, Any]:
    try:
        kit = parse_json(importlib.resources.files(DATA).joinpath(RECORD).read_bytes())
        sha256 = kit.pop("sha256")
    except Exception as error:  # damage shows in a dozen types of the importer and of zipfile
        raise UserError(f"{RECORD} of this kit is damaged ({error}); {_AGAIN}") from error
    if not isinstance(kit, dict) or sha256_json(kit) != sha256 or not _is_whole(kit):
        raise UserError(f"{RECORD} of this kit is damaged; {_AGAIN}")
    return kit | {"sha256": sha256}


def _is_whole(kit: Mapping[str, Any]) -> bool:
    """Return whether a kit's record has what is read of it."""
    models, schedule, looked_at = (kit.get(name) for name in ("models", "schedule", "looked_at"))
    texts, counts = ("device", "runtime", "detofa_version"), ("threads", "batch")
    return (
        isinstance(models, dict)
        and all(
            isinstance(entry, dict)
            and all(isinstance(entry.get(name), str) for name in ("file", "sha256", "structure"))
            for entry in models.values()
        )
        and isinstance(looked_at, list)
        and all(isinstance(name, str) and name in models for name in looked_at)
        and isinstance(schedule, dict)
        and set(schedule) <= {field.name for field in fields(Schedule)}
        and all(isinstance(kit.get(name), str) for name in texts)
        and all(type(kit.get(name)) is int for name in counts)
        and "plan" in kit
    )


def _reader(entry: Mapping[str, str]) -> Callable[[], bytes]:
    """Return what reads a model, and refuses one that is not what was packed."""

    def read() -> bytes:
        try:
            data = importlib.resources.files(DATA).joinpath(entry["file"]).read_bytes()
        except Exception as error:  # as above
            raise UserError(
                f"{entry['file']} of this kit is missing or damaged; {_AGAIN}"
            ) from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise UserError(f"{entry['file']} of this kit is damaged; {_AGAIN}")
        return data

    return read


def _this_device(wanted: str, *, on_gpu: bool, any_device: bool) -> Device:
    """Return this machine's processor or GPU, if it is the one that is meant.

    On a Jetson the driver may not name its GPU; then it goes by the name of the board.
    """
    here = [device for device in devices_here() if (device.kind == "gpu") == on_gpu]
    if on_gpu and not here:
        here = [Device(kind="gpu", name=this_cpu().name, details={"index": 0})]
    number = re.fullmatch(r"cuda(?::(\d+))?", wanted.strip().lower())
    for device in here:
        by_number = number is not None and device.details.get("index") == int(number[1] or 0)
        by_kind = by_number or (wanted.strip().lower() == "cpu" and not on_gpu)
        if any_device or by_kind or holds_words(device.name, wanted):
            return device
    raise UserError(
        f"this kit is for {wanted!r}, but this machine is {', '.join(d.name for d in here)}; run "
        "it on the device it is for, or say --any-device. The table is named after the device "
        "measured in any case"
    )


class _Lines:
    """Prints how far it is, with the time left, now and then."""

    def __init__(self, begin: float) -> None:
        self._begin, self._last = begin, 0.0

    def __call__(self, doing: str, done: float) -> None:
        now = time.monotonic()
        if now - self._last < 10 or done <= 0:
            return
        left = (now - self._begin) * (1 - done) / done
        print(f"{doing}: {done:.0%}, about {left / 60:.0f} min left", flush=True)
        self._last = now


if __name__ == "__main__":
    main()
