"""Detofa's detectors on BCCD beside YOLO11n and SSDLite, on one machine: AP against latency.

    python -m benchmarks.detectors --data BCCD --work DIR
    python -m benchmarks.detectors --data BCCD --work DIR --only yolo11n

Trains each peer and two supernets, chooses detofa's detectors for latency budgets by the validation
split, exports all as ONNX, takes the AP of each file on the test split, by which nothing is chosen,
and times all files in turn. Every stage is kept in DIR/stages and not made again; --only makes one,
so that trainings can run side by side. `search` and `latency` measure: leave the machine to them.
The end of all is DIR/result.json, DIR/result.png and tables.

The same for all: one image, one thread, boxes decoded in the file, NMS outside it and not timed;
AP by `detofa.data.evaluation` with at most 100 boxes an image. Each has the input size and
the NMS threshold that it comes with. Where a training is stopped, that of a peer begins anew and
detofa's goes on; its cost is then only that of the last part.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from detofa import recipes
from detofa.data.dataset import DetectionDataset, load_dataset
from detofa.data.evaluation import evaluate_detections
from detofa.errors import UserError
from detofa.files import write_text
from detofa.imaging import read_image, resize
from detofa.profiling.device import this_cpu
from detofa.profiling.table import LatencyTable, load_table
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector, open_detector
from detofa.runtime.measuring import Schedule, measure_models
from detofa.runtime.runtimes import OnnxRuntimeCpu
from detofa.search import pareto_front
from detofa.train.evaluate import EVALUATION_THRESHOLD

Record = dict[str, Any]
Values = NDArray[np.float64]
INITS = {"detofa-imagenet": "efficientnet-lite0", "detofa-scratch": "random"}
"""What the weights of a supernet start from, by the name of its run."""
TRAININGS = (*peers.YOLO_WIDTHS, peers.SSDLITE, *INITS)
STAGES = (*TRAININGS, "search", "score", "latency")
FIGURES = {"ap": "AP", "ap50": "AP50"}
_RECIPE = recipes.bccd(Path("BCCD"))
_FOLDERS = ("data", "work")
_LIBRARIES = ("torch", "torchvision", "onnxruntime", "numpy", "ultralytics", "onnxslim")
_SPARE = 1.06  # times the fastest and the slowest detector: searches leave 5 % of a budget spare
_PEERS = ("YOLO11n at three widths, from scratch", "SSDLite320-MobileNetV3, from scratch")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained and measured.

    Attributes:
        data: BCCD.
        work: Folder of all that is made.
        seed: Decides weights, batches, searches and the order of timing.
        threads: Threads of a training.
        yolo_epochs: Epochs of YOLO.
        ssdlite_epochs: Epochs of SSDLite.
        steps: Steps of detofa's supernets.
        budgets: Latency budgets, from the fastest to the slowest detector of detofa.
        labels: Paths evaluated before the first search of a supernet.
        profile_seconds: Time for detofa's latency table.
        passes: Visits to each file when all are timed.
        resamples: Test splits drawn from the images of the test split, for intervals.
    """

    data: Path
    work: Path
    seed: int = 0
    threads: int = 1
    yolo_epochs: int = 40
    ssdlite_epochs: int = 25
    steps: int = _RECIPE.steps
    budgets: int = 5
    labels: int = 24
    profile_seconds: int = 90
    passes: int = 40
    resamples: int = 200

    @property
    def detofa(self) -> Path:
        """Return where detofa's commands run."""
        return self.work / "detofa"

    def model(self, name: str) -> Path:
        """Return the ONNX file of a detector."""
        return self.work / "models" / f"{name}.onnx"

    def kept(self, stage: str, settings: Record, make: Callable[[], Record]) -> Record:
        """Return what a stage made, now or earlier with the same settings and seed.

        Raises:
            UserError: it was made with others.
        """
        path = self.work / "stages" / f"{stage}.json"
        settings = settings | {"seed": self.seed}
        if not path.is_file():
            print(f"[{stage}]", flush=True)
            write_text(path, json.dumps(make() | {"settings": settings}, indent=1) + "\n")
        record: Record = json.loads(path.read_text())
        if record["settings"] != settings:
            raise UserError(
                f"{path} was made with {record['settings']}, and {settings} is wanted; take the "
                "same options, or another --work"
            )
        return record


