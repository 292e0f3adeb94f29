"""Readers of the package's own records: JSON, lines of JSON, TOML, quantities."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from hypothesis import strategies as st

from detofa.files import SCHEMA, sha256_json
from detofa.path_filter.bins import BudgetBins
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.pruned_space import PrunedSpace, cut_space
from detofa.presets import preset
from detofa.profiling.conditions import Conditions
from detofa.profiling.cost import macs_cost
from detofa.profiling.device import Device
from detofa.profiling.kit import structure_of, table_from_kit
from detofa.profiling.measure import ProfilePlan
from detofa.profiling.table import load_table
from detofa.runtime.cuda import Gpu
from detofa.runtime.manifest import Manifest
from detofa.runtime.measuring import Pass, SampleLog, Schedule
from detofa.runtime.tensorrt.layers import precision_of_convs, share_in
from detofa.runtime.tensorrt.record import EngineRecord
from detofa.subnet import Figure, Subnet
from detofa.train.config import TrainConfig, read_recipe
from detofa.train.run import RunFolder
from detofa.units import format_count, parse_count, parse_image_size, parse_latency_ms, parse_rate
from tests.fuzz.mutations import changed_lines, files, json_files
from tests.fuzz.reader import Reader
from tests.samples import make_subnet

SPACE = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
_PLAN = ProfilePlan.draw(SPACE, num_fit=4, num_held_out=5, prior="compute")
_DEVICE = Device(kind="cpu", name="A processor", details={"cores": 2})
_WEIGHTS = b"weights"


def sha256_of(content: bytes) -> str:
    """Return a SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def subnet_record() -> dict[str, Any]:
    """Return the record of a subnet whose weights file is `a.safetensors`."""
    figure = Figure(value=1.5, unit="ms", source="measured", conditions={"batch": 1}, low=1.0)
    record = make_subnet().to_json() | {"figures": {"latency": asdict(figure)}}
    return record | {"weights_sha256": sha256_of(_WEIGHTS)}


def sign_space(record: Any) -> None:
    """Mend the hash of a changed search space."""
    record["space_sha256"] = sha256_json(record["space"])


def sign_inner_space(record: Any) -> None:
    """Mend the hash of a changed search space in a record that holds a subnet."""
    sign_space(record["subnet"])


def sign_whole(record: Any) -> None:
    """Mend the hash of a changed record."""
    known = ("schema", "kind", "sha256")
    content = {key: value for key, value in record.items() if key not in known}
    record["sha256"] = sha256_json(content)


def versioned(kind: str, record: dict[str, Any]) -> str:
    """Return the text of a record as it is written."""
    return json.dumps({"schema": SCHEMA, "kind": kind, **record})


def subnet(folder: Path) -> Reader:
    """Return the reader of subnet.json."""
    text = versioned("subnet", subnet_record())

    def read(folder: Path) -> None:
        found = Subnet.load(folder / "subnet.json")
        json.dumps(found.to_json())

    return Reader(
        files={"subnet.json": text.encode(), "a.safetensors": _WEIGHTS},
        changed=files(subnet__json=json_files(text, sign_space)),
        read=read,
    )


def _kit_results() -> str:
    builders = _PLAN.models()
    rng = np.random.default_rng(0)
    passes = [
        Pass(seconds=1.0, ms={name: rng.uniform(1, 1.1, 2).tolist() for name in builders})
        for _ in range(2)
    ]
    conditions = Conditions(
        device=_DEVICE,
        runtime="onnxruntime-cpu",
        runtime_version="1.22",
        precision="fp32",
        batch=1,
        threads=1,
        clock="wall",
        settings={},
        schedule=Schedule(passes=2, runs_per_visit=2),
    )
    operators = {"backbone/0": 1.0, "neck/1": 0.5, "head/2": 0.5, "decoding/3": 0.1}
    record = {
        "conditions": conditions.to_json(),
        "state": {},
        "operators_ms": dict.fromkeys(_PLAN.looked_at, operators),
        "plan": _PLAN.to_json(),
        "models": {name: structure_of(build()) for name, build in builders.items()},
        "detofa_version": "0.1.0",
        "passes": [asdict(one) for one in passes],
    }
    sign_whole(record)
    return versioned("kit_results", record)


def kit_results(folder: Path) -> Reader:
    """Return the reader of what a kit writes."""
    text = _kit_results()
    return Reader(
        files={"kit.json": text.encode()},
        changed=files(kit__json=json_files(text, sign_whole)),
        read=lambda folder: table_from_kit(folder / "kit.json"),
    )


def _sign_table(record: Any) -> None:
    sign_space(record)
    sign_whole(record)


def latency_table(folder: Path) -> Reader:
    """Return the reader of latency tables."""
    source = folder / "kit.json"
    source.write_text(_kit_results())
    text = table_from_kit(source).save(folder).read_text()

    def read(folder: Path) -> None:
        table = load_table(folder / "table.json")
        genes = table.space.ends
        table.predict(genes), table.predict_interval(genes), table.columns(genes)
        assert table.file_name
        assert table.clock
        table.save(folder / "again")

    return Reader(
        files={"table.json": text.encode()},
        changed=files(table__json=json_files(text, _sign_table)),
        read=read,
    )


