"""What the tests of users' pains share: commands, one small loop, a detector of bright cells.

Each test has the number of its entry in docs/pains.md; `python -m benchmarks.mutations` shows that
each can fail.
"""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from detofa.choose import chooser
from detofa.cli import main
from detofa.export.export import Exported, export_subnet
from detofa.profiling import device as device_module
from detofa.runtime import cuda
from detofa.runtime.gates import Judge
from detofa.search import SearchConfig
from tests.detectors import SmallDetector, make_pictures
from tests.fake_cuda import FakeCuda, working_tensorrt
from tests.samples import make_subnet
from tests.test_cli import write_dataset

RECIPE = """
space = "tiny"
image_sizes = [[64, 64], [64, 96]]
init = "random"
steps = 8
batch_size = 4
learning_rate = 0.003
evaluations = 1
recalibration_images = 4
"""
QUICK = partial(SearchConfig, population=16, generations=2)
SIZE = (96, 160)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


def code_of(arguments: Sequence[object]) -> int:
    """Run a command in this process; return its exit code."""
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    torch.set_num_threads(threads)
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def detofa(capsys, tmp_path, monkeypatch) -> Callable[..., Outcome]:
    """Give a function that runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chooser, "SearchConfig", QUICK)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = code_of(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which data, a run, subnet.json and subnet.onnx were made by the commands."""
    folder = tmp_path_factory.mktemp("loop")
    write_dataset(folder / "squares")
    (folder / "recipe.toml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chooser, "SearchConfig", QUICK)
            for line in (
                "train --data squares --recipe recipe.toml --threads 1",
                "search --macs 20M --labels 3 --top-k 2",
                "export subnet.json",
            ):
                assert code_of(line.split()) == 0, line
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def loop(looped: Path, detofa: object, tmp_path: Path) -> Path:
    """Give a copy of that folder, as the working directory."""
    shutil.copytree(looped, tmp_path, dirs_exist_ok=True)
    return tmp_path


def bright_detector() -> SmallDetector:
    """Return a detector that finds the first class, 30 x 30 pixels, in every bright cell of 32."""
    detector = SmallDetector()
    assert detector.conv.bias is not None
    with torch.no_grad():
        detector.conv.weight.zero_()
        detector.conv.weight[0] = 4 / 3
        detector.conv.bias.zero_()
        detector.conv.bias[:2] = torch.tensor([-2.0, -9.0])
    return detector.eval()


def judge_of(ap: float = 0.5) -> Judge:
    """Return one who finds the same average precision in any file, and 0.5 in PyTorch."""
    return Judge(ap=lambda session: ap, reference_ap=0.5, about={"split": "val", "images": 3})


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Give, by how it is exported, the detector of bright cells."""
    made: dict[tuple[object, ...], Exported] = {}

    def export(*, size: tuple[int, int] = SIZE, precision="fp32", suppress=False) -> Exported:
        how = (size, precision, suppress)
        if how not in made:
            folder = tmp_path_factory.mktemp("cells")
            made[how] = export_subnet(
                bright_detector(),
                make_subnet(size),
                folder / f"cells.{precision}.onnx",
                images=make_pictures(),
                rng=np.random.default_rng(0),
                precision=precision,
                suppress=suppress,
                judge=judge_of(),
            )
        return made[how]

    return export


class Recording(FakeCuda):
    """A fake CUDA runtime that keeps the names of all calls, and which GPU was set."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.index: int | None = None

    def cudaSetDevice(self, index):  # noqa: N802
        """Note which GPU is set."""
        self.names.append("cudaSetDevice")
        self.index = index.value
        return 0

    def __getattr__(self, name):
        call = super().__getattr__(name)
        if name.startswith("cuda"):
            self.names.append(name)
        return call


@pytest.fixture
def gpu(monkeypatch) -> Recording:
    """Put a fake CUDA runtime where the real one is looked for."""
    library = Recording()
    monkeypatch.setattr(cuda, "_load", lambda: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(device_module, "_gpus", list)
    return library


@pytest.fixture
def tensorrt(data_dir, gpu, monkeypatch, tmp_path):
    """Put a TensorRT 11 that runs in ONNX Runtime where the real one is imported from."""
    listing = data_dir.parent / "tensorrt" / "api_11.4.txt"
    if not listing.is_file():
        pytest.skip(f"the listing {listing} of TensorRT's bindings is not there")
    module = working_tensorrt(listing)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module