def _in_process(work: Callable[..., Record], *arguments: Any) -> Record:
    """Return what work returns in a fresh process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _run_detofa(plan: Plan, *arguments: str) -> Record:
    """Run one of detofa's commands in its folder; return what it cost.

    Raises:
        UserError: it failed.
    """
    plan.detofa.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "detofa", *arguments, "--seed", str(plan.seed)]
    try:
        return peers.cost_of(
            lambda: subprocess.run(command, cwd=plan.detofa, env=environment, check=True)
        )
    except subprocess.CalledProcessError as error:
        raise UserError(f"`detofa {arguments[0]}` failed; what it printed says why") from error


def train(plan: Plan, name: str) -> Record:
    """Train and export a peer, or train a supernet; return what the training cost."""
    places, common = (plan.data, plan.work / name, plan.model(name)), (plan.seed, plan.threads)
    settings: Record = {"threads": plan.threads}
    if name in peers.YOLO_WIDTHS:
        width = peers.YOLO_WIDTHS[name]
        settings |= {"width": width, "epochs": plan.yolo_epochs}
        own: tuple[Any, ...] = (peers.train_yolo, *places, width, plan.yolo_epochs)
        make = partial(_in_process, *own, *common)
    elif name == peers.SSDLITE:
        settings |= {"epochs": plan.ssdlite_epochs}
        own = (peers.train_ssdlite, *places, plan.ssdlite_epochs)
        make = partial(_in_process, *own, *common)
    else:
        own_settings = {"init": INITS[name], "steps": plan.steps}
        settings |= {"recipe": _RECIPE.to_json() | own_settings}
        command = ["train", "--data", str(plan.data), "--recipe", "bccd", "--name", name]
        command += ["--init", INITS[name], "--steps", str(plan.steps)]
        make = partial(_run_detofa, plan, *command, "--threads", str(plan.threads))
    return plan.kept(name, settings, make)


def search(plan: Plan) -> dict[str, Record]:
    """Choose detofa's detectors by the validation split, and export them; return them by name."""
    command = ["profile", "--run", next(iter(INITS))]
    command += ["--budget-seconds", str(plan.profile_seconds)]
    settings = {"profile_seconds": plan.profile_seconds}
    plan.kept("profile", settings, partial(_run_detofa, plan, *command))
    (path,) = (plan.detofa / "latency_tables").glob("*.json")
    limits = budgets_ms(load_table(path), plan.budgets)
    return {
        f"{run}-{number}": _chosen(plan, run, f"{run}-{number}", limit)
        for run in INITS
        for number, limit in enumerate(limits, start=1)
    }


def budgets_ms(table: LatencyTable, count: int) -> list[float]:
    """Return budgets in equal ratios, from the fastest to the slowest detector of a table."""
    limits = np.geomspace(_SPARE * table.reach.low, _SPARE * table.reach.high, count)
    most = table.reach.high - 0.005  # so that rounding leaves it within reach
    return [round(min(float(limit), most), 2) for limit in limits]


def _chosen(plan: Plan, run: str, name: str, limit_ms: float) -> Record:
    """Choose one detector by the validation split and export it; return what it is."""
    subnet, output = plan.detofa / f"{name}.json", plan.model(name)

    def make() -> Record:
        output.parent.mkdir(parents=True, exist_ok=True)
        command = ["search", "--run", run, "--latency", f"{limit_ms}ms", "--output", str(subnet)]
        cost = _run_detofa(plan, *command, "--labels", str(plan.labels))
        _run_detofa(plan, "export", str(subnet), "--output", str(output))
        chosen = json.loads(subnet.read_text())
        return cost | {"arch": chosen["arch"], "figures": chosen["figures"]}

    settings = {"budget_ms": limit_ms, "steps": plan.steps, "labels": plan.labels}
    return plan.kept(f"search-{name}", settings, make)


