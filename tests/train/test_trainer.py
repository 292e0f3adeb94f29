"""Training: what a run does is decided by its settings, and an interrupted run loses nothing."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from detofa.data.demo import make_demo_dataset
from detofa.errors import UserError
from detofa.subnet import PostProcessing
from detofa.supernet.detector import Supernet
from detofa.train.checkpoint import load_supernet, load_training_state, save_supernet
from detofa.train.config import TrainConfig, read_recipe
from detofa.train.evaluate import (
    Recalibration,
    evaluate_detector,
    evaluate_paths,
    extract_recalibrated,
    torch_detector,
)
from detofa.train.run import RunFolder, newest_run
from detofa.train.trainer import learning_rate_factor
from tests.samples import Quiet, config_of, trainer_of


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    make_demo_dataset(folder, train=16, val=4, test=4, image_size=(96, 128))
    return folder


def never() -> bool:
    return False


def test_a_stopped_and_resumed_run_equals_a_straight_one(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits)
    straight = trainer_of(config, tmp_path / "straight")
    observer = Quiet()
    assert straight.train(observer, never)

    first = trainer_of(config, tmp_path / "stopped")
    early = Quiet()
    assert not first.train(early, lambda: len(early.losses) == 3)
    second = trainer_of(config, tmp_path / "stopped")
    assert second.step == 3
    late = Quiet()
    assert second.train(late, never)
    assert early.losses + late.losses == observer.losses
    left, _ = load_supernet(straight.run.supernet)
    right, _ = load_supernet(second.run.supernet)
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name
    steps = [record["step"] for record in second.run.read_metrics()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_crash_loses_no_more_than_the_checkpoint_interval(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits)
    crashed = trainer_of(config, tmp_path)

    class Crash(Quiet):
        def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
            if step == 6:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        crashed.train(Crash(), never)
    resumed = trainer_of(config, tmp_path)
    assert resumed.step == 4
    assert [record["step"] for record in resumed.run.read_metrics()] == [1, 2, 3, 4]


def test_the_loss_falls_and_the_same_seed_gives_the_same_losses(
    digits: Path, tmp_path: Path
) -> None:
    config = config_of(digits, steps=25, largest_first=1.0, learning_rate=3e-3, warm_up=0.1)
    first, second, other = Quiet(), Quiet(), Quiet()
    trainer_of(config, tmp_path / "a").train(first, never)
    trainer_of(config, tmp_path / "b").train(second, never)
    trainer_of(dataclasses.replace(config, seed=1, steps=2), tmp_path / "c").train(other, never)
    assert first.losses == second.losses
    assert first.losses[0] != other.losses[0]
    assert np.mean(first.losses[-5:]) < 0.96 * np.mean(first.losses[:5])


def test_the_rate_rises_to_one_and_falls_to_two_percent() -> None:
    config = TrainConfig(data="x", steps=100, warm_up=0.1)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1.0
    assert np.argmax(factors) in (9, 10)
    assert factors[-1] == pytest.approx(0.02, abs=0.002)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_progress_reports_largest_smallest_and_random_paths(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits, steps=2, evaluations=1), tmp_path)
    observer = Quiet()
    trainer.train(observer, never)
    assert [set(results) for results in observer.evaluations] == [{"largest", "smallest", "random"}]
    (record,) = (r for r in trainer.run.read_metrics() if "ap" in r)
    assert record["step"] == 2
    assert all(0 <= value <= 1 for value in record["ap"].values())


def test_evaluating_side_by_side_changes_neither_figures_nor_the_supernet(
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_of(config_of(digits), tmp_path)
    before = {name: value.clone() for name, value in trainer.supernet.state_dict().items()}
    recalibration = Recalibration(
        dataset=trainer.task.train,
        augmentation=trainer.config.augmentation,
        preprocessing=trainer.task.preprocessing,
        count=8,
    )
    arguments = (recalibration, trainer.task.validation, PostProcessing())
    supernet = trainer.supernet
    assert isinstance(supernet, Supernet)
    rng = np.random.default_rng(0)
    archs = [trainer.space.arch(genes) for genes in trainer.space.sample(rng, 5)]
    apart = [next(evaluate_paths(supernet, [arch], *arguments)) for arch in archs]
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    together = list(evaluate_paths(supernet, archs, *arguments, halves=True))
    assert [dataclasses.replace(found, halves=None) for found in together] == apart
    for arch, found in zip(archs, together, strict=True):
        assert found.halves is not None
        assert all(half.loss > 0 for half in found.halves)
        detector = torch_detector(
            extract_recalibrated(supernet, arch, recalibration),
            supernet.space,
            arch,
            trainer.task.preprocessing,
            trainer.task.categories,
            PostProcessing(),
        )
        assert evaluate_detector(detector, trainer.task.validation)[0].ap == found.ap
    print("standard output is still there")
    assert capsys.readouterr().out == "standard output is still there\n"
    for name, value in trainer.supernet.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_starting_from_a_supernet_of_other_classes_keeps_what_both_know(
    digits: Path, tmp_path: Path
) -> None:
    earlier = trainer_of(config_of(digits, steps=1), tmp_path / "earlier")
    earlier.train(Quiet(), never)
    weights, record = load_supernet(earlier.run.supernet)
    name = "largest.head.class_tower.output.bias"
    bias = weights.get_parameter(name)
    with torch.no_grad():
        bias.copy_(torch.arange(len(bias)).float())

    names = [(1, "0"), (2, "new"), *[(i + 1, str(i)) for i in range(2, 10)]]
    save_supernet(
        earlier.run.supernet, weights, dataclasses.replace(record, categories=tuple(names))
    )
    later = trainer_of(
        config_of(digits, init=str(earlier.run.supernet), seed=5), tmp_path / "later"
    )
    got = later.supernet.get_parameter(name).tolist()
    assert got[0] == 0.0
    assert got[1] == pytest.approx(-np.log(99), abs=1e-4)  # "1" is new to the earlier supernet
    assert got[2:] == [float(i) for i in range(2, 10)]
    stem = "largest.backbone.stem.conv.weight"
    assert torch.equal(later.supernet.state_dict()[stem], weights.state_dict()[stem])


def test_the_backbone_learns_at_a_multiple_of_the_rate(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits, learning_rate=1e-3, backbone_rate=0.5), tmp_path)
    rates = {
        parameter: group["peak_rate"]
        for group in trainer.optimiser.param_groups
        for parameter in group["params"]
    }
    assert rates[trainer.supernet.get_parameter("largest.backbone.stem.conv.weight")] == 0.5e-3
    assert rates[trainer.supernet.get_parameter("largest.head.class_tower.output.bias")] == 1e-3


def test_a_truncated_state_is_refused_with_what_to_do(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits, steps=1), tmp_path)
    trainer.train(Quiet(), never)
    trainer.run.state.write_bytes(trainer.run.state.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_training_state(
            trainer.run.state, trainer.supernet, trainer.averaged, trainer.optimiser
        )
    with pytest.raises(UserError, match="does not exist"):
        load_supernet(tmp_path / "none.safetensors")


def test_a_supernet_file_of_another_space_is_refused(digits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(digits, steps=1), tmp_path / "a")
    trainer.train(Quiet(), never)
    with pytest.raises(UserError, match="supernet of space tiny, this run trains lite0"):
        trainer_of(config_of(digits, space="lite0", init=str(trainer.run.supernet)), tmp_path / "b")


def test_a_config_survives_its_file(digits: Path, tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    config = config_of(digits, learning_rate=3e-4)
    config.save(run.config)
    assert run.load_config() == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", r"unknown settings \['stepz'\]"),
        ("steps = 'many'", "steps should be int, got 'many'"),
        ("steps = 0", "steps should be from 1"),
        ("image_sizes = [[64]]", "list of .height, width."),
        ("[augmentation]\nhue = 3.0", "hue should be from 0 to 0.5"),
        ("[augmentation]\nblur = 3.0", r"unknown settings \['blur'\]"),
        ("steps = ", "is not TOML"),
    ],
)
def test_a_faulty_recipe_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        TrainConfig.from_json({"data": "x", **read_recipe(path)}, str(path))


def test_the_newest_run_is_the_one_trained_last(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained run"):
        newest_run(tmp_path)
    for name in ("b", "a", "stopped"):
        trainer = trainer_of(config_of(digits, steps=2), tmp_path / name)
        trainer.begin("detofa train")
        trainer.train(Quiet(), lambda stops=name == "stopped": stops)  # type: ignore[misc]
    assert newest_run(tmp_path).path.name == "a"
    assert RunFolder(path=tmp_path / "a").missing_steps() == 0
    assert RunFolder(path=tmp_path / "stopped").missing_steps() == 1
    for name in ("a", "b"):
        RunFolder(path=tmp_path / name).remove()
    assert newest_run(tmp_path).path.name == "stopped"


def test_paths_of_many_shapes_do_not_make_memory_grow(digits: Path, tmp_path: Path) -> None:
    """Compare the memory held after 20 and after 60 steps."""
    trainer = trainer_of(config_of(digits, steps=60, random_paths=2, checkpoint_steps=60), tmp_path)
    held: dict[int, int] = {}

    class Watch(Quiet):
        def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
            held[step] = resident_bytes()

    trainer.train(Watch(), never)
    assert held[60] < held[20] + 150e6


def resident_bytes() -> int:
    statistics = Path("/proc/self/statm")
    if not statistics.is_file():
        pytest.skip("this system does not tell the memory held")
    return int(statistics.read_text().split()[1]) * 4096
