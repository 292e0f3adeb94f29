"""The files of a run, whole or damaged."""

import json
from pathlib import Path

import pytest

from detofa.cli.runs import list_runs
from detofa.errors import UserError
from detofa.train.run import RUNS, RunFolder
from tests.samples import config_of

_BEGIN = '{"schema": 1, "kind": "metrics"}\n'


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "3", "[]", '{"loss": 1}', '{"step": "4"}', '{"step": NaN}', "[" * 5000, "\xff"),
        *('{"step": ' + "9" * 5000 + "}", '{"step": 1, "loss": 1e999}'),
    ],
)
def test_a_line_of_the_metrics_that_is_no_record_is_left_out(tmp_path: Path, line: str) -> None:
    run = RunFolder(path=tmp_path)
    run.log({"step": 1, "loss": 0.5})
    run.metrics.write_bytes(run.metrics.read_bytes() + line.encode("latin-1") + b"\n")
    run.log({"step": 2, "loss": 0.25})
    assert [record["step"] for record in run.read_metrics()] == [1, 2]
    run.forget_after(1)
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}]


def test_metrics_begin_with_their_schema_once(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    for line in lines:
        run.log(line)
    assert run.metrics.read_text() == _BEGIN + "".join(json.dumps(line) + "\n" for line in lines)
    run.forget_after(1)
    run.log(lines[1])
    assert run.metrics.read_text() == _BEGIN + "".join(json.dumps(line) + "\n" for line in lines)
    run.forget_after(0)
    assert run.metrics.read_text() == _BEGIN


def test_metrics_of_an_earlier_version_are_read_and_get_a_schema_when_resumed(
    tmp_path: Path,
) -> None:
    run = RunFolder(path=tmp_path)
    earlier = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    run.metrics.write_text(earlier)
    run.log({"step": 3, "loss": 0.125})  # appended, and no line between the others
    assert run.metrics.read_text() == earlier + '{"step": 3, "loss": 0.125}\n'
    assert [record["step"] for record in run.read_metrics()] == [1, 2, 3]
    run.forget_after(2)
    assert run.metrics.read_text() == _BEGIN + earlier


@pytest.mark.parametrize("schema", ["2", "null", "[1]"])
def test_metrics_of_another_schema_are_refused_and_left_as_they_are(
    tmp_path: Path, schema: str
) -> None:
    run = RunFolder(path=tmp_path)
    content = f'{{"schema": {schema}, "kind": "metrics"}}\n{{"step": 1, "loss": 0.5}}\n'
    run.metrics.write_text(content)
    for read in (run.read_metrics, run.share_waited, lambda: run.forget_after(0)):
        with pytest.raises(UserError, match=r"metrics\.jsonl has schema .*, this version reads 1"):
            read()
    assert run.metrics.read_text() == content


def test_a_run_with_metrics_of_another_schema_is_listed_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(path=RUNS / "later")
    config_of(tmp_path).save(run.config)
    list_runs()
    assert "resumable" in capsys.readouterr().out
    run.metrics.write_text('{"schema": 2, "kind": "metrics"}\n')
    list_runs()
    assert "broken" in capsys.readouterr().out
