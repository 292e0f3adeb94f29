"""The loop on BCCD with the commands a user types, over seeds; prints docs/bccd.md's table.

    python benchmarks/bccd.py --data ../shared/data/bccd --seeds 0 1 2 --work /tmp/bccd

Everything is chosen on the validation split; the test split is read once per seed, from the
exported file. A seed that is done is not run again. Seeds are listed worst first.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BUDGET = "12ms"


def run_seed(data: Path, folder: Path, seed: int, threads: int) -> dict[str, Any]:
    """Run the loop for one seed, each command timed; return its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "result.json"
    if done.is_file():
        record: dict[str, Any] = json.loads(done.read_text())
        return record
    train = ["train", "--data", str(data), "--recipe", "bccd", "--name", "bccd"]
    train += ["--seed", str(seed), "--threads", str(threads)]
    seconds = {}
    for name, arguments in {
        "train": train,
        "profile": ["profile", "--budget-seconds", "90", "--seed", str(seed)],
        "search": ["search", "--latency", BUDGET, "--seed", str(seed)],
        "export": ["export", "subnet.json"],
    }.items():
        seconds[name], _ = detofa(arguments, folder, threads)
    _, evaluation = detofa(
        ["eval", "subnet.onnx", "--split", "test", "--data", str(data), "--json"], folder, threads
    )
    _, pytorch = detofa(
        ["eval", "subnet.json", "--split", "test", "--data", str(data), "--json"], folder, threads
    )
    _, latency = detofa(["bench", "subnet.onnx", "--json", "--runs", "300"], folder, threads)
    record = {
        "seed": seed,
        "threads": threads,
        "seconds": seconds,
        "total_minutes": sum(seconds.values()) / 60,
        "test": json.loads(evaluation),
        "test_pytorch": json.loads(pytorch),
        "latency": json.loads(latency),
        "subnet": json.loads((folder / "subnet.json").read_text())["figures"],
        "arch": json.loads((folder / "subnet.json").read_text())["arch"],
    }
    done.write_text(json.dumps(record, indent=1))
    return record


def detofa(arguments: list[str], folder: Path, threads: int) -> tuple[float, str]:
    """Run one command in `folder`; return its wall time in seconds and what it printed."""
    print(f"[{folder.name}] detofa {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "detofa", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    with (folder / "log.txt").open("a") as log:
        log.write(f"$ detofa {' '.join(arguments)}\n{done.stdout}\n")
    return time.monotonic() - start, done.stdout


def table(records: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, worst AP first."""
    lines = [
        "| seed | AP | AP50 | RBC | WBC | Platelets (AP50) | ms, p50 | AP in PyTorch | "
        "train + profile + search + export, min |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in sorted(records, key=lambda record: record["test"]["ap"]):
        test = record["test"]
        classes = {item["name"]: item for item in test["per_class"]}
        lines.append(
            f"| {record['seed']} | {test['ap']:.3f} | {test['ap50']:.3f} | "
            f"{classes['RBC']['ap']:.3f} | {classes['WBC']['ap']:.3f} | "
            f"{classes['Platelets']['ap']:.3f} ({classes['Platelets']['ap50']:.3f}) | "
            f"{record['latency']['thread_cpu_time']['p50_ms']:.2f} | "
            f"{record['test_pytorch']['ap']:.3f} | "
            + " + ".join(f"{value / 60:.1f}" for value in record["seconds"].values())
            + f" = {record['total_minutes']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    records = [
        run_seed(arguments.data.resolve(), arguments.work / f"seed{seed}", seed, arguments.threads)
        for seed in arguments.seeds
    ]
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"{arguments.threads} threads for training, 1 for latency\n")
    print(table(records))


if __name__ == "__main__":
    main()