def sample_log(folder: Path) -> Reader:
    """Return the reader of a profile's samples."""
    about = {"device": "A processor"}
    record = asdict(Pass(seconds=1.0, ms={"a": [1.0, 2.0], "b": [2.0, 1.0]}))
    line = json.dumps(record)
    head = json.dumps(about).encode() + b"\n"

    def read(folder: Path) -> None:
        log = SampleLog(("a", "b"), 2, folder / "log.jsonl", about)
        if log.samples.count:
            log.samples.unstable()
        log.add(Pass(seconds=1.0, ms={"a": [1.0, 2.0], "b": [2.0, 1.0]}))

    lines = st.lists(json_files(line), max_size=3).map(lambda kept: head + b"\n".join(kept) + b"\n")
    return Reader(
        files={"log.jsonl": head + line.encode() + b"\n"},
        changed=files(log__jsonl=lines | changed_lines(f"{json.dumps(about)}\n{line}\n{line}\n")),
        read=read,
        target="log.jsonl",
    )


def _cut(folder: Path) -> None:
    rng = np.random.default_rng(0)
    cost = macs_cost(SPACE)
    low, high = cost(SPACE.ends)
    bins = BudgetBins.between(float(low), float(high), 2, kind="macs")
    genes = np.concatenate([SPACE.sample_spread(rng, 60), SPACE.ends])
    costs = cost(genes)
    fitted = PathFilter.fit(SPACE, genes, np.log(costs), costs, bins, seed=0, label="ap")
    cut_space(SPACE, fitted, cost, rng, archs_per_bin=100).save(folder / "pruned_space.json")


def _use_pruned_space(folder: Path) -> None:
    pruned = PrunedSpace.load(folder / "pruned_space.json", SPACE, macs_cost(SPACE))
    pruned.contains(np.concatenate([SPACE.ends, SPACE.sample(np.random.default_rng(0), 5)]))
    pruned.save(folder / "again" / "pruned_space.json")


def path_filter(folder: Path) -> Reader:
    """Return the reader of a pruned space and the path filter beside it."""
    _cut(folder)
    names = ("path_filter/path_filter.json", "path_filter/path_filter.safetensors")
    valid = {name: (folder / name).read_bytes() for name in ("pruned_space.json", *names)}

    def mend(text: bytes) -> dict[str, bytes]:
        """Have the pruned space name the changed filter, which has no hash of its own content."""
        try:
            record = json.loads(valid["pruned_space.json"])
            content = json.loads(text)
            kept = {key: content[key] for key in content if key not in ("schema", "kind")}
            record["filter"]["sha256"] = sha256_json(kept)
            return {"pruned_space.json": json.dumps(record).encode(), names[0]: text}
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return {names[0]: text}

    def with_weights(weights: bytes) -> dict[str, bytes]:
        record = json.loads(valid[names[0]]) | {"weights_sha256": sha256_of(weights)}
        return mend(json.dumps(record).encode()) | {names[1]: weights}

    from tests.fuzz.models import changed_safetensors

    return Reader(
        files=valid,
        changed=st.one_of(
            files(pruned_space__json=json_files(valid["pruned_space.json"].decode())),
            json_files(valid[names[0]].decode()).map(mend),
            changed_safetensors(valid[names[1]]).map(with_weights),
        ),
        read=_use_pruned_space,
    )


def run_config(folder: Path) -> Reader:
    """Return the reader of recipes and of a run's settings."""
    record = TrainConfig(data="data").to_json()
    text = tomli_w.dumps(record)
    pieces = (
        *("steps = 0x" + "f" * 5000, "steps = " + "9" * 5000, "learning_rate = " + "9" * 400),
        *("a = " + "[" * 5000 + "]" * 5000, "a" + ".a" * 20_000 + " = 1", "[[filter]]"),
        *("learning_rate = nan", "learning_rate = inf", "data = 2020-13-99", "[losses]", "a = {"),
        *("[filter.x]", "image_sizes = [[0, 0]]", "x = " + "{a=" * 900 + "1" + "}" * 900),
        "image_sizes = [[" + "0x" + "f" * 5000 + ", 64]]",
    )

    def read(folder: Path) -> None:
        read_recipe(folder / "config.toml")
        RunFolder(path=folder).load_config().save(folder / "again.toml")

    as_toml = json_files(json.dumps(record)).map(_toml)
    return Reader(
        files={"config.toml": text.encode()},
        changed=files(config__toml=changed_lines(text, pieces) | as_toml),
        read=read,
        target="config.toml",
    )


def _toml(text: bytes) -> bytes:
    try:
        return tomli_w.dumps(json.loads(text)).encode()
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return text


