"""The supernet, its statistics, search: entries 17 to 27."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from detofa.cli import app
from detofa.data.dataset import load_dataset
from detofa.data.transforms import NO_AUGMENTATION
from detofa.export.rewrite import conv_macs
from detofa.imaging import IMAGENET
from detofa.presets import preset
from detofa.profiling.cost import arch_macs, macs_cost
from detofa.profiling.device import this_cpu
from detofa.search import search
from detofa.subnet import PostProcessing, Subnet
from detofa.supernet.detector import StaticDetector, Supernet
from detofa.supernet.recalibrate import recalibrate
from detofa.train.evaluate import Recalibration, evaluate_paths
from tests.samples import Quiet, config_of, make_subnet, trainer_of
from tests.test_cli import fake_table, write_dataset

REPOSITORY = Path(__file__).parents[2]
SPACE = preset("tiny", num_classes=2, image_sizes=[(64, 64)])


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return Supernet(SPACE).eval()


def noise(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 64, 64, generator=generator)


def recalibrated(supernet, arch):
    network = supernet.extract(arch)
    recalibrate(network, noise(), batch_size=4)
    with torch.no_grad():
        return network(noise(seed=1))[0]


def test_statistics_of_a_subnet_depend_on_no_start_and_on_no_other_subnet(supernet):
    """Entry 17: when are batch norms recalibrated, and does one subnet leak into the next?"""
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    first = recalibrated(supernet, SPACE.largest)
    recalibrated(supernet, SPACE.smallest)
    assert torch.equal(recalibrated(supernet, SPACE.largest), first)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    torch.manual_seed(0)
    other = Supernet(SPACE).eval()
    for name, value in other.state_dict().items():
        if name.endswith("running_mean"):
            value.fill_(7.0)
    assert torch.equal(recalibrated(other, SPACE.largest), first)


def test_a_detector_left_in_evaluation_mode_is_recalibrated_too(supernet):
    """Entry 18: after calibration nothing is found, for the model was left evaluating."""
    found = []
    for training in (False, True):
        network = supernet.extract(SPACE.largest).train(training)
        norm = network.backbone.stem.norm
        start = norm.running_var.clone()
        recalibrate(network, noise())
        assert not torch.equal(norm.running_var, start)
        assert not network.training
        assert norm.momentum == supernet.largest.backbone.stem.norm.momentum
        found.append(network(noise(seed=1))[0])
    assert torch.equal(*found)


def test_search_and_eval_find_the_same_ap_in_the_same_subnet(loop, detofa):
    """Entry 19: in search every subnet has an AP of 0, in the script for testing it has not."""
    wanted = Subnet.load(loop / "subnet.json").figures["ap"]
    assert (wanted.conditions["split"], wanted.value > 0) == ("val", True)
    for model in ("subnet.json", "subnet.onnx"):
        done = detofa("eval", model, "--split", "val", "--json")
        assert json.loads(done.out)["ap"] == pytest.approx(wanted.value, abs=1e-6)


def test_two_subnets_have_figures_of_their_own_that_say_whose_they_are(
    supernet, tmp_path, loop, detofa
):
    """Entry 20: another subnet is switched on, and the figures stay the same."""
    write_dataset(tmp_path / "few", splits=("val",), images=2)
    validation = load_dataset(tmp_path / "few", "val")
    few = Recalibration(
        dataset=validation, augmentation=NO_AUGMENTATION, preprocessing=IMAGENET, count=2
    )
    archs = [SPACE.smallest, SPACE.largest]

    def losses(some):
        figures = evaluate_paths(supernet, some, few, validation, PostProcessing(), halves=True)
        return [one.halves[0].loss for one in figures if one.halves is not None]

    small, large = losses(archs)
    assert small != large
    assert losses(archs[::-1]) == [large, small]
    assert arch_macs(SPACE, archs[0]) < arch_macs(SPACE, archs[1])
    told = json.loads(detofa("eval", "subnet.json", "--json").out)
    assert told["weights_sha256"] == Subnet.load(loop / "subnet.json").weights_sha256


def test_an_arch_outside_its_space_is_named_with_what_is_allowed(detofa, tmp_path):
    """Entry 21: an arch that the space does not have ends in an error about shapes."""
    record = make_subnet().to_json() | {"schema": 1, "kind": "subnet"}
    record["arch"]["kernel_sizes"][0][0] = 9
    (tmp_path / "subnet.json").write_text(json.dumps(record))
    done = detofa("export", "subnet.json")
    assert done.code == 1
    assert "kernel_sizes of stage 0 is 9; this space allows [3]" in done.err


def test_a_budget_out_of_reach_is_answered_with_the_least_that_is_possible(loop, detofa):
    """Entry 22: within a budget that nothing meets search runs for ever, or returns the largest."""
    space = Subnet.load(loop / "subnet.json").space
    fake_table(space, this_cpu()).save(loop / "latency_tables")
    done = detofa("search", "--latency", "1us", "--output", "a.json")
    assert done.code == 1
    least = re.search(r"it reaches ([\d.]+) ms to", done.err)
    assert least is not None, done.err
    assert not (loop / "a.json").exists()
    cost = fake_table(space, this_cpu()).predict_interval
    found = search(
        space,
        score=lambda genes: cost(genes)[0],
        cost=lambda genes: cost(genes)[1],
        budget=float(least[1]),
        unit="ms",
        rng=np.random.default_rng(0),
    )
    assert len(found.costs) >= 1
    assert (found.costs <= float(least[1])).all()


def test_a_budget_prices_all_of_the_exported_graph_at_its_real_size(loop):
    """Entry 23: the budget counts the backbone only, at 224 pixels."""
    subnet = Subnet.load(loop / "subnet.json")
    macs = conv_macs(onnx.load(loop / "subnet.onnx"))
    total = sum(count for _, count in macs.values())
    assert subnet.figures["macs"].value == total
    genes = subnet.space.genes(subnet.arch)[None]
    parts = {name: cost[0] for name, cost in macs_cost(subnet.space).per_part(genes).items()}
    assert sum(parts.values()) == total
    assert min(parts["neck_head"], parts["stem"]) > 0


def test_a_loss_that_explodes_changes_no_weight_and_training_goes_on(tmp_path):
    """Entry 24: the supernet's loss explodes in the middle of a run."""
    write_dataset(tmp_path / "few", splits=("train", "val"))
    trainer = trainer_of(config_of(tmp_path / "few", steps=3, seed=1), tmp_path / "run")
    honest = trainer._gradients
    seen: list[dict[str, torch.Tensor]] = []

    def exploding(batch, archs):
        seen.append({name: value.clone() for name, value in trainer.supernet.state_dict().items()})
        loss, gradients = honest(batch, archs)
        if len(seen) == 2:
            return float("nan"), [None if one is None else one * np.nan for one in gradients]
        return loss, gradients

    trainer._gradients = exploding  # type: ignore[assignment]
    assert trainer.train(Quiet(), lambda: False)
    assert trainer.guard.skipped == 1
    assert all(torch.equal(value, seen[2][name]) for name, value in seen[1].items())
    after = trainer.supernet.state_dict()
    assert not all(torch.equal(value, after[name]) for name, value in seen[2].items())
    assert all(torch.isfinite(value).all() for value in after.values())


