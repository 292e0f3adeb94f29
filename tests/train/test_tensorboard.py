"""TensorBoard shows what metrics.jsonl has, also of runs that resumed or went back."""

from pathlib import Path
from typing import Any

import pytest

from detofa.train.run import RunFolder
from detofa.train.tensorboard import EventFiles
from tests.samples import Quiet, config_of, trainer_of

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="needs tensorboard, which the extra of that name installs",
)
Shown = dict[str, dict[int, Any]]


def shown(run: RunFolder) -> Shown:
    """Return what TensorBoard reads: values by tag and step."""
    folder = str(run.path / "tensorboard")
    events = accumulators.EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def logged(run: RunFolder) -> Shown:
    """Return the numbers of metrics.jsonl alike."""
    found: Shown = {}
    for record in run.read_metrics():
        for name, value in record.items():
            parts = value if isinstance(value, dict) else {"": value}
            for part, number in parts.items():
                if name != "step" and number is not None:
                    tag = f"{name}/{part}" if part else name
                    found.setdefault(tag, {})[record["step"]] = pytest.approx(number)
    return found


def test_tensorboard_shows_the_metrics_of_a_run_that_was_resumed(
    digits: Path, tmp_path: Path
) -> None:
    config = config_of(digits, steps=4, evaluations=2)
    first = trainer_of(config, tmp_path / "run")
    with EventFiles(first.run) as files:
        first.sinks.append(files.write)
        seen = iter([False, False, True])
        assert not first.train(Quiet(), lambda: next(seen))
    assert shown(first.run) == logged(first.run)

    second = trainer_of(config, tmp_path / "run")
    with EventFiles(second.run) as files:
        second.sinks.append(files.write)
        assert second.train(Quiet(), lambda: False)
    found = shown(second.run)
    assert found == logged(second.run)
    assert set(found["loss"]) == {1, 2, 3, 4}
    assert {"ap/largest", "ap/smallest", "images_per_s"} <= set(found)


def test_steps_that_a_run_took_back_are_not_shown(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    with EventFiles(run) as files:
        for step in (1, 2, 3):
            record = {"step": step, "loss": float(step)}
            run.log(record)
            files.write(record)
        run.forget_after(1)
        back = {"step": 1, "went_back_from": 3, "skipped": 0}
        run.log(back)
        files.write(back)
        again = {"step": 2, "loss": 7.0}
        run.log(again)
        files.write(again)
    assert shown(run)["loss"] == {1: 1.0, 2: 7.0}
