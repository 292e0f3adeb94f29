"""What a run survives: damaged states, losses that explode, a second process, a full disk."""

import dataclasses
import errno
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detofa.errors import UserError
from detofa.train import checkpoint
from detofa.train.checkpoint import read_tensors, write_tensors
from detofa.train.loss_guard import LossGuard
from detofa.train.run import RunFolder
from detofa.train.supernet_record import earlier_state
from detofa.train.trainer import Trainer
from tests.samples import Quiet, config_of, trainer_of


def never() -> bool:
    return False


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.supernet.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


# ---- states -------------------------------------------------------------------------------


def test_the_last_two_states_are_kept(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits), tmp_path)  # six steps, a state every second
    trainer.train(Quiet(), never)
    newest, earlier = trainer.run.states
    assert earlier == earlier_state(newest)
    steps = [
        read_tensors(path, "training_state", remake="")[1]["step"] for path in (newest, earlier)
    ]
    assert steps == [6, 4]


@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "gone", "not safetensors"])
def test_a_broken_newest_state_falls_back_to_the_one_before_and_says_so(
    digits: Path, tmp_path: Path, fault: str
) -> None:
    config = config_of(digits)
    straight = trainer_of(config, tmp_path / "straight")
    straight.train(Quiet(), never)
    stopped = trainer_of(config, tmp_path / "stopped")
    seen = Quiet()
    stopped.train(seen, lambda: len(seen.losses) == 5)  # states at 4 and 5
    state = stopped.run.state
    whole = bytearray(state.read_bytes())
    if fault == "truncated":
        state.write_bytes(whole[: len(whole) // 2])
    elif fault == "flipped":
        whole[-1000] ^= 1
        state.write_bytes(whole)
    elif fault == "empty":
        state.write_bytes(b"")
    elif fault == "gone":
        state.unlink()
    else:
        state.write_bytes(b"\x80\x04pickle" * 100)
    resumed = trainer_of(config, tmp_path / "stopped")
    assert resumed.step == 4
    assert bool(resumed.note) == (fault != "gone")
    if fault != "gone":
        assert "going on from the state before it" in resumed.note
        assert str(state) in resumed.note
    assert [record["step"] for record in resumed.run.read_metrics()] == [1, 2, 3, 4]
    resumed.train(Quiet(), never)
    assert same(weights_of(straight), weights_of(resumed))


def test_two_broken_states_are_refused_with_what_to_do(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits), tmp_path)
    trainer.train(Quiet(), never)
    for path in trainer.run.states:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="whole"):
        trainer_of(config_of(digits), tmp_path)
    with pytest.raises(UserError, match="remove it to start this run again"):
        trainer.run.saved_step()


def test_weights_that_changed_on_disk_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "b": torch.arange(100.0),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.ones(()),
    }
    write_tensors(path, tensors, "test", {"step": 1})
    assert load_file(path).keys() == tensors.keys()
    assert same(tensors, read_tensors(path, "test", remake="`x`")[0])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged: its weights are not those that were written"):
        read_tensors(path, "test", remake="`x`")


