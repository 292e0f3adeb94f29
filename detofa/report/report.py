"""The report of a run: all its parts, in order."""

from datetime import UTC, datetime

from detofa import __version__
from detofa.report.front import front_section
from detofa.report.gallery import gallery_section
from detofa.report.latency import latency_section, time_section
from detofa.report.page import Report, Section
from detofa.report.provenance import provenance_section
from detofa.report.ranking import filter_section, pruned_section, search_section
from detofa.report.source import Source
from detofa.report.training import training_section


def report_of(source: Source, *, first: tuple[Section, ...] = ()) -> Report:
    """Return the report of a run.

    Args:
        source: The files of the run.
        first: What stands before its parts.

    Raises:
        UserError: a file of the run is broken.
    """
    detects = source.config.task == "detection"
    sections = [*first]
    if detects:
        sections += [
            front_section(source),
            gallery_section(source),
            search_section(source),
            filter_section(source),
            pruned_section(source),
            latency_section(source),
            time_section(source),
        ]
    sections += [training_section(source), provenance_section(source)]
    return Report(
        title=f"detofa report: {source.run.path.name}",
        facts=_facts(source),
        sections=tuple(sections),
    )


def _facts(source: Source) -> tuple[tuple[str, str], ...]:
    config, space = source.config, source.space
    sizes = ", ".join(f"{height}x{width}" for height, width in config.image_sizes)
    step = 0 if source.record is None else source.record.step
    return (
        ("run", str(source.run.path)),
        ("data", str(source.data)),
        ("space", f"{config.space}, inputs {sizes}"
                  + ("" if space is None else f": {space.size:.2g} detectors")),
        ("training", f"method {config.method}, {step} of {config.steps} steps of "
                     f"{config.batch_size} images"),
        ("written", f"{datetime.now(UTC).isoformat(timespec='seconds')} by detofa {__version__}"),
    )  # fmt: skip
