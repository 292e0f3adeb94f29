"""`detofa filter`: fit the path filter of a run, say what it is worth, show what it keeps."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import print_record, show_table, shown_progress
from detofa.cli.measure import locate_table
from detofa.cli.options import (
    Batch,
    DataOfRun,
    Json,
    Run,
    TablePrecision,
    TableRuntime,
    Threads,
)
from detofa.cli.runs import find_run
from detofa.cli.training import training_ranks

if TYPE_CHECKING:
    from detofa.choose.chooser import Chooser
    from detofa.path_filter.pruned_space import PrunedSpace
    from detofa.space import Genes
    from detofa.train.evaluate import PathFigures
    from detofa.train.filtering import Budgets, FilterReport
    from detofa.train.path_evaluations import PathEvaluations
    from detofa.train.run import RunFolder


def fit(
    run: Run = None,
    budget: Annotated[str, typer.Option(help="What divides the bins: macs or latency.")] = "macs",
    device: Annotated[
        str, typer.Option(help="cpu, or words of the name of a device with a table.")
    ] = "cpu",
    runtime: TableRuntime = None,
    precision: TablePrecision = None,
    threads: Threads = 1,
    batch: Batch = 1,
    bins: Annotated[
        int | None, typer.Option(min=1, help="Budget bins.  [default: as in the run]")
    ] = None,
    labels_per_bin: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Paths evaluated in each bin, if the run has no labels.  [default: as in the run]",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1.0, help="Share of each bin that is kept.  [default: as in the run]"
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="What the paths kept have in common.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides labels and fits.  [default: the run's]")
    ] = None,
    data: DataOfRun = None,
    _json: Json = False,
) -> None:
    """Fit the path filter of a run and compare it with other rankers on the same labels.

    A run that was trained by detofa has labels, which are used again; of any other the labels are
    evaluated now, and `detofa search` then ranks by the filter if it is worth it.
    """
    if budget not in ("macs", "latency"):
        raise typer.BadParameter(f"macs or latency, got {budget!r}", param_hint="--budget")

    from detofa.choose.chooser import Chooser
    from detofa.path_filter.filter import PathFilter
    from detofa.profiling.table import Wanted
    from detofa.train.filtering import Budgets, evaluate_labels

    with training_ranks("auto", None) as (ranks, own_device), shown_progress() as on_progress:
        found = find_run(run)
        config = found.load_config()
        plan = config.filter
        seed = config.seed if seed is None else seed
        keep = plan.keep if keep is None else keep
        chooser = Chooser(
            found,
            seed=seed,
            data=data,
            on_progress=on_progress,
            ranks=ranks,
            device=own_device,
        )
        wanted = Wanted(
            device=device, runtime=runtime, precision=precision, threads=threads, batch=batch
        )
        table = locate_table(chooser.space, wanted, found) if budget == "latency" else None
        budgets = Budgets.of(chooser.space, bins or plan.bins, table)
        genes, evaluations = _labels(
            chooser, found, budgets, labels_per_bin or plan.labels_per_bin, seed
        )
        labels = evaluate_labels(genes, evaluations, on_progress)
        if not ranks.is_first:
            return
        pruned, report = _fitted(chooser, genes, labels, budgets, keep, seed)
    _report(report)
    if _is_new(found):
        report.save(found.filter_report)
        if report.quality.filter_is_worth_pruning_by:
            pruned.save(found.pruned_space)  # and the filter beside it
        else:
            path_filter = pruned.path_filter
            assert isinstance(path_filter, PathFilter)
            path_filter.save(found.path_filter)
            found.pruned_space.unlink(missing_ok=True)
        print(f"wrote {found.path_filter}/")
    else:
        print(f"nothing is written: {found.path} keeps what it was trained by")
    written = found.path_filter if _is_new(found) else None
    print_record("filter", {"run": found.path, "path_filter": written, **report.to_json()})
    if show:
        _show_kept(pruned if _is_new(found) else chooser.ranking.pruned or pruned, found, seed)


def _fitted(
    chooser: "Chooser",
    genes: "Genes",
    labels: "Sequence[PathFigures]",
    budgets: "Budgets",
    keep: float,
    seed: int,
) -> "tuple[PrunedSpace, FilterReport]":
    """Return the space pruned by a filter fitted on labels, and what the filter is worth."""
    import numpy as np

    from detofa.path_filter.pruned_space import cut_space
    from detofa.train.filtering import fit_filter

    chooser.on_progress("fit the path filter", 0.0)
    path_filter, report = fit_filter(chooser.space, genes, labels, budgets, seed=seed)
    chooser.on_progress("prune", 0.0)
    rng = np.random.default_rng([seed, 4])
    return cut_space(chooser.space, path_filter, budgets.cost, rng, keep=keep), report


def _is_new(run: "RunFolder") -> bool:
    """Return whether the filter is this command's, and not the one that the run trained by."""
    return run.load_config().method == "ofa"


def _labels(
    chooser: "Chooser", run: "RunFolder", budgets: "Budgets", per_bin: int, seed: int
) -> "tuple[Genes, PathEvaluations]":
    """Return the paths to label, and what evaluates them or knows them already."""
    from detofa.train.filtering import draw_paths_to_label
    from detofa.train.path_evaluations import stored_evaluations

    stored = run.path_filter / "labels.json"
    if not stored.is_file():
        return (
            draw_paths_to_label(chooser.space, budgets, per_bin, seed),
            chooser.evaluations,
        )
    evaluations = stored_evaluations(stored, chooser.space)
    print(f"{stored} holds {len(evaluations.best_first())} labels, evaluated after the warm-up")
    return evaluations.best_first(), evaluations


def _report(report: "FilterReport") -> None:
    quality, bins = report.quality, report.bins
    columns = ["ranker", *(bins.describe(index) for index in range(bins.count)), "all bins"]
    rows = [
        [name, *map(str, quality.per_bin[name]), str(estimate)]
        for name, estimate in quality.taus.items()
    ]
    title = f"In-bin Kendall tau, label {quality.label}, {quality.num_labels} labels"
    show_table(title, columns, rows)
    print("\n".join(report.agreements()))
    print(f"filter less MACs alone: {quality.filter_minus_macs}")
    print(f"filter less ridge: {quality.filter_minus_ridge}")
    print(
        f"labels took {report.label_seconds:.0f} s of processor time, the fit "
        f"{report.fit_seconds:.1f} s, the comparison with other rankers "
        f"{report.assess_seconds:.0f} s"
    )
    print(quality.advice())


def _show_kept(pruned: "PrunedSpace", run: "RunFolder", seed: int) -> None:
    """Print how often each option is taken by what is kept, and by the whole bin."""
    import numpy as np

    from detofa.path_filter.histograms import option_shares

    shares = option_shares(pruned, np.random.default_rng([seed, 5]))
    bins = pruned.bins
    columns = ["choice", "option", *(bins.describe(index) for index in range(bins.count))]
    rows: dict[tuple[str, str], list[str]] = {}
    for share in shares:
        cells = rows.setdefault((share.choice, share.option), [])
        cells.append(f"{share.members:.0%} of {share.whole:.0%}")
    show_table(
        "How often an option is taken: of the paths kept, of the whole bin",
        columns,
        [[*key, *cells] for key, cells in rows.items()],
    )
    print(f"`detofa report --run {shlex.quote(str(run.path))}` draws this")
