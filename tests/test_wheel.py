"""The wheel: what it holds, and that it works where there is no checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from detofa.profiling.table import load_table

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FORCED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
TABLES = [ROOT / name for name in FORCED if name.endswith(".json")]

pytestmark = pytest.mark.slow


def command(*arguments: str, cwd: Path = ROOT) -> str:
    """Run a command outside of this checkout's modules; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `make wheel` does, in a checkout with a table of its own."""
    mine = ROOT / "latency_tables" / "measured-here.json"
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    mine.write_text("{}")
    try:
        command(sys.executable, *build)
    finally:
        mine.unlink()
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that sees what it needs, but not the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    command(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    command(sys.executable, *install)
    # The files of a folder named here that name further folders, as an editable install does,
    # are not read.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = command(str(python), "-c", "import detofa; print(detofa.__file__)", cwd=folder)
    assert Path(found.strip()).is_relative_to(folder)
    return python


@pytest.mark.parametrize("checker", ["twine", "check_wheel_contents"])
def test_checkers_find_nothing_wrong(wheel: Path, checker: str) -> None:
    pytest.importorskip(checker, reason=f"needs {checker}, which the extra `supply` installs")
    check = ["check", "--strict"] if checker == "twine" else []
    command(sys.executable, "-m", checker, *check, str(wheel))


def test_the_wheel_holds_the_tables_that_the_repository_does_and_no_others(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "latency_tables"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip(f"git does not list this checkout: {listed.stderr.strip()}")
    known = set(listed.stdout.splitlines())
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("detofa/") for name in archive.namelist()}
    assert {name for name in names if name.startswith("latency_tables/")} == known


def test_tables_that_ship_are_found_and_equal_those_of_the_checkout(
    python: Path, tmp_path: Path
) -> None:
    listed = json.loads(command(str(python), "-m", "detofa", "devices", "--json", cwd=tmp_path))
    paths = {Path(table["path"]).name: Path(table["path"]) for table in listed["tables"]}
    assert not any(path.is_relative_to(ROOT) for path in paths.values())
    assert set(paths) == {path.name for path in TABLES}
    for path in TABLES:
        assert load_table(paths[path.name]) == load_table(path)


def test_the_loop_runs_without_a_checkout(python: Path, tmp_path: Path) -> None:
    size = (
        "train_images=24, val_images=6, test_images=6, steps=4, profile_seconds=1.0, labels=4, "
        "top_k=1, timing_passes=2, picture_images=2"
    )
    program = f"from detofa.demo import DemoSize, run_demo; run_demo(size=DemoSize({size}))"
    command(str(python), "-c", program, cwd=tmp_path)
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 1e6
    subnet = "runs/demo/subnets/small.json"
    packed = command(
        str(python), "-m", "detofa", "export", subnet, "--app", "app.zip", cwd=tmp_path
    )
    assert "app.zip" in packed
    kit = ["profile", "--device", "orin", "--runtime", "tensorrt", "--make-kit", "kit.zip"]
    command(str(python), "-m", "detofa", *kit, cwd=tmp_path)
    for name in ("app.zip", "kit.zip"):
        assert (tmp_path / name).stat().st_size > 100_000
