"""Recipes can be trained: their settings name a space that exists and sizes it can have."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detofa import recipes
from detofa.presets import preset
from detofa.train.config import TrainConfig


@pytest.mark.parametrize("recipe", [recipes.default, recipes.bccd, recipes.demo])
def test_a_recipe_makes_a_space(recipe: Callable[[Path], TrainConfig]) -> None:
    config = recipe(Path("somewhere"))
    space = preset(config.space, num_classes=3, image_sizes=config.image_sizes)
    assert space.image_sizes == config.image_sizes
    assert config.data == "somewhere"
