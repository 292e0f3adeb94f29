"""Readers of weights and models: safetensors, PyTorch's checkpoints, ONNX, packed zips."""

import collections
import contextlib
import importlib
import io
import json
import pickle
import struct
import sys
import zipfile
import zipimport
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import strategies as st
from torch import Tensor

from detofa.errors import UserError
from detofa.imaging import IMAGENET
from detofa.presets import preset
from detofa.profiling import on_device
from detofa.runtime import app
from detofa.runtime.detector import SUBNET_KEY, open_detector
from detofa.supernet.detector import StaticDetector, Supernet
from detofa.supernet.import_weights import import_classifier, load_pretrained, read_checkpoint
from detofa.train.checkpoint import (
    load_any_supernet,
    load_subnet,
    read_tensors,
    save_subnet_weights,
    save_supernet,
    write_tensors,
)
from detofa.train.supernet_record import SupernetRecord, read_supernet_record
from tests.fuzz.mutations import WORDS, changed_bytes, files, json_files, json_text, json_values
from tests.fuzz.reader import Reader
from tests.fuzz.records import (
    SPACE,
    manifest_record,
    sha256_of,
    sign_inner_space,
    sign_space,
    sign_whole,
    subnet_record,
    versioned,
)
from tests.samples import make_subnet


@st.composite
def changed_safetensors(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw a safetensors file whose header, detofa's own record in it, or bytes are changed."""
    if draw(st.integers(0, 2)) == 0:
        return draw(changed_bytes(valid))
    size = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + size]), valid[8 + size :]
    own = header.get("__metadata__", {}).get("detofa")
    if own is not None and draw(st.booleans()):
        header["__metadata__"]["detofa"] = draw(json_files(own)).decode(errors="replace")
        text = json.dumps(header)
    else:
        text = json_text(draw(json_values(json.dumps(header))))
    whole = text.encode()
    length = draw(st.sampled_from((len(whole),) * 8 + (0, 2**63, 10**8)))
    return struct.pack("<Q", length) + whole + data


def tensors(folder: Path) -> Reader:
    """Return the reader of any safetensors file of the package."""
    path = folder / "a.safetensors"
    some = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True), "c": torch.zeros(0, 4)}
    write_tensors(path, some, "some", {"step": 3})
    valid = path.read_bytes()
    return Reader(
        files={"a.safetensors": valid},
        changed=files(a__safetensors=changed_safetensors(valid)),
        read=lambda folder: read_tensors(folder / "a.safetensors", "some", remake="`detofa`"),
        target="a.safetensors",
    )


def supernet(folder: Path) -> Reader:
    """Return the reader of a supernet's file."""
    path = folder / "supernet.safetensors"
    record = SupernetRecord(
        space=SPACE,
        categories=((1, "cat"), (2, "dog")),
        preprocessing=IMAGENET,
        step=10,
        recalibration={"images": 4, "seed": 0, "split": "train"},
        data="data",
    )
    save_supernet(path, Supernet(SPACE), record)
    valid = path.read_bytes()

    def read(folder: Path) -> None:
        read_supernet_record(folder / "supernet.safetensors")
        load_any_supernet(folder / "supernet.safetensors")

    return Reader(
        files={"supernet.safetensors": valid},
        changed=files(supernet__safetensors=changed_safetensors(valid)),
        read=read,
    )


def subnet_weights(folder: Path) -> Reader:
    """Return the reader of a subnet with its weights."""
    subnet = make_subnet()
    path = folder / "a.safetensors"
    save_subnet_weights(path, StaticDetector(subnet.space, subnet.arch))
    valid = path.read_bytes()

    def with_record(weights: bytes) -> Mapping[str, bytes]:
        text = versioned("subnet", subnet_record() | {"weights_sha256": sha256_of(weights)})
        return {"a.safetensors": weights, "subnet.json": text.encode()}

    text = with_record(valid)["subnet.json"].decode()
    return Reader(
        files=with_record(valid),
        changed=changed_safetensors(valid).map(with_record)
        | files(subnet__json=json_files(text, sign_space)),
        read=lambda folder: load_subnet(folder / "subnet.json"),
    )


