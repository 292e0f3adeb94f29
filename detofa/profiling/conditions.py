"""What a measurement is made on and with; a profiling kit carries this module too."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from detofa.errors import UserError
from detofa.profiling.device import Device, devices_here
from detofa.profiling.torch_cuda import FORMATS, TorchCuda
from detofa.runtime.measuring import Schedule
from detofa.runtime.openvino_cpu import OpenVinoCpu
from detofa.runtime.runtimes import OnnxRuntimeCpu, OnnxRuntimeCuda, Runtime
from detofa.runtime.tensorrt.timing import TensorRt
from detofa.timer import Clock

CPU_RUNTIMES = (OnnxRuntimeCpu.name, OpenVinoCpu.name)
"""Names of the runtimes for a processor."""
GPU_RUNTIMES = (OnnxRuntimeCuda.name, TorchCuda.name, TensorRt.name)
"""Names of the runtimes for an NVIDIA GPU."""
RUNTIMES = (*CPU_RUNTIMES, *GPU_RUNTIMES)
"""Names of all runtimes."""
TELL_OPERATORS = (*CPU_RUNTIMES, TensorRt.name)
"""Names of those that tell what operators take; see `Runtime.operator_ms`."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a measurement was made on and with.

    Attributes:
        device: What was measured.
        runtime: Name of what ran the models.
        runtime_version: Its version.
        precision: Number format.
        batch: Images of one call.
        threads: Processor threads inside an operator.
        clock: What was read.
        settings: What else bears on speed.
        schedule: How models were visited.
    """

    device: Device
    runtime: str
    runtime_version: str
    precision: str
    batch: int
    threads: int
    clock: Clock
    settings: Mapping[str, Any]
    schedule: Schedule

    def __post_init__(self) -> None:
        """Check the names and counts.

        Raises:
            UserError: one is unknown or too small.
        """
        known = self.runtime in RUNTIMES and self.clock in get_args(Clock)
        counts = all(type(count) is int and count >= 1 for count in (self.batch, self.threads))
        texts = isinstance(self.runtime_version, str) and self.precision in FORMATS
        if not (known and counts and texts and isinstance(self.settings, Mapping)):
            raise UserError(
                f"a measurement should be by one of {', '.join(RUNTIMES)} in one of "
                f"{', '.join(FORMATS)}, with batch and threads of at least 1; this says "
                f"{self.runtime!r}, {self.precision!r}, {self.clock!r}, batch {self.batch!r}, "
                f"threads {self.threads!r}, settings {self.settings!r}"
            )

    @classmethod
    def of(cls, device: Device, runtime: Runtime, schedule: Schedule) -> "Conditions":
        """Return the conditions of a runtime here."""
        return cls(
            device=device,
            runtime=runtime.name,
            runtime_version=runtime.version,
            precision=runtime.precision,
            batch=runtime.batch,
            threads=runtime.threads,
            clock=runtime.clock,
            settings=runtime.settings,
            schedule=schedule,
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return asdict(self) | {"device": self.device.to_json(), "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, record: Any) -> "Conditions":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing, or not what it should be.
        """
        try:
            values = {field.name: record[field.name] for field in fields(cls)}
            values["device"] = Device.from_json(values["device"])
            values["schedule"] = Schedule(**values["schedule"])
        except (KeyError, TypeError) as error:
            raise UserError(f"not the conditions of a measurement: {error!r}") from error
        return cls(**values)

    def same_measurement(self) -> dict[str, Any]:
        """Return what two parts of one measurement have in common: all but how long it goes on."""
        record = self.to_json()
        del record["schedule"]["passes"], record["schedule"]["extra_passes"]
        return record | {"device": self.device.name}


def runtime_named(
    name: str, device: Device, *, threads: int = 1, batch: int = 1, precision: str = "fp32"
) -> Runtime:
    """Return a runtime on a device of this machine.

    Raises:
        UserError: there is none of that name, it does not run on that device or in that precision,
            or it is not installed.
    """
    fitting = CPU_RUNTIMES if device.kind == "cpu" else GPU_RUNTIMES
    if name not in fitting:
        raise UserError(f"{device.name} is measured with {' or '.join(fitting)}, not with {name!r}")
    if name != TorchCuda.name and precision != "fp32":
        raise UserError(
            f"{name} is measured in fp32, not in {precision!r}; {TorchCuda.name} also computes in "
            f"{', '.join(FORMATS)}"
        )
    if device.kind == "cpu":
        kind = OnnxRuntimeCpu if name == OnnxRuntimeCpu.name else OpenVinoCpu
        return kind(threads=threads, batch=batch)
    check_threads(name, threads)
    index = _cuda_index(device)
    match name:
        case TorchCuda.name:
            return TorchCuda(index=index, batch=batch, precision=precision)
        case TensorRt.name:
            return TensorRt(index=index, batch=batch)
        case _:
            return OnnxRuntimeCuda(index=index, batch=batch)


def check_threads(runtime: str, threads: int) -> None:
    """Raise UserError if a runtime of a GPU is to take several threads of the processor."""
    if runtime in GPU_RUNTIMES and threads != 1:
        raise UserError(f"{runtime} takes one thread of the processor, not {threads}; leave it out")


def _cuda_index(device: Device) -> int:
    """Return the number that CUDA has for a GPU, which NVML numbered.

    Both count in the order of the PCI bus, once CUDA is told to and sees all GPUs.

    Raises:
        UserError: CUDA sees some GPUs only.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # read when CUDA starts
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None or os.environ["CUDA_DEVICE_ORDER"] != "PCI_BUS_ID":
        several = sum(one.kind == "gpu" for one in devices_here()) > 1
        if several:
            raise UserError(
                "CUDA_VISIBLE_DEVICES or CUDA_DEVICE_ORDER numbers this machine's GPUs anew, so "
                "that another one might be measured; unset both, and choose with --device"
            )
    return int(device.details["index"])
