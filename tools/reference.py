"""The reference of commands and files, from the code: `make reference` writes docs/reference/."""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from detofa.choose.history import SearchHistory
from detofa.cli import app
from detofa.data.transforms import Augmentation
from detofa.files import SCHEMA, write_text
from detofa.path_filter.ensemble import FilterSettings
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.pruned_space import PrunedSpace
from detofa.profiling.conditions import Conditions
from detofa.profiling.device import Device
from detofa.profiling.measure import ProfilePlan
from detofa.profiling.table import LatencyTable
from detofa.runtime.manifest import Manifest
from detofa.runtime.measuring import Pass, Schedule
from detofa.runtime.tensorrt.record import EngineRecord
from detofa.space import SearchSpace
from detofa.subnet import Figure, PostProcessing, Subnet
from detofa.supernet.loss import LossWeights
from detofa.train.config import FilterPlan, TrainConfig
from detofa.train.run import RunFolder
from tools.declared import ROOT

FOLDER = ROOT / "docs" / "reference"
_HEAD = "<!-- Written by `make reference`, from the code: change it there. -->\n"


# ---- commands -----------------------------------------------------------------------------


def commands() -> str:
    """Return the page of all commands, as their own help describes them."""
    root = typer.main.get_command(app)
    context = root.make_context("detofa", [], resilient_parsing=True)
    parts = [
        f"{_HEAD}# Commands\nWhat `detofa COMMAND --help` says, for every command.\n\n"
        f"{_cleaned(root.epilog)}\n"
    ]
    parts += [_command(command, path) for path, command in _leaves(root, context)]
    return "\n".join(parts)


def _leaves(command: Any, context: Any) -> Iterator[tuple[str, Any]]:
    """Yield each command that does something, with what is typed to call it."""
    for name in sorted(command.list_commands(context)):
        child = command.get_command(context, name)
        if hasattr(child, "list_commands"):
            inner = child.make_context(name, [], parent=context, resilient_parsing=True)
            yield from _leaves(child, inner)
        else:
            yield f"{context.command_path} {name}", child


def _command(command: Any, path: str) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parameters = [each for each in command.params if "--help" not in each.opts]
    lines = [f"## {path}", inspect.cleandoc(command.help or ""), "", "```text", usage, "```", ""]
    rows = [(_typed(each), each.help, _default(each)) for each in parameters]
    return "\n".join([*lines, *_table(("", "what it is", "default"), rows), ""])


def _typed(parameter: Any) -> str:
    """Return what is typed for a parameter: its names, and a word for its value."""
    word = parameter.metavar or parameter.name.upper()
    if parameter.param_type_name == "argument":
        return f"`{word}`"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return f"`{names}`" if parameter.is_flag else f"`{names} {word}`"


def _default(parameter: Any) -> str:
    """Return the default of a parameter; where the help has it in words it says nothing here."""
    if parameter.required:
        return "none: it must be given"
    value = getattr(parameter.default, "value", parameter.default)  # of an enumeration
    return "" if value is None or value is False or value == "" else f"`{value}`"


# ---- files --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class File:
    """A kind of file.

    Attributes:
        name: As it is named on disk.
        about: What it is, and what writes it.
        records: Classes whose documented fields it holds; the first is the file itself.
        left_out: Fields of these that lie elsewhere.
    """

    name: str
    about: str
    records: Sequence[type]
    left_out: Sequence[str] = ()


