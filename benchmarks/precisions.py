"""One detector in fp32, fp16 and int8: average precision of the files, latency here, size.

    python -m benchmarks.precisions SUBNET --data BCCD --output benchmarks/results

Runs `detofa export` for each precision, timed, with its gates on the validation split, and reads
the test split from each file; then all files are measured in turn, by ONNX Runtime and by
OpenVINO, one thread. The files go into DIR/files, the figures into DIR/precisions.json.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detofa.files import write_json
from detofa.profiling.device import this_cpu
from detofa.runtime.gates import BARS
from detofa.runtime.manifest import Manifest
from detofa.runtime.measuring import Schedule, measure_models, median_error
from detofa.runtime.openvino_cpu import OpenVinoCpu
from detofa.runtime.runtimes import OnnxRuntimeCpu, Runtime

_SCHEDULE = Schedule(passes=30, extra_passes=0)


def detofa(*words: str) -> str:
    """Run a command, and return what it prints; stop if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "detofa", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"detofa {' '.join(words)}: {done.stderr}")
    return done.stdout


def average_precision(model: Path, data: Path) -> dict[str, Any]:
    """Return the average precision of a detector on the test split, without paths of here."""
    found: dict[str, Any] = json.loads(
        detofa("eval", str(model), "--data", str(data), "--split", "test", "--json")
    )
    return {name: value for name, value in found.items() if name not in ("model", "data")}


def times(files: dict[str, Path], runtime: Runtime) -> dict[str, dict[str, float]]:
    """Return p50 in milliseconds and its relative standard error of each file, measured in turn."""
    models = {name: partial(Path.read_bytes, path) for name, path in files.items()}
    whole = measure_models(models, runtime, _SCHEDULE).whole(list(files))
    medians = dict(zip(files, np.median(whole, axis=2), strict=True))
    return {
        name: {"p50_ms": float(np.median(one)), "error": median_error(one)}
        for name, one in medians.items()
    }


def main() -> None:
    """Export, evaluate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subnet", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    files: dict[str, Path] = {}
    rows: dict[str, dict[str, Any]] = {}
    folder = options.output / "files"
    folder.mkdir(parents=True, exist_ok=True)
    pytorch = average_precision(options.subnet, options.data)
    for precision in BARS:
        files[precision] = folder / f"{options.subnet.stem}.{precision}.onnx"
        how = ("--precision", precision, "--output", str(files[precision]))
        begin = time.monotonic()
        detofa("export", str(options.subnet), *how, "--data", str(options.data))
        seconds = time.monotonic() - begin
        found, verified = (
            average_precision(files[precision], options.data),
            Manifest.of(files[precision]),
        )
        rows[precision] = {
            "ap": found["ap"],
            "ap50": found["ap50"],
            "megabytes": files[precision].stat().st_size / 1e6,
            "export_seconds": seconds,
            "share_of_macs": verified.parity["share_of_macs"],
            "kept_fp32": len(verified.parity["kept_fp32"]),
            "matched": [verified.parity["num_matched"], verified.parity["num_compared"]],
        }
    onnxruntime, openvino = OnnxRuntimeCpu(threads=1), OpenVinoCpu(threads=1)
    by_runtime = {one.name: times(files, one) for one in (onnxruntime, openvino)}
    print(f"{this_cpu().name}; ONNX Runtime {onnxruntime.version}; OpenVINO {openvino.version}")
    print(f"PyTorch on the test split: AP {pytorch['ap']:.4f}, AP50 {pytorch['ap50']:.4f}\n")
    print(
        "| precision | AP | AP50 | ms, ONNX Runtime | ms, OpenVINO | MB | in the precision | "
        "kept fp32 | boxes found again | export and checks, s |"
    )
    print("|" + " --- |" * 10)
    for name, row in rows.items():
        speeds = [by_name[name] for by_name in by_runtime.values()]
        shown = [f"{one['p50_ms']:.2f} ±{one['p50_ms'] * one['error']:.2f}" for one in speeds]
        print(
            f"| {name} | {row['ap']:.4f} | {row['ap50']:.4f} | {shown[0]} | {shown[1]} | "
            f"{row['megabytes']:.2f} | {row['share_of_macs']:.1%} | {row['kept_fp32']} | "
            f"{row['matched'][0]} of {row['matched'][1]} | {row['export_seconds']:.0f} |"
        )
    about = {
        "device": this_cpu().to_json(),
        "onnxruntime": onnxruntime.version,
        "openvino": openvino.version,
        "pytorch": pytorch,
        "milliseconds": by_runtime,
        "rows": rows,
    }
    write_json(options.output / "precisions.json", "benchmark", about)


if __name__ == "__main__":
    main()
