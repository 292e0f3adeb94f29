"""Detector: a session with everything around it, from images to boxes on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.files import SCHEMA, check_schema, parse_json
from detofa.imaging import Letterbox, Preprocessing, letterbox
from detofa.runtime.detections import Detections
from detofa.runtime.manifest import Manifest, manifest_path
from detofa.runtime.postprocess import detections_from_outputs
from detofa.runtime.session import (
    CPU,
    CUDA,
    Closing,
    FileSession,
    OnnxSession,
    RuntimeName,
    Session,
    model_name,
)
from detofa.subnet import KIND, PostProcessing, Subnet

SUBNET_KEY = "detofa.subnet"
"""Key of an ONNX file's metadata under which the content of subnet.json lies."""
_REMAKE = "`detofa export` from subnet.json"


@dataclass(frozen=True, kw_only=True)
class Detector(Closing):
    """An opened detector; closes its session when left as a context manager.

    Attributes:
        session: What runs the network.
        preprocessing: How an image becomes its input.
        postprocessing: How its outputs become boxes.
        categories: (id, name) of each class, with the data set's own ids, in label order.
    """

    session: Session
    preprocessing: Preprocessing
    postprocessing: PostProcessing
    categories: tuple[tuple[int, str], ...]

    @classmethod
    def of_subnet(cls, session: Session, subnet: Subnet) -> "Detector":
        """Return the detector that a subnet describes, run by `session`."""
        assert session.image_size == subnet.arch.image_size, (session.image_size, subnet.arch)
        return cls(
            session=session,
            preprocessing=subnet.preprocessing,
            postprocessing=subnet.postprocessing,
            categories=subnet.categories,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes in label order."""
        return tuple(name for _, name in self.categories)

    def detect(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        score_threshold: float | None = None,
        batch_size: int = 1,
    ) -> list[Detections]:
        """Find objects.

        Args:
            images: Each (H, W, 3) uint8 RGB, of any size.
            score_threshold: Boxes below it are left out; the postprocessing's own if not given.
            batch_size: Images that go through the network together.

        Returns:
            The detections of each image, pixels of that image.
        """
        assert batch_size >= 1, batch_size
        found: list[Detections] = []
        for start in range(0, len(images), batch_size):
            inputs, placed = self.prepare(images[start : start + batch_size])
            if self.session.suppresses:
                detected = zip(self.session.run_suppressed(inputs), placed, strict=True)
                found += [self._placed(one, where, score_threshold) for one, where in detected]
            else:
                boxes_xyxy, scores = self.session.run(inputs)
                found += self.finish(boxes_xyxy, scores, placed, score_threshold)
        return found

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[Any], list[Letterbox]]:
        """Return the network's input for images, and where each image lies in it.

        It is (B, 3, H, W) float32, or (B, H, W, 3) uint8 where `session.takes_pixels`.
        """
        pairs = [
            letterbox(image, self.session.image_size, self.preprocessing.fill) for image in images
        ]
        pixels = np.stack([pixels for pixels, _ in pairs])
        inputs = pixels if self.session.takes_pixels else self.preprocessing.normalise(pixels)
        return inputs, [placed for _, placed in pairs]

    def finish(
        self,
        boxes_xyxy: NDArray[np.float32],
        scores: NDArray[np.float32],
        placed: Sequence[Letterbox],
        score_threshold: float | None = None,
    ) -> list[Detections]:
        """Return the detections of each image from the network's outputs (B, K, 4), (B, K, C)."""
        return [
            detections_from_outputs(
                boxes_xyxy[row], scores[row], self.postprocessing, where, score_threshold
            )
            for row, where in enumerate(placed)
        ]

    def _placed(
        self, detected: Detections, where: Letterbox, score_threshold: float | None
    ) -> Detections:
        """Move detections that the file itself found from its input to the image.

        Raises:
            UserError: boxes of lower scores are wanted than the file gives.
        """
        least = self.postprocessing.score_threshold
        wanted = least if score_threshold is None else score_threshold
        if wanted < least:
            raise UserError(
                f"this file leaves out scores below {least:g}, and {wanted:g} is wanted (for "
                "average precision, all are); export it without --nms in-graph"
            )
        boxes_xyxy = where.to_original(detected.boxes_xyxy)
        kept = np.all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=1) & (detected.scores >= wanted)
        return Detections(
            boxes_xyxy=boxes_xyxy[kept],
            scores=detected.scores[kept],
            labels=detected.labels[kept],
        )

    def close(self) -> None:
        """Free the session."""
        self.session.close()


