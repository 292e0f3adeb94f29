"""The listings of the bindings' names, an exported detector, and a GPU made up."""

import sys

import pytest

from detofa.runtime import cuda as cuda_module
from detofa.runtime.gates import Judge
from tests.detectors import export_detector, make_pictures
from tests.fake_cuda import FakeCuda, working_tensorrt
from tests.fake_tensorrt import VERSIONS
from tests.samples import make_subnet


@pytest.fixture(params=VERSIONS)
def listing(request, data_dir):
    path = data_dir.parent / "tensorrt" / f"api_{request.param}.txt"
    if not path.is_file():
        pytest.skip(f"the listing {path} of TensorRT's bindings is not there")
    return path


@pytest.fixture
def gpu(monkeypatch):
    """Put a fake CUDA runtime where the real one is looked for."""
    library = FakeCuda()
    monkeypatch.setattr(cuda_module, "_load", lambda: library)
    return library


@pytest.fixture
def tensorrt(listing, monkeypatch, gpu):
    """Put a TensorRT that runs in ONNX Runtime where the real one is imported from."""
    module = working_tensorrt(listing)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Give, by precision, an exported detector and the pictures that it was compared on."""
    made = {}

    def export(precision):
        if precision not in made:
            subnet = make_subnet((96, 160))
            pictures = make_pictures()
            path = tmp_path_factory.mktemp(precision) / "cells.onnx"
            judge = Judge(ap=lambda session: 0.5, reference_ap=0.5, about={})
            made[precision] = (
                export_detector(
                    subnet,
                    path,
                    pictures,
                    precision=precision,
                    judge=judge if precision == "int8" else None,
                ),
                pictures,
            )
        return made[precision]

    return export
