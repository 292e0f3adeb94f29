"""Pre-training of a backbone: the loss, exact resume, and what detection takes over."""

import dataclasses
from pathlib import Path

import pytest
import torch

from detofa.data.image_folder import load_image_folder
from detofa.data.loader import Batch
from detofa.errors import UserError
from detofa.presets import preset
from detofa.supernet.classifier import ClassifierSupernet
from detofa.supernet.detector import Supernet
from detofa.train.checkpoint import load_any_supernet, load_earlier_supernet, load_supernet
from detofa.train.classification import ClassificationObjective, ClassificationTask
from detofa.train.config import TrainConfig
from detofa.train.run import RunFolder
from detofa.train.trainer import Trainer
from tests.data.test_image_folder import write_folder
from tests.samples import Quiet, config_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


def trainer_of(config: TrainConfig, path: Path) -> Trainer:
    path.mkdir(parents=True, exist_ok=True)
    root = Path(config.data)
    train = load_image_folder(root, "train")
    validation = load_image_folder(root, "val", categories=train.categories)
    task = ClassificationTask(config, train=train, validation=validation)
    return Trainer(task, RunFolder(path=path), torch.device("cpu"))


def test_the_loss_is_cross_entropy_and_divergence_from_the_first_path() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    teacher = torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, 0.0]])
    batch = Batch(
        images=torch.zeros(3, 3, 64, 64),
        boxes_xyxy=[torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(0, 4)],
        labels=[torch.tensor([0]), torch.tensor([0]), torch.tensor([], dtype=torch.int64)],
    )
    arch = preset("tiny", num_classes=2).smallest
    log_p = logits[:2].log_softmax(1)
    expected = -log_p[:, 0].mean()
    alone, handed_on = ClassificationObjective(0.5)(logits, batch, arch, None, torch.clone)
    assert alone == pytest.approx(float(expected))
    assert torch.equal(handed_on, logits)
    q = teacher[:2].softmax(1)
    divergence = (q * (q.log() - log_p)).sum(1).mean()
    taught, _ = ClassificationObjective(0.5)(logits, batch, arch, lambda: teacher, torch.clone)
    assert taught == pytest.approx(float(expected + 0.5 * divergence))


def test_pre_training_resumes_exactly_and_reports_three_paths(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, task="classification", evaluations=1)
    straight = trainer_of(config, tmp_path / "straight")
    observer = Quiet()
    assert straight.train(observer, lambda: False)
    assert set(observer.evaluations[0]) == {"largest", "smallest", "random"}
    assert all(0 <= found["accuracy"] <= 1 for found in observer.evaluations[0].values())

    first = trainer_of(config, tmp_path / "broken")
    assert not first.train(Quiet(), lambda: first.step == 3)
    again = trainer_of(config, tmp_path / "broken")
    assert again.step == 3
    assert again.train(Quiet(), lambda: False)
    for name, value in again.averaged_supernet.state_dict().items():
        assert torch.equal(value, straight.averaged_supernet.state_dict()[name]), name


def test_detection_starts_from_the_pre_trained_backbone(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, task="classification")
    trainer = trainer_of(config, tmp_path)
    trainer.train(Quiet(), lambda: False)
    path = trainer.run.classifier
    assert not trainer.run.supernet.exists()
    with pytest.raises(UserError, match="holds classifiers"):
        load_supernet(path)
    classifiers, record = load_any_supernet(path)
    assert isinstance(classifiers, ClassifierSupernet)
    assert [name for _, name in record.categories] == ["glass", "paper"]
    detectors = Supernet(preset("tiny", num_classes=3, image_sizes=[(96, 96)]))
    head = {name: v.clone() for name, v in detectors.state_dict().items() if ".head." in name}
    load_earlier_supernet(detectors, path, ((1, "a"), (2, "b"), (3, "paper")))
    for name, value in detectors.state_dict().items():
        if name.startswith(("largest.backbone", "kernel_transforms")):
            assert torch.equal(value, classifiers.state_dict()[name]), name
    for name, value in head.items():
        assert torch.equal(value, detectors.state_dict()[name]), name


def test_extracted_classifier_equals_sliced_forward() -> None:
    space = preset("tiny", num_classes=4, image_sizes=[(64, 64)])
    supernet = ClassifierSupernet(space).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for arch in (space.largest, space.smallest, dataclasses.replace(space.largest)):
        expected = supernet(images, arch)
        assert expected.shape == (2, 4)
        torch.testing.assert_close(supernet.extract(arch)(images), expected, rtol=0, atol=1e-6)
