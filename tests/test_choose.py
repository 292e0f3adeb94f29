"""Choosing a subnet: within its budget, evaluated for real, and written whole."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from detofa.arch import Arch
from detofa.choose.chooser import Chooser
from detofa.choose.records import Budget, Finalist, merit
from detofa.data.demo import make_demo_dataset
from detofa.errors import UserError
from detofa.files import read_json, sha256_file
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.pruned_space import cut_space
from detofa.presets import preset
from detofa.profiling.cost import all_blocks, block_macs
from detofa.profiling.measure import ProfilePlan, measure_table
from detofa.profiling.table import LatencyTable
from detofa.runtime.measuring import Schedule
from detofa.subnet import PostProcessing, Subnet
from detofa.train.checkpoint import load_subnet
from detofa.train.evaluate import PathFigures, evaluate_detector, torch_detector
from detofa.train.filtering import Budgets, draw_paths_to_label
from detofa.train.path_evaluations import PathEvaluations
from detofa.train.run import RunFolder
from tests.path_filter.problems import QUICK, Problem
from tests.samples import Quiet, config_of, trainer_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("choose")
    data = folder / "data"
    make_demo_dataset(data, train=8, val=4, test=4, image_size=(96, 128))
    config = config_of(
        data,
        image_sizes=((64, 64), (96, 128)),
        steps=2,
        largest_first=0.0,
        recalibration_images=4,
        distillation=0.0,
    )
    trainer = trainer_of(config, folder / "run")
    trainer.begin("detofa train")
    trainer.train(Quiet(), lambda: False)
    return trainer.run


@pytest.fixture(scope="module")
def table(run: RunFolder) -> LatencyTable:
    space = Chooser(run, labels=0).space
    plan = ProfilePlan.draw(space, num_fit=6, num_held_out=5)
    return measure_table(plan, schedule=Schedule(passes=2), budget_seconds=5)


def test_the_winner_is_within_a_compute_budget_and_its_files_are_whole(
    run: RunFolder, tmp_path: Path
) -> None:
    chooser = Chooser(run, labels=4)
    ends = chooser.macs(
        np.stack([chooser.space.genes(a) for a in (chooser.space.smallest, chooser.space.largest)])
    )
    limit = float(ends.mean())
    choice = chooser.choose(
        Budget(kind="macs", limit=limit), tmp_path / "subnet.json", top_k=2, command="detofa search"
    )
    assert all(item.macs <= limit for item in choice.finalists)
    assert choice.finalists[0].ap == max(item.ap for item in choice.finalists)
    subnet, detector = load_subnet(choice.subnet_path)
    assert subnet == choice.subnet == Subnet.load(tmp_path / "subnet.json")
    assert subnet.figures["macs"].value == choice.finalists[0].macs
    assert subnet.supernet_sha256 == sha256_file(run.supernet)
    again = torch_detector(
        detector,
        subnet.space,
        subnet.arch,
        subnet.preprocessing,
        subnet.categories,
        PostProcessing(),
    )
    ap, _ = evaluate_detector(again, chooser.validation)
    assert ap.ap == subnet.figures["ap"].value


def test_what_was_evaluated_is_not_evaluated_again(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(kind="macs", limit=1e12)
    first = Chooser(run, labels=4).choose(budget, tmp_path / "a.json", top_k=2)
    monkeypatch.setattr("detofa.choose.chooser.evaluate_paths", None)
    second = Chooser(run, labels=4).choose(budget, tmp_path / "b.json", top_k=2)
    assert [item.arch for item in second.finalists] == [item.arch for item in first.finalists]
    assert len(second.notes) == 1  # a budget that allows everything is said to


def test_an_impossible_budget_is_answered_before_anything_is_evaluated(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detofa.choose.chooser.evaluate_paths", None)
    (run.path / "path_evaluations.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"MACs"):
        Chooser(run).choose(Budget(kind="macs", limit=10.0), tmp_path / "subnet.json")
    assert list(tmp_path.iterdir()) == []


def test_a_cap_on_file_size_holds_for_the_file(run: RunFolder, tmp_path: Path) -> None:
    chooser = Chooser(run, labels=2)
    smallest = chooser.num_params(chooser.space.genes(chooser.space.smallest)[None])[0]
    largest = chooser.num_params(chooser.space.genes(chooser.space.largest)[None])[0]
    limit = 4 * float(smallest + largest) / 2
    choice = chooser.choose(
        Budget(kind="macs", limit=1e12),
        tmp_path / "subnet.json",
        top_k=1,
        max_file_bytes=limit,
    )
    assert choice.subnet.figures["num_params"].value * 4 <= limit
    weights = tmp_path / choice.subnet.weights_file
    # Running statistics and names come on top of the parameters.
    assert weights.stat().st_size < 1.5 * limit


def test_a_latency_budget_needs_a_table_of_this_space(
    run: RunFolder, table: LatencyTable, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="detofa profile"):
        Chooser(run).choose(Budget(kind="latency", limit=5.0), tmp_path / "subnet.json")
    foreign = dataclasses.replace(table, space=table.space.with_task(num_classes=3))
    with pytest.raises(UserError, match="is of space"):
        Chooser(run, table=foreign)


def test_latency_finalists_are_compared_by_the_upper_edge_and_measured(
    run: RunFolder, table: LatencyTable, tmp_path: Path
) -> None:
    chooser = Chooser(run, table=table, labels=2)
    ends = np.stack(
        [chooser.space.genes(a) for a in (chooser.space.smallest, chooser.space.largest)]
    )
    limit = float(table.predict_interval(ends)[1].mean())
    choice = chooser.choose(Budget(kind="latency", limit=limit), tmp_path / "subnet.json", top_k=2)
    for item in choice.finalists:
        assert item.low_ms is not None
        assert item.high_ms is not None
        assert item.predicted_ms is not None
        assert item.measured_ms is not None
        assert item.low_ms < item.predicted_ms < item.high_ms <= limit
        assert item.measured_ms > 0
    figures = choice.subnet.figures
    assert figures["latency_predicted"].source == "predicted"
    assert figures["latency"].conditions["device"] == table.device.name
    assert choice.subnet.table_sha256 == table.sha256


def test_what_fits_with_room_for_the_measurement_comes_first_then_what_is_nearest() -> None:
    def finalist(ap: float, measured_ms: float | None, high_ms: float = 9.0) -> Finalist:
        return Finalist(
            arch=preset("tiny", num_classes=1, image_sizes=[(64, 64)]).smallest,
            predicted_ap=0.0,
            ap=ap,
            ap50=0.0,
            macs=ap * 100,
            num_params=1.0,
            high_ms=high_ms,
            measured_ms=measured_ms,
        )

    items = [finalist(0.9, 10.4), finalist(0.8, 9.9), finalist(0.5, 9.0), finalist(0.6, 9.7)]
    budget = Budget(kind="latency", limit=10.0)
    ordered = sorted(items, key=lambda item: merit(item, budget))
    assert [item.ap for item in ordered] == [0.6, 0.5, 0.8, 0.9]
    elsewhere = [finalist(0.9, None, 10.1), finalist(0.5, None, 10.0)]
    assert min(elsewhere, key=lambda item: merit(item, budget)).ap == 0.5
    macs = Budget(kind="macs", limit=85.0)
    assert min(items, key=lambda item: merit(item, macs)).ap == 0.8


def test_the_front_rises_with_cost_and_is_written(run: RunFolder) -> None:
    front = Chooser(run, labels=4).front("macs", count=4)
    costs = [item.macs for item in front]
    assert costs == sorted(costs)
    assert [item.ap for item in front] == sorted(item.ap for item in front)
    record = read_json(run.path / "pareto.json", "pareto", remake="`detofa search --pareto`")
    assert [point["macs"] for point in record["points"]] == costs
    for index in range(len(front)):
        load_subnet(run.subnets / f"front-{index}.json")


@pytest.fixture(scope="module")
def pruned_run(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a copy of the run with a space pruned by a path filter, in bins of MACs."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("path_evaluations.json"))
    space = Chooser(run, labels=0).space
    problem = Problem(space=space, bins_count=3)
    rng = np.random.default_rng(0)
    cut_space(space, problem.fit(), problem.cost, rng, archs_per_bin=500).save(
        RunFolder(path=folder).pruned_space
    )
    return RunFolder(path=folder)


@pytest.mark.parametrize("share", [0.4, 1.0, 100.0])
def test_a_search_stays_in_the_pruned_space_whatever_the_budget(
    pruned_run: RunFolder, tmp_path: Path, share: float
) -> None:
    chooser = Chooser(pruned_run, labels=2)
    pruned = chooser.ranking.pruned
    assert pruned is not None
    low, high = chooser.macs(chooser.space.ends)
    budget = Budget(kind="macs", limit=float(low + share * (high - low)))
    choice = chooser.choose(budget, tmp_path / "subnet.json", top_k=3)
    genes = np.stack([chooser.space.genes(item.arch) for item in choice.finalists])
    assert pruned.contains(genes).all()
    near = chooser.macs(genes) > 0.5 * min(budget.limit, high)
    assert near.sum() >= 2  # the filter's own choices use the budget


def test_the_front_goes_by_the_bins_of_the_path_filter_even_beside_a_latency_table(
    pruned_run: RunFolder, table: LatencyTable
) -> None:
    chooser = Chooser(pruned_run, table=table, labels=2)
    front = chooser.front(count=6)
    record = read_json(pruned_run.path / "pareto.json", "pareto", remake="`detofa search --pareto`")
    assert record["cost"] == "macs"
    pruned = chooser.ranking.pruned
    assert pruned is not None
    assert pruned.contains(np.stack([chooser.space.genes(item.arch) for item in front])).all()
    assert all(item.measured_ms is not None for item in front)


def test_a_space_pruned_by_latency_is_searched_up_to_its_slowest(
    run: RunFolder, table: LatencyTable, tmp_path: Path
) -> None:
    # A few passes on a busy machine tell little: prices are made up.
    prices = {key: block_macs(block) / 1e6 for key, block in all_blocks(table.space).items()}
    table = dataclasses.replace(table, interval=0.01, block_ms=prices)
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("path_evaluations.json"))
    space, rng = table.space, np.random.default_rng(0)
    budgets = Budgets.of(space, 3, table)
    genes = draw_paths_to_label(space, budgets, 8, 0)
    path_filter = PathFilter.fit(
        space,
        genes,
        Problem(space=space).truth(genes),
        table.predict(genes),
        budgets.bins,
        seed=0,
        label="made up",
        settings=QUICK,
    )
    pruned = cut_space(space, path_filter, table.predict, rng, archs_per_bin=500)
    pruned.save(RunFolder(path=folder).pruned_space)
    chooser = Chooser(RunFolder(path=folder), table=table, labels=2)
    low, high = table.predict(space.ends)
    choice = chooser.choose(Budget(kind="latency", limit=float(high)), tmp_path / "a.json", top_k=2)
    slowest = max(item.predicted_ms or 0.0 for item in choice.finalists)
    assert slowest > low + 0.5 * (high - low)
    front = chooser.front(count=6)
    record = read_json(folder / "pareto.json", "pareto", remake="`detofa search --pareto`")
    assert record["cost"] == "latency"
    assert pruned.contains(np.stack([space.genes(item.arch) for item in front])).all()


def test_evaluations_of_other_weights_do_not_count(run: RunFolder) -> None:
    chooser = Chooser(run, labels=0)
    chooser.evaluate([chooser.space.genes(chooser.space.smallest)], "evaluate")

    def never(archs: Sequence[Arch], halves: bool) -> Iterator[PathFigures]:
        raise AssertionError(archs)

    same = PathEvaluations(
        path=run.path / "path_evaluations.json",
        space=chooser.space,
        supernet_sha256=sha256_file(run.supernet),
        recalibration=chooser.recalibration.to_json(),
        evaluate=never,
    )
    assert len(same.best_first()) > 0
    for change in ({"supernet_sha256": "another"}, {"recalibration": {"images": 1}}):
        other = dataclasses.replace(same, **change, _figures={})
        assert len(other.best_first()) == 0
