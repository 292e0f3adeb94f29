"""What exports are judged by: images, true boxes, and a note for whatever is missing."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from detofa import loop
from detofa.data.dataset import load_dataset
from detofa.errors import UserError
from detofa.evidence import gather_evidence
from detofa.train.checkpoint import load_subnet
from detofa.train.evaluate import evaluate_detector, torch_detector_of
from tests.samples import Quiet, config_of, save_subnet, trainer_of


@pytest.fixture(scope="module")
def subnet(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    trainer = trainer_of(config_of(digits), folder / "run")
    trainer.train(Quiet(), lambda: False)
    save_subnet(trainer, trainer.space.largest, folder / "subnet.json")
    return folder / "subnet.json"


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_data_set_gives_images_true_boxes_and_calibration(subnet: Path, digits: Path) -> None:
    record, detector = load_subnet(subnet)
    found = gather_evidence(record, detector, digits, rng(), split="test", calibrate_on=3)
    assert found.notes == []
    assert found.judge is not None
    test, train = load_dataset(digits, "test"), load_dataset(digits, "train")
    opened = torch_detector_of(detector, record)
    assert found.judge.reference_ap == evaluate_detector(opened, test)[0].ap
    assert found.judge.ap(opened.session) == found.judge.reference_ap
    assert found.judge.about == {"split": "test", "images": len(test.images)}
    names = {image.path.relative_to(digits).as_posix() for image in train.images}
    assert found.calibration is not None
    assert set(found.calibration) < names
    assert len(found.calibration) == 3
    assert len(found.images) == 8


def test_a_folder_of_images_lacks_true_boxes_and_says_so(
    subnet: Path, digits: Path, tmp_path: Path
) -> None:
    for image in load_dataset(digits, "val").images[:3]:
        shutil.copy(image.path, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found = gather_evidence(*load_subnet(subnet), tmp_path, rng(), calibrate_on=64)
    assert found.judge is None
    assert found.calibration is not None
    assert set(found.images) == set(found.calibration)
    assert len(found.images) == 3
    (note,) = found.notes
    assert f"for want of true boxes in {tmp_path}" in note


def test_without_images_there_is_noise_and_no_int8(subnet: Path) -> None:
    found = gather_evidence(*load_subnet(subnet), None, rng())
    assert list(found.images) == ["noise"]
    assert found.judge is None
    assert len(found.notes) == 2
    with pytest.raises(UserError, match="int8 is calibrated on images"):
        gather_evidence(*load_subnet(subnet), None, rng(), calibrate_on=1)


def test_a_split_that_is_missing_is_named(subnet: Path, digits: Path) -> None:
    with pytest.raises(UserError, match="holdout"):
        gather_evidence(*load_subnet(subnet), digits, rng(), split="holdout")


def test_the_loop_compares_average_precision_as_the_command_does(
    subnet: Path, digits: Path, tmp_path: Path
) -> None:
    exported = loop.export(subnet, digits, tmp_path / "model.onnx")
    judged = exported.manifest.parity["average_precision"]
    assert judged["split"] == "val"
    assert judged["images"] == len(load_dataset(digits, "val").images)
    assert judged["file"] == pytest.approx(judged["pytorch"], abs=1e-3)