def test_a_full_disk_leaves_the_last_state_and_no_rest(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(digits)
    trainer = trainer_of(config, tmp_path)
    seen = Quiet()
    trainer.train(seen, lambda: len(seen.losses) == 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"No space left on device; free some space"):
            trainer.save()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert trainer_of(config, tmp_path).step == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full, as Linux has it")
def test_a_disk_that_fills_up_while_training_is_told_and_the_run_goes_on_later(
    digits: Path, tmp_path: Path
) -> None:
    config = config_of(digits)
    trainer = trainer_of(config, tmp_path / "full")
    seen = Quiet()
    trainer.train(seen, lambda: len(seen.losses) == 2)
    metrics = trainer.run.metrics
    kept = metrics.rename(tmp_path / "kept.jsonl")
    metrics.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left on device; free some space.*goes on"):
        trainer.train(Quiet(), never)
    metrics.unlink()
    kept.rename(metrics)
    resumed = trainer_of(config, tmp_path / "full")
    resumed.train(Quiet(), never)
    straight = trainer_of(config, tmp_path / "straight")
    straight.train(Quiet(), never)
    assert same(weights_of(straight), weights_of(resumed))
    assert [record["step"] for record in resumed.run.read_metrics()] == [1, 2, 3, 4, 5, 6]


# ---- losses -------------------------------------------------------------------------------


def poisoned(trainer: Trainer, at: set[int], value: float = math.nan) -> Trainer:
    """Make the loss of some steps another one; `at` loses a step once it was poisoned."""
    real = trainer._gradients

    def gradients(batch, archs):
        loss, found = real(batch, archs)
        if trainer.step in at:
            at.discard(trainer.step)
            return value, found
        return loss, found

    trainer._gradients = gradients  # type: ignore[assignment]
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_whose_loss_is_not_finite_does_not_count(
    digits: Path, tmp_path: Path, value: float
) -> None:
    trainer = poisoned(trainer_of(config_of(digits), tmp_path), {2}, value)
    states = []

    class Watch(Quiet):
        def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
            states.append((weights_of(trainer), int(trainer.averaged.n_averaged)))

    assert trainer.train(Watch(), never)
    assert same(states[1][0], states[2][0])
    assert states[1][1] == states[2][1]
    assert not same(states[2][0], states[3][0])
    assert trainer.guard.skipped == 1
    records = trainer.run.read_metrics()
    assert [record.get("skipped") for record in records] == [None, None, 1, None, None, None]
    assert all(value.isfinite().all() for value in trainer.supernet.parameters())


def test_five_bad_steps_in_a_row_go_back_to_the_last_state_at_half_the_rate(
    digits: Path, tmp_path: Path
) -> None:
    config = config_of(digits, steps=12, checkpoint_steps=3)
    trainer = poisoned(trainer_of(config, tmp_path), {4, 5, 6, 7, 8})
    rates = []

    class Watch(Quiet):
        def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
            rates.append((step, trainer.optimiser.param_groups[0]["lr"]))

    assert trainer.train(Watch(), never)
    assert (trainer.guard.skipped, trainer.guard.returns) == (5, 1)
    assert [step for step, _ in rates] == [1, 2, 3, 4, 5, 6, 7, 8, *range(7, 13)]
    # The state of step 6 held two bad steps; what follows it runs at half the rate of before.
    by_step: dict[int, list[float]] = {}
    for step, rate in rates:
        by_step.setdefault(step, []).append(rate)
    assert by_step[7][1] == pytest.approx(by_step[7][0] / 2)
    went_back = [record for record in trainer.run.read_metrics() if "went_back_from" in record]
    assert [record["went_back_from"] for record in went_back] == [8]
    assert trainer_of(config, tmp_path).guard.returns == 1


def test_a_loss_that_stays_broken_stops_with_what_to_try(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, steps=12, checkpoint_steps=3)

    class Always(set[int]):
        def __contains__(self, step: object) -> bool:
            return isinstance(step, int) and step >= 4

        def discard(self, step: object) -> None:
            """It stays."""

    trainer = poisoned(trainer_of(config, tmp_path), Always())
    with pytest.raises(UserError, match="after going back 2 times at half the learning rate"):
        trainer.train(Quiet(), never)
    assert trainer.run.saved_step() in (3, 6)
    assert all(value.isfinite().all() for value in trainer.supernet.parameters())


def test_a_loss_that_is_broken_from_the_start_stops_before_anything_is_saved(
    digits: Path, tmp_path: Path
) -> None:
    config = config_of(digits, steps=12, checkpoint_steps=12)
    trainer = poisoned(trainer_of(config, tmp_path), set(range(12)))
    with pytest.raises(UserError, match="before anything was saved; start again with a smaller"):
        trainer.train(Quiet(), never)


def test_an_exploded_loss_is_told_from_a_usual_one() -> None:
    guard = LossGuard()
    assert guard.is_sound(1000.0, 1.0)  # nothing is known yet
    assert all(guard.is_sound(2.0, 1.0) for _ in range(300))
    assert guard.is_sound(15.0, 1.0)
    assert not guard.is_sound(40.0, 1.0)
    assert not guard.is_sound(2.0, math.inf)
    assert guard.skipped == 2
    assert guard.is_sound(2.0, 1.0)
    assert LossGuard.from_json(json.loads(json.dumps(guard.to_json()))).to_json() == guard.to_json()


def test_a_run_that_skipped_steps_resumes_exactly(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits)
    straight = poisoned(trainer_of(config, tmp_path / "straight"), {1, 4})
    straight.train(Quiet(), never)
    first = poisoned(trainer_of(config, tmp_path / "stopped"), {1, 4})
    seen = Quiet()
    first.train(seen, lambda: len(seen.losses) == 3)
    second = poisoned(trainer_of(config, tmp_path / "stopped"), {1, 4})
    assert second.guard.skipped == 1
    second.train(Quiet(), never)
    assert same(weights_of(straight), weights_of(second))
    assert second.guard.to_json() == straight.guard.to_json()


# ---- one process at a time ----------------------------------------------------------------


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from detofa.train.run import RunFolder\n"
        "with RunFolder(path=Path(sys.argv[1])).claimed(): print('mine', flush=True)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    run = RunFolder(path=tmp_path / "run")
    with run.claimed():
        other = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert other.returncode != 0
        assert "another process is training in" in other.stderr
        assert "mine" not in other.stdout
    other = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert other.stdout == "mine\n", other.stderr


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match="cannot write to"),
        RunFolder(path=tmp_path / "file" / "run").claimed(),
    ):
        pass


def test_states_of_before_are_not_mixed_with_another_run(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits, steps=2), tmp_path / "a")
    trainer.train(Quiet(), never)
    other = dataclasses.replace(config_of(digits, steps=2), space="lite0")
    (tmp_path / "b" / "state").mkdir(parents=True)
    shutil.copy(trainer.run.state, tmp_path / "b" / "state")
    with pytest.raises(UserError, match="not a state of this run"):
        trainer_of(other, tmp_path / "b")
