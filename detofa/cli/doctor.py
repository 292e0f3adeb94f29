"""`detofa doctor`: what is here, what is missing, and what mends it."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from detofa.cli.display import print_record
from detofa.cli.measure import TABLES, table_folders
from detofa.cli.options import Json
from detofa.errors import UserError


def doctor(
    require: Annotated[
        list[str] | None,
        typer.Option(help="Exit 1 unless this is fine, too; see the first column."),
    ] = None,
    _json: Json = False,
) -> None:
    """Say what is here and what is missing, with the command that mends it.

    Exit code 1 if something is broken, or if what `--require` names is missing.
    """
    from detofa.doctor import NAMES, examine

    wanted = set(require or ())
    if wanted - set(NAMES):
        unknown = ", ".join(sorted(wanted - set(NAMES)))
        raise typer.BadParameter(
            f"{unknown} is not looked for; there are {', '.join(NAMES)}", param_hint="--require"
        )
    found = examine(Path.cwd(), dict.fromkeys([TABLES, *table_folders()]))
    print_record("doctor", {"findings": [dataclasses.asdict(finding) for finding in found]})
    for finding in found:
        print(f"{finding.state:<8} {finding.name:<12} {finding.says}")
        if finding.mend:
            print(f"{'':<21} to mend it: {finding.mend}")
    faults = [
        finding
        for finding in found
        if finding.state == "faulty" or (finding.state == "missing" and finding.name in wanted)
    ]
    if faults:
        told = [" - ".join(filter(None, (one.name, one.says, one.mend))) for one in faults]
        raise UserError("; ".join(told))
