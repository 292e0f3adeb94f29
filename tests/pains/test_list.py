"""The list of pains names every test, and every test has a fault that it was seen to catch."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.mutations import MUTATIONS, REPOSITORY, Mutation, mutated

FILES = ("test_profiling.py", "test_supernet.py", "test_export.py", "test_data.py")
PAGE = REPOSITORY / "docs" / "pains.md"
ROW = re.compile(r"\| (\d+) \| (.+) \| `(test_\w+)` \| (.+) \|")


def entries_of(file: str) -> dict[str, tuple[int, str]]:
    """Return the entry and the symptom of each test of a file, by its name."""
    tree = ast.parse((Path(__file__).parent / file).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            told = re.fullmatch(r"Entry (\d+): (.+?)\.?", ast.get_docstring(node) or "")
            assert told is not None, f"{node.name} does not name its entry"
            found[node.name] = int(told[1]), told[2]
    return found


def rows() -> list[tuple[str, ...]]:
    return [found.groups() for found in map(ROW.fullmatch, PAGE.read_text().splitlines()) if found]


def test_every_entry_has_a_row_and_every_row_is_that_of_its_test():
    wanted = [
        (
            str(entry),
            symptom,
            name,
            "; ".join(one.words for one in MUTATIONS if one.test == f"{file}::{name}"),
        )
        for file in FILES
        for name, (entry, symptom) in entries_of(file).items()
    ]
    assert rows() == wanted
    assert set(range(1, 48)) == {int(row[0]) for row in rows()}
    assert max(map(len, PAGE.read_text().splitlines())) <= 220


def test_every_test_has_a_mutation_and_every_mutation_a_test():
    names = [f"{file}::{name}" for file in FILES for name in entries_of(file)]
    assert Counter(names).most_common(1)[0][1] == 1
    assert set(names) == {mutation.test for mutation in MUTATIONS}
    here = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    assert here == {*FILES, Path(__file__).name}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: f"{one.test}-{one.words}")
def test_what_a_mutation_replaces_stands_in_its_file_once(mutation):
    text = (REPOSITORY / "detofa" / mutation.file).read_text()
    found = mutated(mutation, text)
    assert found != text
    ast.parse(found)


def test_a_text_that_is_gone_is_an_error_by_name():
    gone = Mutation(test="a.py::test_b", file="files.py", old="x = 1", new="", words="no x")
    with pytest.raises(SystemExit, match=r"mutation of a\.py::test_b \(no x\): detofa/files\.py"):
        mutated(gone, "x = 2")
    with pytest.raises(SystemExit, match="2 times, not once"):
        mutated(gone, "x = 1; x = 1")
