"""A packed detector, run as on a device: with numpy, pillow and a runtime, and without torch."""

import ast
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detofa
from detofa.errors import UserError
from detofa.export.bundle import make_app
from detofa.profiling import on_device
from detofa.runtime import app
from detofa.runtime.detector import open_detector
from detofa.runtime.predictions import write_predictions
from tests.bare import newer_than_python_3_10, only_packages, run_bare
from tests.detectors import export_detector
from tests.samples import make_subnet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder with a model, its zip and a few pictures."""
    place = tmp_path_factory.mktemp("app")
    rng = np.random.default_rng(0)
    pictures = place / "photos"
    pictures.mkdir()
    images = {}
    for index, size in enumerate([(90, 130), (200, 60)]):
        waves = np.add.outer(np.linspace(0, 9, size[0]), np.linspace(0, 7, size[1]))
        shades = 127 + 100 * np.sin(waves[..., None] + rng.uniform(0, 6, 3))
        images[f"{index}.png"] = shades.astype(np.uint8)
        Image.fromarray(images[f"{index}.png"]).save(pictures / f"{index}.png")
    subnet = make_subnet((96, 160))
    export_detector(subnet, place / "cells.onnx", images)
    make_app(place / "cells.onnx", place / "cells.zip")
    return place


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    place = tmp_path_factory.mktemp("packages")
    return only_packages(place, "numpy", "pillow", "onnxruntime", "openvino")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_it_finds_what_predict_finds(folder, packages, tmp_path, runtime):
    done = run_bare(
        folder / "cells.zip",
        packages,
        tmp_path,
        *("predict", str(folder / "photos"), "--score", "0.01", "--runtime", runtime),
    )
    assert done.returncode == 0, done.stderr
    assert "boxes in 2 images" in done.stdout
    wanted = tmp_path / "wanted"
    paths = sorted((folder / "photos").iterdir())
    with open_detector(folder / "cells.onnx") as detector:
        images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        found = [detector.detect([image], score_threshold=0.01)[0] for image in images]
        write_predictions(wanted, paths, found, detector)
    assert sum(map(len, found)) > 10
    first, second = (
        json.loads((place / "predictions.json").read_text())
        for place in (wanted, tmp_path / "predictions")
    )
    if runtime == "onnxruntime":
        assert first == second
        for name in ("0.png", "1.png"):
            assert (wanted / name).read_bytes() == (tmp_path / "predictions" / name).read_bytes()
    else:
        assert abs(len(first["annotations"]) - len(second["annotations"])) <= 2
        best = [max(one["annotations"], key=lambda box: box["score"]) for one in (first, second)]
        np.testing.assert_allclose(best[0]["bbox"], best[1]["bbox"], atol=0.1)


def test_it_measures_itself_and_says_what_it_is(folder, packages, tmp_path):
    done = run_bare(folder / "cells.zip", packages, tmp_path, "bench", "--runs", "3")
    assert done.returncode == 0, done.stderr
    assert "wall time: p50" in done.stdout
    done = run_bare(folder / "cells.zip", packages, tmp_path, "info")
    assert json.loads(done.stdout)["image_size"] == [96, 160]
    assert not list(tmp_path.iterdir())


def test_it_watches_a_video(folder, tmp_path):
    cv2 = pytest.importorskip("cv2")
    source = str(tmp_path / "in.avi")
    writer = cv2.VideoWriter(source, cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (160, 96))
    rng = np.random.default_rng(0)
    for _ in range(4):
        writer.write(rng.integers(0, 256, (96, 160, 3), dtype=np.uint8))
    writer.release()
    place = only_packages(tmp_path / "bare", "numpy", "pillow", "onnxruntime")
    options = ("video", source, "--score", "0.01", "--frames", "3")
    done = run_bare(folder / "cells.zip", place, tmp_path, *options)
    assert "video needs OpenCV" in done.stderr
    only_packages(place, "opencv-python-headless")
    done = run_bare(folder / "cells.zip", place, tmp_path, *options, "--output", "out.avi")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["picture"] for line in lines] == [0, 1, 2]
    assert all(line["boxes"] and line["ms"] > 0 for line in lines)
    written = cv2.VideoCapture(str(tmp_path / "out.avi"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    done = run_bare(folder / "cells.zip", place, tmp_path, "video", "missing.avi")
    assert "cannot be opened as a video" in done.stderr
    done = run_bare(folder / "cells.zip", place, tmp_path, *options, "--output", "out.gif")
    assert "should end in .mp4 or .avi" in done.stderr


def test_bad_input_is_told(folder, packages, tmp_path):
    done = run_bare(folder / "cells.zip", packages, tmp_path, "predict", "missing.png")
    assert done.returncode == 1
    assert "missing.png does not exist" in done.stderr
    photos = folder / "photos"
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    done = run_bare(
        folder / "cells.zip", packages, tmp_path, "predict", str(photos), "--output", str(photos)
    )
    assert "would replace it" in done.stderr
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(folder / "cells.zip") as source, zipfile.ZipFile(damaged, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:-1] + b"x" if name.endswith(".onnx") else data)
    done = run_bare(damaged, packages, tmp_path, "info")
    assert "the model in this zip is damaged" in done.stderr
    content = bytearray((folder / "cells.zip").read_bytes())
    with zipfile.ZipFile(folder / "cells.zip") as source:
        place = source.getinfo("detector_data/model.onnx").header_offset
    content[place + 2000] ^= 255
    damaged.write_bytes(content)
    done = run_bare(damaged, packages, tmp_path, "info")
    assert done.returncode == 1
    assert "this zip is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(UserError, match="does not exist"):
        make_app(tmp_path / "none.onnx", tmp_path / "none.zip")


def test_it_holds_nothing_newer_than_python_3_10_and_equal_models_make_equal_zips(folder, tmp_path):
    assert newer_than_python_3_10(folder / "cells.zip") == []
    again = tmp_path / "cells.zip"
    make_app(folder / "cells.onnx", again)
    assert again.read_bytes() == Path(folder / "cells.zip").read_bytes()


@pytest.mark.parametrize("files", [app.FILES, on_device.FILES], ids=["app", "kit"])
def test_what_packed_code_imports_is_packed_too_even_where_it_is_imported_late(files):
    package = Path(detofa.__file__).parent
    missing = []
    for name in set(files) - {"profiling/torch_cuda.py"}:  # whose models no kit holds
        tree = ast.parse((package / name).read_text())
        typing = {
            inside
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inside in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in typing:
                module = node.module or ""
                if module.split(".")[0] == "detofa":
                    path = module.removeprefix("detofa").lstrip(".").replace(".", "/")
                    held = {f"{path}.py", f"{path}/__init__.py"} & set(files)
                    if path and not held:
                        missing.append(f"{name} imports {module}")
    assert not missing
