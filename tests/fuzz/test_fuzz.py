"""Any file is answered with a result or a plain error; `python -m benchmarks.fuzz` tries more."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import Answer
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS


@pytest.fixture(scope="module")
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return READERS[request.param](tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("reader", READERS, indirect=True)
def test_a_valid_file_is_accepted(reader: Reader, tmp_path: Path) -> None:
    assert reader.answer(tmp_path / "inside", {}) == Answer.ACCEPTED


@pytest.mark.parametrize("reader", READERS, indirect=True)
@given(data=st.data())
@settings(max_examples=40)
def test_a_changed_file_is_accepted_or_refused_in_words(
    reader: Reader, data: st.DataObject, tmp_path: Path
) -> None:
    reader.answer(tmp_path / "inside", data.draw(reader.changed))