def open_detector(
    path: Path, *, threads: int = 1, runtime: RuntimeName = "onnxruntime"
) -> Detector:
    """Open an exported detector.

    What an ONNX file says of itself counts; if a manifest lies beside it, it must be that of this
    file. An engine is opened only if the record beside it fits it and this machine.

    Args:
        path: An .onnx file or a TensorRT engine that `detofa export` wrote.
        threads: Threads used inside an operator; an engine takes no notice.
        runtime: What runs an .onnx file.

    Raises:
        UserError: neither an .onnx nor an .engine file, missing, damaged, not made by `detofa
            export`, not the file that its manifest describes, or an engine for another machine.
    """
    if path.suffix == ".engine":
        from detofa.runtime.tensorrt.session import open_engine

        session, record = open_engine(path)
        return Detector.of_subnet(session, record.subnet)
    if path.suffix != ".onnx":
        raise UserError(f"{path} should be an .onnx or .engine file; make one with `detofa export`")
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with `detofa export`")
    manifest = Manifest.of(path) if manifest_path(path).is_file() else None
    stored = None if manifest is None else manifest.subnet
    return detector_of(path, stored, threads=threads, runtime=runtime)


def detector_of(
    model: Path | bytes,
    subnet: Subnet | None = None,
    *,
    threads: int = 1,
    runtime: RuntimeName = "onnxruntime",
) -> Detector:
    """Open an exported detector that may lie in memory; see `open_detector`.

    Args:
        model: The file, or its content.
        subnet: What it is, if it does not say so itself.
        threads: Threads used inside an operator.
        runtime: What runs it.

    Raises:
        UserError: damaged, or not made by `detofa export`.
    """
    name, session = model_name(model), open_session(model, threads=threads, runtime=runtime)
    found = _stored_subnet(session, name) or subnet
    if found is None:
        raise UserError(
            f"{name} was not made by `detofa export`: it says neither its classes nor its "
            "preprocessing, and no manifest lies beside it; export it again from subnet.json"
        )
    if session.image_size != found.arch.image_size:
        raise UserError(
            f"{name} takes images of {session.image_size} (height, width), but its record says "
            f"{found.arch.image_size}; export it again from subnet.json"
        )
    return Detector.of_subnet(session, found)


def open_session(
    model: Path | bytes, *, threads: int = 1, runtime: RuntimeName = "onnxruntime"
) -> FileSession:
    """Open the network of an exported detector; see `detector_of`."""
    if runtime != "openvino":
        provider = CUDA if runtime == "onnxruntime-cuda" else CPU
        return OnnxSession(model, threads=threads, provider=provider)
    from detofa.runtime.openvino_cpu import OpenVinoSession

    return OpenVinoSession(model, threads=threads)


def metadata_of(subnet: Subnet) -> dict[str, str]:
    """Return what an ONNX file says of itself: the content of subnet.json."""
    record = {"schema": SCHEMA, "kind": KIND} | subnet.to_json()
    return {SUBNET_KEY: json.dumps(record, allow_nan=False)}


def _stored_subnet(session: FileSession, name: str) -> Subnet | None:
    text = session.metadata.get(SUBNET_KEY)
    if text is None:
        return None
    try:
        record = parse_json(text)
        if not isinstance(record, dict):
            raise UserError(f"a subnet should be a JSON object, got {type(record).__name__}")
        check_schema(record, "it", remake=_REMAKE)
        return Subnet.from_json(record)
    except ValueError as error:  # a UserError too
        raise UserError(
            f"the record inside {name} cannot be read ({error}); make it again with {_REMAKE}"
        ) from error
