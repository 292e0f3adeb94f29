"""What commands show: tables in narrow terminals, and a word where Ctrl-C ends the work."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from detofa.cli.display import kept_when_stopped, show_table
from detofa.cli.measure import _finish
from detofa.presets import preset
from detofa.profiling.device import this_cpu
from tests.test_cli import fake_table

COLUMNS = ["", "AP", "latency", "parameters"]
ROWS = [["chosen", "0.530", "3.21 ms (2.64 to 3.11)", "1.5M"], ["", "0.520", "", "1.4M"]]


@pytest.mark.parametrize("width", [20, 30, 40, 79])
def test_a_narrow_terminal_cuts_no_number_in_two(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_table("a budget of 4 ms", COLUMNS, ROWS)
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)  # without colours
    assert all(len(line) <= width for line in shown.splitlines())
    assert {"chosen", "0.530", "1.5M", "0.520", "1.4M"} <= {
        word.strip(",") for word in shown.split()
    }


def test_a_file_gets_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("", COLUMNS, ROWS)
    words = capsys.readouterr().out.split()
    assert " ".join(words).endswith("0.530 3.21 ms (2.64 to 3.11) 1.5M 0.520 1.4M")


def test_who_stops_a_command_hears_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), kept_when_stopped("passes are kept"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped; passes are kept\n"


def test_a_new_table_leaves_the_earlier_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
    exact = dataclasses.replace(fake_table(space, this_cpu()), interval=0.03)
    _finish(exact)
    assert "kept" not in capsys.readouterr().out
    path = tmp_path / "latency_tables" / exact.file_name
    before = path.read_bytes()
    _finish(dataclasses.replace(exact, interval=0.05))
    kept = tmp_path / "latency_tables" / "earlier" / exact.file_name
    assert kept.read_bytes() == before
    told = capsys.readouterr().out
    assert "its interval is +-3.0%, that of the new one +-5.0%" in told
    assert "the earlier one is more exact: `mv" in told
    _finish(dataclasses.replace(exact, interval=0.02))
    assert "more exact" not in capsys.readouterr().out


def test_what_profile_says_comes_next_is_a_budget_that_can_be_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = fake_table(preset("tiny", num_classes=2, image_sizes=[(64, 64)]), this_cpu())
    _finish(table)
    told = capsys.readouterr().out
    budget = float(told.rpartition("--latency ")[2].partition("ms")[0])
    assert table.reach.low <= budget <= table.reach.high
    assert f"budgets that search can meet: {table.reach}" in told
