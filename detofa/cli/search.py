"""`detofa search`: the best detector within a budget, or the front of the best trade-offs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from detofa.cli.display import (
    average_precision,
    kept_when_stopped,
    print_record,
    show_table,
    shown_progress,
)
from detofa.cli.front import show_front
from detofa.cli.measure import locate_table
from detofa.cli.options import (
    Batch,
    DataOfRun,
    Json,
    Run,
    Seed,
    TablePrecision,
    TableRuntime,
    Threads,
    parsed,
)
from detofa.cli.runs import find_run
from detofa.cli.training import torch_device
from detofa.errors import UserError
from detofa.units import format_count, parse_count, parse_latency_ms, parse_rate

if TYPE_CHECKING:
    from detofa.choose.chooser import Chooser
    from detofa.choose.records import Budget, Finalist
    from detofa.profiling.table import LatencyTable, Wanted
    from detofa.subnet import Subnet
    from detofa.train.run import RunFolder


class Caps(TypedDict):
    """Limits on a detector's size, or None."""

    max_params: float | None
    max_file_bytes: float | None


def search(
    latency: Annotated[str | None, typer.Option(help="Budget, such as 10ms.")] = None,
    throughput: Annotated[
        str | None, typer.Option(help="Budget in images per second, such as 200/s.")
    ] = None,
    macs: Annotated[str | None, typer.Option(help="Budget, such as 300M.")] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="The best trade-offs instead of one budget.")
    ] = False,
    run: Run = None,
    device: Annotated[
        str, typer.Option(help="cpu, or words of the name of a device with a table.")
    ] = "cpu",
    runtime: TableRuntime = None,
    precision: TablePrecision = None,
    threads: Threads = 1,
    batch: Batch = 1,
    max_params: Annotated[str | None, typer.Option(help="Cap, such as 2M.")] = None,
    max_file_size: Annotated[str | None, typer.Option(help="Cap in bytes, such as 8M.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Finalists evaluated for real.")] = 5,
    labels: Annotated[
        int, typer.Option(min=0, help="Paths evaluated to fit the predictor of AP.")
    ] = 24,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Refuse a table that was measured with other software or settings."
        ),
    ] = False,
    seed: Seed = 0,
    data: DataOfRun = None,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("subnet.json"),
    _json: Json = False,
) -> None:
    """Find the best detector for a budget; writes subnet.json and the weights beside it."""
    budgets = [latency is not None, throughput is not None, macs is not None, pareto]
    if sum(budgets) != 1:
        raise typer.BadParameter(
            "give exactly one", param_hint="--latency, --throughput, --macs, --pareto"
        )
    limit, budgeted = None, f"{latency or macs}"
    if latency is not None:
        limit = parsed(parse_latency_ms, latency, "--latency")
    elif throughput is not None:
        limit = 1000 * batch / parsed(parse_rate, throughput, "--throughput")
        budgeted = f"{limit:.4g}ms"
    elif macs is not None:
        limit = float(parsed(lambda text: parse_count(text, "MACs"), macs, "--macs"))
    caps = Caps(
        max_params=_cap(max_params, "--max-params", "a number of parameters"),
        max_file_bytes=_cap(max_file_size, "--max-file-size", "a number of bytes"),
    )
    if output.suffix != ".json":
        raise typer.BadParameter(f"should end in .json, got {output}", param_hint="--output")

    from detofa.choose.chooser import Chooser
    from detofa.choose.records import Budget
    from detofa.profiling.table import Wanted

    found = find_run(run)
    wanted = Wanted(
        device=device, runtime=runtime, precision=precision, threads=threads, batch=batch
    )
    table = _table(found, wanted, needed=limit is not None and macs is None)
    if table is not None:
        _check_conditions(table, strict=strict)
    kept = "paths that were evaluated are kept, and the same command goes on from them"
    with kept_when_stopped(kept), shown_progress() as on_progress:
        chooser = Chooser(
            found,
            table=table,
            seed=seed,
            labels=labels,
            data=data,
            on_progress=on_progress,
            device=torch_device("auto"),
        )
        print(f"searching {found.path}", flush=True)
        if limit is None:
            show = _front(chooser, found, caps)
        else:
            budget = Budget(kind="latency" if macs is None else "macs", limit=limit)
            show = _choose(chooser, budget, budgeted, output, top_k, caps)
    show()


def _check_conditions(table: "LatencyTable", *, strict: bool) -> None:
    """Warn where a table was measured with other software or settings than are here.

    Raises:
        UserError: so it was, and the user is strict.
    """
    from detofa.profiling.again import difference_here

    difference = difference_here(table)
    if difference is None:
        return
    if strict:
        raise UserError(difference)
    print(f"warning: {difference}")


def _cap(text: str | None, option: str, what: str) -> float | None:
    if text is None:
        return None
    return float(parsed(lambda typed: parse_count(typed, what), text, option))


def _table(run: "RunFolder", wanted: "Wanted", *, needed: bool) -> "LatencyTable | None":
    from detofa.train.supernet_record import read_supernet_record

    try:
        return locate_table(read_supernet_record(run.supernet).space, wanted, run)
    except UserError as error:
        if needed:
            raise
        print(f"latencies are left out: {error}")
        return None


