"""What a measurement is made on and with; a profiling kit carries this module too."""

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from detofa.errors import UserError
from detofa.profiling.device import Device
from detofa.runtime.measuring import Schedule
from detofa.runtime.runtimes import OnnxRuntimeCpu, OnnxRuntimeCuda, Runtime
from detofa.runtime.tensorrt_engine import TensorRt
from detofa.timer import Clock

RUNTIMES = (OnnxRuntimeCpu.name, OnnxRuntimeCuda.name, TensorRt.name)
"""Names of all runtimes."""


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
        schedule: How models were visited.
    """

    device: Device
    runtime: str
    runtime_version: str
    precision: str
    batch: int
    threads: int
    clock: Clock
    schedule: Schedule

    def __post_init__(self) -> None:
        """Check the names and counts.

        Raises:
            UserError: one is unknown or too small.
        """
        known = self.runtime in RUNTIMES and self.clock in get_args(Clock)
        counts = all(type(count) is int and count >= 1 for count in (self.batch, self.threads))
        texts = isinstance(self.runtime_version, str) and self.precision == "fp32"
        if not (known and counts and texts):
            raise UserError(
                f"a measurement should be by one of {', '.join(RUNTIMES)} in fp32, with batch and "
                f"threads of at least 1; this says {self.runtime!r}, {self.precision!r}, "
                f"{self.clock!r}, batch {self.batch!r}, threads {self.threads!r}"
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
            schedule=schedule,
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return asdict(self) | {"device": self.device.to_json()}

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


def runtime_named(name: str, device: Device, *, threads: int = 1, batch: int = 1) -> Runtime:
    """Return a runtime on a device of this machine.

    Raises:
        UserError: there is none of that name, it does not run on that device, or it is not
            installed.
    """
    fitting = (
        [OnnxRuntimeCpu.name] if device.kind == "cpu" else [OnnxRuntimeCuda.name, TensorRt.name]
    )
    if name not in fitting:
        raise UserError(f"{device.name} is measured with {' or '.join(fitting)}, not with {name!r}")
    if name == OnnxRuntimeCpu.name:
        return OnnxRuntimeCpu(threads=threads, batch=batch)
    index = int(device.details["index"])
    if name == TensorRt.name:
        return TensorRt(index=index, batch=batch)
    return OnnxRuntimeCuda(index=index, batch=batch)
