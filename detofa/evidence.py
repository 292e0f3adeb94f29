"""Evidence: the images, and the true boxes on them, by which an exported detector is judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detofa.data.dataset import Category, find_layout, image_name, load_dataset
from detofa.errors import UserError
from detofa.imaging import read_image
from detofa.runtime.detector import Detector
from detofa.runtime.gates import Judge
from detofa.runtime.predictions import image_files
from detofa.subnet import Subnet
from detofa.supernet.detector import StaticDetector
from detofa.train.evaluate import evaluate_detector, torch_detector_of

_IMAGES_TO_COMPARE = 8
_IMAGES_TO_JUDGE = 500
_NOISE_SIZE = (480, 640)  # (height, width)
Images = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a detector in a file is compared with PyTorch on.

    Attributes:
        images: Some whose boxes are compared, (H, W, 3), by their path from the data's folder.
        judge: Compares average precision; None where there are no true boxes.
        calibration: Images that int8 is calibrated on; None where it is not wanted.
        notes: What could not be had, in words.
    """

    images: Mapping[str, NDArray[np.uint8]]
    judge: Judge | None
    calibration: Mapping[str, NDArray[np.uint8]] | None
    notes: Sequence[str]


def gather_evidence(
    subnet: Subnet,
    detector: StaticDetector,
    root: Path | None,
    rng: np.random.Generator,
    *,
    split: str = "val",
    calibrate_on: int = 0,
) -> Evidence:
    """Read images and true boxes, and judge the detector in PyTorch.

    Args:
        subnet: The detector's record.
        detector: The detector, in evaluation mode.
        root: A data set, or a folder of images; None if there is neither, for noise alone.
        rng: Draws the images.
        split: The split whose true boxes count, up to 500 images of it.
        calibrate_on: Images of the training split, or of the folder, for int8; 0 for none.

    Raises:
        UserError: no image can be read, the data set has no such split or other classes, or int8
            is wanted without images.
    """
    notes: list[str] = []
    if root is None:
        notes.append(
            "the run's data set is not found from here: verified on noise only (see --data)"
        )
        images = {"noise": rng.integers(0, 256, (*_NOISE_SIZE, 3), dtype=np.uint8)}
    else:
        images = _some_images(root, image_files([root]), _IMAGES_TO_COMPARE, rng)
    has_boxes = root is not None and _is_data_set(root)
    judge = None
    if root is not None and has_boxes:
        judge = _judge(subnet, detector, root, split, rng)
    else:
        lacking = "the data set" if root is None else f"true boxes in {root}"
        notes.append(
            f"average precision is not compared, for want of {lacking}; name one with --data"
        )
    calibration = None
    if calibrate_on:
        if root is None:
            raise UserError(
                "int8 is calibrated on images, and the run's data set is not found from here; name "
                "a data set or a folder of images with --data"
            )
        paths = image_files([root])
        if has_boxes:
            paths = [one.path for one in load_dataset(root, "train", skip_bad=True).images]
        calibration = _some_images(root, paths, calibrate_on, rng)
    return Evidence(images=images, judge=judge, calibration=calibration, notes=notes)


def _some_images(root: Path, paths: Sequence[Path], count: int, rng: np.random.Generator) -> Images:
    """Return some images that can be read, by their path from a folder."""
    images: Images = {}
    for index in rng.permutation(len(paths)):
        try:
            images[image_name(root, paths[index])] = read_image(paths[index])
        except UserError:
            continue  # a broken image of the data set; others will do
        if len(images) == count:
            break
    if not images:
        raise UserError(f"no image under {root} can be read; name another folder with --data")
    return images


def _is_data_set(root: Path) -> bool:
    try:
        find_layout(root)
    except UserError:
        return False
    return True


def _judge(
    subnet: Subnet, detector: StaticDetector, root: Path, split: str, rng: np.random.Generator
) -> Judge:
    expected = tuple(Category(id=number, name=name) for number, name in subnet.categories)
    dataset = load_dataset(root, split, categories=expected, skip_bad=True)
    if len(dataset.images) > _IMAGES_TO_JUDGE:
        rows = sorted(rng.permutation(len(dataset.images))[:_IMAGES_TO_JUDGE].tolist())
        dataset = replace(dataset, images=tuple(dataset.images[row] for row in rows))

    def ap(opened: Detector) -> float:
        return evaluate_detector(opened, dataset)[0].ap

    return Judge(
        ap=lambda session: ap(Detector.of_subnet(session, subnet)),
        reference_ap=ap(torch_detector_of(detector, subnet)),
        about={"split": dataset.split, "images": len(dataset.images)},
    )
