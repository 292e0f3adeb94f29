"""`detofa profile`, `devices` and `bench`: what is measured on a device."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import age, show_table, shown_progress
from detofa.cli.options import ImageSizes, Run, Seed, Threads, image_sizes
from detofa.cli.runs import find_run
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.profiling.table import LatencyTable
    from detofa.space import SearchSpace
    from detofa.timer import Timing

TABLES = Path("latency_tables")


def profile(
    device: Annotated[str, typer.Option(help="cpu, or words of a device's name.")] = "cpu",
    run: Run = None,
    space: Annotated[
        str | None, typer.Option(help="Measure this space instead of that of a run.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="With --space: classes of the data.  [default: 80]")
    ] = None,
    image_size: ImageSizes = None,
    budget_seconds: Annotated[
        float | None, typer.Option(min=1, help="Time to measure in; more is more exact.")
    ] = None,
    threads: Threads = 1,
    seed: Seed = 0,
) -> None:
    """Measure every block of a space on a device of this machine; writes a latency table."""
    import numpy as np

    from detofa.profiling.device import find_device
    from detofa.profiling.measure import profile_space

    found = find_device(device)
    chosen = _space(run, space, num_classes, image_size)
    with shown_progress() as on_progress:
        table = profile_space(
            chosen,
            rng=np.random.default_rng(seed),
            threads=threads,
            budget_seconds=budget_seconds,
            device=found,
            on_progress=on_progress,
        )
    path = table.save(TABLES)
    _show_profile(table)
    print(f"wrote {path}; next: `detofa search --latency 10ms`")


def devices() -> None:
    """List the devices of this machine, and the latency tables that are here."""
    from detofa.profiling.device import devices_here
    from detofa.profiling.table import read_tables

    for device in devices_here():
        cores = device.details.get("usable_cores")
        print(f"{device.kind}: {device.name}" + (f", {cores} usable cores" if cores else ""))
    found = [entry for folder in table_folders() for entry in read_tables(folder)]
    if not found:
        print("no latency tables here; `detofa profile` makes one")
    for path, table in found:
        print(f"\n{path}")
        if isinstance(table, UserError):
            print(f"  broken: {table}")
        else:
            _show_table_of(table)


def bench(
    model: Annotated[Path, typer.Argument(help="An .onnx file or a subnet.json.")],
    runs: Annotated[int, typer.Option(min=1, help="Calls that are timed.")] = 100,
    threads: Threads = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images of one call.")] = 1,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a detector's latency here: percentiles of thread CPU time and of wall time."""
    import json

    import numpy as np

    from detofa.cli.models import open_model
    from detofa.profiling.device import this_cpu
    from detofa.runtime.bench import measure_latency

    with open_model(model, threads)[0] as detector:
        latency = measure_latency(
            detector.session,
            rng=np.random.default_rng(seed),
            runs=runs,
            batch=batch,
            threads=threads,
        )
        height, width = detector.session.image_size
    clocks = {"thread CPU time": latency.thread, "wall time": latency.wall}
    device = this_cpu().name
    if as_json:
        about = {"model": str(model), "device": device, "image_size": [height, width]}
        counts = {"batch": batch, "threads": threads, "runs": runs}
        times = {
            name.lower().replace(" ", "_"): None if timing is None else _percentiles(timing)
            for name, timing in clocks.items()
        }
        print(json.dumps({**about, **counts, **times}, indent=1))
        return
    print(f"{model} on {device}: input {height}x{width}, batch {batch}, threads {threads}")
    rows = [
        [name, *(f"{ms:.2f}" for ms in _percentiles(timing).values())]
        for name, timing in clocks.items()
        if timing is not None
    ]
    show_table("", [f"of {runs} calls", "p50 ms", "p90 ms", "p99 ms"], rows)


def table_folders() -> Iterator[Path]:
    """Yield the folders that latency tables are looked for in: the user's, then what ships."""
    import detofa

    package = Path(detofa.__file__).parent
    seen = set()
    for folder in (TABLES, package / "latency_tables", package.parent / "latency_tables"):
        if folder.is_dir() and folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield folder


def locate_table(space: "SearchSpace", device: str, threads: int) -> "LatencyTable":
    """Return the latency table of a space on a device, from the first folder that has it.

    Raises:
        UserError: none has it; the message is about the user's own folder.
    """
    from detofa.profiling.table import find_table

    first: UserError | None = None
    for folder in [TABLES, *table_folders()]:
        try:
            return find_table(folder, space, device_name=device, threads=threads)[1]
        except UserError as error:
            first = first or error
    assert first is not None
    raise first


def _space(
    run: str | None, name: str | None, num_classes: int | None, sizes: list[str] | None
) -> "SearchSpace":
    from detofa.presets import preset

    if name is not None and run is None:
        return preset(name, num_classes=num_classes or 80, image_sizes=image_sizes(sizes))
    if name is not None:
        raise typer.BadParameter("give --run or --space, not both", param_hint="--space")
    if sizes or num_classes:
        raise typer.BadParameter("goes with --space only", param_hint="--image-size, --num-classes")

    from detofa.train.checkpoint import load_supernet

    found = find_run(run)
    print(f"space of {found.path}")
    return load_supernet(found.supernet)[1].space


def _show_profile(table: "LatencyTable") -> None:
    times = [float(entry["p50_ms"]) for entry in table.detectors]
    print(f"device: {table.device.name}, {table.runtime} {table.runtime_version}")
    print(
        f"measured: {len(table.entries)} blocks and {len(times)} detectors, "
        f"{table.method['passes']} passes in {table.method['seconds']:.0f} s, "
        f"{table.threads} threads, {table.method['clock']} clock"
    )
    print(f"range of measured detectors: {min(times):.2f} to {max(times):.2f} ms (p50)")
    floor = table.noise_floor
    print(f"noise floor: {'unknown' if floor is None else f'{floor:.1%}'}")
    print(_errors(table))


def _show_table_of(table: "LatencyTable") -> None:
    space, times = table.space, [float(entry["p50_ms"]) for entry in table.detectors]
    sizes = ", ".join(f"{height}x{width}" for height, width in space.image_sizes)
    print(f"  {table.device.name}, {table.runtime} {table.runtime_version}, {table.precision}")
    print(f"  batch {table.batch}, threads {table.threads}, measured {age(table.date)} ago")
    print(f"  space {space.name}: {space.num_classes} classes, input {sizes}")
    print(f"  {min(times):.2f} to {max(times):.2f} ms; {_errors(table)}")


def _errors(table: "LatencyTable") -> str:
    errors = table.held_out
    return (
        f"on {errors['count']:.0f} held-out detectors MAPE {errors['mape']:.1%}, Kendall tau "
        f"{errors['kendall_tau']:.3f}; interval +-{table.interval:.1%}"
    )


def _percentiles(timing: "Timing") -> dict[str, float]:
    return {"p50_ms": timing.p50_ms, "p90_ms": timing.p90_ms, "p99_ms": timing.p99_ms}
