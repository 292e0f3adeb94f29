"""The record beside an engine: what it was built from, for which GPU, and what was checked.

It is read before the engine is: deserialising one of another GPU or version fails late or not at
all, and runs native code.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detofa.errors import UserError
from detofa.files import check_fields, is_number, read_companion, read_json, write_json
from detofa.runtime.cuda import Gpu
from detofa.subnet import Subnet

KIND = "tensorrt_engine"
_MUCH = 0.8  # of the time on the GPU: trtexec warns at the same
PACKED_MODEL = "model.onnx"
"""Name of the ONNX file in a packed detector."""
REBUILD = "`detofa export SUBNET --to tensorrt` on the machine that runs it"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What lies beside an engine, as NAME.engine.json.

    Attributes:
        engine_file: Name of the engine in the same folder.
        engine_sha256: Hash of that file.
        onnx_file: Name of the ONNX file that it was built from.
        onnx_sha256: Hash of that file.
        precision: Number format that its convolutions are to be in.
        tensorrt: The version that built it.
        built_by: `tensorrt`, its Python bindings, or `trtexec`.
        gpu: What it was built on and for.
        system: Operating system and processor type.
        input_shapes: Of each input the least, the tuned and the largest shape.
        workspace_bytes: Memory that a layer may use.
        builds: Of each build, its median latency in milliseconds and its hash.
        spread: How much slower the slowest build is than the fastest, which is kept.
        convolutions: The number format that each convolution is computed in.
        share_of_macs: Part of their multiply-accumulates that is in `precision`.
        verified: What was compared, and how it came out.
        timing_cache: Hash of the timing cache after the build that is kept, and whether the one
            before it had all that was needed.
        subnet: The content of subnet.json.
    """

    engine_file: str
    engine_sha256: str
    onnx_file: str
    onnx_sha256: str
    precision: str
    tensorrt: str
    built_by: str
    gpu: Gpu
    system: str
    input_shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    workspace_bytes: int
    builds: Sequence[Mapping[str, Any]]
    spread: float
    convolutions: Mapping[str, str]
    share_of_macs: float
    verified: Mapping[str, Any]
    timing_cache: Mapping[str, Any]
    subnet: Subnet

    @property
    def summary(self) -> str:
        """Return for whom it was built, how fast it is and what was checked, as a sentence."""
        times = ", ".join(f"{build['milliseconds']:.3f}" for build in self.builds)
        lacking, found = self.verified.get("not_compared_without"), self.verified
        compared = (
            f"not compared for want of {', '.join(lacking)}"
            if lacking
            else f"{found['num_matched']} of {found['num_compared']} boxes are ONNX Runtime's"
        )
        waits = [
            build
            for build in self.builds
            if (build.get("enqueue_milliseconds") or 0) > _MUCH * build["milliseconds"]
        ]
        note = "; the GPU waits for the processor, which queues its kernels" if waits else ""
        return (
            f"TensorRT {self.tensorrt} for {self.gpu.name}; {times} ms on the GPU (spread "
            f"{self.spread:.1%}), the fastest is kept; {self.share_of_macs:.1%} of the "
            f"convolutions' multiply-accumulates in {self.precision}; {compared}{note}"
        )

    def save(self, engine: Path) -> Path:
        """Write the record of an engine that already lies there; return where it is."""
        record = asdict(self) | {"gpu": asdict(self.gpu), "subnet": self.subnet.to_json()}
        write_json(record_path(engine), KIND, record)
        return record_path(engine)

    @classmethod
    def load(cls, engine: Path) -> "EngineRecord":
        """Read the record of an engine, and check that the engine is the one it describes.

        Raises:
            UserError: the record or the engine is missing, damaged or another one's.
        """
        return cls.load_with_engine(engine)[0]

    @classmethod
    def load_with_engine(cls, engine: Path) -> "tuple[EngineRecord, bytes]":
        """Read the record of an engine, and the engine, whose bytes are those it describes.

        Raises:
            UserError: see `load`.
        """
        path = record_path(engine)
        content = read_json(path, KIND, remake=REBUILD)
        record = {key: value for key, value in content.items() if key not in ("schema", "kind")}
        try:
            record["gpu"] = Gpu(**record["gpu"])
            record["subnet"] = Subnet.from_json(record["subnet"])
            record["input_shapes"] = {
                name: tuple(map(tuple, shapes)) for name, shapes in record["input_shapes"].items()
            }
            found = cls(**record)
        except (KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(
                f"{path} is not the record of an engine ({error}); build it again with {REBUILD}"
            ) from error
        advice = f"build it again with {REBUILD}"
        check_fields(vars(found), _FITS, path, "a record of an engine", advice=advice)
        if found.engine_file != engine.name:
            raise UserError(
                f"{path} describes {found.engine_file!r}, not {engine.name}; build it again with "
                f"{REBUILD}"
            )
        return found, read_companion(path, engine, found.engine_sha256, remake=REBUILD)

    def check_fits(self, gpu: Gpu, tensorrt: str) -> None:
        """Raise UserError unless this engine can run here, before it is deserialised.

        A newer driver than the one it was built with will do; an older one will not.
        """
        pairs = {
            "GPU": (self.gpu.name, gpu.name),
            "compute capability": (self.gpu.compute_capability, gpu.compute_capability),
            "system": (self.system, this_system()),
        }
        if not is_version(tensorrt, self.tensorrt):
            pairs["TensorRT"] = (self.tensorrt, tensorrt)
        faults = [
            f"{what} {wanted} where this is {found}"
            for what, (wanted, found) in pairs.items()
            if wanted != found
        ]
        if _numbers(gpu.driver_cuda) < _numbers(self.gpu.driver_cuda):
            faults.append(
                f"a driver for CUDA {self.gpu.driver_cuda} where this one goes to {gpu.driver_cuda}"
            )
        if faults:
            raise UserError(
                f"{self.engine_file} was built for {'; '.join(faults)}. Rebuild with "
                f"{self._rebuild} here"
            )

    @property
    def _rebuild(self) -> str:
        """Return the command that makes such an engine."""
        if self.onnx_file == PACKED_MODEL:
            return "`build IMAGES` of the packed detector"
        name = Path(self.onnx_file).stem.removesuffix(f".{self.precision}")
        how = "" if self.precision == "fp32" else f" --precision {self.precision}"
        return f"`detofa export {name}.json --to tensorrt{how}`"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_gpu(gpu: Gpu) -> bool:
    versions = (gpu.driver_cuda, gpu.runtime_cuda)
    short = all(_is_text(version) and len(version) < _LONGEST_VERSION for version in versions)
    return short and _is_text(gpu.name) and _is_text(gpu.compute_capability)


def _are_builds(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(build, dict)
            and is_number(build.get("milliseconds"))
            and is_number(build.get("enqueue_milliseconds") or 0)
            for build in value
        )
    )


