"""What is here and what is missing: each with the one command that mends it."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detofa.errors import UserError
from detofa.profiling.device import Device, device_here, devices_here
from detofa.profiling.table import read_tables
from detofa.runtime.tensorrt.build import import_tensorrt, logger_of, made

State = Literal["ok", "missing", "faulty"]
_PYTHON = (3, 11)
_DISK_BYTES, _MEMORY_BYTES = 2 * 10**9, 3 * 10**9  # a demo's run; training BCCD
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CUDA_13 = 13000  # NVML's number


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: What it is, in a word.
        state: `missing` is what some commands need and others do without.
        says: What was found.
        mend: What mends it; empty if nothing has to be.
    """

    name: str
    state: State
    says: str
    mend: str = ""


NAMES = (
    "python",
    "cores",
    "memory",
    "disk",
    "folders",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "gpu",
    "cuda",
    "tensorrt",
    "table",
)
"""What is looked for, in the order in which it is told."""


def examine(folder: Path, table_folders: Iterable[Path]) -> list[Finding]:
    """Look for all that the commands need.

    Args:
        folder: Where runs and tables are written.
        table_folders: Where latency tables are looked for.
    """
    devices = devices_here()
    gpus = [device for device in devices if device.kind == "gpu"]
    looks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "cores": lambda: _cores(devices[0]),
        "memory": _memory,
        "disk": lambda: _disk(folder),
        "folders": lambda: _folders(folder),
        "torch": _torch,
        "onnx": lambda: _package("onnx", "onnxscript"),
        "onnxruntime": _onnxruntime,
        "openvino": lambda: _package("openvino"),
        "gpu": lambda: _gpu(gpus),
        "cuda": lambda: _cuda(gpus),
        "tensorrt": lambda: _tensorrt(gpus),
        "table": lambda: _table(table_folders),
    }
    assert tuple(looks) == NAMES
    return [look() for look in looks.values()]


def _python() -> Finding:
    says = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < _PYTHON:
        wanted = ".".join(map(str, _PYTHON))
        return Finding(name="python", state="faulty", says=says, mend=f"install Python {wanted}")
    return Finding(name="python", state="ok", says=says)


def _cores(cpu: Device) -> Finding:
    says = f"{cpu.details['usable_cores']} usable of {cpu.details['cores']}: {cpu.name}"
    return Finding(name="cores", state="ok", says=says)


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return Finding(name="memory", state="ok", says="this system does not tell")
    limit = _first_number(_CONTAINER_LIMIT)
    says = f"{min(total, limit or total) / 1e9:.1f} GB"
    if limit is not None and limit < total:
        says += f" in this container, of {total / 1e9:.1f} GB"
    if min(total, limit or total) < _MEMORY_BYTES:
        mend = "train with --batch-size 2, or on a machine with 4 GB"
        return Finding(name="memory", state="faulty", says=says, mend=mend)
    return Finding(name="memory", state="ok", says=says)


def _first_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max" where there is no limit
        return None


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    says = f"{free / 1e9:.1f} GB free in {folder.resolve()}"
    if free < _DISK_BYTES:
        mend = "free some space: `detofa runs list` shows what runs take"
        return Finding(name="disk", state="faulty", says=says, mend=mend)
    return Finding(name="disk", state="ok", says=says)


def _folders(folder: Path) -> Finding:
    wanted = [folder, *(folder / name for name in ("runs", "latency_tables"))]
    closed = [str(one) for one in wanted if one.exists() and not os.access(one, os.W_OK | os.X_OK)]
    if closed:
        mend = "change to a folder of your own with `cd`"
        return Finding(
            name="folders", state="faulty", says=f"cannot write {', '.join(closed)}", mend=mend
        )
    return Finding(name="folders", state="ok", says="runs/ and latency_tables/ can be written")


def _torch() -> Finding:
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding(
            name="torch",
            state="missing",
            says=f"{error}; train, search with weights and export need it",
            mend="pip install 'detofa[train]'",
        )
    built = torch.version.cuda or torch.version.hip
    says = f"{torch.__version__}, built for {'CUDA ' + built if built else 'the processor only'}"
    return Finding(name="torch", state="ok", says=says)


