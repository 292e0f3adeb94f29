"""What all tests share: thread limits, the Hypothesis profile, the folder of real data sets."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Read once by torch, numpy and ONNX Runtime when they are first imported, so it is set here. What
# the tests compute is too small to share: on busy cores a second thread waits more than it works.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadlines: other work on the machine must not fail a test.
settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile(
    "ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what loads OpenVINO, unless only that is asked for.

    A process that has run OpenVINO and trains with PyTorch afterwards ends with a segmentation
    fault (OpenVINO 2026.4.1, PyTorch 2.14.1).
    """
    if config.getoption("markexpr") == "openvino":
        return
    apart = pytest.mark.skip(reason="loads OpenVINO: run by test_openvino_apart.py")
    for item in items:
        if item.get_closest_marker("openvino") is not None:
            item.add_marker(apart)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Give the folder of real data sets that `DETOFA_DATA` names, or skip the test."""
    name = os.environ.get("DETOFA_DATA")
    if not name:
        pytest.skip("DETOFA_DATA is not set; set it to the folder of real data sets")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"DETOFA_DATA is {name}, which is not a folder")
    return folder
