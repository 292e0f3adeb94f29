import json

import pytest

from detofa.errors import UserError
from detofa.profiling.device import Device, devices_here, find_device, this_cpu


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
