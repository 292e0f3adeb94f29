"""The methods: what each trains on after the warm-up, exact resume, and labels that stay."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detofa.arch import Arch
from detofa.data.demo import make_demo_dataset
from detofa.errors import UserError
from detofa.path_filter.pruned_space import PrunedSpace
from detofa.space import Genes
from detofa.train.config import FilterPlan, TrainConfig
from detofa.train.evaluate import evaluate_paths
from detofa.train.method import budgets_of, train_by_method
from detofa.train.trainer import Trainer
from tests.samples import Quiet, config_of, trainer_of

PLAN = FilterPlan(bins=2, labels_per_bin=4, keep=0.5, prune="always")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("method") / "data"
    make_demo_dataset(folder, train=8, val=6, test=4, image_size=(96, 128))
    return folder


def never() -> bool:
    return False


def settings(data: Path, method: str, plan: FilterPlan = PLAN) -> TrainConfig:
    return config_of(data, method=method, filter=plan, steps=4, largest_first=0.0)


def trained_paths(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[list[Arch]]:
    """Return the list that the paths of each step will be added to."""
    steps: list[list[Arch]] = []
    call = trainer._gradients.__call__

    def gradients(batch: object, archs: list[Arch]) -> object:
        steps.append(list(archs))
        return call(batch, archs)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "_gradients", gradients)
    return steps


@pytest.mark.parametrize("method", ["detofa", "random-pruned"])
def test_after_the_warm_up_only_paths_of_the_pruned_space_are_trained(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(settings(data, method), random_paths=6)
    trainer = trainer_of(config, tmp_path)
    steps = trained_paths(trainer, monkeypatch)
    told: list[str] = []
    assert train_by_method(trainer, Quiet(), never, tell=told.append)
    pruned = PrunedSpace.load(trainer.run.pruned_space, trainer.space, budgets_of(trainer).cost)
    inside = [pruned.contains(genes_of(trainer, archs)) for archs in steps]
    assert not np.concatenate(inside[:2]).all()
    assert np.concatenate(inside[2:]).all()
    labels = trainer.run.path_filter / "labels.json"
    assert labels.is_file() == (method == "detofa")
    if method == "detofa":
        assert len(json.loads(labels.read_text())["paths"]) == 8
        assert "tau" in " ".join(told)


def genes_of(trainer: Trainer, archs: list[Arch]) -> Genes:
    return np.stack([trainer.space.genes(arch) for arch in archs])


def test_a_run_stopped_after_pruning_resumes_exactly_and_evaluates_no_label_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trainer_of(settings(data, "detofa"), tmp_path / "straight")
    assert train_by_method(straight, Quiet(), never)
    first = trainer_of(settings(data, "detofa"), tmp_path / "broken")
    assert not train_by_method(first, Quiet(), lambda: first.step == 3)
    again = trainer_of(settings(data, "detofa"), tmp_path / "broken")
    monkeypatch.setattr("detofa.train.method.evaluate_paths", None)
    assert train_by_method(again, Quiet(), never)
    for name, value in again.averaged_supernet.state_dict().items():
        assert torch.equal(value, straight.averaged_supernet.state_dict()[name]), name


def test_a_filter_that_proves_nothing_leaves_the_space_whole(data: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, prune="advised")
    trainer = trainer_of(settings(data, "detofa", plan), tmp_path)
    told: list[str] = []
    assert train_by_method(trainer, Quiet(), never, tell=told.append)
    assert any("do not prune" in line for line in told)  # eight labels of an untrained supernet
    assert not trainer.run.pruned_space.exists()
    plain = trainer_of(settings(data, "ofa"), tmp_path / "ofa")
    assert train_by_method(plain, Quiet(), never)
    for name, value in plain.averaged_supernet.state_dict().items():
        assert torch.equal(value, trainer.averaged_supernet.state_dict()[name]), name


def test_labels_are_evaluated_on_as_many_images_as_the_settings_say(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def spy(
        supernet: Any, archs: Any, recalibration: Any, images: Any, *rest: Any, **more: Any
    ) -> Any:
        counts.append([record.image_id for record in images.images])
        return evaluate_paths(supernet, archs, recalibration, images, *rest, **more)

    monkeypatch.setattr("detofa.train.method.evaluate_paths", spy)
    plan = dataclasses.replace(PLAN, label_images=3)
    trainer = trainer_of(settings(data, "detofa", plan), tmp_path)
    assert train_by_method(trainer, Quiet(), never)
    assert {len(images) for images in counts} == {3}  # of six
    assert len({tuple(images) for images in counts}) == 1
    assert len(trainer.task.validation.images) == 6


def test_what_would_fail_after_the_warm_up_fails_before_it(data: Path, tmp_path: Path) -> None:
    for plan, message in (
        (dataclasses.replace(PLAN, table="missing.json"), "does not exist"),
        (dataclasses.replace(PLAN, bins=40, labels_per_bin=400), "archs"),
    ):
        trainer = trainer_of(settings(data, "detofa", plan), tmp_path / message)
        with pytest.raises(UserError, match=message):
            train_by_method(trainer, Quiet(), never)
        assert trainer.run.read_metrics() == []


def test_settings_that_make_no_sense_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match="method should be"):
        config_of(data, method="magic")
    with pytest.raises(UserError, match="pre-training is by ofa"):
        config_of(data, method="detofa", task="classification")
    changes = ({"warm_up": 1.0}, {"keep": 0.0}, {"labels_per_bin": 3}, {"label_images": 1})
    for change in (*changes, {"prune": "maybe"}):
        with pytest.raises(UserError):
            dataclasses.replace(PLAN, **change)
