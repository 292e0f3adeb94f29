"""`detofa runs`: what a run takes on the disk, and removing it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from detofa import recipes
from detofa.train.run import RunFolder
from tests.test_cli import empty, run

__all__ = ["empty", "run"]  # fixtures


def make_run(name: str) -> RunFolder:
    """Write a run that hardly began, with 100 kB in a folder of its own."""
    made = RunFolder(path=Path("runs") / name)
    made.subnets.mkdir(parents=True)
    recipes.demo(Path("digits")).save(made.config)
    (made.subnets / "weights.bin").write_bytes(os.urandom(100_000))
    return made


def test_the_list_says_what_each_run_takes(run, empty):
    os.link(make_run("first").subnets / "weights.bin", "runs/first/again.bin")
    (empty / "large").write_bytes(os.urandom(1_000_000))
    Path("runs/first/elsewhere").symlink_to(empty / "large")
    record = json.loads(run("runs", "list", "--json").out)
    (found,) = record["runs"]
    blocks = int(subprocess.check_output(["du", "-s", "--block-size=512", "runs/first"]).split()[0])
    assert found["bytes"] == record["bytes"] == blocks * 512
    assert 100_000 <= found["bytes"] < 200_000
    assert "kB in all" in run("runs", "list").out


def test_a_removed_run_is_gone_and_what_its_links_lead_to_stays(run, empty):
    made, kept = make_run("first"), make_run("second")
    (empty / "data").mkdir()
    (empty / "data" / "image.png").touch()
    (made.path / "data").symlink_to(empty / "data")
    (made.subnets / "file").symlink_to(empty / "data" / "image.png")
    taken = made.disk_bytes()
    done = run("runs", "rm", "first", "--yes", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["bytes"] == pytest.approx(taken, abs=8192)  # and the lock
    assert "removed runs/first: " in done.err
    assert not made.path.exists()
    assert kept.config.is_file()
    assert (empty / "data" / "image.png").is_file()


def test_a_run_in_use_stays(run, empty):
    made = make_run("first")
    with made.claimed():
        done = run("runs", "rm", "first", "--yes")
    assert done.code == 1
    assert "another process is training in runs/first" in done.err
    assert (made.subnets / "weights.bin").is_file()


def test_what_is_no_run_stays(run, empty):
    make_run("first")
    (empty / "config.toml").write_text("mine = 1\n")
    for name in ("photos", "site"):
        Path("runs", name).mkdir()
    Path("runs/site/config.toml").write_text("title = 'a site'\n")
    Path("runs/link").symlink_to("first")
    for name, message in (
        ("photos", "may be no run"),
        ("site", "may be no run"),
        ("link", "is a link"),
        ("nowhere", "there is no run runs/nowhere"),
        ("..", "should be the name of a run"),
        (".", "should be the name of a run"),
        ("", "should be the name of a run"),
        ("first/subnets", "should be the name of a run"),
        (str(empty), "should be the name of a run"),
    ):
        done = run("runs", "rm", "first", name, "--yes")
        assert done.code == 1, name
        assert message in done.err, name
    assert Path("runs/first/config.toml").is_file()  # none goes if one of several is refused
    assert run("runs", "rm").code == 2


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_removing_asks_first(empty, answer, code):
    made = make_run("first")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "detofa", "runs", "rm", "runs/first/"],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    os.write(leader, f"{answer}\n".encode())
    told = process.communicate(timeout=120)[0].decode()
    os.close(leader)
    os.close(follower)
    assert process.returncode == code, told
    assert "remove runs/first (" in told
    assert made.path.exists() == bool(code)


def test_nothing_is_removed_where_nobody_can_be_asked(run, empty, monkeypatch):
    made = make_run("first")
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        done = run("runs", "rm", "first")
    assert done.code == 1
    assert "say --yes where nobody can be asked" in done.err
    assert made.config.is_file()
