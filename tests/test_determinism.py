"""The same seed on one machine gives the same files, whatever Python's own hashes are seeded with.

docs/determinism.md says what is not the same, and why.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from detofa.data.demo import make_demo_dataset
from detofa.profiling.device import Device
from detofa.train.checkpoint import load_supernet
from tests.test_cli import fake_table

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
space = "tiny"
method = "detofa"
image_sizes = [[64, 64], [64, 96]]
init = "random"
steps = 8
batch_size = 4
evaluations = 1
recalibration_images = 8
checkpoint_steps = 4
distillation = 0.5

[filter]
bins = 2
labels_per_bin = 8
label_images = 4
prune = "always"
"""
PRECISIONS = ("fp32", "fp16", "int8")
TIMES = {
    "date",
    "images_per_s",
    "seconds",
    "waited",
    "label_seconds",
    "fit_seconds",
    "assess_seconds",
}
"""What is measured on a clock, or read from it."""
# Runs the commands in the first argument, one after another, in one process.
PROGRAM = """
import json, sys
from detofa.cli import main
for arguments in json.loads(sys.argv.pop(1)):
    sys.argv[1:] = arguments
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise
"""


def run(folder: Path, hash_seed: int, *commands: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed)},
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Give two folders in which the same commands ran, each in a process of its own."""
    train = ["train", "--data", "digits", "--recipe", "recipe.toml", "--threads", "1"]
    search = ["search", "--labels", "3", "--top-k", "2"]
    export = ["export", "macs.json", "--data", "digits", "--precision"]
    folders = []
    for hash_seed in (1, 2):
        folder = tmp_path_factory.mktemp("run")
        make_demo_dataset(folder / "digits", train=16, val=6, test=4, image_size=(96, 128))
        (folder / "recipe.toml").write_text(RECIPE)
        run(folder, hash_seed, train)
        supernet, _ = load_supernet(folder / "runs/digits-tiny/supernet.safetensors")
        elsewhere = Device(kind="cpu", name="Elsewhere 9000", details={})  # measures nothing here
        fake_table(supernet.space, elsewhere).save(folder / "latency_tables")
        latency = [*search, "--latency", "90ms", "--device", "elsewhere"]
        run(
            folder,
            hash_seed,
            [*search, "--macs", "9M", "--output", "macs.json"],
            [*latency, "--output", "latency.json"],
            *([*export, precision, "--output", f"{precision}.onnx"] for precision in PRECISIONS),
        )
        folders.append(folder)
    return folders


def without_times(value: Any) -> Any:
    """Return a JSON value without what a clock says."""
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def contents(folder: Path, pattern: str) -> dict[str, Any]:
    """Return the bytes of files by name, and of JSON all but the times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob(pattern)):
        if path.suffix in (".json", ".jsonl"):
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            found[str(path.relative_to(folder))] = [without_times(json.loads(s)) for s in lines]
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.slow
def test_the_same_seed_trains_the_same_run(runs):
    first, second = (contents(folder, "runs/digits-tiny/**/*") for folder in runs)
    names = {name.removeprefix("runs/digits-tiny/") for name in first}
    assert names >= {
        "config.toml",
        "metrics.jsonl",
        "supernet.safetensors",
        "state/training.safetensors",
        "path_filter/path_filter.safetensors",
        "path_filter/labels.json",
        "pruned_space.json",
        "path_evaluations.json",
    }
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["macs", "latency"])
def test_the_same_seed_finds_the_same_subnet(runs, name):
    for file in (f"{name}.json", f"{name}.safetensors"):
        assert len({(folder / file).read_bytes() for folder in runs}) == 1, file


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_processes_export_one_subnet_to_the_same_bytes(runs, precision):
    """Both subnets are one: the test above says so."""
    assert len({(folder / f"{precision}.onnx").read_bytes() for folder in runs}) == 1
    first, second = (contents(folder, f"{precision}.manifest.json") for folder in runs)
    assert first == second
