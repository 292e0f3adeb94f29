"""The promises of a latency table, kept or not: verifications, and winners of many searches.

    python -m benchmarks.latency TABLE --verifications 3
    python -m benchmarks.latency TABLE --run RUN --searches 50
    python -m benchmarks.latency TABLE --predictions 1000000

TABLE is a file that `detofa profile` wrote. A verification measures fresh detectors, as `detofa
profile --verify` does, and is kept in the table. The searches choose detectors of a run for random
budgets, as `detofa search --latency` does; afterwards all winners are measured in passes of their
own. Predictions, with intervals, are only timed, on one core. Figures of the first two also go
into DIR/verifications.json and DIR/searches.json, with --output DIR.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detofa.choose.chooser import Chooser
from detofa.choose.records import Budget
from detofa.profiling.again import AGAIN, measure_again
from detofa.profiling.measure import detector_builders
from detofa.profiling.table import LatencyTable, load_table
from detofa.profiling.verify import Verification, verify_table
from detofa.timer import measure
from detofa.train.run import RunFolder

_PASSES = 40  # of the independent measurement
_MOST_TRIES = 3  # verifications for each that should be valid


def verifications(table: LatencyTable, count: int) -> list[Verification]:
    """Verify a table until so many runs are valid, each with detectors of its own; print rows."""
    columns = ["F", "MAPE", "over F", "within 5 %", "within 10 %", "tau", "tau of thirds", "worst"]
    columns += ["in interval", "level shift", "isolated blocks", "line in MACs", "valid", "passed"]
    columns += ["aim"]
    print(f"| {' | '.join(columns)} |")
    print("|" + " --- |" * len(columns))
    found: list[Verification] = []
    for number in range(count * _MOST_TRIES):
        one = verify_table(table, seed=number)
        errors, floor = one.errors, one.noise_floor
        thirds = "/".join("-" if tau is None else f"{tau:.2f}" for tau in one.tau_of_thirds)
        naive = "-" if one.naive_mape is None else f"{one.naive_mape:.2%}"
        cells = [f"{floor:.2%}", f"{errors['mape']:.2%}", f"{errors['mape'] / floor:.2f}"]
        cells += [f"{errors['within_5_percent']:.1%}", f"{errors['within_10_percent']:.1%}"]
        cells += [f"{errors['kendall_tau']:.3f}", thirds, f"{errors['worst']:.1%}"]
        cells += [f"{one.coverage:.1%}", f"{one.slowdown - 1:+.1%}", naive]
        cells += [f"{one.line_mape:.2%}", *(str(flag) for flag in (one.is_valid, one.passed))]
        print(f"| {' | '.join(cells)} | {one.reaches_the_aim} |", flush=True)
        found.append(one)
        if sum(one.is_valid for one in found) == count:
            break
    return found


def searches(
    run: RunFolder, data: Path | None, table: LatencyTable, count: int, seed: int
) -> list[dict[str, Any]]:
    """Choose detectors for random budgets, measure them afresh, and print how they stand."""
    rng = np.random.default_rng(seed)
    chooser = Chooser(run, table=table, seed=seed, data=data)
    budgets = rng.uniform(table.reach.low, table.reach.high, count)
    rows: list[dict[str, Any]] = []
    for number, limit in enumerate(budgets):
        output = run.path / "subnets" / f"promise-{number}.json"
        choice = chooser.choose(Budget(kind="latency", limit=float(limit)), output)
        winner = choice.finalists[0]
        genes = chooser.space.genes(winner.arch).tolist()
        rows.append(
            {"budget_ms": float(limit), "genes": genes, "predicted_ms": winner.predicted_ms}
        )
        rows[-1] |= {"high_ms": winner.high_ms, "measured_then_ms": winner.measured_ms}
        print(f"{number + 1} of {count}", end="\r", flush=True)
    winners = {str(i): np.array(row["genes"], np.int8) for i, row in enumerate(rows)}
    schedule = replace(AGAIN, passes=_PASSES, visits_of_a_session=10, seed=seed + 1)
    models = detector_builders(chooser.space, winners, table.runtime)
    now = measure_again(table, models, schedule=schedule)
    for index, row in enumerate(rows):
        row["measured_ms"] = now.p50_ms[str(index)]
    used = np.array([row["measured_ms"] / row["budget_ms"] for row in rows])
    print(f"{count} searches on {table.device.name}, budgets {table.reach}:")
    print(f"within the budget {(used <= 1).sum()}, worst {used.max() - 1:+.1%} over it")
    print(f"measured over budget: median {np.median(used):.3f}, least {used.min():.3f}")
    print("\n| budget, ms | predicted | upper edge | measured | of the budget |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for row in sorted(rows, key=lambda row: float(row["budget_ms"])):
        figures = (row["budget_ms"], row["predicted_ms"], row["high_ms"], row["measured_ms"])
        share = row["measured_ms"] / row["budget_ms"]
        print(f"| {' | '.join(f'{ms:.2f}' for ms in figures)} | {share:.1%} |")
    return rows


def predictions(table: LatencyTable, count: int) -> None:
    """Time predictions of so many random archs."""
    genes = table.space.sample(np.random.default_rng(0), count)
    table.predict_interval(genes[:1])  # what is kept from call to call is there
    took = measure(lambda: table.predict_interval(genes), runs=3, warm_up=0, clock="thread")
    print(f"{count:,} archs of {table.space.name} in {took.p50_ms / 1000:.2f} s of one core")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="a latency table")
    parser.add_argument("--run", type=Path, help="folder of a trained run of the table's space")
    parser.add_argument("--data", type=Path, help="data set of the run, if not where it was")
    parser.add_argument("--verifications", type=int, default=0)
    parser.add_argument("--searches", type=int, default=0)
    parser.add_argument("--predictions", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(), help="folder for figures as JSON")
    options = parser.parse_args()
    if options.searches and options.run is None:
        parser.error("--searches needs --run")
    table = load_table(options.table)
    if options.verifications:
        found = verifications(table, options.verifications)
        _write(options, "verifications", [one.to_json() for one in found])
        valid = [one for one in found if one.is_valid]
        if valid:
            replace(table, verification=valid[-1].to_json()).save(options.table.parent)
    if options.predictions:
        predictions(table, options.predictions)
    if options.searches:
        run = RunFolder(path=options.run)
        rows = searches(run, options.data, table, options.searches, options.seed)
        _write(options, "searches", rows)


def _write(options: argparse.Namespace, what: str, rows: list[dict[str, Any]]) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    output = options.output / f"{what}.json"
    output.write_text(json.dumps({"table": options.table.name, "rows": rows}, indent=1))
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
