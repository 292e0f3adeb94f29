"""The front as characters."""

import io
import sys

import pytest

from detofa.arch import Arch
from detofa.choose.records import Finalist
from detofa.cli.front import draw_front, show_front
from detofa.presets import preset

ARCH: Arch = preset("tiny", num_classes=2, image_sizes=[(64, 64)]).smallest


def point(ap: float, macs: float, **more: float) -> Finalist:
    return Finalist(arch=ARCH, predicted_ap=ap, ap=ap, ap50=ap, macs=macs, num_params=1, **more)


FRONT = [point(0.2, 10e6), point(0.4, 20e6), point(0.5, 40e6)]


def test_points_stand_where_they_are():
    pytest.importorskip("plotext")
    lines = draw_front(FRONT, width=80, colour=False).splitlines()
    assert len(lines) == 20
    assert max(map(len, lines)) <= 80
    assert "AP against millions of MACs" in lines[0]
    found = [(row, line.index("●")) for row, line in enumerate(lines) if "●" in line]
    assert len(found) == 3
    (top, right), (_, middle), (bottom, left) = found
    assert left < middle < right
    assert top == 2  # below the title and the frame
    assert bottom == 17
    assert (middle - left) / (right - left) == pytest.approx(1 / 3, abs=0.02)


def test_colours_are_left_out_unless_wanted():
    pytest.importorskip("plotext")
    assert "\x1b" in draw_front(FRONT, width=60, colour=True)
    assert "\x1b" not in draw_front(FRONT, width=60, colour=False)


def test_the_cost_is_one_that_all_have():
    pytest.importorskip("plotext")
    both = [point(0.2, 1e6, predicted_ms=2, measured_ms=2), point(0.3, 2e6, predicted_ms=3)]
    assert "AP against ms, predicted" in draw_front(both, width=60, colour=False)
    assert "AP against ms, measured" in draw_front(both[:1], width=60, colour=False)


def test_a_file_of_ascii_gets_the_front_without_colours(monkeypatch):
    pytest.importorskip("plotext")
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding="ascii") as output:
        monkeypatch.setattr(sys, "stdout", output)
        show_front(FRONT)
        output.flush()
        text = written.getvalue().decode("ascii")
    assert text.count("*") == 3
    assert "\x1b" not in text


def test_without_plotext_there_is_a_note(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotext", None)
    show_front(FRONT)
    assert "pip install 'detofa[train]' gets plotext" in capsys.readouterr().out
