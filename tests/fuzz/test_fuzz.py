"""Any file is answered with a result or a plain error; `python -m benchmarks.fuzz` tries more."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import Answer
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS
from tests.fuzz.regressions import regressions


@pytest.fixture(scope="module", params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reader(name: str, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return READERS[name](tmp_path_factory.mktemp("made"))


def test_a_valid_file_is_accepted(reader: Reader, tmp_path: Path) -> None:
    assert reader.answer(tmp_path / "inside", {}) == Answer.ACCEPTED


def test_what_a_reader_once_failed_at_is_answered(
    name: str, reader: Reader, tmp_path: Path
) -> None:
    for changed in regressions(name, reader):
        reader.answer(tmp_path / "inside", changed)


@given(data=st.data())
@settings(max_examples=40)
def test_a_changed_file_is_accepted_or_refused_in_words(
    reader: Reader, data: st.DataObject, tmp_path: Path
) -> None:
    reader.answer(tmp_path / "inside", data.draw(reader.changed))
