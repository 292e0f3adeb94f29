"""Fenced blocks of the documentation, and what their commands must satisfy without being run."""

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from detofa.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "latency_tables/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
LANGUAGES = {"sh", "python", "text", "toml"}
MARKS = {"", "{.long}", "{.gpu}"}
_FENCE = re.compile(r"^```(?P<info>.*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its page, from the repository's root.
        line: Number of its first line.
        language: The first word after the fence.
        mark: What follows that word.
        text: What it holds.
    """

    page: str
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of each command, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks() -> Iterator[Block]:
    """Yield all blocks of all pages, in order."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            language, _, mark = found["info"].partition(" ")
            yield Block(
                page=path.relative_to(ROOT).as_posix(),
                line=text[: found.start()].count("\n") + 1,
                language=language,
                mark=mark,
                text=found["text"],
            )


def check_command(words: Sequence[str]) -> None:
    """Raise ValueError if a command is none, or has options that it does not know."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    match list(words):
        case ["detofa", *rest] | ["python", "-m", "detofa", *rest]:
            _check_detofa(rest)
        case ["python", "-m", module, *rest] if module.startswith("benchmarks."):
            _check_benchmark(module, rest)
        case ["python", script, *rest] if script.startswith("benchmarks/"):
            _check_benchmark(script.removesuffix(".py").replace("/", "."), rest)
        case ["torchrun", *rest]:
            _check_torchrun(rest)
        case ["make", target, *_]:
            if not re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M):
                raise ValueError(f"the Makefile has no target {target}")
        case ["pip", "install", "-e", what]:
            _check_extras(what)
        case ["pip", "install", what] if what.startswith("detofa["):
            _check_extras(what)
        case ["tensorboard", "--logdir", "runs"]:
            pass
        case ["python3", archive, *_] if archive.endswith(".zip"):
            _check_archive(list(words)[1:])
        case _:
            raise ValueError(f"nothing is known of the command {shlex.join(words)}")


def _check_detofa(words: Sequence[str]) -> None:
    """Let the command's own parser read the options; nothing is run."""
    command = typer.main.get_command(app)
    context, rest = command.make_context("detofa", [], resilient_parsing=True), list(words)
    while hasattr(command, "get_command"):
        name = rest.pop(0)
        command = command.get_command(context, name)
        if command is None:
            raise ValueError(f"detofa has no command {name}")
        if hasattr(command, "get_command"):
            context = command.make_context(name, list(rest), resilient_parsing=True)
    try:
        command.make_context(str(command.name), rest)
    except Exception as error:
        raise ValueError(f"detofa {shlex.join(words)}: {error}") from error


class _ParsedError(Exception):
    """The options were read."""


def _check_benchmark(module: str, words: Sequence[str]) -> None:
    """Run a benchmark up to where it has read its options."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"there is no {module}")
    original, before = argparse.ArgumentParser.parse_args, sys.argv

    def parse(self: argparse.ArgumentParser, *_: object) -> None:
        try:
            original(self, list(words))
        except SystemExit as stop:
            raise ValueError(f"{module} {shlex.join(words)}: exit code {stop.code}") from stop
        raise _ParsedError

    argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign, assignment]
    sys.argv = [module, *words]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # another test has imported it
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    except _ParsedError:
        return
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = original, before  # type: ignore[method-assign]
    raise ValueError(f"{module} does not read its options")


def _check_torchrun(words: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    try:
        read = get_args_parser().parse_args(list(words))
    except SystemExit as stop:
        raise ValueError(f"torchrun {shlex.join(words)}: exit code {stop.code}") from stop
    if not read.module or read.training_script != "detofa":
        raise ValueError(f"torchrun starts {read.training_script}, and not the module detofa")
    _check_detofa(read.training_script_args)


def _check_extras(what: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = re.findall(r"[\w-]+", what.partition("[")[2])
    unknown = set(wanted) - set(project["optional-dependencies"])
    if unknown:
        raise ValueError(f"pyproject.toml has no extras {sorted(unknown)}")


def _check_archive(words: Sequence[str]) -> None:
    """A kit and a packed detector are known by what is asked of them."""
    code = (ROOT / "detofa" / "profiling" / "on_device.py").read_text(encoding="utf-8")
    app_code = (ROOT / "detofa" / "runtime" / "app.py").read_text(encoding="utf-8")
    first = words[1] if len(words) > 1 else ""
    source = code if not first or first.startswith("--") else app_code
    for word in words[1:]:
        if (word == first or word.startswith("--")) and f'"{word}"' not in source:
            raise ValueError(f"{words[0]} does not know {word}")