def names(plan: Plan) -> list[str]:
    """Return all detectors by name."""
    chosen = [f"{run}-{number}" for run in INITS for number in range(1, plan.budgets + 1)]
    return [*peers.YOLO_WIDTHS, peers.SSDLITE, *chosen]


def family(name: str) -> str:
    """Return what a detector is one of and, last, what its weights start from."""
    of_peer = {peers.SSDLITE: _PEERS[1]} | dict.fromkeys(peers.YOLO_WIDTHS, _PEERS[0])
    begun = "from scratch" if "scratch" in name else "backbone pre-trained on ImageNet"
    return of_peer.get(name, f"detofa, one supernet, {begun}")


def detect_all(
    detector: Detector, files: Sequence[Path], *, stretches: bool = False
) -> list[Detections]:
    """Return the detections of each image file, pixels of that image.

    Args:
        detector: An opened detector.
        files: Images.
        stretches: Whether it wants images of its input's very size, whatever their aspect.
    """
    found = []
    for image in map(read_image, files):
        given = resize(image, detector.session.image_size) if stretches else image
        (one,) = detector.detect([given], score_threshold=EVALUATION_THRESHOLD)
        found.append(rescaled(one, given.shape[:2], image.shape[:2]))
    return found


def rescaled(found: Detections, size: tuple[int, ...], wanted: tuple[int, ...]) -> Detections:
    """Move detections from an image of one (height, width) to its copy of another."""
    factors = np.tile(np.array(wanted[::-1]) / np.array(size[::-1]), 2)
    return replace(found, boxes_xyxy=(found.boxes_xyxy * factors).astype(np.float32))


@cache
def found_on_test(plan: Plan, name: str) -> tuple[list[Detections], list[int]]:
    """Return what a file finds in the test split's images, and its input's (height, width)."""
    dataset, model = load_dataset(plan.data, "test"), plan.model(name)
    categories = tuple((category.id, category.name) for category in dataset.categories)
    is_peer = family(name) in _PEERS
    files = [image.path for image in dataset.images]
    with peers.open_peer(name, model, categories) if is_peer else open_detector(model) as one:
        found = detect_all(one, files, stretches=name == peers.SSDLITE)
        return found, list(one.session.image_size)


def score(plan: Plan, name: str) -> Record:
    """Return the AP of a file on the test split."""

    def make() -> Record:
        found, size = found_on_test(plan, name)
        ap = evaluate_detections(load_dataset(plan.data, "test"), found)
        return asdict(ap) | {"image_size": size}

    return plan.kept(f"score-{name}", {}, make)


