"""Several processes do what one does: the same steps, and files that one of them writes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import tomli_w
import torch

from detofa.arch import Arch
from detofa.data.loader import Batch
from detofa.errors import UserError
from detofa.train.checkpoint import load_supernet
from detofa.train.gradients import Gradients, SandwichGradients
from detofa.train.ranks import Ranks
from detofa.train.run import RunFolder
from detofa.train.trainer import Trainer
from tests.data.test_image_folder import write_folder
from tests.ranks import two_ranks
from tests.samples import Quiet, config_of, save_subnet, trainer_of

REPOSITORY = Path(__file__).parents[2]
_PATHS = 3  # of a step: largest, smallest and a random one


@contextlib.contextmanager
def started(*command: str, folder: Path, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Start a module in two processes; none of them outlives the block."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "--max-restarts", str(restarts), "-m", *command),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def torchrun(*command: str, folder: Path) -> str:
    """Run a module in two processes; return what they printed."""
    with started(*command, folder=folder) as process:
        printed, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return printed


def halves_of(batch: Batch) -> list[Batch]:
    """Return the parts of a batch that two ranks take."""
    middle = len(batch.images) // 2
    return [
        Batch(
            images=batch.images[part],
            boxes_xyxy=batch.boxes_xyxy[part],
            labels=batch.labels[part],
        )
        for part in (slice(middle), slice(middle, None))
    ]


class MicroBatches:
    """Accumulates over the halves of a batch in one process, their loss normalisers shared.

    Each half is computed twice: first to see what its images weigh.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._seen: list[list[float]] = [[] for _ in range(_PATHS)]
        self._looking = True
        self._gradients = SandwichGradients(
            trainer.supernet,
            trainer.task.objective(trainer.device),
            trainer.device,
            1,
            [partial(self._mean, path) for path in range(_PATHS)],
        )

    def __call__(self, batch: Batch, archs: list[Arch]) -> tuple[float, Gradients]:
        self._seen, self._looking = [[] for _ in range(_PATHS)], True
        for half in halves_of(batch):
            self._gradients(half, archs)
        self._looking = False
        parts = [self._gradients(half, archs) for half in halves_of(batch)]
        gradients: Gradients = []
        for first, second in zip(*(part for _, part in parts), strict=True):
            assert (first is None) == (second is None)
            gradients.append(None if first is None or second is None else (first + second) / 2)
        return sum(loss for loss, _ in parts) / 2, gradients

    def _mean(self, path: int, value: torch.Tensor) -> torch.Tensor:
        if self._looking:
            self._seen[path].append(float(value))
            return value
        first, second = self._seen[path]
        return torch.tensor((first + second) / 2)


@pytest.mark.slow
def test_two_ranks_equal_one_process_that_accumulates_the_same_micro_batches(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = torchrun("tests.train.under_torchrun", str(digits), "run", folder=tmp_path)
    assert printed.split() == ["rank", "0", "trained"]  # the other one is silent

    alone = trainer_of(config_of(digits), tmp_path / "alone")
    monkeypatch.setattr(alone, "_gradients", MicroBatches(alone))
    observer = Quiet()
    assert alone.train(observer, lambda: False)

    run = RunFolder(path=tmp_path / "run")
    records = run.read_metrics()
    assert [record["step"] for record in records] == list(range(1, 7))  # each written once
    assert [record["loss"] for record in records] == pytest.approx(observer.losses, rel=1e-4)
    left, _ = load_supernet(run.supernet)
    right, _ = load_supernet(alone.run.supernet)
    for name, value in left.state_dict().items():
        torch.testing.assert_close(value, right.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_ranks_share_labels_and_write_one_run(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, method="detofa", steps=4)
    record = config.to_json()
    record["filter"] = {"bins": 2, "labels_per_bin": 4, "prune": "always"}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(record))
    printed = torchrun(
        *("detofa", "train", "--recipe", "recipe.toml", "--name", "two", "--device", "cpu"),
        folder=tmp_path,
    )
    assert printed.count("is trained") == 1
    run = RunFolder(path=tmp_path / "runs" / "two")
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3, 4]
    labels = json.loads((run.path_filter / "labels.json").read_text())["paths"]
    assert len(labels) == 8
    assert all(path["halves"] is not None and path["seconds"] > 0 for path in labels)
    assert run.pruned_space.is_file()
    assert run.filter_report.is_file()


