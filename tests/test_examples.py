"""The examples for clusters: their syntax, and that what they start is a command that there is."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from detofa.cli import main

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
SLURM, JOB = EXAMPLES / "train.slurm", EXAMPLES / "train-job.yaml"


def documents():
    return list(yaml.safe_load_all(JOB.read_text(encoding="utf-8")))


def commands() -> dict[str, list[str]]:
    """Return the words that each example gives to torchrun."""
    text = SLURM.read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("srun torchrun"))
    words = shlex.split(line.replace('"$DATA"', "data"))[2:]
    (job,) = (one for one in documents() if one["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["torchrun"]
    return {"slurm": words, "job": container["args"]}


def test_the_shell_reads_the_batch_script():
    done = subprocess.run(["bash", "-n", SLURM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = SLURM.read_text(encoding="utf-8")
    options = re.findall(r"^#SBATCH --([\w-]+)=?", text, re.MULTILINE)
    assert len(options) == len(set(options)) >= 5


def test_kubernetes_takes_the_job():
    validate = pytest.importorskip("kubernetes_validate")
    kinds = []
    for document in documents():
        validate.validate(document, "1.31", strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Service", "Job"]


@pytest.mark.parametrize("example", ["slurm", "job"])
def test_what_is_started_is_a_command_with_options_that_there_are(
    example, tmp_path, monkeypatch, capsys
):
    words = commands()[example]
    place = words.index("-m")
    assert words[place : place + 3] == ["-m", "detofa", "train"]
    monkeypatch.chdir(tmp_path)
    arguments = [word for word in words[place + 2 :] if not word.startswith("--device")]
    arguments = [word for word in arguments if word != "cuda"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--device", "cpu"])
    said = capsys.readouterr().err
    assert stopped.value.code == 1, said  # 2 is wrong usage
    assert "does not exist" in said or "no data" in said or "found" in said


@pytest.mark.parametrize("example", ["slurm", "job"])
def test_torchrun_knows_its_options(example):
    parser = pytest.importorskip("torch.distributed.run").get_args_parser()
    words = commands()[example]
    words = [{"$SLURM_JOB_NUM_NODES": "2"}.get(word, word) for word in words]
    options = parser.parse_args(words)
    assert options.nproc_per_node == "8"
    assert options.max_restarts == 3
    assert options.module