def metrics(folder: Path) -> Reader:
    """Return the reader of a run's metrics."""
    begin = json.dumps({"schema": 1, "kind": "metrics"})
    line = json.dumps({"step": 3, "loss": 0.5, "paths": {"largest": {"ap": 0.1}}})
    valid = f"{begin}\n{line}\n{line}\n"

    def read(folder: Path) -> None:
        run = RunFolder(path=folder)
        run.read_metrics()
        run.forget_after(2)
        run.read_metrics()

    lines = st.lists(json_files(begin) | json_files(line), max_size=3).map(b"\n".join)
    return Reader(
        files={"metrics.jsonl": valid.encode()},
        changed=files(metrics__jsonl=lines | changed_lines(valid)),
        read=read,
        target="metrics.jsonl",
    )


def manifest_record() -> dict[str, Any]:
    """Return the record of an exported model."""
    return {
        "model_file": "a.onnx",
        "model_sha256": sha256_of(_WEIGHTS),
        "runtime": "onnxruntime",
        "precision": "fp32",
        "opset": 18,
        "convolutions": {"conv": 1000},
        "inputs": {"images": ["batch", 3, 96, 128]},
        "outputs": {"scores": ["batch", 300, 2]},
        "subnet": subnet_record(),
        "parity": {"largest_difference": 0.0},
        "versions": {"onnx": "1.18"},
    }


def manifest(folder: Path) -> Reader:
    """Return the reader of export manifests."""
    text = versioned("export_manifest", manifest_record())

    def read(folder: Path) -> None:
        json.dumps(Manifest.of(folder / "a.onnx").to_json())

    return Reader(
        files={"a.manifest.json": text.encode(), "a.onnx": _WEIGHTS},
        changed=files(a__manifest__json=json_files(text, sign_inner_space)),
        read=read,
    )


_GPU = Gpu(name="H100", compute_capability="9.0", driver_cuda="13.0", runtime_cuda="13.0")


def engine_record(folder: Path) -> Reader:
    """Return the reader of the record beside a TensorRT engine."""
    record = {
        "engine_file": "a.engine",
        "engine_sha256": sha256_of(_WEIGHTS),
        "onnx_file": "a.onnx",
        "onnx_sha256": "0" * 64,
        "precision": "fp16",
        "tensorrt": "10.16.0",
        "built_by": "tensorrt",
        "gpu": asdict(_GPU),
        "system": "Linux x86_64",
        "input_shapes": {"images": [[1, 3, 96, 128]] * 3},
        "workspace_bytes": 1 << 30,
        "builds": [{"milliseconds": 1.0, "enqueue_milliseconds": 0.1, "sha256": "0" * 64}],
        "spread": 0.01,
        "convolutions": {"conv": "fp16"},
        "share_of_macs": 1.0,
        "verified": {"num_matched": 9, "num_compared": 9},
        "timing_cache": {"sha256": "0" * 64, "complete": True},
        "subnet": subnet_record(),
    }
    text = versioned("tensorrt_engine", record)

    def read(folder: Path) -> None:
        found = EngineRecord.load(folder / "a.engine")
        assert found.summary
        found.save(folder / "b.engine")
        found.check_fits(_GPU, "10.16.0.1")

    return Reader(
        files={"a.engine.json": text.encode(), "a.engine": _WEIGHTS},
        changed=files(a__engine__json=json_files(text, sign_inner_space)),
        read=read,
    )


def inspector(folder: Path) -> Reader:
    """Return the reader of what TensorRT says of an engine's layers."""
    layer = {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "images", "Datatype": "Half", "Format/Datatype": "fp16"}],
        "Weights": {"Type": "Half", "Count": 9},
        "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
    }
    text = json.dumps({"Layers": [layer, layer, "reformat"], "Bindings": ["images"]})

    def read(folder: Path) -> None:
        convs = {"conv": 1000, "other": 10}
        said = (folder / "layers.json").read_bytes().decode(errors="replace")
        share_in("fp16", precision_of_convs(said, convs), convs)

    return Reader(
        files={"layers.json": text.encode()},
        changed=files(layers__json=json_files(text)),
        read=read,
        target="layers.json",
    )


def quantities(folder: Path) -> Reader:
    """Return the reader of quantities as they are typed."""
    parsers: tuple[Callable[[str], object], ...] = (
        *(parse_latency_ms, parse_rate, parse_count, parse_image_size),
        lambda text: format_count(parse_count(text)),
    )
    valid = ("10ms", "1.5 ms", "200/s", "0.5 / s", "300M", "1.2G", "256x320", "64 X 64")

    def read(folder: Path) -> None:
        text = (folder / "typed.txt").read_bytes().decode(errors="surrogateescape")
        parsers[len(text) % len(parsers)](text)

    spaced = st.sampled_from(valid).map(
        lambda text: text.replace(" ", " " * 20_000).encode() + b" " * 50_000 + b"!"
    )
    return Reader(
        files={"typed.txt": b"123ms"},
        changed=files(
            typed__txt=st.sampled_from(valid).flatmap(changed_lines)
            | st.text("0123456789.eExXkKmMsuG/ -+_\N{NO-BREAK SPACE}", max_size=9).map(str.encode)
            | spaced
        ),
        read=read,
        target="typed.txt",
    )
