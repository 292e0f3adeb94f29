"""A fake CUDA runtime whose GPU memory is this process's own, and a TensorRT that runs there.

The TensorRT has exactly the names of the real bindings (see `fake_tensorrt`); its engines hold the
ONNX file that they were built from, and run it in ONNX Runtime.
"""

import ctypes
import json
from typing import Any

import numpy as np
import onnx

from detofa.export.rewrite import conv_macs
from detofa.runtime.session import open_onnx
from tests.fake_tensorrt import fake_tensorrt

_LARGEST = 64 << 20  # more is not really allocated: it is the memory that flushes the cache
_MAGIC = b"ENGINE"
_NAMES = {"float32": "FLOAT", "uint8": "UINT8", "int64": "INT64"}
_WORDS = {  # as TensorRT 10 and 11 write the types
    "fp32": ("Row major linear FP32", "Float"),
    "fp16": ("Channel major FP16 format where channel % 8 == 0", "Half"),
    "int8": ("Thirty-two wide channel vectorized row major Int8 format", "Int8"),
}


class FakeCuda:
    """A CUDA runtime; attributes say which GPU it has."""

    def __init__(self, name="NVIDIA H100 80GB HBM3", capability=(9, 0), driver=13000) -> None:
        self.name, self.capability, self.driver = name, capability, driver
        self.held: dict[int, Any] = {}
        self.opened = 0  # streams and events
        self._uploads: list[tuple[int, bytes]] = []  # on their way: see `_finish`
        self.milliseconds = iter(lambda: 1.5, None)

    def __getattr__(self, name: str) -> Any:
        calls = {
            "cudaMalloc": self._malloc,
            "cudaFree": self._free,
            "cudaMemcpy": self._memcpy,
            "cudaStreamCreateWithFlags": self._stream,
            "cudaStreamSynchronize": self._finish,
            "cudaEventCreate": self._open,
            "cudaStreamDestroy": self._close,
            "cudaEventDestroy": self._close,
            "cudaEventElapsedTime": self._elapsed,
            "cudaGetDeviceProperties": self._properties,
            "cudaDeviceGetAttribute": self._attribute,
            "cudaDriverGetVersion": self._driver_version,
            "cudaRuntimeGetVersion": self._runtime_version,
        }
        nothing = ("SetDevice", "EventRecord", "EventSynchronize", "MemsetAsync")
        if name in calls:
            return calls[name]
        assert name.removeprefix("cuda") in nothing, name
        return lambda *arguments: 0

    def _malloc(self, pointer, count):
        block = ctypes.create_string_buffer(min(count.value, _LARGEST))
        address = ctypes.addressof(block)
        self.held[address] = block
        pointer._obj.value = address
        return 0

    def _free(self, pointer):
        del self.held[pointer.value]
        return 0

    def _memcpy(self, target, source, count, kind):
        device = target if kind.value == 1 else source
        assert count.value <= len(self.held[device.value]), "beyond what was allocated"
        if kind.value == 1:
            self._uploads.append((target.value, ctypes.string_at(source, count.value)))
        else:
            ctypes.memmove(target, source, count.value)
        return 0

    def _finish(self, stream):
        """Do what was asked of a stream; uploads are in the usual one, 0."""
        if not stream.value:
            for address, data in self._uploads:
                ctypes.memmove(address, data, len(data))
            self._uploads.clear()
        return 0

    def _open(self, what):
        self.opened += 1
        what._obj.value = 1000 + self.opened
        return 0

    def _close(self, what):
        self.opened -= 1
        return 0

    def _stream(self, stream, flags):
        self.opened += 1
        stream._obj.value = 77
        return 0

    def _elapsed(self, milliseconds, first, last):
        milliseconds._obj.value = next(self.milliseconds)
        return 0

    def _properties(self, properties, index):
        properties.value = self.name.encode()
        return 0

    def _attribute(self, value, which, index):
        value._obj.value = dict(zip((75, 76), self.capability, strict=True))[which.value]
        return 0

    def _driver_version(self, value):
        value._obj.value = self.driver
        return 0

    def _runtime_version(self, value):
        value._obj.value = 13020
        return 0


def engine_of(onnx_path, shapes):
    """Return the bytes of an engine that takes shapes (least, tuned, largest) by input's name."""
    head = json.dumps({"shapes": shapes}).encode()
    return _MAGIC + len(head).to_bytes(4, "big") + head + onnx_path.read_bytes()