def _is_verified(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lacking = value.get("not_compared_without")
    if lacking:
        return isinstance(lacking, list) and all(map(_is_text, lacking))
    return all(type(value.get(name)) is int for name in ("num_matched", "num_compared"))


_LONGEST_VERSION = 40
_FITS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("engine_file", "engine_sha256", "onnx_file", "onnx_sha256"), _is_text),
    **dict.fromkeys(("precision", "tensorrt", "built_by", "system"), _is_text),
    "gpu": _is_gpu,
    "workspace_bytes": is_number,
    "builds": _are_builds,
    "spread": is_number,
    "convolutions": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "share_of_macs": is_number,
    "verified": _is_verified,
    "timing_cache": lambda value: isinstance(value, dict),
}
"""What the fields of a record's file are checked for; shapes and subnet check themselves."""


def is_version(found: str, wanted: str) -> bool:
    """Return whether a version is the one wanted; trtexec tells fewer parts than the bindings."""
    parts = wanted.split(".")
    return found.split(".")[: len(parts)] == parts


def record_path(engine: Path) -> Path:
    """Return where the record of an engine lies: NAME.engine to NAME.engine.json."""
    return engine.with_name(engine.name + ".json")


def this_system() -> str:
    """Return operating system and processor type, which engines are tied to."""
    return f"{platform.system()} {platform.machine()}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
