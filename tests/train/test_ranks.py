"""Several processes do what one does: the same steps, and files that one of them writes."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import tomli_w
import torch

from detofa.arch import Arch
from detofa.data.demo import make_demo_dataset
from detofa.data.loader import Batch
from detofa.errors import UserError
from detofa.train.checkpoint import load_supernet
from detofa.train.gradients import Gradients
from detofa.train.ranks import Ranks
from detofa.train.run import RunFolder
from tests.data.test_image_folder import write_folder
from tests.samples import Quiet, config_of, trainer_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    make_demo_dataset(folder, train=16, val=6, test=4, image_size=(96, 128))
    return folder


def torchrun(*command: str, folder: Path) -> str:
    """Run a module in two processes; return what they printed."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", *command),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


@pytest.mark.slow
def test_two_ranks_equal_one_process_that_means_over_two_halves(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = torchrun("tests.train.under_torchrun", str(digits), "run", folder=tmp_path)
    assert printed.split() == ["rank", "0", "trained"]  # the other one is silent

    alone = trainer_of(config_of(digits), tmp_path / "alone")
    of_batch = alone._gradients

    def of_halves(batch: Batch, archs: list[Arch]) -> tuple[float, Gradients]:
        parts = [of_batch(half, archs) for half in halves_of(batch)]
        gradients: Gradients = []
        for first, second in zip(*(part for _, part in parts), strict=True):
            assert (first is None) == (second is None)
            gradients.append(None if first is None or second is None else (first + second) / 2)
        return sum(loss for loss, _ in parts) / 2, gradients

    monkeypatch.setattr(alone, "_gradients", of_halves)
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
        *("detofa", "filter", "--bins", "2", "--labels-per-bin", "4"), folder=tmp_path
    )
    assert printed.count("In-bin Kendall tau, label") == 1
    assert trainer.run.filter_report.is_file()
    evaluated = json.loads((trainer.run.path / "path_evaluations.json").read_text())
    assert len(evaluated["paths"]) == 8


def test_a_batch_that_ranks_cannot_share_evenly_is_refused(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, batch_size=4)
    with pytest.raises(UserError, match="4 images cannot be shared evenly by 3 processes"):
        trainer_of(config, tmp_path, Ranks(index=1, count=3))
