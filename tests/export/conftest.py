"""Pictures to compare detectors on."""

import pytest

from tests.detectors import make_pictures


@pytest.fixture
def images():
    """Give smooth pictures of several shapes by name."""
    return make_pictures()
