"""Fine-tuning: one path is trained, alone, and what is written is what was measured."""

import dataclasses
from pathlib import Path

import pytest
import torch

from detofa.data.dataset import load_dataset
from detofa.data.demo import make_demo_dataset
from detofa.subnet import Subnet
from detofa.supernet.detector import StaticDetector
from detofa.train.checkpoint import load_subnet
from detofa.train.detection import FinetuneTask
from detofa.train.evaluate import evaluate_detector, torch_detector
from detofa.train.finetune import finetune
from detofa.train.run import RunFolder
from detofa.train.trainer import Trainer
from tests.samples import Quiet, config_of, save_subnet, trainer_of

STEPS = 4


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    make_demo_dataset(folder, train=12, val=6, test=4, image_size=(96, 128))
    return folder


@pytest.fixture(scope="module")
def chosen(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a subnet.json of a path that is not the largest, from a supernet hardly trained."""
    folder = tmp_path_factory.mktemp("chosen")
    trainer = trainer_of(config_of(digits, steps=2), folder / "run")
    trainer.train(Quiet(), lambda: False)
    arch = dataclasses.replace(trainer.space.smallest, image_size=(64, 96))
    save_subnet(trainer, arch, folder / "subnet.json")
    return folder / "subnet.json"


def trainer_for(path: Path, digits: Path, run: Path) -> tuple[Trainer, Subnet, StaticDetector]:
    subnet, detector = load_subnet(path)
    config = config_of(
        digits, steps=STEPS, largest_first=0.0, random_paths=0, evaluations=1, init=str(path)
    )
    run.mkdir(parents=True, exist_ok=True)
    train, validation = load_dataset(digits, "train"), load_dataset(digits, "val")
    task = FinetuneTask(config, subnet, detector, train=train, validation=validation)
    return Trainer(task, RunFolder(path=run), torch.device("cpu")), subnet, detector


def test_a_finetuned_subnet_is_the_same_arch_with_weights_and_figures_of_its_own(
    chosen: Path, digits: Path, tmp_path: Path
) -> None:
    trainer, subnet, detector = trainer_for(chosen, digits, tmp_path / "run")
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    observer = Quiet()
    output = tmp_path / "better.json"
    done = finetune(trainer, subnet, output, observer, lambda: False, command="detofa finetune")
    assert done is not None
    assert len(observer.losses) == STEPS
    assert list(observer.evaluations[-1]) == ["subnet"]
    assert not trainer.run.supernet.exists()

    record, tuned = load_subnet(output)
    assert record.arch == subnet.arch
    assert record.supernet_sha256 == subnet.supernet_sha256
    assert record.figures["ap"].value == done.after.ap
    assert record.figures["ap"].conditions["finetune_steps"] == STEPS
    changed = [
        name
        for name, parameter in tuned.named_parameters()
        if not torch.equal(parameter, before[name])
    ]
    assert len(changed) > 0.9 * len(list(tuned.parameters()))
    # The detector that was given stays as it is, and so does its file.
    for name, value in load_subnet(chosen)[1].state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(detector.state_dict()[name], before[name]), name

    opened = torch_detector(
        tuned,
        record.space,
        record.arch,
        record.preprocessing,
        record.categories,
        record.postprocessing,
    )
    result, _ = evaluate_detector(opened, load_dataset(digits, "val"))
    assert result.ap == pytest.approx(done.after.ap, abs=1e-6)


def test_a_stopped_finetuning_goes_on_to_the_same_weights(
    chosen: Path, digits: Path, tmp_path: Path
) -> None:
    straight, subnet, _ = trainer_for(chosen, digits, tmp_path / "straight")
    assert finetune(straight, subnet, tmp_path / "a.json", Quiet(), lambda: False) is not None
    first, _, _ = trainer_for(chosen, digits, tmp_path / "stopped")
    early = Quiet()
    stop_at_2 = finetune(first, subnet, tmp_path / "b.json", early, lambda: len(early.losses) == 2)
    assert stop_at_2 is None
    assert not (tmp_path / "b.json").exists()
    second, _, _ = trainer_for(chosen, digits, tmp_path / "stopped")
    assert second.step == 2
    assert finetune(second, subnet, tmp_path / "b.json", Quiet(), lambda: False) is not None
    left, right = load_subnet(tmp_path / "a.json")[1], load_subnet(tmp_path / "b.json")[1]
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name