def _choose(
    chooser: "Chooser",
    budget: "Budget",
    typed: str,
    output: Path,
    top_k: int,
    caps: Caps,
) -> Callable[[], None]:
    """Search within a budget; return what shows the outcome."""
    from detofa.train.run import command_line

    choice = chooser.choose(budget, output, top_k=top_k, command=command_line(), **caps)
    how = "" if chooser.table is None or chooser.table.batch == 1 else f"-b{chooser.table.batch}"
    kept = chooser.run.subnets / f"{budget.kind}-{typed.replace(' ', '')}{how}.json"
    _copy(choice.subnet, output, kept)

    def show() -> None:
        record = {
            "run": chooser.run.path,
            "subnet": output,
            "weights": output.parent / choice.subnet.weights_file,
            "copy": kept,
            "budget": {"kind": budget.kind, "limit": budget.limit, "unit": budget.unit},
            "finalists": [item.to_json() for item in choice.finalists],
            "reachable": choice.reachable,
            "notes": choice.notes,
        }
        print_record("search", record)
        marks = ["chosen", *[""] * (len(choice.finalists) - 1)]
        what = "MACs" if budget.kind == "macs" else budget.kind
        _show(f"{what} at most {typed}", choice.finalists, marks)
        if chooser.table is not None:
            _show_latency(chooser.table, choice.finalists[0])
        print(f"reachable here: {choice.reachable}")
        for note in choice.notes:
            print(f"note: {note}")
        print(f"wrote {output} and {choice.subnet.weights_file} beside it; a copy is {kept}")
        print(f"next: `detofa export {output}`")

    return show


def _show_latency(table: "LatencyTable", winner: "Finalist") -> None:
    """Print where the time of a detector goes, as the table has it, and what that is worth."""
    if winner.measured_ms is None:
        print(f"ms are for {table.device.name}: predicted, not verified here")
    ms = winner.measured_ms or winner.predicted_ms
    if table.batch > 1 and ms is not None:
        print(f"batches of {table.batch}: {1000 * table.batch / ms:.0f} images/s")
    genes = table.space.genes(winner.arch)
    parts = {name: float(took[0]) for name, took in table.columns(genes[None]).items()}
    after = parts.pop("suppression", None)
    told = ", ".join(f"{name.replace('_', ' and ')} {took:.2f}" for name, took in parts.items())
    print(f"where the {sum(parts.values()):.2f} ms go: {told}")
    if after is not None:
        print(f"after the network: suppression, {after:.2f} ms where images are crowded")


def _front(chooser: "Chooser", run: "RunFolder", caps: Caps) -> Callable[[], None]:
    """Search for the front; return what shows it."""
    from detofa.train.run import command_line

    front = chooser.front(command=command_line(), **caps)

    def show() -> None:
        files = [str(run.subnets / f"front-{index}.json") for index in range(len(front))]
        points = [
            {"subnet": file, **item.to_json()} for file, item in zip(files, front, strict=True)
        ]
        pareto = run.path / "pareto.json"
        print_record("front", {"run": run.path, "pareto": pareto, "points": points})
        _show("the front, cheapest first", front, files)
        if len(front) > 1:
            show_front(front)
        print(f"wrote {pareto} and {len(front)} subnets")
        if files:
            print(f"next: `detofa export {files[-1]}`")

    return show


def _copy(subnet: "Subnet", source: Path, target: Path) -> None:
    """Copy a subnet.json and its weights, the weights first."""
    from detofa.files import write_bytes

    weights = target.with_suffix(".safetensors")
    write_bytes(weights, (source.parent / subnet.weights_file).read_bytes())
    dataclasses.replace(subnet, weights_file=weights.name).save(target)


def _show(title: str, found: "Sequence[Finalist]", marks: Sequence[str]) -> None:
    columns = ["", "AP", "AP50", "AP predicted", "ms measured", "ms predicted", "gap", "MACs"]
    columns += ["parameters", "input"]
    show_table(
        title,
        columns,
        [
            [
                mark,
                average_precision(item.ap),
                average_precision(item.ap50),
                average_precision(item.predicted_ap),
                "-" if item.measured_ms is None else f"{item.measured_ms:.2f}",
                _predicted(item),
                _gap(item),
                format_count(item.macs),
                format_count(item.num_params),
                "x".join(str(side) for side in item.arch.image_size),
            ]
            for mark, item in zip(marks, found, strict=True)
        ],
    )
    print("AP: validation split, weights inherited from the supernet; ms: p50 of one call")


def _gap(item: "Finalist") -> str:
    """Return how far the measurement is above the prediction."""
    if item.measured_ms is None or item.predicted_ms is None:
        return "-"
    return f"{item.measured_ms / item.predicted_ms - 1:+.1%}"


def _predicted(item: "Finalist") -> str:
    if item.predicted_ms is None:
        return "-"
    return f"{item.predicted_ms:.2f} ({item.low_ms:.2f}-{item.high_ms:.2f})"