def rivals(p50_ms: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return each peer with the slowest detector of each supernet that is not slower, if any."""
    pairs = []
    for peer in (*peers.YOLO_WIDTHS, peers.SSDLITE):
        for run in INITS:
            own = [one for one in p50_ms if one.startswith(run) and p50_ms[one] <= p50_ms[peer]]
            if own:
                pairs.append((peer, max(own, key=lambda one: p50_ms[one])))
    return pairs


def differences(plan: Plan, detectors: Sequence[Record]) -> list[Record]:
    """Return by how much detofa's detectors differ from their rivals on the test split.

    The interval holds 95 % of the differences on splits drawn anew from the images of this one
    (bootstrap): what other images might have given, with the same weights.

    Returns:
        Records of a peer, a detector, and for each figure (2.5 %, as measured, 97.5 %).
    """
    pairs = rivals({one["name"]: one["quartiles_ms"][1] for one in detectors})

    def make() -> Record:
        found = {name: found_on_test(plan, name)[0] for pair in pairs for name in pair}
        drawn = resampled(load_dataset(plan.data, "test"), found, plan.resamples, plan.seed)
        intervals = [
            {
                key: np.percentile(drawn[key][ours] - drawn[key][peer], [2.5, 97.5]).tolist()
                for key in FIGURES
            }
            for peer, ours in pairs
        ]
        return {"intervals": intervals}

    settings = {"pairs": [list(pair) for pair in pairs], "resamples": plan.resamples}
    intervals = plan.kept("differences", settings, make)["intervals"]
    test = {one["name"]: one["test"] for one in detectors}
    return [
        {"peer": peer, "detector": ours}
        | {key: [low, test[ours][key] - test[peer][key], high] for key, (low, high) in one.items()}
        for (peer, ours), one in zip(pairs, intervals, strict=True)
    ]


def resampled(
    dataset: DetectionDataset, found: Mapping[str, Sequence[Detections]], count: int, seed: int
) -> dict[str, dict[str, Values]]:
    """Return each figure of each detector on splits drawn from a split's images, with repeats.

    Args:
        dataset: The split.
        found: Of each detector, the detections in each of its images.
        count: Splits drawn; all detectors see the same.
        seed: Decides them.

    Returns:
        By figure and detector, (count,) values.
    """
    figures: dict[str, dict[str, Values]] = {
        key: {name: np.zeros(count) for name in found} for key in FIGURES
    }
    generator = np.random.default_rng(seed)
    for draw in range(count):
        places = generator.integers(len(dataset.images), size=len(dataset.images)).tolist()
        images = [replace(dataset.images[at], image_id=new) for new, at in enumerate(places)]
        split = replace(dataset, images=tuple(images))
        for name, detections in found.items():
            ap = evaluate_detections(split, [detections[at] for at in places])
            for key in FIGURES:
                figures[key][name][draw] = getattr(ap, key)
    return figures


def latency(plan: Plan) -> Record:
    """Return what one call of each file takes in milliseconds of processor time, quartiles."""

    def make() -> Record:
        models = {name: plan.model(name).read_bytes for name in names(plan)}
        schedule = Schedule(passes=plan.passes, seed=plan.seed)
        samples = measure_models(models, OnnxRuntimeCpu(threads=1, batch=1), schedule)
        errors, pooled = samples.errors(), samples.pooled()
        quartiles = {name: np.percentile(ms, [25, 50, 75]).tolist() for name, ms in pooled.items()}
        return {"quartiles_ms": quartiles, "p50_error": errors}

    return plan.kept("latency", {"names": names(plan), "passes": plan.passes}, make)


def gather(plan: Plan) -> Record:
    """Return the figures of all detectors with machine, versions and costs."""
    costs = {name: train(plan, name) for name in TRAININGS}
    chosen, quartiles = search(plan), latency(plan)["quartiles_ms"]
    detectors = []
    for name in names(plan):
        run = name if name in costs else name.rpartition("-")[0]
        about = {"name": name, "family": family(name), "quartiles_ms": quartiles[name]}
        about |= {"megabytes": plan.model(name).stat().st_size / 1e6, "training": costs[run]}
        detectors.append(about | {"test": score(plan, name), "search": chosen.get(name)})
    mark_fronts(detectors)
    return {
        "machine": this_cpu().to_json(),
        "python": sys.version.split()[0],
        "libraries": {library: _version(library) for library in _LIBRARIES},
        "date": time.strftime("%Y-%m-%d"),
        "plan": {key: value for key, value in asdict(plan).items() if key not in _FOLDERS},
        "profile": json.loads((plan.work / "stages" / "profile.json").read_text()),
        "detectors": detectors,
        "differences": differences(plan, detectors),
    }


def mark_fronts(detectors: Sequence[Record]) -> None:
    """Note in each record the figures, AP or AP50, that no faster detector reaches."""
    ms = np.array([one["quartiles_ms"][1] for one in detectors])
    fronts = {
        label: pareto_front(ms, np.array([one["test"][key] for one in detectors]))
        for key, label in FIGURES.items()
    }
    for index, one in enumerate(detectors):
        one["fronts"] = [label for label, front in fronts.items() if index in front]


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def table(detectors: Sequence[Record]) -> str:
    """Return the figures as a Markdown table, the fastest first within a family."""
    columns = ["detector", "starts", "input", "ms, p50 (quartiles)", "AP", "AP50"]
    columns += ["Platelets' AP50", "MB", "training, CPU s (wall)", "on the front"]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for one in sorted(detectors, key=lambda one: (one["family"], one["quartiles_ms"][1])):
        low, middle, high = one["quartiles_ms"]
        test, training = one["test"], one["training"]
        classes = {item["name"]: item["ap50"] for item in test["per_class"]}
        cells = [one["name"], one["family"].rpartition(", ")[2]]
        cells += ["x".join(map(str, test["image_size"])), f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        cells += [f"{test['ap']:.3f}", f"{test['ap50']:.3f}"]
        cells += [f"{classes.get('Platelets') or 0:.3f}", f"{one['megabytes']:.1f}"]
        cells += [f"{training['cpu_seconds']:.0f} ({training['wall_seconds']:.0f})"]
        lines.append(f"| {' | '.join([*cells, ', '.join(one['fronts'])])} |")
    return "\n".join(lines)


def differences_table(between: Sequence[Record]) -> str:
    """Return the differences to the peers as a Markdown table."""
    columns = ["peer", "detofa's slowest that is not slower"]
    columns += [f"{label} (95 % interval)" for label in FIGURES.values()]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for one in between:
        spans = ("{1:+.3f} ({0:+.3f} to {2:+.3f})".format(*one[key]) for key in FIGURES)
        lines.append(f"| {one['peer']} | {one['detector']} | {' | '.join(spans)} |")
    return "\n".join(lines)


def other_costs(result: Record) -> str:
    """Return what detofa's detectors cost beside the training, as sentences."""
    lines = [f"Latency table: {result['profile']['cpu_seconds']:.0f} CPU s."]
    for run in INITS:
        found = [one["search"] for one in result["detectors"] if one["name"].startswith(run)]
        spent = sum(one["cpu_seconds"] for one in found)
        lines.append(f"{len(found)} searches of {run}: {spent:.0f} CPU s.")
    return "\n".join(lines)


def plot(result: Record, output: Path) -> None:
    """Draw AP and AP50 against latency, each family as a line with its own marks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    families = dict.fromkeys(one["family"] for one in result["detectors"])
    for panel, (key, label) in enumerate(FIGURES.items(), start=1):
        axes = figure.add_subplot(1, 2, panel)
        for name, mark in zip(families, "s^oD", strict=True):
            some = [one for one in result["detectors"] if one["family"] == name]
            some.sort(key=lambda one: one["quartiles_ms"][1])
            ms = np.array([one["quartiles_ms"] for one in some]).T
            scores = [one["test"][key] for one in some]
            spread = [ms[1] - ms[0], ms[2] - ms[1]]
            axes.errorbar(ms[1], scores, xerr=spread, marker=mark, capsize=2, label=name)
        axes.set(xlabel="ms of one image, one thread", ylabel=f"{label}, BCCD test split")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(output, dpi=130)


def main() -> None:
    """Make one stage, or all of them."""
    defaults = {name: field.default for name, field in Plan.__dataclass_fields__.items()}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="BCCD")
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is made")
    counts = {name: value for name, value in defaults.items() if isinstance(value, int)}
    for name, value in counts.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=value, help=f"default {value}")
    parser.add_argument("--only", choices=STAGES, help="make this stage, and what it needs")
    options = vars(parser.parse_args())
    only = options.pop("only")
    options |= {"data": options["data"].resolve(), "work": options["work"].resolve()}
    plan = Plan(**options)
    os.environ["OMP_NUM_THREADS"] = str(plan.threads)
    try:
        make(plan, only)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def make(plan: Plan, only: str | None) -> None:
    """Make a stage and what it needs, or all and show the result."""
    if only in TRAININGS:
        train(plan, only)
        return
    for name in INITS if only == "search" else TRAININGS:
        train(plan, name)
    search(plan)
    if only == "score":
        for name in names(plan):
            score(plan, name)
    elif only == "latency":
        latency(plan)
    elif only is None:
        result = gather(plan)
        write_text(plan.work / "result.json", json.dumps(result, indent=1) + "\n")
        plot(result, plan.work / "result.png")
        print(f"\n{result['machine']['name']}, {result['date']}, seed {plan.seed}\n")
        tables = table(result["detectors"]), differences_table(result["differences"])
        print(*tables, other_costs(result), sep="\n\n")


if __name__ == "__main__":
    main()