def layers_of(model: bytes, is_new: bool, say=None) -> str:
    """Return what the inspector says of an engine, as TensorRT 10 or 11 writes it."""
    layers = []
    for name, (kind, _) in conv_macs(onnx.load_from_string(model)).items():
        long, short = _WORDS[say or kind]
        tensor = {"Name": "in", "Dimensions": [1, 3, 8, 8]}
        tensor |= {"Format": long, "DataType": short} if is_new else {"Format/Datatype": long}
        layers.append(
            {
                "Name": f"{name} + next",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor],
                "Outputs": [],
                "Weights": {"Type": short, "Count": 9},
                "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: next]",
            }
        )
    layers.append({"Name": "copy", "LayerType": "Reformat", "Metadata": ""})
    return json.dumps({"Layers": layers, "Bindings": ["images"]})


def working_tensorrt(listing, **changes):
    """Return a `tensorrt` whose engines run; `say` makes its inspector name one precision."""
    module = fake_tensorrt(listing)
    make, is_new = module.make, module.__version__.startswith("11")
    module.Runtime = make("Runtime")
    module.say = changes.pop("say", None)
    module.outputs_become = lambda name, values: values
    state: dict[str, Any] = {"addresses": {}, "profile": {}}

    def parse(path):
        with open(path, "rb") as file:
            state["built"] = file.read()
        session = open_onnx(state["built"])
        state["ports"] = session.get_inputs()
        return True

    def deserialize(data):
        if not data.startswith(_MAGIC):
            return None
        size = int.from_bytes(data[6:10], "big")
        state["shapes"] = json.loads(data[10 : 10 + size])["shapes"]
        state["model"] = data[10 + size :]
        session = state["session"] = open_onnx(state["model"])
        state["ports"] = {entry.name: entry for entry in session.get_inputs()}
        state["ports"] |= {entry.name: entry for entry in session.get_outputs()}
        state["inputs"] = [entry.name for entry in session.get_inputs()]
        return make("ICudaEngine")()

    def shape_of(port, batch):
        return tuple(batch if type(size) is not int else size for size in port.shape)

    def dtype_of(name):
        kinds = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
        return kinds[state["ports"][name].type]

    def set_input_shape(name, shape):
        least, _, most = state["shapes"][name]
        state["batch"] = shape[0]
        return least[0] <= shape[0] <= most[0] and list(shape[1:]) == list(least[1:])

    def execute(stream):
        assert stream == 77
        fed = {}
        for name in state["inputs"]:
            shape = shape_of(state["ports"][name], state["batch"])
            count = int(np.prod(shape)) * np.dtype(dtype_of(name)).itemsize
            data = ctypes.string_at(state["addresses"][name], count)
            fed[name] = np.frombuffer(data, dtype_of(name)).reshape(shape)
        outputs = [name for name in state["ports"] if name not in state["inputs"]]
        for name, values in zip(outputs, state["session"].run(outputs, fed), strict=True):
            values = np.ascontiguousarray(module.outputs_become(name, values))
            ctypes.memmove(state["addresses"][name], values.tobytes(), values.nbytes)
        return True

    def profile(name, *shapes):
        state["profile"][name] = shapes

    def built(network, config):
        head = json.dumps({"shapes": state["profile"]}).encode()
        return _MAGIC + len(head).to_bytes(4, "big") + head + state["built"]

    module.answers |= {
        "OnnxParser.parse_from_file": parse,
        "Builder.build_serialized_network": built,
        "INetworkDefinition.get_input": lambda index: make("ITensor")(),
        "IOptimizationProfile.set_shape": profile,
        "Runtime.deserialize_cuda_engine": deserialize,
        "ICudaEngine.create_execution_context": make("IExecutionContext"),
        "ICudaEngine.create_engine_inspector": make("EngineInspector"),
        "ICudaEngine.get_tensor_name": lambda index: list(state["ports"])[index],
        "ICudaEngine.get_tensor_mode": lambda name: 1 if name in state["inputs"] else 2,
        "ICudaEngine.get_tensor_shape": lambda name: shape_of(state["ports"][name], -1),
        "ICudaEngine.get_tensor_dtype": lambda name: getattr(
            module.DataType, _NAMES[dtype_of(name)]
        ),
        "ICudaEngine.get_tensor_profile_shape": lambda name, index: state["shapes"][name],
        "EngineInspector.get_engine_information": lambda how: layers_of(
            state["model"], is_new, module.say
        ),
        "IExecutionContext.set_input_shape": set_input_shape,
        "IExecutionContext.infer_shapes": list,
        "IExecutionContext.get_tensor_shape": lambda name: shape_of(
            state["ports"][name], state["batch"]
        ),
        "IExecutionContext.set_tensor_address": lambda name, address: bool(
            state["addresses"].update({name: address}) or address
        ),
        "IExecutionContext.execute_async_v3": execute,
    }
    module.properties_of = {
        "ICudaEngine.num_io_tensors": lambda: len(state["ports"]),
        "ITensor.name": lambda: state["ports"][0].name,
        "ITensor.shape": lambda: shape_of(state["ports"][0], -1),
    }
    module.answers |= {key.replace("__", "."): value for key, value in changes.items()}
    return module