@pytest.mark.slow
def test_two_ranks_pretrain_from_a_tar_that_one_unpacks(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", arcname=".")
    printed = torchrun(
        *("detofa", "pretrain", "--data", "photos.tar", "--space", "tiny", "--init", "random"),
        *("--image-size", "64x64", "--steps", "2", "--batch-size", "4", "--device", "cpu"),
        folder=tmp_path,
    )
    assert printed.count("is trained") == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert RunFolder(path=run).classifier.is_file()
    steps = [line["step"] for line in RunFolder(path=run).read_metrics() if "loss" in line]
    assert steps == [1, 2]


@pytest.mark.slow
def test_two_ranks_share_the_labels_of_a_filter(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, steps=2)
    trainer = trainer_of(config, tmp_path / "runs" / "plain")
    trainer.train(Quiet(), lambda: False)
    config.save(trainer.run.config)
    printed = torchrun(
        *("detofa", "filter", "--bins", "2", "--labels-per-bin", "8"), folder=tmp_path
    )
    assert printed.count("In-bin Kendall tau, label") == 1
    assert trainer.run.filter_report.is_file()
    evaluated = json.loads((trainer.run.path / "path_evaluations.json").read_text())
    assert len(evaluated["paths"]) == 16


@pytest.mark.slow
def test_two_ranks_share_an_evaluation_and_one_tells_it(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits, steps=2), tmp_path / "run")
    trainer.train(Quiet(), lambda: False)
    arch = trainer.space.largest
    path = tmp_path / "subnet.json"
    save_subnet(trainer, arch, path)
    figures = [
        json.loads(
            torchrun("detofa", "eval", str(path), "--data", str(digits), "--json", folder=tmp_path)
        ),
        json.loads(
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "detofa",
                    "eval",
                    str(path),
                    "--data",
                    str(digits),
                    "--json",
                ],
                capture_output=True,
                text=True,
                check=True,
                cwd=tmp_path,
            ).stdout
        ),
    ]
    assert figures[0] == figures[1]
    assert figures[0]["images"] == 4


def test_a_batch_that_ranks_cannot_share_evenly_is_refused(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, batch_size=4)
    with pytest.raises(UserError, match="4 images cannot be shared evenly by 3 processes"):
        trainer_of(config, tmp_path, Ranks(index=1, count=3))


def without_boxes(source: Path, target: Path) -> Path:
    """Copy a data set whose training images but one show nothing."""
    shutil.copytree(source, target)
    (annotations,) = target.rglob("*train*.json")
    record = json.loads(annotations.read_text())
    first = record["annotations"][0]["image_id"]
    record["annotations"] = [one for one in record["annotations"] if one["image_id"] == first]
    annotations.write_text(json.dumps(record))
    return target


@pytest.mark.slow
def test_a_rank_whose_images_show_nothing_does_not_stop_the_others(
    digits: Path, tmp_path: Path
) -> None:
    data = without_boxes(digits, tmp_path / "empty")
    printed = torchrun("tests.train.under_torchrun", str(data), "run", folder=tmp_path)
    assert printed.split() == ["rank", "0", "trained"]
    losses = [record["loss"] for record in RunFolder(path=tmp_path / "run").read_metrics()]
    assert len(losses) == 6
    assert all(0 < loss < 100 for loss in losses)


def train_command(digits: Path, folder: Path) -> list[str]:
    """Return a training of many short steps."""
    config = config_of(digits, steps=40, checkpoint_steps=4)
    (folder / "recipe.toml").write_text(tomli_w.dumps(config.to_json()))
    return ["detofa", "train", "--recipe", "recipe.toml", "--name", "two", "--device", "cpu"]


def kill_second_rank(process: subprocess.Popen[str], run: RunFolder, step: int) -> None:
    """Kill one of the processes that torchrun started, once a step has been logged."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(record["step"] >= step for record in run.read_metrics()):
            for entry in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    if parent == str(process.pid) and b"LOCAL_RANK=1" in variables:
                        os.kill(int(entry.name), signal.SIGKILL)
                        return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"step {step} did not come: {process.communicate()[1]}")


@pytest.mark.slow
@pytest.mark.parametrize("call", ["first", "gather", "mean", "means"])
def test_a_rank_whose_peer_has_died_says_so_whatever_it_waited_for(
    tmp_path: Path, call: str
) -> None:
    ranks = two_ranks("tests.train.dying_rank", call, folder=tmp_path)
    assert [rank.returncode for rank in ranks] == [1, -signal.SIGKILL], ranks
    said = ranks[0].said
    assert said.startswith("error: process 0 of 2 stops, since another one has died"), said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks through /proc")
def test_when_a_rank_dies_the_others_stop_with_its_number_and_a_restart_goes_on(
    digits: Path, tmp_path: Path
) -> None:
    command = train_command(digits, tmp_path)
    run = RunFolder(path=tmp_path / "runs" / "two")
    with started(*command, folder=tmp_path) as process:
        kill_second_rank(process, run, 6)
        begin = time.monotonic()
        _, said = process.communicate(timeout=60)  # within a minute
        assert time.monotonic() - begin < 60
        assert process.returncode != 0
    assert "local_rank: 1" in said
    assert "exitcode  : -9" in said
    stopped = run.saved_step()
    assert 4 <= stopped < 40

    with started(*command, folder=tmp_path, restarts=1) as process:  # an elastic restart
        kill_second_rank(process, run, stopped + 6)
        printed, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert printed.count("is trained") == 1
    # torchrun ends the survivor; where it was about to compute, before it sees the death itself.
    assert "closing signal SIGTERM" in said or "since another one has died" in said
    assert "Traceback" not in said
    steps = [record["step"] for record in run.read_metrics() if "loss" in record]
    assert steps == list(range(1, 41))

    straight = tmp_path / "straight"
    straight.mkdir()
    torchrun(*train_command(digits, straight), folder=straight)
    left, _ = load_supernet(run.supernet)
    right, _ = load_supernet(straight / "runs" / "two" / "supernet.safetensors")
    for name, value in left.state_dict().items():
        torch.testing.assert_close(value, right.state_dict()[name], rtol=0, atol=0)
