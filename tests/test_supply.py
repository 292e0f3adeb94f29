"""What is installed: floors, the lock file, licences, the audit that says when it knows nothing."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.audit import FOUND, UNREACHABLE, verdict
from tools.declared import LOCK, declared, locked
from tools.licences import EXTRAS, FORBIDDEN, PAGE, licences
from tools.lowest import COMPANIONS, EXEMPT, constraints

ROOT = Path(__file__).resolve().parent.parent


def test_the_lowest_versions_are_the_floors_of_the_project():
    pinned = {}
    for line in constraints():
        if line not in COMPANIONS:
            name, _, version = line.partition("==")
            pinned[name] = Version(version)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    apart = r"^(supply|docs|requires|tensorboard|tensorrt.*) = \[[^\]]*\]$"
    text = re.sub(apart, "", text, flags=re.MULTILINE)
    stated = [
        (name, Version(version))
        for name, version in re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\w.]+)[,<\d.]*"', text)
        if name not in EXEMPT
    ]
    assert len(pinned) > 20
    assert set(pinned) == {name for name, _ in stated}
    assert pinned == {
        name: max(version for other, version in stated if other == name) for name in pinned
    }


def test_no_floor_is_above_what_the_project_allows():
    pins = dict(line.split("==") for line in constraints() if line not in COMPANIONS)
    for requirement in declared(["all", "dev"]):
        if requirement.name in pins:
            assert requirement.specifier.contains(pins[requirement.name]), str(requirement)


def test_the_lock_holds_every_direct_dependency_within_its_bounds():
    pins = {canonicalize_name(name): version for name, version in locked().items()}
    direct = declared(EXTRAS)
    assert len(direct) > 12
    for requirement in direct:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (str(requirement), version)


def test_the_lock_is_closed_hashed_and_names_no_index():
    text = LOCK.read_text(encoding="utf-8")
    assert not re.search(r"^\s*-[-\w]*(?:url|index|find|trusted)|://|@ ", text, re.MULTILINE)
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked())
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    pins = {canonicalize_name(name): Version(version) for name, version in locked().items()}
    for name, version in pins.items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the environment of the tests may be newer, and need other packages
        if Version(found.version) != version:
            continue
        for needed in map(Requirement, found.requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                other = canonicalize_name(needed.name)
                assert needed.specifier.contains(pins[other]), (name, str(needed))


def test_no_dependency_of_the_demo_is_under_a_licence_that_binds_its_users():
    rows = licences()
    names = {row.name for row in rows}
    assert {canonicalize_name(needed.name) for needed in declared(EXTRAS)} <= names
    assert [row for row in rows if FORBIDDEN.search(row.licence)] == []


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-2.1", False),
        ("GNU Lesser General Public License v2 (LGPLv2)", False),
        ("Apache-2.0 AND MIT", False),
    ],
)
def test_a_licence_that_binds_users_is_known_by_its_name(licence, forbidden):
    assert (FORBIDDEN.search(licence) is not None) == forbidden


def test_the_page_of_licences_is_of_the_locked_versions():
    rows = re.findall(r"^\| ([\w-]+) \| ([\w.]+) \| ", PAGE.read_text(encoding="utf-8"), re.M)
    told = {name: version for name, version in rows if name != "package"}
    assert told == {canonicalize_name(name): version for name, version in locked().items()}


def test_an_audit_without_a_network_says_that_it_was_skipped():
    pytest.importorskip("pip_audit")
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "tools.audit"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere, "NO_PROXY": ""},
        text=True,
        timeout=120,
    )
    assert done.returncode == UNREACHABLE, done.stdout + done.stderr
    assert done.stdout.startswith("skipped: the advisory service cannot be reached")
    assert "make audit" in done.stdout


def test_an_audit_tells_a_fault_and_takes_no_silence_for_an_answer():
    clean = {"name": "rich", "version": "15.0.0", "vulns": []}
    unknown = {"name": "rich", "skip_reason": "Dependency not found on PyPI"}
    fault = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
    faulty = {"name": "pillow", "version": "1.0", "vulns": [fault]}
    assert verdict([clean, clean]) == (0, "no known vulnerability in 2 packages")
    code, text = verdict([clean, unknown])
    assert code == UNREACHABLE
    assert "knows nothing of 1 of 2" in text
    code, text = verdict([unknown, faulty])
    assert code == FOUND
    assert "pillow 1.0: PYSEC-2026-1, mended in 2.0" in text
