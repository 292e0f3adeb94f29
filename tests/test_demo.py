"""The demo: its page and its checks on made figures, and the whole loop, shrunk."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from detofa import recipes
from detofa.data.dataset import ImageRecord
from detofa.demo import DemoSize, run_demo
from detofa.demo.detectors import (
    Check,
    DetectorRow,
    Summary,
    demo_section,
    markdown_table,
    trade_off_svg,
)
from detofa.demo.loop import fresh_run
from detofa.demo.outcome import checks, commands
from detofa.errors import UserError
from detofa.export.verify import ParityCase, ParityReport
from detofa.profiling.table import find_table
from detofa.report.pictures import comparison_sheet
from detofa.runtime.detections import Detections
from detofa.runtime.gates import Tolerance
from detofa.subnet import Subnet
from detofa.train.checkpoint import load_supernet
from detofa.train.run import newest_run

PARITY = ParityReport(
    tolerance=Tolerance(),
    cases=(
        ParityCase(
            images=("a.jpg",),
            finite=True,
            head_relative_errors={"class_logits": 1e-6},
            num_compared=300,
            num_matched=300,
            worst_iou=1.0,
            worst_score_difference=0.0,
        ),
    ),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def row(name: str, *, budget_ms: float, measured_ms: float, ap: float, ap50: float) -> DetectorRow:
    return DetectorRow(
        name=name,
        budget_ms=budget_ms,
        measured_ms=measured_ms,
        predicted_ms=measured_ms * 1.01,
        low_ms=measured_ms * 0.95,
        high_ms=measured_ms * 1.05,
        ap=ap,
        ap50=ap50,
        macs=1.5e8,
        num_params=2_050_000,
        file_bytes=8_200_000,
        image_size=(128, 160),
        path=f"runs/demo/subnets/{name}.onnx",
    )


GOOD = (
    row("small", budget_ms=3.0, measured_ms=2.9, ap=0.50, ap50=0.80),
    row("medium", budget_ms=4.5, measured_ms=4.3, ap=0.60, ap50=0.90),
    row("large", budget_ms=6.0, measured_ms=5.7, ap=0.65, ap50=0.92),
)


def summary() -> Summary:
    return Summary(
        facts=(("device", "A & B"),),
        rows=GOOD,
        evaluated=((3.0, 0.4), (5.0, 0.55)),
        sheet=PIXELS,
        checks=(Check(name="AP50", target="at least 0.70", found="0.60", passed=False),),
        commands=("detofa search --latency 4.1ms",),
    )


def verdicts(rows: tuple[DetectorRow, ...], seconds: float = 100) -> dict[str, bool]:
    return {check.name: check.passed for check in checks(rows, [PARITY], seconds)}


def test_the_demos_part_of_the_page_holds_every_figure() -> None:
    section = demo_section(summary())
    detectors, targets, facts = section.tables
    assert detectors.rows[2][:3] == ("large", "6.00", "5.70")
    assert targets.rows == (("AP50", "at least 0.70", "0.60", "missed"),)
    assert facts.rows == (("device", "A & B"),)
    assert "detofa search --latency 4.1ms" in section.text[1]


def test_markdown_table_has_a_line_for_each_detector() -> None:
    lines = markdown_table(GOOD).splitlines()
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {11}
    assert lines[4].startswith("| large | 6.00 | 5.70 |")


def test_plot_is_svg_and_the_same_each_time() -> None:
    plot = trade_off_svg(GOOD, [(3.0, 0.4)])
    assert ET.fromstring(plot).tag.endswith("svg")
    assert plot == trade_off_svg(GOOD, [(3.0, 0.4)])


def test_good_figures_meet_every_target() -> None:
    found = verdicts(GOOD)
    assert all(found.values()), found


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        (row("small", budget_ms=3.0, measured_ms=3.01, ap=0.50, ap50=0.80), "within its budget"),
        (row("small", budget_ms=3.5, measured_ms=3.4, ap=0.50, ap50=0.80), "apart"),
        (row("small", budget_ms=3.0, measured_ms=2.9, ap=0.50, ap50=0.69), "AP50"),
        (row("small", budget_ms=3.0, measured_ms=2.9, ap=0.61, ap50=0.80), "does not fall"),
    ],
)
def test_one_figure_that_is_off_misses_its_target(changed: DetectorRow, missed: str) -> None:
    found = verdicts((changed, *GOOD[1:]))
    assert [name for name, passed in found.items() if not passed] == [
        name for name in found if missed in name
    ]


def test_a_demo_that_takes_too_long_says_so() -> None:
    assert not verdicts(GOOD, seconds=361)["wall time, two quiet cores"]


def test_sheet_has_a_column_for_the_truth_and_for_each_detector() -> None:
    record = ImageRecord(
        image_id=1,
        path=Path("a.jpg"),
        height=64,
        width=96,
        boxes_xyxy=np.array([[0, 0, 20, 30]], np.float32),
        labels=np.array([1], np.int64),
        crowd=np.zeros(1, bool),
        areas=np.array([600.0]),
    )
    found = Detections(
        boxes_xyxy=np.array([[50, 20, 80, 60]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.array([0], np.int64),
    )
    nothing = Detections(
        boxes_xyxy=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int64),
    )
    sheet = comparison_sheet(
        [PIXELS], [record], {"a": [found], "b": [nothing]}, ["zero", "one"], enlarge=2
    )
    assert sheet.shape[1] == 3 * 192 + 2 * 8
    blank = sheet[-128:, -192:]
    truth, drawn = sheet[-128:, :192], sheet[-128:, 200:392]
    assert (truth != blank).any()
    assert (drawn != blank).any()
    # Boxes are enlarged with the picture: the box drawn from (50, 20) begins at (100, 40).
    assert not (drawn[60:110, 96:98] != blank[60:110, 96:98]).any()
    assert (drawn[60:110, 100] != blank[60:110, 100]).any(axis=-1).all()


def test_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('data = "elsewhere"\n')
    with pytest.raises(UserError, match="another run"):
        run_demo(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]


def test_demo_starts_again_where_an_earlier_one_was(tmp_path: Path) -> None:
    run = fresh_run(tmp_path)
    recipes.demo(tmp_path / "data").save(run.config)
    run.state.parent.mkdir()
    for path in (run.state, run.metrics, run.supernet):
        path.write_text("old")
    fresh_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "state"]
    assert not run.state.exists()


@pytest.mark.slow
def test_shrunk_demo_leaves_a_run_a_table_detectors_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    size = DemoSize(
        train_images=24,
        val_images=6,
        test_images=6,
        steps=4,
        profile_seconds=1.0,
        labels=4,
        top_k=1,
        timing_passes=2,
        picture_images=2,
    )
    folder = Path("runs/demo")
    run_demo(folder, size=size)
    assert newest_run().path == folder
    space = load_supernet(folder / "supernet.safetensors")[1].space
    _, table = find_table(Path("latency_tables"), space)
    for name in ("small", "medium", "large"):
        assert Subnet.load(folder / "subnets" / f"{name}.json").table_sha256 == table.sha256
        assert (folder / "subnets" / f"{name}.onnx").stat().st_size > 1e6
        manifest = json.loads((folder / "subnets" / f"{name}.manifest.json").read_text())
        assert manifest["parity"]["passed"]
    page = (folder / "report.html").read_text()
    for part in ("The exported detectors", "Targets", f"detofa export {folder}/subnets/large.json"):
        assert part in page, part
    assert (folder / "pictures" / "detections.jpg").stat().st_size > 1000
    printed = capsys.readouterr().out
    for command in commands(folder, table):
        assert f"  {command}\n" in printed
    assert "The targets" in printed