class _Writes:
    """Writes a file beside the folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("escaped", "w")


def _checkpoints(state: dict[str, Tensor]) -> list[bytes]:
    """Return checkpoints of values that are no plain tensors, or that run code."""
    strange: tuple[Any, ...] = (
        *(torch.tensor(1.0), torch.zeros(0), torch.zeros(24, 3, 3, 3), torch.zeros(1).expand(99)),
        *(torch.ones(16, 3, 3, 3).to_sparse(), torch.zeros(16, 3, 3, 3, device="meta")),
        *(torch.zeros(16, 3, 3, 3, dtype=torch.complex64), torch.zeros(16, 3, 3, 3).bool()),
        *(torch.full((16, 3, 3, 3), float("nan")), torch.zeros(16, 3, 3, 3, dtype=torch.int8)),
        *(None, 1, "text", {"a": torch.zeros(1)}, [torch.zeros(1)], torch.nn.Linear(1, 1)),
        *(_Writes(), collections.OrderedDict(a=_Writes()), torch.zeros(10**6, 1)[:, :0]),
    )
    first = next(iter(state))
    contents: list[Any] = [state, {"state_dict": state}, {"state_dict": {}}, {}, [], None]
    contents += [state | {first: value} for value in strange]
    contents += [state | {key: torch.zeros(1)} for key in (1, None, ("a",), *WORDS[:5])]
    contents += [{f"module.{key}": value for key, value in state.items()}]
    packed = []
    for content in contents:
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            packed.append(file.getvalue())
    packed += [pickle.dumps(_Writes()), pickle.dumps({"a": _Writes()}, protocol=0), b""]
    return packed


def checkpoints(folder: Path) -> Reader:
    """Return the reader of published checkpoints."""
    state = {
        "first_conv.conv.weight": torch.zeros(16, 3, 3, 3),
        "first_conv.bn.bn.weight": torch.zeros(16),
        "blocks.1.mobile_inverted_conv.depth_conv.conv.7to5_matrix": torch.zeros(25, 25),
        "blocks.3.conv.point_linear.bn.bn.bias": torch.zeros(24),
        "feature_mix_layer.conv.weight": torch.zeros(8, 8, 1, 1),
        "classifier.linear.bias": torch.zeros(3),
    }
    kinds = _checkpoints(state)
    supernet = Supernet(preset("ofa-mbv3", num_classes=2))

    def read(folder: Path) -> None:
        read_checkpoint(folder / "a.pth")
        for use in (partial(load_pretrained, supernet), import_classifier):
            with contextlib.suppress(UserError):  # it holds only a few of the weights
                use(str(folder / "a.pth"))

    return Reader(
        files={"a.pth": kinds[0]},
        changed=files(
            a__pth=st.sampled_from(kinds) | st.sampled_from(kinds).flatmap(changed_bytes)
        ),
        read=read,
        target="a.pth",
    )


def small_onnx() -> onnx.ModelProto:
    """Return a small model with a detector's inputs and outputs, and its record inside."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight, square = rng.normal(size=(6, 3, 1, 1)).astype(np.float32), [32, 32]
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pool"], kernel_shape=square, strides=square),
        helper.make_node("Conv", ["pool", "weight"], ["cells"], name="conv"),
        helper.make_node("Reshape", ["cells", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("Split", ["rows", "parts"], ["boxes_xyxy", "logits"], axis=2),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 96, 128])],
        [
            helper.make_tensor_value_info("boxes_xyxy", TensorProto.FLOAT, ["batch", 12, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 12, 2]),
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([0, 6, 12], np.int64), "shape"),
            numpy_helper.from_array(np.array([4, 2], np.int64), "parts"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {SUBNET_KEY: versioned("subnet", subnet_record())})
    return model


