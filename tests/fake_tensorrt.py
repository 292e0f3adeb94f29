"""A fake `tensorrt` that has exactly the names of the real bindings.

The names, arguments and enum values come from listings of the bindings of two versions. The fake
refuses any other name, so a call that one of the versions lacks fails here.
"""

import importlib.machinery
import re
import types
from pathlib import Path
from typing import Any

VERSIONS = ["10.16", "11.4"]


def read_listing(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the version, and per class its enum values, methods and properties."""
    text = path.read_text()
    version = re.search(r"__version__ = '(.+)'", text)
    assert version is not None
    classes: dict[str, Any] = {}
    for block in re.split(r"\n(?=class )", text):
        head = re.match(r"class (\w+)\(", block)
        if head is None:
            continue
        enum = re.search(r"# enum: (.*)", block)
        values = dict(pair.split("=") for pair in enum.group(1).split()) if enum else {}
        methods: dict[str, list[str] | None] = {}
        for name, arguments in re.findall(r"^ {4}(\w+)\((.*)\)(?: -> .*)?$", block, re.MULTILINE):
            plain = re.sub(r"\[[^\]]*\]", "", arguments)
            names = [part.split(":")[0].strip() for part in plain.split(",")]
            methods[name] = None if "*args" in arguments else names[1:]
        classes[head.group(1)] = {
            "enum": {name: int(value) for name, value in values.items()},
            "methods": methods,
            "properties": dict(re.findall(r"^ {4}(\w+): (property.*)$", block, re.MULTILINE)),
        }
    return version.group(1), classes


class Fake:
    """An object of one class of the listing; `answers` say what its methods return."""

    def __init__(self, module, kind):
        self.__dict__.update(module=module, kind=kind)

    def __getattr__(self, name):
        listing = self.module.listing[self.kind]
        key = f"{self.kind}.{name}"
        if name in listing["properties"]:
            told = self.module.properties_of.get(key)  # those that change as it is used
            return self.module.answers[key] if told is None else told()
        assert name in listing["methods"], f"TensorRT {self.module.__version__} has no {key}"

        def call(*arguments):
            names = listing["methods"][name]
            assert names is None or len(arguments) <= len(names), (key, arguments, names)
            self.module.calls.append((key, arguments))
            answer = self.module.answers.get(key)
            return answer(*arguments) if callable(answer) else answer

        return call

    def __setattr__(self, name, value):
        kind = self.module.listing[self.kind]["properties"].get(name)
        assert kind == "property", f"{self.kind}.{name} is not to be set"
        self.module.answers[f"{self.kind}.{name}"] = value


class IProfiler:
    """What the bindings let Python override."""

    def report_layer_time(self, layer_name, ms):
        raise NotImplementedError


def fake_tensorrt(path, **changes):
    """Make a module that builds b"engine" from a network with one input (-1, 3, 96, 160)."""
    module: Any = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    module.__version__, module.listing = read_listing(path)
    module.calls, module.properties_of = [], {}

    def make(kind):
        return lambda *arguments: Fake(module, kind)

    module.make = make
    for name, content in module.listing.items():
        if content["enum"]:
            setattr(module, name, types.SimpleNamespace(**content["enum"]))
    module.Logger = make("Logger")
    module.Logger.Severity = types.SimpleNamespace(WARNING=2)
    module.Builder = make("Builder")
    module.OnnxParser = make("OnnxParser")
    module.IProfiler = IProfiler
    module.answers = {
        "Builder.create_network": make("INetworkDefinition"),
        "Builder.create_builder_config": make("IBuilderConfig"),
        "Builder.create_optimization_profile": make("IOptimizationProfile"),
        "Builder.build_serialized_network": b"engine",
        "OnnxParser.parse_from_file": True,
        "OnnxParser.num_errors": 0,
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.get_input": make("ITensor"),
        "ITensor.name": "images",
        "ITensor.shape": (-1, 3, 96, 160),
        "IBuilderConfig.add_optimization_profile": 0,
        "IBuilderConfig.create_timing_cache": make("ITimingCache"),
        "IBuilderConfig.set_timing_cache": True,
        "ITimingCache.serialize": b"timings",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return module
