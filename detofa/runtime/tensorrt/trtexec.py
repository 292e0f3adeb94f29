"""NVIDIA's own tool instead of the Python bindings: the command that builds the same engine.

Source of the options: NVIDIA's documentation of trtexec, for 10.16 and 11. On 11 `--stronglyTyped`
is always on and the option does nothing; on 10 it is needed. Not yet run on a GPU.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detofa.errors import UserError
from detofa.runtime.tensorrt.build import BatchSizes

_VERSION = re.compile(r"TensorRT version: (\d+(?:\.\d+)+)")
_BANNER = re.compile(r"\[TensorRT v(\d{2})(\d{2})(\d{2})\]")
_MEDIAN = re.compile(r"GPU Compute Time:.*?median = ([\d.]+) ms")
_LIMIT_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Trtexec:
    """What to build, and where trtexec is to write.

    Attributes:
        onnx_path: The ONNX file.
        engine_path: The engine.
        inputs: Shape of each input; a text stands for a size that is free.
        batch_sizes: What the free batch size may be.
        workspace_bytes: Memory that a layer may use for its work.
        timings_path: Its timing cache, read and written.
        layers_path: What its layers are, in JSON.
    """

    onnx_path: Path
    engine_path: Path
    inputs: Mapping[str, Sequence[int | str]]
    batch_sizes: BatchSizes
    workspace_bytes: int
    timings_path: Path
    layers_path: Path

    @property
    def command(self) -> list[str]:
        """Return the command, word by word."""
        words = [
            "trtexec",
            f"--onnx={self.onnx_path}",
            f"--saveEngine={self.engine_path}",
            "--stronglyTyped",
            "--noTF32",
            f"--memPoolSize=workspace:{self.workspace_bytes // 2**20}",
            f"--timingCacheFile={self.timings_path}",
            "--profilingVerbosity=detailed",
            f"--exportLayerInfo={self.layers_path}",
        ]
        shapes = self.input_shapes
        free = [name for name, shape in self.inputs.items() if isinstance(shape[0], str)]
        for index, option in enumerate(("minShapes", "optShapes", "maxShapes") if free else ()):
            texts = [f"{name}:{'x'.join(map(str, shapes[name][index]))}" for name in free]
            words.append(f"--{option}={','.join(texts)}")  # a fixed shape must not be given
        return words

    @property
    def input_shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Return of each input the least, the tuned and the largest shape."""
        return {
            name: self.batch_sizes.of_shape(
                tuple(-1 if isinstance(size, str) else size for size in shape)
            )
            for name, shape in self.inputs.items()
        }

    def run(self) -> tuple[str, float]:
        """Build the engine, and time it.

        Returns:
            The version of TensorRT, and the median time on the GPU in milliseconds.

        Raises:
            UserError: trtexec is not here, fails, or does not say what it should.
        """
        if shutil.which("trtexec") is None:
            raise UserError(
                "trtexec is not on the PATH; it comes with TensorRT's tar and Debian packages and "
                "with NVIDIA's containers, in a folder such as /usr/src/tensorrt/bin"
            )
        try:
            done = subprocess.run(
                self.command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"trtexec could not be run to its end: {error}") from error
        said = done.stdout + done.stderr
        if done.returncode or not self.engine_path.is_file() or not self.layers_path.is_file():
            lines = [line for line in said.splitlines() if "[E]" in line] or said.splitlines()[-3:]
            raise UserError(
                f"trtexec failed with exit code {done.returncode}: {' '.join(lines[:5])}"
            )
        version, median = _VERSION.search(said), _MEDIAN.search(said)
        banner = _BANNER.search(said)
        if median is None or (version is None and banner is None):
            raise UserError(
                "trtexec does not say its version or how long the engine takes; build with "
                "--via python, or report this with the version of TensorRT"
            )
        if version is not None:
            return version[1], float(median[1])
        assert banner is not None
        return ".".join(str(int(part)) for part in banner.groups()), float(median[1])
