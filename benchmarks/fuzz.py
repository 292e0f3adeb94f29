"""Every reader of the package against many changed files: each has to answer, or to say why not.

    python -m benchmarks.fuzz --cases 100000 --jobs 16
    python -m benchmarks.fuzz --reader "image tar" --seconds 60
    python -m benchmarks.fuzz --guided --seconds 60

The strategies are those of `tests/fuzz`, at scale. With `--guided`, atheris makes the bytes instead
and is led by what code they reach; it is not among the extras: `pip install atheris`. Each reader
runs in a process of its own with limited memory. A failing input is saved with its error, and the
exit code is then 1.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.reader import Files, Reader

_BATCH, _BATCH_BYTES = 1000, 50 << 20
_PART = 12_500  # cases of one process
_COLUMNS = ("cases", "refused", "accepted", "seconds", "peak_mb")
_KEPT = 40  # failures of a reader that are saved
_GROWTH_BYTES = 3 << 30  # what a reader may allocate beside what the interpreter has


class Tally:
    """Counts answers, and saves what was not answered, once for each place it failed at.

    Args:
        reader: What is tried.
        folder: Where its files lie.
        output: Where failing inputs go.
    """

    def __init__(self, reader: "Reader", folder: Path, output: Path) -> None:
        self._reader, self._folder, self._output = reader, folder, output
        self._begin = time.monotonic()
        self._at_start_mb = peak_mb()
        self.cases = self.refused = 0
        self.failures: dict[str, int] = {}

    def try_one(self, files: "Files") -> None:
        """Give the reader files."""
        from tests.fuzz.harness import Answer, Hang

        self.cases += 1
        try:
            answer = self._reader.answer(self._folder, files)
            self.refused += answer is Answer.REFUSED
        except (Exception, Hang) as error:
            place = _place(error)
            self.failures[place] = self.failures.get(place, 0) + 1
            if self.failures[place] == 1 and len(self.failures) <= _KEPT:
                save(self._output / f"{len(self.failures):02d}", files, traceback.format_exc())

    @property
    def seconds(self) -> float:
        """Return how long it has been going on."""
        return time.monotonic() - self._begin

    def report(self) -> dict[str, Any]:
        """Return the row of this reader."""
        return {
            "cases": self.cases,
            "refused": self.refused,
            "accepted": self.cases - self.refused - sum(self.failures.values()),
            "seconds": round(self.seconds, 1),
            "peak_mb": round(peak_mb() - self._at_start_mb),
            "failures": self.failures,
        }


def peak_mb() -> float:
    """Return the most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def save(folder: Path, files: "Files", error: str) -> None:
    """Write failing files and what they raised into a folder."""
    for name, content in {**files, "error.txt": error.encode(errors="replace")}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _place(error: BaseException) -> str:
    """Return the type of an error and the line of the package that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "/detofa/" in frame.filename] or frames
    last = inside[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"


def limit_memory() -> None:
    """Have the system refuse memory far beyond what this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
    limit = pages * resource.getpagesize() + _GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run_strategies(
    tally: Tally, reader: "Reader", cases: int, seconds: float, first: int = 0
) -> None:
    """Give a reader what its strategies draw, in batches of their own seeds from `first` on."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    size = min(
        _BATCH, max(20, _BATCH_BYTES // sum(map(len, reader.files.values())))
    )  # Hypothesis keeps what it drew
    for batch in range(first, first + cases, size):

        @seed(batch)
        @settings(
            max_examples=min(size, first + cases - batch),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(reader.changed)
        def attempt(files: "Files") -> None:
            if tally.seconds < seconds:
                tally.try_one(files)

        attempt()
        if tally.seconds >= seconds:
            return


def run_guided(tally: Tally, reader: "Reader", folder: Path, limits: tuple[int, float]) -> None:
    """Give a reader what atheris makes, beginning with the valid file; ends the process."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    assert reader.target is not None
    target, report = reader.target, folder / "report.json"
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(reader.files[target])

    def attempt(data: bytes) -> None:
        tally.try_one({target: data})
        if tally.cases % 20 == 0:
            report.write_text(json.dumps(tally.report()))

    cases, seconds = limits
    options = [f"-runs={cases}", f"-max_total_time={int(seconds)}", "-timeout=60"]
    options += ["-rss_limit_mb=0", "-max_len=100000", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], attempt)
    atheris.Fuzz()


