"""What `detofa doctor` finds, and the commands that it says mend what is missing."""

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from detofa import doctor
from detofa.cli import main
from detofa.doctor import NAMES, examine
from detofa.profiling.device import Device, this_cpu


def gpu(cuda: int = 13000) -> Device:
    details = {"index": 0, "driver": "580.1", "cuda": cuda}
    return Device(kind="gpu", name="NVIDIA L4", details=details)


def found(monkeypatch, tmp_path, *gpus: Device) -> dict[str, doctor.Finding]:
    monkeypatch.setattr(doctor, "devices_here", lambda: (this_cpu(), *gpus))
    return {finding.name: finding for finding in examine(tmp_path, [])}


def test_every_name_is_looked_for_once_and_each_fault_has_its_mending(tmp_path):
    findings = examine(tmp_path, [])
    assert [finding.name for finding in findings] == list(NAMES)
    for finding in findings:
        assert finding.says
        assert finding.mend or finding.state == "ok" or finding.name == "cuda"


@pytest.mark.parametrize(
    ("name", "modules", "mend"),
    [
        ("torch", ["torch"], "pip install 'detofa[train]'"),
        ("onnxruntime", ["onnxruntime"], "pip install 'detofa[onnx]'"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(monkeypatch, tmp_path, name, modules, mend):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    finding = found(monkeypatch, tmp_path)[name]
    assert (finding.state, finding.mend) == ("missing", mend)


@pytest.mark.parametrize(
    ("cuda", "package", "extra"),
    [(13000, "tensorrt-cu13", "tensorrt"), (12080, "tensorrt-cu12", "tensorrt-cu12")],
)
def test_the_tensorrt_that_fits_the_driver_is_named(monkeypatch, tmp_path, cuda, package, extra):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    finding = found(monkeypatch, tmp_path, gpu(cuda))["tensorrt"]
    assert finding.state == "missing"
    assert finding.mend == f"pip install 'detofa[{extra}]'"
    assert package in finding.says


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_tensorrt_that_finds_no_gpu_is_a_fault_only_where_there_is_one(
    monkeypatch, tmp_path, has_gpu
):
    def no_gpu(logger):
        raise TypeError("factory function returned nullptr")

    trt: Any = ModuleType("tensorrt")
    trt.__version__, trt.Runtime = "11.4.0.106", no_gpu
    trt.Logger = lambda severity: severity
    trt.Logger.Severity = SimpleNamespace(WARNING=2)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    gpus = (gpu(),) if has_gpu else ()
    state = found(monkeypatch, tmp_path, *gpus)["tensorrt"].state
    assert state == ("faulty" if has_gpu else "missing")
    trt.Runtime = lambda logger: object()
    finding = found(monkeypatch, tmp_path, gpu())["tensorrt"]
    assert (finding.state, finding.says) == ("ok", "11.4.0.106")


def test_a_pytorch_that_cannot_use_the_gpu_is_a_fault(monkeypatch, tmp_path):
    torch: Any = SimpleNamespace(
        __version__="2.9",
        version=SimpleNamespace(cuda="13.0", hip=None),
        cuda=SimpleNamespace(is_available=lambda: False),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    finding = found(monkeypatch, tmp_path, gpu(12080))["cuda"]
    assert finding.state == "faulty"
    assert "goes to 12.8" in finding.says


def test_little_memory_of_a_container_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "_CONTAINER_LIMIT", limit)
    for text, state in (("max\n", "ok"), ("1000000000\n", "faulty"), ("9" * 14, "ok")):
        limit.write_text(text)
        assert found(monkeypatch, tmp_path)["memory"].state == state


def test_a_full_disk_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**8))
    assert found(monkeypatch, tmp_path)["disk"].state == "faulty"


def test_the_exit_code_says_whether_what_is_required_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "devices_here", lambda: (this_cpu(),))

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["doctor", *words])
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    code, out, _ = run()
    assert code == 0
    assert "missing  gpu" in out
    assert {entry["name"] for entry in json.loads(run("--json")[1])["findings"]} == set(NAMES)
    code, _, err = run("--require", "gpu")
    assert code == 1
    assert "gpu - no NVIDIA GPU" in err
    assert run("--require", "python", "--require", "onnx")[0] == 0
    code, _, err = run("--require", "tpu")
    assert code == 2
    assert "there are python, cores" in err
