"""Which device this is: the record a latency table is tied to, and finding one by its name."""

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from detofa.errors import UserError

_CPU_INFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_BOARD = Path("/proc/device-tree/model")  # names Jetsons and other boards
# What inference kernels are chosen by, on x86 and Arm.
_FLAGS = {"avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl"}
_FLAGS |= {"avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
_FLAGS |= {"asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"}


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device of this machine.

    Attributes:
        kind: What it is.
        name: The full name its maker gives it; two devices are the same only if these are equal.
        details: What else bears on speed, such as instruction sets, cores, driver.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    details: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """Return the name as part of a file's name."""
        return slug(self.name)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return asdict(self) | {"details": dict(self.details)}

    @classmethod
    def from_json(cls, record: Any) -> "Device":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing or of the wrong kind.
        """
        try:
            device = cls(**record)
        except TypeError as error:
            raise UserError(f"not the record of a device: {error}") from error
        known = device.kind in ("cpu", "gpu") and isinstance(device.name, str)
        if not known or not isinstance(device.details, Mapping):
            raise UserError(f"not the record of a device: {record!r}")
        return device


def slug(text: str) -> str:
    """Return a text as part of a file's name: lower case, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def this_cpu() -> Device:
    """Return this machine's CPU, with what is readable of it."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fields = _cpu_info()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    details = {
        "architecture": platform.machine(),
        "flags": sorted(_FLAGS & flags),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "governor": _first_line(_GOVERNOR),
        "system": f"{platform.system()} {platform.release()}",
    }
    board = _first_line(_BOARD)  # Arm's names say little: one core is in many boards
    name = ", ".join(part for part in (board, _cpu_name(fields)) if part)
    return Device(kind="cpu", name=name, details=details)


def devices_here() -> tuple[Device, ...]:
    """Return every device of this machine, the CPU first."""
    return (this_cpu(), *_gpus())


def device_here(name: str) -> Device | None:
    """Return the device of this machine that has just this full name, or None."""
    return next((device for device in devices_here() if device.name == name), None)


def find_device(name: str, devices: Sequence[Device] | None = None) -> Device:
    """Return the device that a user means by `name`.

    Args:
        name: `cpu`, `cuda` (the first GPU), `cuda:N`, or whole words of the device's full name, in
            any case: `a100` means `NVIDIA A100-SXM4-80GB`, `xeon` means `Intel(R) Xeon(R)
            Processor`.
        devices: Where to look; this machine's devices if not given.

    Raises:
        UserError: no device of that name is here, or several different ones are.
    """
    here = devices_here() if devices is None else devices
    indexed = re.fullmatch(r"cuda(?::(\d+))?", name.strip().lower())
    if _words(name) == ["cpu"]:
        found = [device for device in here if device.kind == "cpu"]
    elif indexed is not None:
        gpus = [device for device in here if device.kind == "gpu"]
        wanted = int(indexed[1] or 0)
        found = [device for device in gpus if device.details.get("index") == wanted]
    else:
        found = [device for device in here if device.name == name.strip()]
        found = found or [device for device in here if holds_words(device.name, name)]
    names = ", ".join(f"{device.name} ({device.kind})" for device in here)
    if not found:
        raise UserError(
            f"no device named {name!r} is on this machine; it has {names}. A table is only made "
            "on the device itself: run `detofa profile` there and copy the file from its "
            "latency_tables/ into this machine's latency_tables/; or, where no torch is, make a "
            f"kit here with `detofa profile --device {name} --runtime RUNTIME --make-kit kit.zip` "
            "and run that"
        )
    if len({device.name for device in found}) > 1:
        several = ", ".join(device.name for device in found)
        raise UserError(f"{name!r} fits {several}; give more of the name of the one you mean")
    return found[0]


def holds_words(text: str, wanted: str) -> bool:
    """Return whether the words of `wanted` stand in `text` together, whole, in any case."""
    words, run = _words(text), _words(wanted)
    starts = range(len(words) - len(run) + 1)
    return bool(run) and any(words[start : start + len(run)] == run for start in starts)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _cpu_info() -> dict[str, str]:
    """Return the fields of the first processor that Linux lists, or nothing elsewhere."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _cpu_name(fields: Mapping[str, str]) -> str:
    """Return the maker's name of the CPU, or the best the system knows."""
    if fields.get("model name"):
        return " ".join(fields["model name"].split())
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return " ".join(said.stdout.split())
        except (OSError, subprocess.SubprocessError):
            pass
    parts = [fields.get("Hardware") or fields.get("Model") or platform.processor()]
    return " ".join(part for part in [*parts, platform.machine()] if part) or "unknown CPU"


def _first_line(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip("\0 \n") or None


def gpu_state(device: Device) -> dict[str, Any]:
    """Return how fast a GPU is clocked now, and why not faster; empty where NVML does not tell.

    To be asked outside of what is timed.

    Returns:
        `sm_mhz` and `memory_mhz` with their `max_`, `throttle_reasons` (NVML's bits: 1 is idle, 4 a
        power cap), `celsius`, `watts`.
    """
    if device.kind != "gpu":
        return {}
    with _nvml() as nvml:
        if nvml is None:
            return {}
        handle = nvml.nvmlDeviceGetHandleByIndex(int(device.details.get("index", 0)))
        told = {
            "sm_mhz": _told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "max_sm_mhz": _told(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": _told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "max_memory_mhz": _told(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "throttle_reasons": _told(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
            "celsius": _told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "watts": _watts(_told(nvml.nvmlDeviceGetPowerUsage, handle)),
        }
        return {name: value for name, value in told.items() if value is not None}
    return {}  # NVML failed, and the context manager has swallowed it


def _gpus() -> list[Device]:
    """Return NVIDIA GPUs; none where the driver or nvidia-ml-py is absent."""
    with _nvml() as nvml:
        if nvml is not None:
            count = nvml.nvmlDeviceGetCount()
            return [_gpu(nvml, index) for index in range(count)]
    return []


def _gpu(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = _told(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = _told(nvml.nvmlDeviceGetMemoryInfo, handle)  # untold where the host's is used
    mig = _told(nvml.nvmlDeviceGetMigMode, handle)
    details = {
        "index": index,
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "memory_bytes": None if memory is None else int(memory.total),
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "cuda": _told(nvml.nvmlSystemGetCudaDriverVersion),
        "power_limit_watts": _watts(_told(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        "mig": None if mig is None else bool(mig[0]),
    }
    return Device(kind="gpu", name=_text(nvml.nvmlDeviceGetName(handle)), details=details)


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """Give NVML, or None where it or the driver is absent; what it refuses ends the block."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        with contextlib.suppress(pynvml.NVMLError):
            yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _told(ask: Callable[..., Any], *about: Any) -> Any:
    """Return what NVML says, or None where this GPU or driver does not tell."""
    import pynvml

    try:
        return ask(*about)
    except pynvml.NVMLError:
        return None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
