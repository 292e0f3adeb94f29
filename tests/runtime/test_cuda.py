"""The few calls of the CUDA runtime, made up everywhere, and real where there is a GPU."""

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.profiling.device import find_device
from detofa.runtime.cuda import Cuda
from tests.fake_cuda import FakeCuda


def real() -> Cuda:
    try:
        return Cuda()
    except UserError as error:
        pytest.skip(f"no GPU that CUDA's runtime can use: {error}")


@pytest.fixture(params=["made up", "real"])
def cuda(request):
    return Cuda(library=FakeCuda()) if request.param == "made up" else real()


def test_what_goes_up_comes_down(cuda):
    sent = np.arange(1000, dtype=np.float32).reshape(4, 250)
    pointer = cuda.allocate(sent.nbytes)
    cuda.upload(pointer, sent.tobytes())
    got = np.zeros_like(sent)
    cuda.download(pointer, got)
    cuda.free(pointer)
    np.testing.assert_array_equal(got, sent)


def test_which_gpu_it_is(cuda):
    gpu = cuda.gpu()
    assert gpu.name.startswith("NVIDIA") or "Tesla" in gpu.name
    assert all(len(text.split(".")) == 2 for text in (gpu.driver_cuda, gpu.compute_capability))
    assert float(gpu.driver_cuda) >= 12


def test_a_real_gpu_has_the_name_and_capability_that_its_driver_says():
    gpu, device = real().gpu(), find_device("cuda")
    assert gpu.name == device.name
    assert gpu.compute_capability == device.details["compute_capability"]


def test_events_time_what_a_real_gpu_does():
    cuda = real()
    stream, begin, end = cuda.stream(), cuda.event(), cuda.event()
    count = 1 << 28
    pointer = cuda.allocate(count)
    took = []
    for size in (count // 16, count):
        cuda.clear(pointer, size, stream)
        cuda.finish(stream)
        cuda.record(begin, stream)
        cuda.clear(pointer, size, stream)
        cuda.record(end, stream)
        cuda.wait(end)
        took.append(cuda.elapsed_ms(begin, end))
    cuda.free(pointer)
    assert 0 < took[0] < took[1]


def test_a_gpu_that_is_not_there_is_told():
    real()
    with pytest.raises(UserError, match="cudaSetDevice of the CUDA runtime failed"):
        Cuda(99)