FILES = (
    File(
        name="subnet.json",
        about="One chosen detector; kind `subnet`. `detofa search` and `detofa finetune` write it, "
        "the weights beside it. `space_sha256` is the hash of `space`.",
        records=(Subnet, PostProcessing, Figure, SearchSpace),
    ),
    File(
        name="NAME.manifest.json",
        about="What an exported model is, and how it was checked; kind `export_manifest`. "
        "`detofa export` writes it beside the model.",
        records=(Manifest,),
    ),
    File(
        name="NAME.engine.json",
        about="What a TensorRT engine is and where it fits; kind `tensorrt_engine`. "
        "`detofa export --to tensorrt` writes it beside the engine.",
        records=(EngineRecord,),
    ),
    File(
        name="latency_tables/NAME.json",
        about="What a space costs on a device; kind `latency_table`. `detofa profile` writes it. "
        "`sha256` is the hash of everything else.",
        records=(LatencyTable, Device),
    ),
    File(
        name="kit-results.json",
        about="What a profiling kit measured; kind `kit_results`. `python3 kit.zip` writes it. "
        "It has a `plan`, its `conditions`, the `passes`, the hash of each of the `models`, the "
        "`state` of a GPU, times of single operators (`operators_ms`), and `sha256`, the hash of "
        "everything else.",
        records=(ProfilePlan, Conditions, Schedule, Pass),
    ),
    File(
        name="runs/NAME/config.toml",
        about="The settings of a run, all of them. `detofa train` and `pretrain` write it, and "
        "read the same fields, any of them, from the TOML file that `--recipe` names.",
        records=(TrainConfig, Augmentation, LossWeights, FilterPlan),
    ),
    File(
        name="runs/NAME/metrics.jsonl",
        about="The log of a run: one JSON object a line, the first of which has the schema and "
        "the kind, `metrics`; all others have the `step`. Steps of training have `loss`, `seconds` "
        "and `images_per_s`, evaluations the figures of each path.",
        records=(),
    ),
    File(
        name="runs/NAME/path_filter/path_filter.json",
        about="The path filter, its weights beside it; kind `path_filter`. `detofa filter` and "
        "`detofa train --method detofa` write it. `space` is the name of the space and "
        "`space_sha256` its hash; `weights_sha256` is that of the file beside it, which has the "
        "tensors of `means`, `scales` and `ensemble`.",
        records=(PathFilter, FilterSettings),
        left_out=("means", "scales", "ensemble"),
    ),
    File(
        name="runs/NAME/pruned_space.json",
        about="The part of a space that a run goes on with; kind `pruned_space`. The same "
        "commands write it. `space` is the name of the space and `space_sha256` its hash; "
        "`filter` names what scores archs, with its folder and hash, or the seed of chance.",
        records=(PrunedSpace,),
        left_out=("path_filter", "cost"),
    ),
    File(
        name="runs/NAME/searches/NAME.json",
        about="What a search did; kind `search_history`. `detofa search` writes it.",
        records=(SearchHistory,),
    ),
)


def files() -> str:
    """Return the page of files, from the docstrings of what reads and writes them."""
    head = (
        f"{_HEAD}# Files\nJSON files begin with `schema`, {SCHEMA} in this version, and `kind`. "
        "A file of another schema is refused, with the command that makes it again. Files are "
        "written whole or not at all; weights are safetensors; nothing is a pickle.\n\n"
        "Sizes are (height, width), boxes xyxy in pixels, hashes SHA-256.\n"
    )
    return "\n".join([head, *map(_file, FILES), _run_folder()])


def _file(file: File) -> str:
    lines = [f"## {file.name}", file.about, ""]
    for record in file.records:
        fields = documented(record)
        if record is not file.records[0] or len(file.records) > 1:
            lines += [f"### {_place(file, record)}", _summary(record), ""]
        rows = [(f"`{name}`", text) for name, text in fields.items() if name not in file.left_out]
        lines += [*_table(("field", "content"), rows), ""]
    return "\n".join(lines)


def _place(file: File, record: type) -> str:
    """Return the heading of a record: `Device` in a latency table is of that table alone."""
    return f"{record.__name__} in {file.name.rpartition('/')[2]}"


def _run_folder() -> str:
    rows = [
        (f"`{name}`", _summary(member))
        for name, member in vars(RunFolder).items()
        if isinstance(member, property)
    ]
    lines = ["## A run's folder", "What the properties of `RunFolder` name.", ""]
    return "\n".join([*lines, *_table(("property", "what it is"), rows), ""])


def documented(record: type) -> dict[str, str]:
    """Return the text of each field in the `Attributes` of a dataclass's docstring.

    Raises:
        ValueError: the docstring does not name the fields, all of them and in order.
    """
    text = inspect.getdoc(record) or ""
    _, _, section = text.partition("\nAttributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.split("\n"):
        if match := re.match(r"    (\w+): (.*)", line):
            name, found[match[1]] = match[1], match[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        else:
            break
    names = [field.name for field in dataclasses.fields(record)]
    if list(found) != names:
        raise ValueError(f"{record.__name__} documents {list(found)}, and has {names}")
    return found


def _summary(record: Any) -> str:
    return (inspect.getdoc(record) or "").split("\n\n")[0].replace("\n", " ")


# ---- pages --------------------------------------------------------------------------------


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {' | '.join(_cleaned(cell) for cell in row)} |" for row in rows]
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}", *lines]


def _cleaned(text: str | None) -> str:
    """Return a text as one line that a table takes; what has angle brackets is no HTML."""
    line = " ".join((text or "").split())
    return line.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


PAGES = {"commands.md": commands, "files.md": files}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        write_text(FOLDER / name, page())


if __name__ == "__main__":
    main()
