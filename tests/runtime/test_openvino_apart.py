"""Tests that load OpenVINO, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent


def test_what_loads_openvino_passes_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    files = ["runtime/test_openvino.py", "export/test_in_graph.py", "test_cli.py"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-m", "openvino", "-p", "no:cacheprovider"),
            f"--basetemp={tmp_path / 'apart'}",
            *(str(TESTS / name) for name in files),
        ],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
