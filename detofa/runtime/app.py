"""What a packed detector does on a device: detect in images and video, and measure itself.

It is a zip that Python runs as it is: `python3 detector.zip`. Beside this module it holds the
model and the few other modules that are imported here, none of which needs more than numpy, pillow
and the runtime; a camera or video also needs OpenCV. With TensorRT it builds its own engine there.
"""

import argparse
import contextlib
import hashlib
import importlib.resources
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.files import parse_json
from detofa.imaging import read_image
from detofa.runtime.bench import Latency, measure_engine, measure_file
from detofa.runtime.detector import Detector, detector_of
from detofa.runtime.draw import detections_to_json, draw_detections
from detofa.runtime.manifest import Manifest
from detofa.runtime.predictions import image_files, write_predictions
from detofa.runtime.session import RuntimeName
from detofa.runtime.tensorrt.build import BatchSizes
from detofa.runtime.tensorrt.make import EnginePlan, make_engine
from detofa.runtime.tensorrt.record import PACKED_MODEL
from detofa.runtime.tensorrt.session import open_engine
from detofa.timer import Timing

DATA = "detector_data"
"""Package inside the zip that holds the model and its manifest."""
MODEL, RECORD = PACKED_MODEL, "model.manifest.json"
_ENGINE = "tensorrt"

FILES = (
    "__init__.py",
    "arch.py",
    "blocks.py",
    "errors.py",
    "files.py",
    "imaging.py",
    "space.py",
    "subnet.py",
    "timer.py",
    "runtime/__init__.py",
    "runtime/app.py",
    "runtime/bench.py",
    "runtime/cuda.py",
    "runtime/detections.py",
    "runtime/detector.py",
    "runtime/draw.py",
    "runtime/gates.py",
    "runtime/manifest.py",
    "runtime/matching.py",
    "runtime/measuring.py",
    "runtime/openvino_cpu.py",
    "runtime/postprocess.py",
    "runtime/predictions.py",
    "runtime/runtimes.py",
    "runtime/session.py",
    "runtime/tensorrt/__init__.py",
    "runtime/tensorrt/build.py",
    "runtime/tensorrt/layers.py",
    "runtime/tensorrt/make.py",
    "runtime/tensorrt/opened.py",
    "runtime/tensorrt/record.py",
    "runtime/tensorrt/session.py",
    "runtime/tensorrt/timing.py",
    "runtime/tensorrt/trtexec.py",
)
"""Files of this package that the zip holds, as paths from its folder."""


