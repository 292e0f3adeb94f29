"""The benchmark of crashes, with fewer of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.crashes", "--kills", "4", "--work", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1 <= found["kills"] <= 4  # a fast machine may be done before the last
    assert found["weights_equal"]
    assert found["losses_equal"]
    assert found["most_steps_lost"] <= found["checkpoint_steps"]
