"""The report: its numbers are those of the run's files, its text is escaped, gaps are named."""

import dataclasses
import json
import math
import re
import shlex
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from detofa.choose.history import SearchHistory
from detofa.errors import UserError
from detofa.files import read_json
from detofa.profiling.cost import macs_cost
from detofa.report.front import front_section
from detofa.report.gallery import gallery_section
from detofa.report.latency import latency_section, time_section
from detofa.report.page import Report, cell_text, page_of
from detofa.report.provenance import provenance_section
from detofa.report.ranking import filter_section, pruned_section, search_section
from detofa.report.report import report_of
from detofa.report.source import Source
from detofa.report.training import training_section
from detofa.subnet import Figure
from detofa.train.run import RunFolder
from tests.report.conftest import HOSTILE
from tests.samples import config_of

pytest.importorskip("jinja2")
pytest.importorskip("plotly")


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


@pytest.fixture(scope="module")
def report(source) -> Report:
    return report_of(source)


@pytest.fixture(scope="module")
def page(report) -> str:
    return page_of(report)


@pytest.fixture
def bare(tmp_path) -> Source:
    """Give a run that has its settings and nothing more."""
    run = RunFolder(path=tmp_path / "runs" / "bare")
    config_of(tmp_path).save(run.config)
    return Source.of(run)


# ---- numbers ------------------------------------------------------------------------------


def test_the_paths_and_their_figures_are_those_that_were_evaluated(source):
    stored = read_json(source.run.path / "path_evaluations.json", "path_evaluations", remake="")
    (chart,) = front_section(source).charts
    ap = sorted((path["ap"] for path in stored["paths"]), reverse=True)
    assert column(chart.table, "AP") == ap == list(chart.traces[0]["y"])
    macs = macs_cost(source.space)(source.genes)
    assert column(chart.table, "MACs") == [round(value) for value in macs.tolist()]
    ms = column(chart.table, chart.table.columns[3])
    assert ms == list(chart.traces[0]["x"]) == pytest.approx((macs / 1e5).tolist())


def test_each_written_detector_has_its_own_figures_and_the_command_that_exports_it(source):
    section = front_section(source)
    explorer, (table,) = section.explorer, section.tables
    assert explorer is not None
    assert len(source.written) >= 2
    for index, item in enumerate(source.written):
        record = json.loads(item.path.read_text())["figures"]
        assert explorer.ap[index] == table.rows[index][1] == record["ap"]["value"]
        assert explorer.axes[0].measured[index] is None  # the table is of another device
        assert explorer.axes[-1].high[index] == record["macs"]["value"]
        assert shlex.split(explorer.commands[index]) == ["detofa", "export", str(item.path)]
    assert [axis.kind for axis in explorer.axes] == ["latency", "macs"]
    device = explorer.axes[0]
    assert all(low < ms < high for low, ms, high in
               zip(device.low, device.subnets, device.high, strict=True))  # fmt: skip
    costs, ap = np.array(device.paths), np.array(explorer.path_ap)
    for row in device.front:
        assert not ((costs <= costs[row]) & (ap > ap[row])).any()


def test_only_what_was_measured_for_a_table_counts_as_measured_by_it(source):
    (table,) = source.tables
    item = source.written[0]
    subnet = item.subnet
    assert item.measured_ms(table) is None
    figures = {**subnet.figures, "latency": Figure(value=3.5, unit="ms", source="measured")}
    found = dataclasses.replace(subnet, figures=figures, table_sha256=table.sha256)
    assert dataclasses.replace(item, subnet=found).measured_ms(table) == 3.5
    other = dataclasses.replace(found, table_sha256="0" * 64)
    assert dataclasses.replace(item, subnet=other).measured_ms(table) is None


