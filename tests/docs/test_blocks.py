"""Every block of commands in README and docs: run in a folder of its own, or parsed."""

import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.blocks import LANGUAGES, MARKS, ROOT, Block, blocks, check_command

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

BLOCKS = list(blocks())
COMMANDS = [block for block in BLOCKS if block.language == "sh"]
RUN = [block for block in BLOCKS if block.language in ("sh", "python") and not block.mark]
TRAINING = ["--space", "tiny", "--image-size", "96x128", "--steps", "40", "--threads", "1"]


def call(folder: Path, script: str) -> None:
    """Run a script as a reader would, with this interpreter's commands and this checkout."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    paths = {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, **paths, "OMP_NUM_THREADS": "1"},
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What pages take for granted.

    Attributes:
        folder: With data, pictures, a run, a latency table, a subnet.
        budget_ms: Within the reach of that run's detectors, which are smaller than a reader's: it
            stands in for the 10 ms of the pages.
    """

    folder: Path
    budget_ms: float

    def fitted(self, text: str) -> str:
        """Return a block with that budget."""
        text = text.replace("10ms", f"{self.budget_ms:.3f}ms")
        return text.replace("latency_ms=10", f"latency_ms={self.budget_ms:.3f}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make what pages take for granted."""
    from detofa.data.demo import make_demo_dataset
    from detofa.profiling.table import load_table

    folder = tmp_path_factory.mktemp("docs")
    make_demo_dataset(folder / "mydata", train=24, val=10, test=10, image_size=(96, 128))
    (folder / "photos").mkdir()
    for number, path in enumerate(sorted((folder / "mydata/images/test").iterdir())[:3]):
        shutil.copy(path, folder / "photos" / f"{number}.jpg")
    annotations = folder / "unsplit/annotations"
    annotations.mkdir(parents=True)
    shutil.copytree(folder / "mydata/images/train", folder / "unsplit/images/train")
    shutil.copy(folder / "mydata/annotations/instances_train.json", annotations)
    call(folder, f"detofa train --data mydata --name small {' '.join(TRAINING)}")
    call(folder, "detofa profile --budget-seconds 20")
    call(folder, "detofa search --macs 20M --labels 4 --top-k 1")
    (table,) = (folder / "latency_tables").glob("*.json")
    shutil.copy(table, folder / "TABLE")
    read = load_table(table)
    low, high = read.predict(read.space.ends)
    return Prepared(folder=folder, budget_ms=math.sqrt(low * high))


def by_page(chosen: list[Block]) -> list[tuple[str, list[Block]]]:
    pages = dict.fromkeys(block.page for block in chosen)
    return [(page, [block for block in chosen if block.page == page]) for page in pages]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("page", "chosen"), by_page(RUN), ids=[page for page, _ in by_page(RUN)])
def test_the_blocks_of_a_page_run_one_after_the_other(trained, tmp_path, page, chosen):
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    for block in (block for block in BLOCKS if block.page == page and block.language == "toml"):
        (tmp_path / "recipe.toml").write_text(block.text, encoding="utf-8")
    for block in chosen:
        if block.language == "sh":
            call(tmp_path, trained.fitted(block.text))
        else:
            (tmp_path / "example.py").write_text(trained.fitted(block.text), encoding="utf-8")
            call(tmp_path, "python example.py")


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_every_command_is_there_and_knows_its_options(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert block.commands
    for words in block.commands:
        check_command(words)


@pytest.mark.parametrize(
    "command",
    [
        "detofa serch --macs 3M",
        "detofa search --latencies 3ms",
        "detofa export",
        "detofa runs show",
        "torchrun --processes 2 -m detofa train --data mydata",
        "torchrun --nproc-per-node 2 -m detofa train --dat mydata",
        "python -m benchmarks.latency TABLE --prediction-count 3",
        "python -m benchmarks.nothing",
        "make everything",
        "pip install -e '.[nothing]'",
        "python3 kit.zip --seconds 3",
        "python3 detector.zip paint photos/",
        "curl example.com",
    ],
)
def test_a_command_that_is_not_there_is_told(command):
    (words,) = Block(page="", line=0, language="sh", mark="", text=command).commands
    with pytest.raises(ValueError, match=r"."):
        check_command(words)


def test_blocks_have_a_known_language_and_a_known_mark():
    assert len(COMMANDS) > 30
    for block in BLOCKS:
        assert block.language in LANGUAGES, block
        assert block.mark in MARKS, block


def test_no_command_hides_in_an_indented_block():
    for page in {block.page for block in BLOCKS}:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "\n    detofa " not in text, page
        assert "\n    python " not in text, page
