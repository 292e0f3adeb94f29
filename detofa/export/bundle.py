"""A detector packed with all code that runs it: one zip for a device without PyTorch."""

import dataclasses
import json
from pathlib import Path

import detofa
from detofa.files import write_bytes, zipped
from detofa.runtime.app import DATA, FILES, MODEL, RECORD
from detofa.runtime.manifest import Manifest

_README = """\
A detector made by detofa {version}: {classes}; input {height}x{width}, {precision}.

    python3 {name} predict photos/       pictures with boxes, and predictions.json
    python3 {name} video 0               a camera; or a video file (needs OpenCV)
    python3 {name} bench                 how long it takes here
    python3 {name} info                  what it is

It needs Python 3.10 or newer, numpy, pillow and onnxruntime (or openvino, with --runtime openvino);
no PyTorch and no network. It writes nothing but what --output names.

On an NVIDIA GPU with TensorRT 10.16 or 11, whose engines run only where they were built:

    python3 {name} build photos/         {stem}.engine; checked on these pictures where
                                         onnxruntime and scipy are, too
    python3 {name} predict photos/ --runtime tensorrt
"""


def make_app(model_path: Path, path: Path) -> None:
    """Pack an exported model.

    Args:
        model_path: An .onnx file that `detofa export` wrote, its manifest beside it.
        path: The zip to write.

    Raises:
        UserError: the model or its manifest is missing or changed, or the zip cannot be written.
    """
    manifest = Manifest.of(model_path)
    subnet, package = manifest.subnet, Path(detofa.__file__).parent
    height, width = subnet.arch.image_size
    names = [name for _, name in subnet.categories]
    packed = dataclasses.replace(manifest, model_file=MODEL)
    readme = _README.format(
        version=detofa.__version__,
        classes=", ".join(names),
        height=height,
        width=width,
        precision=manifest.precision,
        name=path.name,
        stem=path.stem,
    )
    files = {
        "README.txt": readme.encode(),
        "__main__.py": b"from detofa.runtime.app import main\n\nmain()\n",
        f"{DATA}/__init__.py": b"",
        f"{DATA}/{MODEL}": model_path.read_bytes(),
        f"{DATA}/{RECORD}": json.dumps(packed.to_json(), indent=1).encode(),
    } | {f"detofa/{name}": (package / name).read_bytes() for name in FILES}
    write_bytes(path, zipped(files))