@st.composite
def _onnx_files(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw an ONNX file with another record, shapes, operators or links to other files."""
    if draw(st.integers(0, 2)) == 0:
        return draw(changed_bytes(valid))
    model = onnx.load_from_string(valid)
    graph = model.graph
    number = draw(st.sampled_from((-1, 0, 1, 3, 96, 2**31 - 1, 2**40)))
    word = draw(st.sampled_from([word for word in WORDS if "\ud800" not in word]))
    match draw(st.integers(0, 8)):
        case 0 | 1:
            text = draw(json_files(versioned("subnet", subnet_record()), sign_space))
            model.metadata_props[0].value = text.decode(errors="replace")
        case 2:
            sizes = graph.input[0].type.tensor_type.shape.dim
            sizes[draw(st.integers(0, 3))].dim_value = number
        case 3:
            weight = graph.initializer[draw(st.integers(0, 2))]
            weight.dims[0] = number
        case 4:
            weight = graph.initializer[0]
            weight.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", word), ("offset", str(number)), ("length", "72")):
                weight.external_data.add(key=key, value=value)
            weight.ClearField("raw_data")
        case 5:
            node = graph.node[draw(st.integers(0, len(graph.node) - 1))]
            node.op_type = draw(st.sampled_from(("Loop", "If", "Identity", "Resize", word)))
        case 6:
            graph.output[draw(st.integers(0, 1))].name = word
        case 7:
            model.opset_import[0].version = number
        case _:
            entry = draw(st.sampled_from((graph.input[0], graph.output[0])))
            entry.type.tensor_type.elem_type = draw(st.integers(0, 30))
    return bytes(model.SerializeToString())


def onnx_files(folder: Path) -> Reader:
    """Return the reader of exported ONNX files."""
    valid = bytes(small_onnx().SerializeToString())

    def read(folder: Path) -> None:
        with open_detector(folder / "a.onnx") as detector:
            assert detector.class_names

    return Reader(
        files={"a.onnx": valid, "weights.bin": bytes(72)},
        changed=files(a__onnx=_onnx_files(valid)),
        read=read,
        target="a.onnx",
    )


def _zip_of(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


@contextlib.contextmanager
def _imported_from(path: Path, package: str) -> Iterator[None]:
    """Have a package come from a zip, as when Python runs the zip."""
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))
        sys.modules.pop(package, None)
        sys.path_importer_cache.pop(str(path), None)
        zipimport._zip_directory_cache.pop(str(path), None)  # type: ignore[attr-defined]
        importlib.invalidate_caches()


def _packed_files(
    package: str, record_name: str, record: str, sign: Callable[[Any], None], model: bytes
) -> tuple[bytes, st.SearchStrategy[bytes]]:
    """Return a zip of a package of data, and a strategy that changes it."""

    def pack(text: bytes) -> bytes:
        members = {f"{package}/__init__.py": b"", f"{package}/{record_name}": text}
        return _zip_of(members | {f"{package}/{app.MODEL}": model})

    valid = pack(record.encode())
    return valid, json_files(record, sign).map(pack) | changed_bytes(valid)


def packed_detectors(folder: Path) -> Reader:
    """Return the reader of what a packed detector holds."""
    model = bytes(1000)
    text = json.dumps(manifest_record() | {"model_sha256": sha256_of(model)})
    valid, changed = _packed_files(app.DATA, app.RECORD, text, sign_inner_space, model)

    def read(folder: Path) -> None:
        with _imported_from(folder / "detector.zip", app.DATA):
            app._packed()

    return Reader(files={"detector.zip": valid}, changed=files(detector__zip=changed), read=read)


def packed_kits(folder: Path) -> Reader:
    """Return the reader of what a profiling kit holds."""
    model = bytes(1000)
    record = {
        "device": "cpu",
        "runtime": "onnxruntime-cpu",
        "threads": 1,
        "batch": 1,
        "schedule": {"passes": 2},
        "plan": {},
        "models": {"a": {"file": app.MODEL, "sha256": sha256_of(model), "structure": "0"}},
        "looked_at": ["a"],
        "detofa_version": "0.1.0",
    }
    sign_whole(record)
    valid, changed = _packed_files(
        on_device.DATA, on_device.RECORD, json.dumps(record), sign_whole, model
    )

    def read(folder: Path) -> None:
        with _imported_from(folder / "kit.zip", on_device.DATA):
            for entry in on_device._read_kit()["models"].values():
                on_device._reader(entry)()

    return Reader(files={"kit.zip": valid}, changed=files(kit__zip=changed), read=read)
