"""The demo's digits, few and small."""

from pathlib import Path

import pytest

from detofa.data.demo import make_demo_dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a data set that a module's tests leave as it is; modules may have their own."""
    folder = tmp_path_factory.mktemp("digits")
    make_demo_dataset(folder, train=16, val=6, test=4, image_size=(96, 128))
    return folder
