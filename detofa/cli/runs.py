"""`detofa runs`, and finding the run or the data set that a command means."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from detofa.cli.display import average_precision, duration, show_table
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.subnet import Subnet
    from detofa.train.run import RunFolder

app = typer.Typer(help="Look at training runs.")


@app.callback()
def _runs() -> None:
    """Look at training runs."""


@app.command("list")
def list_runs() -> None:
    """List the runs under runs/, the newest first."""
    from detofa.train.run import RUNS, RunFolder

    found = [RunFolder(path=path.parent) for path in RUNS.glob("*/config.toml")]
    if not found:
        print(f"no runs under {RUNS}/; make one with `detofa train --data DIR`")
        return
    found.sort(key=_changed, reverse=True)
    columns = ["run", "space", "data", "steps", "state", "AP largest", "AP smallest", "age"]
    show_table("", columns, [_row(run) for run in found])


def _changed(run: "RunFolder") -> float:
    paths = (run.supernet, run.metrics, run.config)
    return max(path.stat().st_mtime for path in paths if path.is_file())


def _row(run: "RunFolder") -> list[str]:
    try:
        config, step, metrics = run.load_config(), run.saved_step(), run.read_metrics()
    except UserError as error:
        return [run.path.name, "-", "-", "-", f"broken: {error}", "-", "-", "-"]
    evaluated = [record["ap"] for record in metrics if "ap" in record]
    ap = evaluated[-1] if evaluated else {}
    return [
        run.path.name,
        config.space,
        config.data,
        f"{step} of {config.steps}",
        "finished" if step >= config.steps else "resumable",
        average_precision(ap.get("largest")),
        average_precision(ap.get("smallest")),
        duration(time.time() - _changed(run)),
    ]


def find_run(name: str | None) -> "RunFolder":
    """Return the run of a name or folder; the newest trained one if none is given.

    Raises:
        UserError: there is none; says which are there.
    """
    from detofa.train.run import RUNS, RunFolder, newest_run

    if name is None:
        return newest_run()
    for path in (RUNS / name, Path(name)):
        if (path / "config.toml").is_file():
            return RunFolder(path=path)
    there = sorted(path.parent.name for path in RUNS.glob("*/config.toml"))
    raise UserError(
        f"{name!r} is no run: it should be a folder with a config.toml, or the name of one under "
        f"{RUNS}/, which has {', '.join(there) or 'none'}; make one with `detofa train --data DIR`"
    )


def run_of_subnet(subnet: "Subnet") -> "RunFolder | None":
    """Return the run that a subnet was cut from, if it is still there."""
    from detofa.files import sha256_file
    from detofa.train.run import RUNS, RunFolder

    for path in sorted(RUNS.glob("*/supernet.safetensors")):
        if sha256_file(path) == subnet.supernet_sha256:
            return RunFolder(path=path.parent)
    return None


def data_of_subnet(subnet: "Subnet | None") -> Path | None:
    """Return the data set of the run that a subnet was cut from, if both are still there."""
    run = None if subnet is None else run_of_subnet(subnet)
    data = None if run is None else Path(run.load_config().data)
    return data if data is not None and data.is_dir() else None
