"""A real training killed again and again: does each resume go on where it should, exactly?

    python -m benchmarks.crashes --kills 20 --work DIR

Trains the demo's digits in the space `tiny`, once straight, and once with `kill -9` at random
moments, a fifth of them while it starts; the same command goes on each time. Prints for each kill
the step that had been reached and the one that was resumed, then whether the weights and the
losses of both runs are the same, bit for bit. Exit code 1 if not, or if more steps were lost than
lie between two checkpoints. There are fewer kills where the run ends before the last of them.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import tomli_w
import torch

from detofa.data.demo import make_demo_dataset
from detofa.recipes import demo
from detofa.train.checkpoint import load_supernet
from detofa.train.run import RunFolder

STEPS, CHECKPOINT_STEPS = 60, 3
_LONGEST = 600.0  # seconds of one command
_WHILE_IT_STARTS, _SECONDS_TO_START = 0.2, 8.0  # part of the kills, and when


def write_recipe(work: Path) -> None:
    """Write data and settings of a training of seconds."""
    make_demo_dataset(work / "data", train=24, val=6, test=4, image_size=(96, 128))
    settings = demo(work / "data").to_json() | {
        "data": str(work / "data"),
        "space": "tiny",
        "init": "random",
        "image_sizes": [[64, 64], [64, 96]],
        "steps": STEPS,
        "batch_size": 4,
        "recalibration_images": 8,
        "evaluations": 2,
        "checkpoint_steps": CHECKPOINT_STEPS,
    }
    (work / "recipe.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


def start(work: Path, name: str) -> subprocess.Popen[str]:
    """Start or resume a run."""
    command = ["train", "--recipe", "recipe.toml", "--name", name, "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "detofa", *command, "--threads", "1"],
        cwd=work,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reached(run: RunFolder) -> int:
    """Return the last step whose line was written."""
    return max((record["step"] for record in run.read_metrics()), default=0)


def crash(work: Path, run: RunFolder, step: int | None, moment: float) -> tuple[int, int] | None:
    """Run and kill; None if the run ended before.

    Args:
        work: Where it runs.
        run: The run.
        step: The step to wait for; None to kill it while it starts.
        moment: Seconds to wait after that.

    Returns:
        The step that had been reached, and the newest that is saved.
    """
    if run.states:
        run.forget_after(run.saved_step())  # as the resumed run will, so that its lines are new
    process, begin = start(work, run.path.name), time.monotonic()
    while step is not None and process.poll() is None and reached(run) < step:
        if time.monotonic() - begin > _LONGEST:
            process.kill()
            raise SystemExit(f"step {step} was not reached in ten minutes")
        time.sleep(0.002)
    time.sleep(moment)
    if process.poll() is not None:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"the run failed by itself: {said}")
        return None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return reached(run), run.saved_step()


def losses(run: RunFolder) -> dict[int, float]:
    """Return the loss of each step."""
    return {record["step"]: record["loss"] for record in run.read_metrics() if "loss" in record}


def main() -> None:
    """Train straight and with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_recipe(work)
    straight, crashed = (RunFolder(path=work / "runs" / name) for name in ("straight", "crashed"))
    process = start(work, "straight")
    _, said = process.communicate(timeout=_LONGEST)
    if process.returncode:
        sys.exit(said)
    chance, kills, worst = random.Random(options.seed), 0, 0
    print("| kill | step reached | step resumed | lost |\n| --- | --- | --- | --- |", flush=True)
    while kills < options.kills:
        saved, left = crashed.saved_step(), options.kills - kills
        step: int | None = saved + chance.randint(1, max(1, 2 * (STEPS - 1 - saved) // left))
        moment = chance.uniform(0, seconds_of_a_step(straight))
        if chance.random() < _WHILE_IT_STARTS:
            step, moment = None, chance.uniform(0, _SECONDS_TO_START)
        found = crash(work, crashed, step, moment)
        if found is None:
            break
        kills += 1
        lost = found[0] - found[1]
        worst = max(worst, lost)
        print(f"| {kills} | {found[0]} | {found[1]} | {lost} |", flush=True)
    process = start(work, "crashed")
    _, said = process.communicate(timeout=_LONGEST)
    if process.returncode:
        sys.exit(said)
    left_weights, right_weights = (load_supernet(run.supernet)[0] for run in (straight, crashed))
    other = right_weights.state_dict()
    equal = all(
        torch.equal(value, other[name]) for name, value in left_weights.state_dict().items()
    )
    same_losses = losses(straight) == losses(crashed)
    record = {
        "kills": kills,
        "most_steps_lost": worst,
        "checkpoint_steps": CHECKPOINT_STEPS,
        "weights_equal": equal,
        "losses_equal": same_losses,
    }
    print(json.dumps(record))
    if not (equal and same_losses and worst <= CHECKPOINT_STEPS and kills):
        sys.exit(1)


def seconds_of_a_step(run: RunFolder) -> float:
    """Return how long a step took, on the average."""
    records = [record for record in run.read_metrics() if "images_per_s" in record]
    return sum(float(4 / record["images_per_s"]) for record in records) / len(records)


if __name__ == "__main__":
    main()
