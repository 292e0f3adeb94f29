"""The site builds without a warning, and its reference is what the code says."""

import os
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT

pytest.importorskip("torch")

from tools.reference import FILES, FOLDER, PAGES, documented


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_what_the_code_says(name):
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "write it again: make reference"


def test_a_field_without_a_text_is_told():
    from dataclasses import make_dataclass

    record = make_dataclass("Record", ["size"])
    record.__doc__ = "A record.\n\nAttributes:\n    width: Pixels.\n"
    with pytest.raises(ValueError, match=r"Record documents \['width'\], and has \['size'\]"):
        documented(record)
    assert all(documented(record) for file in FILES for record in file.records)


def test_the_site_builds_without_a_warning_and_asks_for_no_network(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    pytest.importorskip("material", reason="mkdocs-material is not installed: the docs extra")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "tutorial.html").read_text(encoding="utf-8")
    assert 'class="long highlight"' in page
    assert "fonts.googleapis" not in page