def _package(*names: str) -> Finding:
    """Return whether packages are installed, without loading them."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            mend = f"pip install 'detofa[{names[0]}]'"
            return Finding(name=names[0], state="missing", says=f"no {name}", mend=mend)
    says = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Finding(name=names[0], state="ok", says=says)


def _onnxruntime() -> Finding:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except (ImportError, OSError) as error:
        mend = "pip install 'detofa[onnx]'"
        return Finding(name="onnxruntime", state="missing", says=str(error), mend=mend)
    says = f"{runtime.__version__} with {', '.join(runtime.get_available_providers())}"
    return Finding(name="onnxruntime", state="ok", says=says)


def _gpu(gpus: list[Device]) -> Finding:
    if gpus:
        says = "; ".join(f"{gpu.name}, driver {gpu.details['driver']}" for gpu in gpus)
        return Finding(name="gpu", state="ok", says=says)
    says, mend = "no NVIDIA GPU that NVML knows", "run it on a machine that has one"
    if importlib.util.find_spec("pynvml") is None:
        says, mend = "unknown: nvidia-ml-py is not installed", "pip install nvidia-ml-py"
    elif shutil.which("nvidia-smi"):
        mend = "see what `nvidia-smi` says of the driver"
    return Finding(name="gpu", state="missing", says=says, mend=mend)


def _cuda(gpus: list[Device]) -> Finding:
    """Return whether PyTorch can use the GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not gpus:
        lacking = "PyTorch" if torch is None else "a GPU"
        return Finding(name="cuda", state="missing", says=f"not looked for, without {lacking}")
    if torch.cuda.is_available():
        says = f"PyTorch uses {torch.cuda.device_count()} GPUs"
        return Finding(name="cuda", state="ok", says=says)
    return Finding(
        name="cuda",
        state="faulty",
        says=f"this PyTorch (CUDA {torch.version.cuda}) cannot use the GPU; the driver goes to "
        f"{_written(gpus[0].details.get('cuda'))}",
        mend="install the PyTorch build that pytorch.org names for this driver, or a newer driver",
    )


def _tensorrt(gpus: list[Device]) -> Finding:
    known = gpus[0].details.get("cuda") if gpus else None
    package = "tensorrt-cu12" if known is not None and known < _CUDA_13 else "tensorrt-cu13"
    fits = f"a driver for CUDA {_written(known)} takes {package}" if known else ""
    extra = package.removesuffix("-cu13")
    mend = f"pip install 'detofa[{extra}]'" if gpus else "it needs an NVIDIA GPU first"
    try:
        trt = import_tensorrt()
    except UserError as error:
        reason = str(error.__cause__ or error)
        says = "; ".join(part for part in (reason, fits) if part)
        return Finding(name="tensorrt", state="missing", says=says, mend=mend)
    try:
        made(trt, trt.Runtime, logger_of(trt))
    except UserError as error:
        says = "; ".join(part for part in (str(error), fits) if part)
        state: State = "faulty" if gpus else "missing"
        return Finding(name="tensorrt", state=state, says=says, mend=mend)
    return Finding(name="tensorrt", state="ok", says=str(trt.__version__))


def _table(folders: Iterable[Path]) -> Finding:
    """Return which latency tables there are of devices that are here."""
    tables = [table for folder in folders for _, table in read_tables(folder)]
    fitting = [
        f"{table.device.name} ({table.runtime}, space {table.space.name})"
        for table in tables
        if not isinstance(table, UserError) and device_here(table.device.name) is not None
    ]
    if fitting:
        return Finding(name="table", state="ok", says="; ".join(fitting))
    says = f"none of the {len(tables)} latency tables here is of a device of this machine"
    return Finding(name="table", state="missing", says=says, mend="detofa profile")


def _written(cuda: int | None) -> str:
    return "unknown" if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
