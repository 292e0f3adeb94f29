"""What commands show: tables in narrow terminals, and a word where Ctrl-C ends the work."""

import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest

from detofa.cli.display import kept_when_stopped, show_table
from detofa.cli.measure import _finish
from detofa.presets import preset
from detofa.profiling.device import this_cpu
from detofa.profiling.table import load_table
from detofa.reachable import Reachable
from detofa.units import parse_latency_ms
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
    words = {word.strip(",") for word in shown.split()}
    assert {"chosen", "0.530", "3.21", "(2.64", "3.11)", "1.5M", "0.520", "1.4M"} <= words


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
    (kept,) = (tmp_path / "latency_tables" / "earlier").glob("*.json")
    assert kept.read_bytes() == before
    told = capsys.readouterr().out
    assert "its interval is +-3.0%, that of the new one +-5.0%" in told
    assert "the earlier one is more exact: `mv" in told
    os.utime(path, (0, 0))
    _finish(dataclasses.replace(exact, interval=0.02))
    assert "more exact" not in capsys.readouterr().out
    intervals = {load_table(one).interval for one in kept.parent.glob("*.json")}
    assert intervals == {0.03, 0.05}
    assert load_table(path).interval == 0.02


@pytest.mark.parametrize("times", [0.01, 1.0, 13.7, 1e3])
def test_what_profile_says_comes_next_is_a_budget_that_can_be_met(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    times: float,
) -> None:
    monkeypatch.chdir(tmp_path)
    table = fake_table(preset("tiny", num_classes=2, image_sizes=[(64, 64)]), this_cpu())
    slower = {key: times * ms for key, ms in table.block_ms.items()}
    table = dataclasses.replace(table, block_ms=slower)
    _finish(table, "some run")
    told = capsys.readouterr().out
    assert told.rstrip().endswith("--run 'some run'`")
    budgets = [told.rpartition("--latency ")[2].split()[0]]
    budgets += re.findall(r"[\d.]+ ms", told.partition("search can meet: ")[2].partition(",")[0])
    assert len(budgets) == 3
    for budget in budgets:
        assert table.reach.low <= parse_latency_ms(budget) <= table.reach.high


@pytest.mark.parametrize(("low", "high"), [(1.041, 1.049), (133.4, 133.9), (1e-3, 9e5), (7.0, 7.0)])
def test_a_range_has_a_middle_that_can_be_typed(low: float, high: float) -> None:
    genes = preset("tiny", num_classes=2).ends[0]
    found = Reachable(low=low, high=high, unit="ms", lowest=genes, highest=genes)
    assert low <= parse_latency_ms(f"{found.middle}ms") <= high
    wide = Reachable(low=1.2, high=80.0, unit="ms", lowest=genes, highest=genes)
    assert wide.middle == "9.8"