def main() -> None:
    """Run a command; see `python3 detector.zip --help`."""
    options = _parser().parse_args()
    try:
        model, manifest = _packed()
        options.run(model, manifest, options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 detector.zip", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=1, help="default %(default)s")
    common.add_argument(
        "--runtime",
        choices=(*get_args(RuntimeName), _ENGINE),
        default="onnxruntime",
        help="what runs it, default %(default)s; tensorrt needs `build` first",
    )
    common.add_argument(
        "--engine", type=Path, default=_beside(), help="with tensorrt, default %(default)s"
    )
    finding = argparse.ArgumentParser(add_help=False)
    finding.add_argument("--score", type=float, help="least score of a box")
    predict = commands.add_parser(
        "predict", parents=[common, finding], help="find objects in images or folders"
    )
    predict.add_argument("images", nargs="+", type=Path)
    predict.add_argument("--output", type=Path, default=Path("predictions"), help="a folder")
    predict.set_defaults(run=_predict)
    video = commands.add_parser(
        "video", parents=[common, finding], help="find objects in a camera's or a file's pictures"
    )
    video.add_argument("source", help="a video file, an address, or the number of a camera")
    video.add_argument("--output", type=Path, help="video to write, ending in .mp4 or .avi")
    video.add_argument("--show", action="store_true", help="show it in a window; q closes it")
    video.add_argument("--frames", type=int, help="stop after so many")
    video.set_defaults(run=_video)
    bench = commands.add_parser("bench", parents=[common], help="measure the latency here")
    bench.add_argument("--runs", type=int, default=100, help="calls that are timed")
    bench.add_argument("--batch", type=int, help="images of one call")
    bench.set_defaults(run=_bench)
    build = commands.add_parser("build", help="build a TensorRT engine for the GPU that is here")
    build.add_argument(
        "images",
        nargs="+",
        type=Path,
        help="on which it is checked, where onnxruntime and scipy are",
    )
    build.add_argument("--engine", type=Path, default=_beside(), help="default %(default)s")
    build.add_argument("--batches", default="1,1,8", help="least, tuned, most; default %(default)s")
    build.add_argument("--builds", type=int, default=3, help="the fastest is kept; default 3")
    build.add_argument("--via", choices=("python", "trtexec"), default="python")
    build.set_defaults(run=_build)
    commands.add_parser("info", help="say what this detector is").set_defaults(run=_info)
    return parser


def _beside() -> Path:
    """Return where the engine of this zip lies, if nothing else is said."""
    return Path(sys.argv[0]).with_suffix(".engine")


def _packed() -> tuple[bytes, Manifest]:
    """Return the model, checked, and its manifest."""
    try:
        folder = importlib.resources.files(DATA)
        record = parse_json(folder.joinpath(RECORD).read_bytes())
        manifest = Manifest.from_json(record)
        model = folder.joinpath(MODEL).read_bytes()
    except Exception as error:  # damage shows in a dozen types of the importer and of zipfile
        raise UserError(f"this zip is damaged ({error}); copy it to this device again") from error
    if hashlib.sha256(model).hexdigest() != manifest.model_sha256:
        raise UserError("the model in this zip is damaged; copy it to this device again")
    return model, manifest


def _opened(model: bytes, manifest: Manifest, options: argparse.Namespace) -> Detector:
    if options.runtime != _ENGINE:
        runtime = cast(RuntimeName, options.runtime)
        return detector_of(model, manifest.subnet, threads=options.threads, runtime=runtime)
    if not options.engine.is_file():
        raise UserError(f"{options.engine} does not exist; make it here with `build IMAGES`")
    session, record = open_engine(options.engine)
    if record.onnx_sha256 != manifest.model_sha256:
        session.close()
        raise UserError(f"{options.engine} was built from another model; `build IMAGES` again")
    return Detector.of_subnet(session, record.subnet)


def _build(model: bytes, manifest: Manifest, options: argparse.Namespace) -> None:
    images = {str(path): read_image(path) for path in image_files(options.images)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        path.write_bytes(model)
        plan = EnginePlan(
            onnx_path=path,
            manifest=manifest,
            batch_sizes=BatchSizes.parse(options.batches),
            builds=options.builds,
            via=options.via,
        )
        made = make_engine(plan, options.engine, images=images)
    print(f"wrote {options.engine}: {made.summary}")


def _predict(model: bytes, manifest: Manifest, options: argparse.Namespace) -> None:
    paths = image_files(options.images)
    with _opened(model, manifest, options) as detector:
        found = [
            detector.detect([read_image(path)], score_threshold=options.score)[0] for path in paths
        ]
        write_predictions(options.output, paths, found, detector)
    print(f"{sum(map(len, found))} boxes in {len(paths)} images; see {options.output}")


def _video(model: bytes, manifest: Manifest, options: argparse.Namespace) -> None:
    """Print a line of JSON for each picture; write or show them with boxes."""
    cv2 = _opencv()
    source = int(options.source) if options.source.isdigit() else options.source
    writer = None
    with contextlib.ExitStack() as stack:
        detector = stack.enter_context(_opened(model, manifest, options))
        for number, (image, rate) in enumerate(_pictures(cv2, source)):
            begin = time.perf_counter()
            found = detector.detect([image], score_threshold=options.score)[0]
            took = 1000 * (time.perf_counter() - begin)
            boxes = detections_to_json(found, number, detector.categories)
            print(json.dumps({"picture": number, "ms": round(took, 2), "boxes": boxes}), flush=True)
            if options.output is not None or options.show:
                drawn = draw_detections(image, found, detector.class_names)[..., ::-1]
                if options.output is not None:
                    if writer is None:
                        writer = _writer(cv2, options.output, rate, image.shape[:2])
                        stack.callback(writer.release)  # when stopped, too
                    writer.write(np.ascontiguousarray(drawn))
                if options.show:
                    cv2.imshow("detector", drawn)
                    if cv2.waitKey(1) & 0xFF == ord("q"):
                        break
            if options.frames is not None and number + 1 >= options.frames:
                break


def _pictures(cv2: Any, source: int | str) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yield RGB pictures, (H, W, 3) uint8, and the rate of the source in pictures a second."""
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise UserError(
            f"{source} cannot be opened as a video; give a file, an address, or a camera's number"
        )
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    while True:
        there, picture = capture.read()
        if not there:
            capture.release()
            return
        yield np.ascontiguousarray(picture[..., ::-1]), rate


def _writer(cv2: Any, path: Path, rate: float, size: tuple[int, int]) -> Any:
    codecs = {".mp4": "mp4v", ".avi": "MJPG"}
    if path.suffix not in codecs:
        raise UserError(f"{path} should end in {' or '.join(codecs)}")
    code = cv2.VideoWriter_fourcc(*codecs[path.suffix])
    writer = cv2.VideoWriter(str(path), code, rate, (size[1], size[0]))
    if not writer.isOpened():
        raise UserError(f"{path} cannot be written; see that its folder is there and writable")
    return writer


def _bench(model: bytes, manifest: Manifest, options: argparse.Namespace) -> None:
    if options.runtime == _ENGINE:
        _opened(model, manifest, options).close()  # tells what is wrong with it
        latency = measure_engine(options.engine, runs=options.runs, batch=options.batch)
    else:
        latency = _measure(model, options)
    threads = "" if options.runtime == _ENGINE else f"threads {options.threads}, "
    print(f"{latency.wall.count} calls, batch {latency.batch}, {threads}{options.runtime}")
    clocks: dict[str, Timing | None] = {
        "GPU": latency.gpu,
        "processor": latency.thread,
        "wall": latency.wall,
    }
    for name, timing in clocks.items():
        if timing is not None:
            print(
                f"{name} time: p50 {timing.p50_ms:.2f} ms, p90 {timing.p90_ms:.2f}, "
                f"p99 {timing.p99_ms:.2f}"
            )


def _measure(model: bytes, options: argparse.Namespace) -> Latency:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        path.write_bytes(model)
        return measure_file(
            path,
            runs=options.runs,
            batch=options.batch,
            threads=options.threads,
            runtime=cast(RuntimeName, options.runtime),
        )


def _info(model: bytes, manifest: Manifest, options: argparse.Namespace) -> None:
    subnet = manifest.subnet
    about = {
        "classes": [name for _, name in subnet.categories],
        "image_size": list(subnet.arch.image_size),
        "precision": manifest.precision,
        "model_sha256": manifest.model_sha256,
        "figures": {name: figure.value for name, figure in subnet.figures.items()},
        "verified": manifest.parity,
        "versions": manifest.versions,
    }
    print(json.dumps(about, indent=1, default=list))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"video needs OpenCV ({error}); install it with `pip install opencv-python-headless` "
            "(opencv-python to show a window)"
        ) from error
    return cv2


if __name__ == "__main__":
    main()
