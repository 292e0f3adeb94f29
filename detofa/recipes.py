"""Recipes: functions that return complete settings of a training run."""

from pathlib import Path

from detofa.data.transforms import Augmentation
from detofa.train.config import TrainConfig


def default(data: Path) -> TrainConfig:
    """Return the settings that `detofa train` starts from."""
    return TrainConfig(data=str(data), init="efficientnet-lite0")


def bccd(data: Path) -> TrainConfig:
    """Return settings for blood cells: no up or down; about 20 minutes on two cores."""
    return TrainConfig(
        data=str(data),
        space="lite0",
        image_sizes=((256, 320),),
        init="efficientnet-lite0",
        steps=700,
        batch_size=8,
        largest_first=0.2,
        evaluations=2,
        augmentation=Augmentation(vertical_flip=0.5),
    )


def demo(data: Path) -> TrainConfig:
    """Return settings for the demo's digits: minutes on two cores, three input sizes.

    Digits have an up and a left, so nothing is mirrored.
    """
    return TrainConfig(
        data=str(data),
        space="lite0",
        image_sizes=((96, 128), (128, 160), (192, 224)),
        init="efficientnet-lite0",
        steps=440,
        batch_size=3,
        largest_first=0.2,
        distillation=0.0,
        learning_rate=1.5e-3,
        recalibration_images=32,
        evaluations=1,
        checkpoint_steps=200,
        augmentation=Augmentation(horizontal_flip=0.0, min_scale=0.8, max_scale=1.25),
    )


def pretrain(data: Path) -> TrainConfig:
    """Return settings that train a backbone to classify images, from ImageNet weights."""
    return TrainConfig(
        data=str(data),
        task="classification",
        space="lite0",
        image_sizes=((128, 128), (224, 224)),
        init="efficientnet-lite0",
        steps=2000,
        batch_size=32,
        random_paths=2,
        learning_rate=1e-3,
        augmentation=Augmentation(min_scale=0.8, max_scale=1.3),
    )
