"""`detofa profile` and `devices`: latency tables."""

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detofa.cli.display import (
    age,
    kept_when_stopped,
    print_record,
    show_table,
    shown_progress,
)
from detofa.cli.options import (
    Batch,
    ImageSizes,
    Json,
    Run,
    Threads,
    image_sizes,
)
from detofa.cli.runs import find_run
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.profiling.device import Device
    from detofa.profiling.table import LatencyTable, Wanted
    from detofa.runtime.runtimes import Runtime
    from detofa.space import SearchSpace
    from detofa.train.run import RunFolder

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
    runtime: Annotated[
        str | None,
        typer.Option(
            help="onnxruntime-cpu or openvino-cpu; on a GPU onnxruntime-cuda, torch-cuda or "
            "tensorrt.  [default: ONNX Runtime]"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32; with torch-cuda also fp16 and bf16.  [default: fp32]")
    ] = None,
    threads: Threads = 1,
    batch: Batch = 1,
    prior: Annotated[
        str | None,
        typer.Option(
            help="What the fit starts from: isolated, chain, compute or profile.  [default: "
            "isolated; on a GPU compute]"
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Measure fresh detectors and say how good the table is."),
    ] = False,
    make_kit: Annotated[
        Path | None,
        typer.Option(
            metavar="ZIP", help="Pack everything that measures on a device without torch."
        ),
    ] = None,
    from_results: Annotated[
        Path | None, typer.Option("--from", metavar="JSON", help="Results that a kit wrote.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Chooses detectors.  [default: 0; a new one for --verify]"),
    ] = None,
    _json: Json = False,
) -> None:
    """Measure detectors and blocks of a space on a device; writes a latency table.

    When stopped, the same command goes on. Exit code 1 if `--verify` finds the table wanting.
    """
    if sum([verify, make_kit is not None, from_results is not None]) > 1:
        raise typer.BadParameter("give one at most", param_hint="--verify, --make-kit, --from")
    if make_kit is not None:
        if precision not in (None, "fp32"):
            raise typer.BadParameter("kits measure in fp32", param_hint="--precision")
        if device.strip().lower() != "cpu" and runtime is None:
            raise typer.BadParameter(
                "say what is to run there: tensorrt or onnxruntime-cuda on its GPU, "
                "onnxruntime-cpu or openvino-cpu on its processor",
                param_hint="--runtime",
            )
    if budget_seconds is not None and (verify or make_kit is not None or from_results is not None):
        raise typer.BadParameter(
            "does not go with --verify, --make-kit or --from (a kit takes it on the device)",
            param_hint="--budget-seconds",
        )
    if prior is not None and (verify or from_results is not None):
        raise typer.BadParameter("is that of the table already", param_hint="--prior")

    from detofa.profiling.conditions import runtime_named
    from detofa.profiling.kit import table_from_kit

    if from_results is not None:
        wanted = (
            None if run is None and space is None else _space(run, space, num_classes, image_size)
        )
        _finish(table_from_kit(from_results, space=wanted), run)
        return
    from detofa.profiling.device import find_device
    from detofa.profiling.table import Wanted

    found = None if verify or make_kit is not None else find_device(device)
    chosen = _space(run, space, num_classes, image_size)
    if make_kit is not None:
        _pack(chosen, make_kit, device, runtime, prior, threads, batch, seed or 0)
    elif found is None:
        measured = Wanted(
            device=device, runtime=runtime, precision=precision, threads=threads, batch=batch
        )
        _verify(locate_table(chosen, measured), seed)
    else:
        named = runtime or ("onnxruntime-cpu" if found.kind == "cpu" else "onnxruntime-cuda")
        opened = runtime_named(
            named, found, threads=threads, batch=batch, precision=precision or "fp32"
        )
        _measure(chosen, found, opened, prior, budget_seconds, seed or 0, run)


def _measure(
    space: "SearchSpace",
    device: "Device",
    runtime: "Runtime",
    prior: str | None,
    budget_seconds: float | None,
    seed: int,
    run: str | None,
) -> None:
    from detofa.profiling.conditions import Conditions
    from detofa.profiling.measure import ProfilePlan, log_of, measure_table
    from detofa.profiling.priors import prior_name, usual_prior
    from detofa.runtime.measuring import Schedule

    schedule = Schedule(seed=seed)
    named = prior_name(prior or usual_prior(runtime.name))
    plan = ProfilePlan.draw(space, prior=named, seed=seed)
    log = log_of(plan, Conditions.of(device, runtime, schedule), TABLES / "unfinished")
    if log.samples.passes:
        print(f"going on with {len(log.samples.passes)} passes of a profile that was stopped")
    kept = "whole passes are kept, and the same command goes on with them"
    with kept_when_stopped(kept), shown_progress() as on_progress:
        table = measure_table(
            plan,
            runtime=runtime,
            device=device,
            schedule=schedule,
            budget_seconds=budget_seconds,
            log=log,
            on_progress=on_progress,
        )
    _finish(table, run)
    log.remove()


def _finish(table: "LatencyTable", run: str | None = None) -> None:
    """Write a table, keep the one that it replaces, and show what it is worth."""
    path, kept = table.save_beside_earlier(TABLES)
    _show_profile(table)
    if kept is not None:
        _compare(path, table, kept)
    option = "" if run is None else f" --run {shlex.quote(run)}"
    words = f"--latency {table.reach.middle}ms{table.options}{option}"
    print(f"wrote {path}; next: `detofa search {words}`")
    print_record("profile", _record(path, table))


def _compare(path: Path, table: "LatencyTable", kept: Path) -> None:
    """Say which of two tables is more exact, the new one or the one that it replaced."""
    from detofa.profiling.table import load_table

    try:
        before = load_table(kept)
    except UserError:
        return  # a broken one
    print(
        f"the table of {age(before.date)} ago is kept as {kept}: its interval is "
        f"+-{before.interval:.1%}, that of the new one +-{table.interval:.1%}"
    )
    if table.interval > before.interval:
        print(f"note: the earlier one is more exact: `mv {kept} {path}` brings it back")


def _pack(
    space: "SearchSpace",
    path: Path,
    device: str,
    runtime_name: str | None,
    prior: str | None,
    threads: int,
    batch: int,
    seed: int,
) -> None:
    from detofa.profiling.kit import make_kit
    from detofa.profiling.measure import ProfilePlan
    from detofa.profiling.priors import prior_name, usual_prior
    from detofa.runtime.measuring import Schedule

    named = runtime_name or "onnxruntime-cpu"
    with shown_progress() as on_progress:
        count = make_kit(
            ProfilePlan.draw(space, prior=prior_name(prior or usual_prior(named)), seed=seed),
            path,
            device=device,
            runtime=named,
            schedule=Schedule(seed=seed),
            threads=threads,
            batch=batch,
            on_progress=on_progress,
        )
    package = named.partition("-")[0]
    print(f"wrote {path}: {count} models, {path.stat().st_size / 1e6:.0f} MB")
    print(f"next, on the device: `python3 {path.name}`; it needs Python, numpy and {package}")
    print("then here: `detofa profile --from kit-results.json`")
    print_record("profile_kit", {"path": path, "models": count, "bytes": path.stat().st_size})


def _verify(table: "LatencyTable", seed: int | None) -> None:
    import secrets

    from detofa.profiling.verify import FEWEST_SAMPLES, NOISIEST, verify_table

    chosen = secrets.randbelow(2**31) if seed is None else seed
    with shown_progress() as on_progress:
        found = verify_table(table, seed=chosen, on_progress=on_progress)
    errors = found.errors
    naive = "not measured" if found.naive_mape is None else f"{found.naive_mape:.2%}"
    thirds = ["-" if tau is None else f"{tau:.3f}" for tau in found.tau_of_thirds]
    show_table(
        f"{errors['count']:.0f} fresh detectors on {table.device.name}, {found.passes} passes in "
        f"{found.seconds:.0f} s",
        ["", "found"],
        [
            ["noise floor F of a quarter of the passes", f"{found.noise_floor:.2%}"],
            ["error of the table (MAPE)", f"{errors['mape']:.2%}"],
            ["error over noise floor", f"{errors['mape'] / found.noise_floor:.2f}"],
            ["worst", f"{errors['worst']:.2%}"],
            ["within 5 %", f"{errors['within_5_percent']:.1%}"],
            ["within 10 %", f"{errors['within_10_percent']:.1%}"],
            ["Kendall tau", f"{errors['kendall_tau']:.3f}"],
            ["tau in thirds of the range", ", ".join(thirds)],
            ["in the interval promised", f"{found.coverage:.1%}"],
            ["sum of isolated blocks (MAPE)", naive],
            ["line in MACs (MAPE)", f"{found.line_mape:.2%}"],
            ["slower than for the table", f"{found.slowdown:.3f} times"],
        ],
    )
    print(
        f"predictions are off by {errors['mape']:.1%} on average, and by {errors['worst']:.1%} at "
        "worst"
    )
    for what, reached in found.checks.items():
        print(f"{'pass' if reached else 'FAIL'}: {what}")
    print(f"{'pass' if found.reaches_the_aim else 'no'}: the aim, MAPE at most 1.2 F")
    print(f"detectors chosen by --seed {found.seed}")
    if not found.is_valid:
        raise UserError(
            f"this does not count and is not kept: with {found.samples} samples of each detector "
            f"the noise floor is {found.noise_floor:.1%}; {4 * FEWEST_SAMPLES} samples and at most "
            f"{NOISIEST:.0%} are needed. Stop other work on this machine and verify again"
        )
    path = dataclasses.replace(table, verification=found.to_json()).save(TABLES)
    print(f"wrote {path}")
    print_record("profile_verification", {"table": path, **found.to_json()})
    if not found.passed:
        missed = "; ".join(what for what, reached in found.checks.items() if not reached)
        raise UserError(
            f"the table misses some of what is asked of one that ships: {missed}. "
            f"{found.coverage:.0%} of the detectors were within its interval of "
            f"+-{table.interval:.1%}, by which `detofa search` keeps budgets. A longer profile on "
            "a quiet machine makes a better one: `detofa profile` without --budget-seconds"
        )


def devices(_json: Json = False) -> None:
    """List the devices of this machine, and the latency tables that are here."""
    from detofa.profiling.device import devices_here
    from detofa.profiling.table import read_tables

    here = devices_here()
    for device in here:
        cores = device.details.get("usable_cores")
        print(f"{device.kind}: {device.name}" + (f", {cores} usable cores" if cores else ""))
    found = [entry for folder in table_folders() for entry in read_tables(folder)]
    if not found:
        print("no latency tables here")
    for path, table in found:
        print(f"\n{path}")
        if isinstance(table, UserError):
            print(f"  broken: {table}")
        else:
            _show_table_of(table)
    print("\n`detofa profile` measures this machine (--help: its GPUs, threads, batches; --space);")
    print("another device: `detofa profile --device NAME --runtime RUNTIME --make-kit kit.zip`")
    tables = [
        {"path": path, "error": str(table)}
        if isinstance(table, UserError)
        else _record(path, table)
        for path, table in found
    ]
    print_record("devices", {"devices": [one.to_json() for one in here], "tables": tables})


def table_folders() -> Iterator[Path]:
    """Yield the folders that latency tables are looked for in: the user's, then what ships."""
    import detofa

    package = Path(detofa.__file__).parent
    seen = set()
    for folder in (TABLES, package / "latency_tables", package.parent / "latency_tables"):
        if folder.is_dir() and folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield folder


def locate_table(
    space: "SearchSpace", wanted: "Wanted", run: "RunFolder | None" = None
) -> "LatencyTable":
    """Return the latency table of a space that is wanted, from the first folder that has it.

    Args:
        space: The space.
        wanted: Device, runtime and settings.
        run: Whose space it is, to name in the message what makes a table.

    Raises:
        UserError: none has it (the message is about the user's own folder), or the first that has
            one has a broken one, or several.
    """
    from detofa.profiling.table import NoTableError, find_table

    option = "" if run is None else f" --run {shlex.quote(str(run.path))}"
    remake = f"`detofa profile{option}`"
    first: NoTableError | None = None
    for folder in dict.fromkeys([TABLES, *table_folders()]):
        try:
            return find_table(folder, space, wanted, remake=remake)[1]
        except NoTableError as error:
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

    from detofa.train.supernet_record import read_supernet_record

    found = find_run(run)
    print(f"space of {found.path}")
    return read_supernet_record(found.supernet).space


def _record(path: Path, table: "LatencyTable") -> dict[str, Any]:
    """Return what a table is of and how good it is; the file has the rest."""
    times = [float(entry["p50_ms"]) for entry in table.detectors]
    space = table.space
    return {
        "path": path,
        "device": table.device.to_json(),
        "runtime": table.runtime,
        "runtime_version": table.runtime_version,
        "precision": table.precision,
        "batch": table.batch,
        "threads": table.threads,
        "clock": table.clock,
        "date": table.date,
        "space": space.name,
        "num_classes": space.num_classes,
        "image_sizes": space.image_sizes,
        "p50_ms": [min(times), max(times)],
        "noise_floor": table.noise_floor,
        "held_out": table.held_out,
        "interval": table.interval,
        "verification": table.verification,
    }


def _show_profile(table: "LatencyTable") -> None:
    from detofa.profiling.verify import NOISIEST

    times = [float(entry["p50_ms"]) for entry in table.detectors]
    print(f"device: {table.device.name}, {table.runtime} {table.runtime_version}")
    print(
        f"measured: {len(table.entries)} blocks or chains and {len(times)} detectors, "
        f"{table.method['passes']} passes in {table.method['seconds']:.0f} s, "
        f"{table.threads} threads, batch {table.batch}, {table.method['clock']} clock"
    )
    told, every = len(table.unseen_blocks), len(table.block_ms)
    print(
        f"coverage: {every - told} of {every} blocks of the space are in detectors of the fit; the "
        f"others cost what the prior {table.model['prior']} and blocks like them say"
    )
    print(f"range of measured detectors: {min(times):.2f} to {max(times):.2f} ms (p50)")
    print(
        f"budgets that search can meet: {table.reach}, since it counts on the slow end of the "
        f"interval of +-{table.interval:.1%}"
    )
    floor = table.noise_floor
    before = table.method.get("noise_floor_with_drift")
    drift = "" if before is None else f" ({before:.1%} before drift was taken out)"
    print(f"noise floor: {'unknown' if floor is None else f'{floor:.1%}{drift}'}")
    if floor is not None and floor > NOISIEST:
        print(f"note: that is above {NOISIEST:.0%}; this machine is too noisy now, measure again")
    if table.unstable:
        print(
            f"note: {len(table.unstable)} models stayed unsteady though measured again: "
            f"{', '.join(table.unstable[:3])}"
        )
    print(_errors(table))


def _show_table_of(table: "LatencyTable") -> None:
    space, times = table.space, [float(entry["p50_ms"]) for entry in table.detectors]
    sizes = ", ".join(f"{height}x{width}" for height, width in space.image_sizes)
    print(f"  {table.device.name}, {table.runtime} {table.runtime_version}, {table.precision}")
    print(f"  batch {table.batch}, threads {table.threads}, measured {age(table.date)} ago")
    print(f"  space {space.name}: {space.num_classes} classes, input {sizes}")
    print(f"  {min(times):.2f} to {max(times):.2f} ms; {_errors(table)}")
    if table.verification is None:
        print("  not verified; `detofa profile --verify` measures fresh detectors")
    else:
        found = table.verification
        verdict = "passed" if found["passed"] else "FAILED"
        figures = f"MAPE {found['errors']['mape']:.1%}, noise floor {found['noise_floor']:.1%}"
        print(f"  verified {age(str(found['date']))} ago, {verdict}: {figures}")


def _errors(table: "LatencyTable") -> str:
    errors = table.held_out
    return (
        f"on {errors['count']:.0f} held-out detectors MAPE {errors['mape']:.1%}, Kendall tau "
        f"{errors['kendall_tau']:.3f}; interval +-{table.interval:.1%}"
    )
