"""What commands print with `--json`: one record, with the fields that docs/json.md has."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from detofa.cli import app
from tests.test_cli import Outcome, fake_table, place, run, trained, write_dataset

__all__ = ["place", "run", "trained"]  # fixtures

ROOT = Path(__file__).resolve().parent.parent


def documented() -> dict[str, set[str]]:
    """Return the fields of each kind."""
    rows = re.findall(
        r"^\| `(\w+)` \| .+? \| (.+) \|$", (ROOT / "docs/json.md").read_text(), re.MULTILINE
    )
    return {kind: set(re.findall(r"`(\w+)`", fields)) for kind, fields in rows}


def record_of(done: Outcome, code: int = 0) -> dict[str, Any]:
    assert done.code == code, done.err
    record = json.loads(done.out)
    assert isinstance(record, dict)
    assert list(record)[:2] == ["schema", "kind"]
    assert record["schema"] == 1
    assert set(record) - {"schema", "kind"} == documented()[record["kind"]]
    return record


def commands(group, words: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def test_every_command_has_json():
    found = dict(commands(typer.main.get_command(app)))
    assert len(found) >= 18
    lacking = [
        words
        for words, command in found.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert lacking == []


def test_the_docs_name_every_command_and_every_kind():
    text = (ROOT / "docs/json.md").read_text()
    for words, _ in commands(typer.main.get_command(app)):
        assert re.search(rf"^\| .*`{' '.join(words)}\b", text, re.MULTILINE), words
    sources = "".join(path.read_text() for path in (ROOT / "detofa/cli").glob("*.py"))
    kinds = set(re.findall(r'print_record\(\s*"(\w+)"', sources))
    assert kinds == set(documented())


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("space show", "spaces"),
        ("space show tiny", "space"),
        ("doctor", "doctor"),
        ("data check squares --sheet sheet.jpg", "data_check"),
        ("data split one", "data_split"),
        ("runs list", "runs"),
        ("runs rm squares-tiny --yes", "removed_runs"),
        ("devices", "devices"),
        ("train --data squares --recipe recipe.toml --threads 1", "training"),
        ("search --macs 20M --labels 2 --top-k 1", "search"),
        ("search --pareto --labels 2", "front"),
        ("finetune subnet.json --epochs 1 --batch-size 4", "finetune"),
        ("export subnet.json --output b.onnx", "export"),
        ("eval subnet.onnx", "eval"),
        ("bench subnet.onnx --runs 3", "bench"),
        ("predict subnet.onnx squares/images/test", "predict"),
        ("filter --bins 2 --labels-per-bin 8", "filter"),
        ("profile --make-kit kit.zip --device orin --runtime onnxruntime-cpu", "profile_kit"),
    ],
)
def test_a_record_is_all_that_is_printed(run, place, arguments, kind):
    from detofa.profiling.device import this_cpu
    from detofa.train.checkpoint import load_supernet

    if kind == "devices":
        space = load_supernet(place / "runs/squares-tiny/supernet.safetensors")[1].space
        fake_table(space, this_cpu()).save(place / "latency_tables")
    if kind == "data_split":
        write_dataset(place / "one", splits=("train",), images=10)
    record = record_of(run(*arguments.split(), "--json"))
    assert record["kind"] == kind
    told = run(*arguments.split()) if kind in ("spaces", "runs") else None
    assert told is None or not told.out.startswith("{")


def test_a_record_of_faults_comes_with_exit_code_1(run, place):
    (place / "squares/images/train/2.png").write_bytes(b"no picture")
    record = record_of(run("data", "check", "squares", "--json"), code=1)
    assert record["num_errors"] == 1
    assert [fault["severity"] for fault in record["faults"]] == ["error"]


def test_what_cannot_be_done_prints_no_record(run, place):
    done = run("search", "--macs", "1k", "--json")
    assert (done.code, done.out) == (1, "")
    assert "it reaches" in done.err
    done = run("space", "show", "tiny", "--json", "--num-classes", "none")
    assert (done.code, done.out) == (2, "")
    assert run("space", "show").out  # the output is no longer kept for records