def test_every_generation_and_finalist_of_every_search_is_told(source):
    section = search_section(source)
    histories = [SearchHistory.load(path) for path in source.run.searches.glob("*.json")]
    assert {path.name for path in source.run.searches.iterdir()} >= {"macs-front.json"}
    assert len(histories) == 2
    *charts, finalists = section.charts
    told = [row[2:] for chart in charts for row in chart.table.rows]
    kept = [
        (item.evaluations, item.best_score, item.best_cost)
        for history in histories
        for one in history.rounds
        for item in one.generations
    ]
    assert sorted(told) == sorted(kept)
    aps = sorted(item.ap for history in histories for item in history.finalists)
    assert sorted(column(finalists.table, "AP found")) == aps


def test_the_filters_quality_is_that_of_its_report(source):
    stored = read_json(source.run.filter_report, "filter_report", remake="")["quality"]
    (chart,) = filter_section(source).charts
    for row in chart.table.rows:
        if row[1] == "all bins":
            tau = stored["taus"][row[0]]
            assert row[2:] == (tau["value"], tau["low"], tau["high"])
    first = [taus[0]["value"] for taus in stored["per_bin"].values()]
    assert [row[2] for row in chart.table.rows[::3]] == first


def test_what_was_kept_adds_up_over_the_options_of_a_choice(source):
    (chart,) = pruned_section(source).charts
    sums: dict[tuple[object, object], float] = {}
    for choice, _, place, kept, _ in chart.table.rows:
        sums[choice, place] = sums.get((choice, place), 0.0) + float(kept or 0)
    assert list(sums.values()) == pytest.approx([100.0] * len(sums))
    assert np.shape(chart.traces[0]["z"]) == (len(chart.table.rows) // 2, 2)


def test_predictions_residuals_and_parts_are_the_tables_own(source):
    (table,) = source.tables
    predicted, residuals = latency_section(source).charts
    assert predicted.table is residuals.table
    measured = sorted(entry["p50_ms"] for entry in table.detectors)
    assert column(predicted.table, "ms measured") == measured
    assert column(predicted.table, "residual, %") == pytest.approx([0.0] * len(measured))
    (parts,) = time_section(source).charts
    genes = table.space.genes(source.chosen.subnet.arch)[None]
    assert math.fsum(column(parts.table, "ms")) == pytest.approx(float(table.predict(genes)[0]))


def test_the_curves_are_the_metrics(source):
    records = source.run.read_metrics()
    ap, ap50, loss = training_section(source).charts
    assert [row[0] for row in ap.table.rows] == [one["step"] for one in records if "ap" in one]
    assert {"largest", "smallest"} <= set(ap.table.columns)
    assert any(column.startswith("random") for column in ap.table.columns)
    assert column(ap50.table, "largest") == [one["ap50"]["largest"] for one in records
                                             if "ap50" in one]  # fmt: skip
    assert column(loss.table, "loss") == [one["loss"] for one in records if "loss" in one]


def test_the_gallery_has_the_truth_beside_what_was_found(source):
    section = gallery_section(source)
    assert "test split" in section.text[0]
    assert len(section.pictures) == 4
    for picture, row in zip(section.pictures, section.tables[0].rows, strict=True):
        assert picture.jpeg.startswith(b"\xff\xd8")
        assert row[1] == 1
        assert picture.width > 2 * picture.height
        assert any(f"True: {name} ×1." in picture.description for name in HOSTILE)


def test_provenance_names_the_machine_the_settings_and_every_hash(source):
    tables: dict[str, dict[Any, Any]] = {
        table.caption: {row[0]: row[1] for row in table.rows}
        for table in provenance_section(source).tables
    }
    assert tables["Training"]["command"] == "detofa train --data '<b>squares'"
    assert tables["Settings"]["filter.prune"] == "always"
    assert tables["SHA-256"]["supernet.safetensors"] == source.supernet_sha256
    assert source.tables[0].sha256 in tables["SHA-256"].values()
    assert "detofa search --macs half" in tables["Commands"].values()


# ---- the page -----------------------------------------------------------------------------


class Tags(HTMLParser):
    """Counts tags, and keeps ids and attributes that name another file."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "action", "srcset", "data"):
                self.addresses.append(value or "")


def test_names_that_would_do_harm_are_text(page):
    tags = Tags(page)
    assert tags.counts["script"] == 4  # two of data, the library, the page's own
    assert not {"b", "i", "u", "s"} - {"b"} & set(tags.counts)
    assert tags.counts["img"] == 4
    assert "&lt;/script&gt;&lt;script&gt;window.harmed" in page
    for raw in (*HOSTILE, "<b>squares", "a <i>run", "<u>device", "<s>half"):
        assert raw not in page, raw


def test_the_page_needs_no_other_file_and_ids_are_its_own(page):
    tags = Tags(page)
    assert all(address.startswith(("data:image/jpeg", "#")) for address in tags.addresses)
    assert len(tags.ids) == len(set(tags.ids))
    assert {address[1:] for address in tags.addresses if address[0] == "#"} <= set(tags.ids)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")


def test_every_figure_has_its_numbers_as_a_table(report, page):
    charts = [chart for section in report.sections for chart in section.charts]
    assert len(charts) >= 10
    for chart in charts:
        assert chart.table.rows, chart.name
        caption = page.index(f'id="{chart.name}"')
        assert "<table>" in page[caption : page.index("</figure>", caption)]


def test_json_holds_the_texts_and_tables_and_no_infinity(report):
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [one["name"] for one in record["sections"]] == [one.name for one in report.sections]
    assert record["sections"][0]["tables"][0]["rows"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.123456, "0.1235"), (1234567, "1\u202f234\u202f567"), ("<b>", "<b>"),
     (12345.6, "12\u202f346"), (0, "0"), (-0.5, "-0.5")],
)  # fmt: skip
def test_cells_are_written_for_people(value, text):
    assert cell_text(value) == text


# ---- gaps ---------------------------------------------------------------------------------


def test_a_run_without_anything_says_what_makes_each_part(bare):
    missing = {section.name: section.missing for section in report_of(bare).sections}
    assert "`detofa search --pareto --run" in str(missing["searches"])
    assert "`detofa filter --run" in str(missing["filter"])
    assert "--method detofa" in str(missing["kept"])
    assert "`detofa profile --run" in str(missing["latency"])
    assert "`detofa search --pareto --run" in str(missing["time"])
    assert "`detofa train`" in str(missing["training"])
    assert all(missing.values())
    assert Tags(page_of(report_of(bare))).counts["section"] == len(missing)


def test_without_a_table_macs_are_left_to_choose_by(source):
    section = front_section(dataclasses.replace(source, tables=()))
    assert section.explorer is not None
    assert [axis.kind for axis in section.explorer.axes] == ["macs"]
    assert any("`detofa profile" in text for text in section.text)


def test_images_that_are_gone_are_asked_for(source, tmp_path):
    section = gallery_section(dataclasses.replace(source, data=tmp_path / "gone"))
    assert section.pictures == ()
    assert "--data DIR" in str(section.missing)


def test_detectors_of_other_weights_are_left_out_and_named(source, tmp_path):
    path = source.written[0].path
    record = json.loads(path.read_text())
    other = path.with_name("other.json")
    try:
        other.write_text(json.dumps(record | {"supernet_sha256": "0" * 64}))
        again = Source.of(source.run, source.tables, source.data)
    finally:
        other.unlink()
    assert [item.path for item in again.written] == [item.path for item in source.written]
    assert again.notes == (f"{other} was cut from earlier weights, and is left out.",)


@pytest.mark.parametrize("change", [{"rounds": 3}, {"finalists": [{}]}, {"budget": {}}])
def test_a_history_that_was_changed_is_refused_with_what_makes_it_again(source, tmp_path, change):
    path = next(iter(source.run.searches.glob("*.json")))
    broken = tmp_path / "a.json"
    broken.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="`detofa search` makes it again"):
        SearchHistory.load(broken)
