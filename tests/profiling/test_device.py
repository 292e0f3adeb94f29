import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from detofa.errors import UserError
from detofa.profiling import device as module
from detofa.profiling.device import Device, devices_here, find_device, gpu_state, this_cpu


def _device(name: str, kind: str = "gpu") -> Device:
    return Device.from_json({"kind": kind, "name": name, "details": {}})


SERVER = (
    _device("Intel(R) Xeon(R) Processor", "cpu"),
    _device("NVIDIA A100-SXM4-80GB"),
    _device("NVIDIA H100 80GB HBM3"),
)


def test_this_machines_cpu_has_a_name_and_is_found_as_cpu() -> None:
    assert this_cpu().name
    assert find_device("cpu") == this_cpu()
    assert devices_here()[0] == this_cpu()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("CPU", "Intel(R) Xeon(R) Processor"),
        ("xeon", "Intel(R) Xeon(R) Processor"),
        ("a100", "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("H100 80gb", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_devices_are_found_by_whole_words_of_their_names(name: str, found: str) -> None:
    assert find_device(name, SERVER).name == found


@pytest.mark.parametrize("name", ["a10", "a1000", "100", "", "h100 sxm", "tesla t4"])
def test_part_of_a_word_is_no_match(name: str) -> None:
    with pytest.raises(UserError, match="no device named"):
        find_device(name, SERVER)


def test_an_absent_device_says_what_is_here_and_what_to_do() -> None:
    with pytest.raises(UserError) as caught:
        find_device("a100", SERVER[:1])
    message = str(caught.value)
    assert "'a100'" in message
    assert "Intel(R) Xeon(R) Processor (cpu)" in message
    assert "detofa profile" in message
    assert "latency_tables/" in message


def test_a_name_that_fits_several_devices_is_refused() -> None:
    with pytest.raises(UserError, match="more of the name"):
        find_device("nvidia", SERVER)
    pair = (*SERVER, _device("NVIDIA H100 80GB HBM3"))
    assert find_device("h100", pair).name == "NVIDIA H100 80GB HBM3"


def test_a_gpu_is_found_by_its_number() -> None:
    gpus = tuple(
        Device(kind="gpu", name=f"NVIDIA {name}", details={"index": index})
        for index, name in enumerate(("L4", "H100 80GB HBM3"))
    )
    here = (SERVER[0], *gpus)
    assert find_device("cuda", here) == find_device("CUDA:0", here) == gpus[0]
    assert find_device("cuda:1", here) == gpus[1]
    for name, devices in (("cuda:2", here), ("cuda", here[:1])):
        with pytest.raises(UserError, match="no device named"):
            find_device(name, devices)


def test_a_device_survives_json() -> None:
    cpu = this_cpu()
    assert Device.from_json(json.loads(json.dumps(cpu.to_json()))) == cpu
    with pytest.raises(UserError, match="record of a device"):
        Device.from_json({"kind": "cpu"})


def test_slug_is_fit_for_a_file_name() -> None:
    assert SERVER[0].slug == "intel-r-xeon-r-processor"


class FakeNvml(types.ModuleType):
    """The calls of NVML that are made, for one GPU that tells nothing of MIG or power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        """As the real one."""

    def __init__(self, *, lost: bool = False) -> None:
        super().__init__("pynvml")
        self.open, self.lost = 0, lost

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=80 * 2**30),
            "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlSystemGetCudaDriverVersion": 13000,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 1,
            "nvmlDeviceGetTemperature": 40,
        }
        untold = ("nvmlDeviceGetMigMode", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPower")
        if name not in answers and not name.startswith(untold):
            raise AttributeError(name)

        def ask(*_: object) -> Any:
            if self.lost or name not in answers:
                raise self.NVMLError("Not Supported")
            return answers[name]

        return ask


def test_a_gpu_tells_what_it_can_and_leaves_out_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    gpu = devices_here()[1]
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.details["cuda"] == 13000
    assert gpu.details["mig"] is gpu.details["power_limit_watts"] is None
    state = gpu_state(gpu)
    assert state["sm_mhz"] == 1980
    assert "watts" not in state
    assert nvml.open == 0
    assert gpu_state(this_cpu()) == {}
    assert Device.from_json(json.loads(json.dumps(gpu.to_json()))) == gpu


def test_a_gpu_that_is_lost_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(lost=True))
    assert [device.kind for device in devices_here()] == ["cpu"]
    assert gpu_state(_device("NVIDIA H100 80GB HBM3")) == {}


def test_the_real_nvml_has_every_call_that_is_made() -> None:
    real = pytest.importorskip("pynvml")
    source = Path(module.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\bnvml\.(\w+)", source)) | set(re.findall(r"pynvml\.(\w+)", source))
    assert len(names) > 10
    assert [name for name in names if not hasattr(real, name)] == []
