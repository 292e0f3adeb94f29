"""`detofa report`: a run as one self-contained page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import disk_size, print_record
from detofa.cli.measure import table_folders
from detofa.cli.options import DataOfRun, Json, Run
from detofa.cli.runs import find_run

if TYPE_CHECKING:
    from detofa.profiling.table import LatencyTable
    from detofa.train.run import RunFolder


def report(
    run: Run = None,
    output: Annotated[
        Path | None, typer.Option(help="The file to write.  [default: report.html in the run]")
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="A latency table; give it several times for several devices.  [default: all of "
            "the run's space]",
            metavar="JSON",
        ),
    ] = None,
    data: DataOfRun = None,
    _json: Json = False,
) -> None:
    """Write what a run found as one HTML file that needs no network.

    What the run lacks is left out, with the command that makes it.
    """
    target = output
    if target is not None and target.suffix not in (".html", ".htm"):
        raise typer.BadParameter(f"should end in .html, got {target}", param_hint="--output")

    from detofa.report.page import write_page
    from detofa.report.report import report_of
    from detofa.report.source import Source

    found = find_run(run)
    made = report_of(Source.of(found, _tables(found, table), data))
    path = found.path / "report.html" if target is None else target
    write_page(path, made)
    print_record("report", {"output": path, **made.to_json()})
    for section in made.sections:
        if section.missing is not None:
            print(f"{section.title}: {section.missing}")
    print(f"wrote {path}, {disk_size(path.stat().st_size)}")


def _tables(run: "RunFolder", named: list[Path] | None) -> "list[LatencyTable]":
    """Return the tables named, or all that are here of the run's space."""
    from detofa.profiling.table import LatencyTable, load_table, read_tables
    from detofa.train.supernet_record import read_supernet_record

    if not run.supernet.is_file():
        return []
    space = read_supernet_record(run.supernet).space
    if named:
        return [load_table(path, space=space) for path in named]
    return [
        table
        for folder in table_folders()
        for _, table in read_tables(folder)
        if isinstance(table, LatencyTable) and table.space.digest == space.digest
    ]