def test_the_whole_loop_ships_and_each_step_names_the_next(loop, detofa):
    """Entry 25: the search that a paper describes is not published."""
    kept = Subnet.load(loop / "runs/squares-tiny/subnets/macs-20M.json")
    assert kept.arch == Subnet.load(loop / "subnet.json").arch
    done = detofa("search", "--macs", "9M", "--labels", 3, "--top-k", 1, "--output", "small.json")
    assert done.code == 0, done.err
    assert "next: `detofa export small.json`" in done.out
    assert Subnet.load(loop / "small.json").figures["macs"].value <= 9e6
    done = detofa("predict", "subnet.onnx", "squares/images/test", "--score", 0)
    assert done.code == 0, done.err
    assert "boxes in 4 images; see predictions" in done.out
    assert detofa("demo", "--help").code == 0


def documented() -> list[list[str]]:
    """Return the words of every command in the documentation."""
    texts = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    texts.append(REPOSITORY / "latency_tables" / "README.md")
    found = []
    for path in texts:
        for code in re.findall(r"```\n(.*?)```|`([^`\n]+)`", path.read_text(), re.DOTALL):
            for line in "".join(code).splitlines():
                command = re.match(r"\s*(?:torchrun .* -m )?detofa ([a-z].*)", line)
                if command is not None:
                    found.append(command[1].split("#")[0].split())
    return found


def test_every_documented_command_exists_and_every_dependency_has_its_least_version():
    """Entry 26: configurations stop working when another package of the family changes."""
    root: Any = typer.main.get_command(app)
    commands = documented()
    assert len(commands) > 40
    for words in commands:
        command = root
        for word in words:
            if hasattr(command, "commands"):
                assert word in command.commands, words
                command = command.commands[word]
        options = {name for parameter in command.params for name in parameter.opts}
        typed = {word.split("=")[0] for word in words if word.startswith("--")}
        assert typed <= options | {"--help"}, words
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for needed in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        assert re.search(r">=|==|^detofa\[", needed), needed


@pytest.mark.parametrize("name", ["tiny", "lite0", "ofa-mbv3"])
def test_macs_are_half_the_flops_that_torch_counts_in_any_kind_of_convolution(name):
    """Entry 27: tools count different operations, some no functional convolution."""
    space = preset(name, num_classes=3, image_sizes=[(64, 96)])
    arch = space.arch(space.sample(np.random.default_rng(0), 1)[0])
    with torch.device("meta"):
        detector, supernet = StaticDetector(space, arch).eval(), Supernet(space).eval()
        images = torch.zeros(2, 3, 64, 96)
    for run in (lambda: detector(images), lambda: supernet(images, arch)):
        counter = FlopCounterMode(display=False)
        with counter:
            run()
        convolved = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
        assert convolved == 2 * 2 * arch_macs(space, arch)
