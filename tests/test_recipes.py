"""Recipes can be trained: their settings name a space that exists and sizes it can have."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detofa import recipes
from detofa.errors import UserError
from detofa.presets import preset
from detofa.train.config import TrainConfig, read_recipe


@pytest.mark.parametrize("recipe", [recipes.default, recipes.bccd, recipes.demo])
def test_a_recipe_makes_a_space(recipe: Callable[[Path], TrainConfig]) -> None:
    config = recipe(Path("somewhere"))
    space = preset(config.space, num_classes=3, image_sizes=config.image_sizes)
    assert space.image_sizes == config.image_sizes
    assert config.data == "somewhere"


@pytest.mark.parametrize(
    "text",
    [
        "steps = 0x" + "f" * 5000,
        "steps = " + "9" * 5000,
        "a = " + "[" * 3000 + "]" * 3000,
        "a" + ".a" * 200 + " = 1",
        "a" + ".a" * 50_000 + " = 1",
        "data = '" + "x" * 200_000 + "'",
    ],
)
def test_a_recipe_that_could_not_be_shown_or_takes_for_ever_is_refused(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UserError, match="is not TOML"):
        read_recipe(tmp_path / "recipe.toml")


def test_settings_without_data_or_with_a_vast_number_are_named(tmp_path):
    with pytest.raises(UserError, match="names no data"):
        TrainConfig.from_json({"steps": 3}, "recipe.toml")
    with pytest.raises(UserError, match="learning_rate should be float"):
        TrainConfig.from_json({"data": "x", "learning_rate": 10**400}, "recipe.toml")
