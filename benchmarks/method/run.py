"""The experiment: the whole space, filter-pruned and random-pruned, at equal cost.

    python -m benchmarks.method.run glyphs --size smoke --work /tmp/smoke
    python -m benchmarks.method.run glyphs --size desk --work DIR --slope
    python -m benchmarks.method.run glyphs --size desk --work DIR
    python -m benchmarks.method.run bccd --size desk --data ../shared/data/bccd --work DIR
    python -m benchmarks.method.run coco --size gpu --data COCO --work DIR --processes 8 --jobs 1

Every arm of every seed is a run of its own that resumes: the same command goes on where it was
stopped. The arm with the filter comes first; the others get the steps that its labels and fits
cost. `--slope` trains plain once-for-all only, and shows whether AP rises with compute at all;
`--same-steps` adds the whole space trained for as many steps as the filtered arm, which shows what
the filter is worth without the cost of its labels.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.method.analysis import (
    ARMS,
    SAME_STEPS,
    Interval,
    choice_alone,
    contrasts,
    interval,
    macs_mismatch,
    measures,
    plot,
    savings,
)
from benchmarks.method.glyph_task import GlyphTask
from benchmarks.method.glyphs import TASK_FILE, make_crops, make_scenes
from benchmarks.method.judge import Judge, Judgement
from benchmarks.method.plans import SIZES, TASKS, Plan, plan_of
from detofa.data.dataset import available_splits
from detofa.errors import UserError
from detofa.files import read_json, write_json, write_text
from detofa.train.config import TrainConfig
from detofa.train.equal_cost import seconds_spent
from detofa.train.run import RunFolder

_REPOSITORY = Path(__file__).parents[2]
_LOG_CHARACTERS = 2000
_PAPER = (
    "The paper's own figures, for its own spaces and data (arXiv 2303.13121): 30 % less compute "
    "for the optimal architecture on Pascal VOC and 63 % on COCO; 0.85 and 0.45 points of AP on "
    "the front."
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an experiment lives, and how its commands are started.

    Attributes:
        work: Folder of data and runs.
        threads: Processor threads of each command.
        processes: Processes of each training, under torchrun if more than one.
    """

    work: Path
    threads: int
    processes: int

    def run(self, name: str) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(path=self.work / "runs" / name)

    def judgement(self, name: str) -> Path:
        """Return the path of what a run came to."""
        return self.run(name).path / "judgement.json"

    def start(self, name: str, *command: str) -> None:
        """Run a module's command in the folder, its output to logs/NAME.txt.

        Raises:
            UserError: it failed; shows the end of its output.
        """
        launch = [sys.executable, "-m"]
        if self.processes > 1 and command[0] == "detofa":
            launch += ["torch.distributed.run", "--standalone"]
            launch += ["--nproc-per-node", str(self.processes), "-m"]
        threads = str(self.threads)
        log = self.work / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            done = subprocess.run(
                [*launch, *command],
                cwd=self.work,
                env=os.environ | {"PYTHONPATH": str(_REPOSITORY), "OMP_NUM_THREADS": threads},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            end = log.read_text(encoding="utf-8")[-_LOG_CHARACTERS:]
            raise UserError(f"{' '.join(command)} failed; the end of {log}:\n{end}")

    def train(self, command: str, name: str, config: TrainConfig, *more: str) -> RunFolder:
        """Train a run unless it is finished.

        Raises:
            UserError: a run of that name was trained by another plan.
        """
        run = self.run(name)
        if run.config.is_file():
            theirs = run.load_config()
            expected = replace(config, steps=theirs.steps) if "--cost-of" in more else config
            if theirs != expected:
                raise UserError(f"{run.path} is of another plan; use another --work")
            if run.saved_step() >= theirs.steps:
                return run
        recipe = self.work / "recipes" / f"{name}.toml"
        config.save(recipe)
        say(f"{command} {name}")
        options = ["--recipe", f"recipes/{name}.toml", "--name", name]
        self.start(name, "detofa", command, *options, "--threads", str(self.threads), *more)
        return run


def say(text: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def make_data(plan: Plan, place: Place) -> None:
    """Make the scenes and the crops that are not there yet.

    Raises:
        UserError: what is there was made by another plan.
    """
    if plan.glyphs is None:
        return
    task = plan.glyphs
    train, val, test = plan.scenes
    with _new_set(place, "scenes", task, {"train": train, "val": val, "test": test}) as folder:
        if folder is not None:
            make_scenes(folder, task, seed=0, train=train, val=val, test=test)
    of_test = {"train": 1, "val": 1, "test": test}
    with _new_set(place, "test_scenes", task, of_test) as folder:
        if folder is not None:
            make_scenes(folder, task, seed=plan.test_seed, **of_test)
    train, val = plan.crops
    with _new_set(place, "crops", task, {"train": train, "val": val}) as folder:
        if folder is not None:
            make_crops(folder, task, seed=0, train=train, val=val)


@contextlib.contextmanager
def _new_set(
    place: Place, name: str, task: GlyphTask, images: Mapping[str, int]
) -> Iterator[Path | None]:
    """Yield the folder to make a set in, which gets its name once it is whole; None if it is there.

    Raises:
        UserError: what is there was made by another plan.
    """
    folder = place.work / "data" / name
    if folder.is_dir():
        made = read_json(folder / TASK_FILE, "glyph_task", remake="another --work")
        if made["task"] != task.to_json() or made["images"] != images:
            raise UserError(f"{folder} is of another plan; use another --work")
        yield None
        return
    say(f"make {name}")
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    unfinished.rename(folder)


def starting_from(plan: Plan, place: Place) -> TrainConfig:
    """Return the settings of the arms, starting from the classification if the plan has one."""
    if plan.pretrain is None:
        return plan.train
    pretrained = replace(place, threads=torch.get_num_threads()).train(
        "pretrain", "pretrained", plan.pretrain
    )
    return replace(plan.train, init=str(pretrained.classifier.resolve()))


def run_arm(
    arm: str, seed: int, config: TrainConfig, place: Place, options: list[str], judged_by: str
) -> None:
    """Train and judge one arm of one seed, unless that is done."""
    name, filtered = f"{arm}-{seed}", f"detofa-{seed}"
    more = [] if arm in ("detofa", SAME_STEPS) else ["--cost-of", f"runs/{filtered}"]
    method = "ofa" if arm == SAME_STEPS else arm
    place.train("train", name, replace(config, method=method, seed=seed), *more)
    if Judgement.judged_by_of(place.judgement(name)) != judged_by:
        say(f"judge {name}")
        place.start(name, "benchmarks.method.run", *options, "--judge", name)


def run_arms(
    plan: Plan,
    arms: Sequence[str],
    config: TrainConfig,
    place: Place,
    jobs: int,
    options: list[str],
) -> None:
    """Train and judge all arms of all seeds, several at a time; the filtered arm comes first."""
    with ThreadPoolExecutor(jobs) as pool:
        filtered = {
            seed: pool.submit(run_arm, "detofa", seed, config, place, options, plan.judged_by)
            for seed in plan.seeds
        }

        def after_filter(arm: str, seed: int) -> None:
            filtered[seed].result()  # whose cost this arm's steps are told from
            run_arm(arm, seed, config, place, options, plan.judged_by)

        others: list[Future[None]] = [
            pool.submit(after_filter, arm, seed) for seed in plan.seeds for arm in arms[1:]
        ]
        try:
            for future in [*filtered.values(), *others]:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ---- the report ---------------------------------------------------------------------------


def report(
    title: str, plan: Plan, names: Sequence[str], place: Place, command: str, output: Path
) -> None:
    """Write the table, the plot and the JSON of the arms named."""
    results = {
        arm: [Judgement.load(place.judgement(f"{arm}-{seed}")) for seed in plan.seeds]
        for arm in names
    }
    edges = json.loads(place.run(f"detofa-{plan.seeds[0]}").filter_report.read_text())["bins"]
    low, high = edges["edges"][0], edges["edges"][-1]
    differences, saved = contrasts(results, low, high), savings(results)
    mismatch = macs_mismatch(results)
    chosen = {
        arm: interval([choice_alone(found) for found in results[arm]])
        for arm in names
        if arm != "detofa"
    }
    arms: dict[str, dict[str, list[float]]] = {
        arm: {
            "steps": [_config(place, arm, seed).steps for seed in plan.seeds],
            "seconds": [seconds_spent(place.run(f"{arm}-{seed}")).total for seed in plan.seeds],
            **{
                name: [measure(found) for found in results[arm]]
                for name, measure in measures(low, high).items()
            },
        }
        for arm in names
    }
    record = {
        "title": title,
        "command": command,
        "machine": machine(),
        "seeds": list(plan.seeds),
        "arms": arms,
        "differences": {
            name: {pair: found.to_json() for pair, found in pairs.items()}
            for name, pairs in differences.items()
        },
        "choice_alone": {arm: found.to_json() for arm, found in chosen.items()},
        "macs_mismatch": mismatch,
        "compute_saved_percent": {
            pair: None if found is None else found.to_json() for pair, found in saved.items()
        },
        "judgements": {
            f"{arm}-{seed}": json.loads(place.judgement(f"{arm}-{seed}").read_text())
            for arm in names
            for seed in plan.seeds
        },
        "filters": {
            str(seed): json.loads(place.run(f"detofa-{seed}").filter_report.read_text())
            for seed in plan.seeds
        },
    }
    text = _markdown(title, plan, arms, differences, saved, chosen, mismatch, command)
    write_json(output.with_suffix(".json"), "method_experiment", record)
    write_text(output.with_suffix(".md"), text)
    write_text(output.with_suffix(".svg"), plot(results))
    print(text)
    say(f"wrote {output.with_suffix('.md')}, .svg and .json")


def _config(place: Place, arm: str, seed: int) -> TrainConfig:
    return place.run(f"{arm}-{seed}").load_config()


def _markdown(
    title: str,
    plan: Plan,
    arms: Mapping[str, Mapping[str, list[float]]],
    differences: Mapping[str, Mapping[str, Interval]],
    saved: Mapping[str, Interval | None],
    chosen: Mapping[str, Interval],
    mismatch: float,
    command: str,
) -> str:
    names = [name for name in next(iter(arms.values())) if name not in ("steps", "seconds")]
    lines = [
        f"# {title}",
        "",
        f"Printed by `{command}`, seeds {', '.join(map(str, plan.seeds))}.",
        f"{machine()}.",
        "",
        "Means over seeds; AP in points (0 to 100).",
        "",
        f"| arm | steps | seconds in all | {' | '.join(names)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(names),
    ]
    for arm, figures in arms.items():
        cells = [f"{sum(figures[name]) / len(figures[name]):.2f}" for name in names]
        steps = "/".join(f"{value:.0f}" for value in figures["steps"])
        seconds = sum(figures["seconds"]) / len(figures["seconds"])
        lines.append(f"| {arm} | {steps} | {seconds:.0f} | {' | '.join(cells)} |")
    pairs = list(next(iter(differences.values())))
    lines += [
        "",
        "Differences, paired by seed, with 95 % intervals over seeds; random-pruned - ofa is the "
        "null contrast.",
        "",
        f"| | {' | '.join(pairs)} |",
        "| --- |" + " ---: |" * len(pairs),
    ]
    for name in names:
        cells = [f"{found}, {found.sign}" for found in differences[name].values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = ["flat" if found is None else f"{found} %" for found in saved.values()]
    lines += [
        f"| compute saved at equal AP | {' | '.join(cells)} |",
        "",
        "What the filter's choice alone adds, without training for it: the paths that it ranks "
        "highest less those of the same MACs that the arm drew, in the arm's own weights: "
        + "; ".join(f"{arm} {found}, {found.sign}" for arm, found in chosen.items())
        + ".",
        "",
        "- front: of each bin the candidate with the best AP on validation, on the test split; "
        f"{plan.candidates_per_bin} candidates a bin, in every arm at the MACs of those that the "
        f"filter ranks highest of what it kept (within {mismatch:.1%}).",
        "- candidates: all of them, on the test split: what a path that the arm would consider is "
        "worth before any is chosen.",
        "- same paths: how well one and the same path came out of each arm's training, on the test "
        f"split; {plan.paths_in_common} a bin of the whole space, and as many of those that the "
        "filter of that seed ranks highest.",
        "",
        _PAPER,
        "",
    ]
    return "\n".join(lines)


def machine() -> str:
    """Return the processor, cores and versions, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    return (
        f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{metadata.version('torch')}"
    )


def show_slope(plan: Plan, config: TrainConfig, place: Place) -> None:
    """Train plain once-for-all, and print how far the largest path is above the smallest."""
    run = place.train("train", "slope", replace(config, method="ofa", seed=0))
    records: list[dict[str, Any]] = run.read_metrics()
    for record in records:
        if "ap" in record:
            aps = {path: 100 * value for path, value in record["ap"].items()}
            told = ", ".join(f"{path} {value:.1f}" for path, value in aps.items())
            print(f"step {record['step']}: AP on validation: {told}")
    spent = seconds_spent(run)
    steps = run.load_config().steps
    print(f"{spent.training:.0f} s in all for {steps} steps of training; {machine()}")


def main() -> None:
    """Run the experiment, or one part of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--size", choices=SIZES, default="smoke", help="default %(default)s")
    parser.add_argument("--data", default="", help="folder of the data set; not for glyphs")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time; default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of each; default %(default)s")
    parser.add_argument("--processes", type=int, default=1, help="of each, under torchrun")
    parser.add_argument("--output", type=Path, help="report without suffix; default WORK/report")
    parser.add_argument(
        "--same-steps",
        action="store_true",
        help="also train the whole space for as many steps as the filtered arm",
    )
    parser.add_argument("--slope", action="store_true", help="only show that compute matters")
    parser.add_argument("--judge", metavar="RUN", help="only judge this finished run")
    options = parser.parse_args()
    try:
        _run(options)
    except UserError as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    if options.task != "glyphs" and not Path(options.data).is_dir():
        raise UserError(f"task {options.task} needs its data set's folder: --data DIR")
    if options.task != "glyphs":
        missing = {"train", "val", "test"} - set(available_splits(Path(options.data)))
        if missing:
            raise UserError(
                f"{options.data} lacks the splits {sorted(missing)}: an arm is chosen on one and "
                "judged on another; `detofa data split` makes them"
            )
    data = str(Path(options.data).resolve()) if options.data else ""
    plan = plan_of(options.task, options.size, data)
    work: Path = options.work.resolve()
    if plan.glyphs is not None:
        plan = replace(plan, test_data=work / "data" / "test_scenes")
    place = Place(work=work, threads=options.threads, processes=options.processes)
    if options.judge:
        os.chdir(work)
        run = place.run(options.judge)
        filtered = place.run(f"detofa-{run.load_config().seed}")
        Judge(run, plan, filtered).judge().save(place.judgement(options.judge))
        return
    (work / "recipes").mkdir(parents=True, exist_ok=True)
    make_data(plan, place)
    config = starting_from(plan, place)
    if options.slope:
        show_slope(plan, config, place)
        return
    again = [options.task, "--size", options.size, "--data", data, "--work", str(work)]
    arms = (*ARMS, SAME_STEPS) if options.same_steps else ARMS
    run_arms(plan, arms, config, place, options.jobs, again)
    command = f"python -m benchmarks.method.run {options.task} --size {options.size}"
    command += " --same-steps" if options.same_steps else ""
    title = f"{options.task}, {options.size}"
    report(title, plan, arms, place, command, options.output or work / "report")


if __name__ == "__main__":
    main()