def run_one(options: argparse.Namespace) -> None:
    """Try one reader in this process; its row lies in the work folder afterwards."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = Path(options.work)
    if options.guided:
        import atheris

        with atheris.instrument_imports(include=["detofa", "yaml", "tomllib", "tarfile"]):
            from tests.fuzz.readers import READERS
    else:
        from tests.fuzz.readers import READERS
    made, inside = work / "made", work / "around" / "inside"
    made.mkdir()
    inside.mkdir(parents=True)
    reader = READERS[options.one](made)
    reader.answer(inside, {})  # loads what it needs
    limit_memory()
    tally = Tally(reader, inside, Path(options.output))
    if options.guided:
        run_guided(tally, reader, work, (options.cases, options.seconds))
    else:
        run_strategies(tally, reader, options.cases, options.seconds, options.first)
    (work / "report.json").write_text(json.dumps(tally.report()))


def row_of(name: str, first: int, cases: int, options: argparse.Namespace) -> Mapping[str, Any]:
    """Try one reader on some cases in a process of its own; return its row."""
    memory = Path("/dev/shm")  # a disk would take most of the time
    place = memory if memory.is_dir() else None
    output = Path(options.output) / name.replace(" ", "-") / str(first)
    with tempfile.TemporaryDirectory(prefix="detofa-fuzz-", dir=place) as work:
        command = [sys.executable, "-m", "benchmarks.fuzz", "--one", name, "--work", work]
        command += ["--first", str(first), "--cases", str(cases)]
        command += ["--seconds", str(options.seconds), "--output", str(output)]
        command += ["--guided"] if options.guided else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = Path(work, "report.json")
        row: dict[str, Any] = dict.fromkeys(_COLUMNS, 0) | {"failures": {}}
        if report.is_file():
            row |= json.loads(report.read_text())
        if done.returncode:
            inside = Path(work, "around", "inside")
            files = {
                str(path.relative_to(inside)): path.read_bytes()
                for path in inside.rglob("*")
                if path.is_file()
            }
            save(output / "crash", files, done.stderr)
            row["failures"][f"exit {done.returncode}"] = 1
    return row


def merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of all parts of a reader: what they did in sum, and the most memory of one."""
    row: dict[str, Any] = {name: sum(part[name] for part in rows) for name in _COLUMNS}
    row["peak_mb"] = max(part["peak_mb"] for part in rows)
    failures: Counter[str] = Counter()
    for part in rows:
        failures.update(part["failures"])
    return row | {"failures": failures}


def main() -> None:
    """Try the readers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, help="of each reader")
    parser.add_argument("--seconds", type=float, default=float(10**6), help="of each process")
    parser.add_argument("--reader", action="append", help="one of them; all if not given")
    parser.add_argument("--guided", action="store_true", help="bytes made by atheris")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--output", default="runs/fuzz", help="of failing inputs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options)
        return
    from tests.fuzz.readers import READERS

    unknown = set(options.reader or ()) - set(READERS)
    if unknown:
        sys.exit(f"no readers {sorted(unknown)}; there are {', '.join(READERS)}")
    print(f"{'reader':16} {'cases':>8} {'refused':>8} {'accepted':>8} {'s':>7} {'MB':>6}  failures")
    size = options.cases if options.guided else _PART
    failed = False
    with ThreadPoolExecutor(options.jobs) as pool:
        parts = {
            name: [
                pool.submit(row_of, name, first, min(size, options.cases - first), options)
                for first in range(0, options.cases, size)
            ]
            for name in options.reader or READERS
        }
        for name, waiting in parts.items():
            row = merged([part.result() for part in waiting])
            failures = ", ".join(f"{place} x{n}" for place, n in row["failures"].items())
            failed = failed or bool(failures)
            print(
                f"{name:16} {row['cases']:8} {row['refused']:8} {row['accepted']:8} "
                f"{row['seconds']:7.1f} {row['peak_mb']:6}  {failures or 'none'}",
                flush=True,
            )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
