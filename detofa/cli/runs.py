"""`detofa runs`, and finding the run or the data set that a command means."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detofa.cli.display import age, average_precision, disk_size, print_record, show_table
from detofa.cli.options import Json
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.subnet import Subnet
    from detofa.train.run import RunFolder

app = typer.Typer(help="Look at training runs, or remove them.")


@app.callback()
def _runs() -> None:
    """Look at training runs, or remove them."""


@app.command("list")
def list_runs(_json: Json = False) -> None:
    """List the runs under runs/, the newest first, with what they take on the disk."""
    from detofa.train.run import RUNS, RunFolder

    found = [RunFolder(path=path.parent) for path in RUNS.glob("*/config.toml")]
    found.sort(key=_changed, reverse=True)
    records = [_record(run) for run in found]
    taken = sum(record["bytes"] for record in records)
    print_record("runs", {"runs": records, "bytes": taken})
    if not found:
        print(f"no runs under {RUNS}/; make one with `detofa train --data DIR`")
        return
    columns = ["run", "space", "data", "steps", "state", "AP largest", "AP smallest", "age", "disk"]
    show_table("", columns, [_row(record) for record in records])
    print(f"{disk_size(taken)} in all; `detofa runs rm NAME` removes one")


@app.command("rm")
def remove_runs(
    names: Annotated[
        list[str], typer.Argument(help="Names of runs under runs/.", metavar="NAME...")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    _json: Json = False,
) -> None:
    """Remove runs for good, after asking; says what was freed.

    A run that is being trained stays, and so does what is no run. Of links, only the links go.
    """
    found = [_run_to_remove(name) for name in dict.fromkeys(names)]
    told = ", ".join(f"{run.path} ({disk_size(run.disk_bytes())})" for run in found)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"this would remove {told}; say --yes where nobody can be asked")
        typer.confirm(f"remove {told} for good?", abort=True, err=True)
    removed: list[dict[str, Any]] = []
    for run in found:
        removed.append({"name": run.path.name, "path": run.path, "bytes": run.remove()})
        print(f"removed {run.path}: {disk_size(removed[-1]['bytes'])}")
    print_record("removed_runs", {"runs": removed, "bytes": sum(one["bytes"] for one in removed)})


def _run_to_remove(name: str) -> "RunFolder":
    """Return the run of a name, `runs/` before it or not, that may be removed.

    Raises:
        UserError: it is no run, or not a folder of its own under `runs/`.
    """
    from detofa.train.run import RUNS, RunFolder

    plain = name.removeprefix(f"{RUNS}/").rstrip("/")
    run = RunFolder(path=RUNS / plain)
    if Path(plain).name != plain or plain in ("", ".", ".."):
        raise UserError(
            f"{name!r} should be the name of a run under {RUNS}/; see `detofa runs list`"
        )
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path}; see `detofa runs list`")
    if run.path.is_symlink():
        raise UserError(f"{run.path} is a link, which is left alone; remove it by hand")
    try:
        run.load_config()
    except UserError as error:
        raise UserError(
            f"{run.path} is left alone, since it may be no run ({error}); remove it by hand"
        ) from error
    return run


def _changed(run: "RunFolder") -> float:
    paths = (run.supernet, run.metrics, run.config)
    return max(path.stat().st_mtime for path in paths if path.is_file())


def _record(run: "RunFolder") -> dict[str, Any]:
    """Return what is to be told of a run; if it is broken, only that and its size."""
    changed = datetime.fromtimestamp(_changed(run), UTC).isoformat(timespec="seconds")
    about = {"name": run.path.name, "path": run.path, "changed": changed, "bytes": run.disk_bytes()}
    try:
        config, step, metrics = run.load_config(), run.saved_step(), run.read_metrics()
    except UserError as error:
        return about | {"error": str(error)}
    evaluated = [record["ap"] for record in metrics if "ap" in record]
    return about | {
        "space": config.space,
        "data": config.data,
        "step": step,
        "steps": config.steps,
        "state": "finished" if step >= config.steps else "resumable",
        "ap": evaluated[-1] if evaluated else {},
    }


def _row(record: dict[str, Any]) -> list[str]:
    when, disk = age(record["changed"]), disk_size(record["bytes"])
    if "error" in record:
        return [record["name"], *"---", f"broken: {record['error']}", *"--", when, disk]
    return [
        record["name"],
        record["space"],
        record["data"],
        f"{record['step']} of {record['steps']}",
        record["state"],
        average_precision(record["ap"].get("largest")),
        average_precision(record["ap"].get("smallest")),
        when,
        disk,
    ]


def find_run(name: str | None) -> "RunFolder":
    """Return the run of a name or folder; the newest finished one if none is given.

    Says so where that is not plain: of several runs, and of one that was stopped.

    Raises:
        UserError: there is none; says which are there.
    """
    from detofa.train.run import RUNS, newest_run

    run = newest_run() if name is None else named_run(name)
    missing = run.missing_steps()
    if name is None:
        count = len(list(RUNS.glob("*/supernet.safetensors")))
        if count > 1:
            which = "the newest" if missing else "the newest that is finished"
            print(f"taking {run.path}, {which} of {count} runs; --run names another")
    if missing:
        steps = run.load_config().steps
        print(
            f"warning: {run.path} is trained to step {steps - missing} of {steps}, and taken as "
            "it is"
        )
    return run


def named_run(name: str) -> "RunFolder":
    """Return the run of a name or folder.

    Raises:
        UserError: there is none; says which are there.
    """
    from detofa.train.run import RUNS, RunFolder

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
