"""The files of a run, whole or damaged."""

from pathlib import Path

import pytest

from detofa.train.run import RunFolder


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
