"""What each rewrite of an exported graph is worth, and whether it is as fast as one made by hand.

    python -m benchmarks.export --output benchmarks/results

For each space: the largest detector as it is exported, without folding its batch norms, written by
hand with fused nodes (as latency tables measure it), and, where the space has h-swish, with each
HardSwish and HardSigmoid as its plain formula. All are measured in turn in one run, one thread,
ONNX Runtime; weights are random. Prints each one's time as a ratio to the exported file's.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from detofa.export.onnx_from_blocks import detector_onnx
from detofa.export.rewrite import fold_batch_norms
from detofa.export.to_onnx import OUTPUT_NAMES, RAW_OUTPUTS, onnx_model
from detofa.files import write_json
from detofa.presets import preset
from detofa.profiling.device import this_cpu
from detofa.runtime.measuring import Schedule, measure_models, median_error
from detofa.runtime.runtimes import OnnxRuntimeCpu
from detofa.supernet.decode import DecodedDetector
from detofa.supernet.detector import StaticDetector

_TOP_K = 300
_BASE = "exported"


def forms_of(space_name: str, size: tuple[int, int]) -> dict[str, bytes]:
    """Return the forms of a space's largest detector by name, as ONNX models."""
    space = preset(space_name, num_classes=3, image_sizes=(size,))
    neck_head = space.neck_head(space.largest)
    torch.manual_seed(0)
    module = DecodedDetector(StaticDetector(space, space.largest), neck_head, _TOP_K).eval()
    plain = onnx_model(
        module,
        (torch.zeros(2, 3, *size),),
        input_names=["images"],
        output_names=OUTPUT_NAMES,
    )
    folded = onnx.ModelProto()
    folded.CopyFrom(plain)
    fold_batch_norms(folded)
    by_hand = onnx.load_from_string(
        detector_onnx(space.blocks(space.largest), top_k=_TOP_K, rng=np.random.default_rng(0))
    )
    forms = {_BASE: folded, "batch norms not folded": plain, "written by hand": by_hand}
    if any(node.op_type == "HardSwish" for node in folded.graph.node):
        forms["h-swish as its formula"] = as_formula(folded)
    for model in forms.values():
        kept = [entry for entry in model.graph.output if entry.name not in RAW_OUTPUTS]
        del model.graph.output[:]
        model.graph.output.extend(kept)
    return {name: model.SerializeToString() for name, model in forms.items()}


def as_formula(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose HardSwish is x relu6(x + 3) / 6, and HardSigmoid relu6(x + 3) / 6."""
    spelled = onnx.ModelProto()
    spelled.CopyFrom(model)
    constants = {"three": 3.0, "zero": 0.0, "six": 6.0}
    for name, value in constants.items():
        array = np.array(value, np.float32)
        spelled.graph.initializer.append(numpy_helper.from_array(array, f"formula/{name}"))
    nodes: list[onnx.NodeProto] = []
    for node in spelled.graph.node:
        if node.op_type not in ("HardSwish", "HardSigmoid"):
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        clipped = ["formula/zero", "formula/six"]
        nodes += [
            helper.make_node("Add", [x, "formula/three"], [f"{y}/added"]),
            helper.make_node("Clip", [f"{y}/added", *clipped], [f"{y}/clipped"]),
        ]
        if node.op_type == "HardSwish":
            nodes.append(helper.make_node("Mul", [x, f"{y}/clipped"], [f"{y}/product"]))
        last = f"{y}/product" if node.op_type == "HardSwish" else f"{y}/clipped"
        nodes.append(helper.make_node("Div", [last, "formula/six"], [y]))
    del spelled.graph.node[:]
    spelled.graph.node.extend(nodes)
    onnx.checker.check_model(spelled, full_check=True)
    return spelled


def check_formula(forms: dict[str, bytes], size: tuple[int, int]) -> None:
    """Stop if the formula does not compute what the exported file does."""
    images = np.random.default_rng(0).standard_normal((1, 3, *size), np.float32)
    found = []
    for name in (_BASE, "h-swish as its formula"):
        session = onnxruntime.InferenceSession(forms[name], providers=["CPUExecutionProvider"])
        found.append(session.run(["scores"], {"images": images})[0])
    difference = float(np.abs(found[0] - found[1]).max())
    assert difference < 1e-4, f"the formula computes something else: {difference}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=["lite0", "ofa-mbv3"])
    parser.add_argument("--size", type=int, nargs=2, default=[224, 224], metavar=("H", "W"))
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    size, rows = (options.size[0], options.size[1]), []
    schedule = Schedule(passes=options.passes, extra_passes=0)
    print(f"{this_cpu().name}; ONNX Runtime {onnxruntime.__version__}; torch {torch.__version__}")
    print("| space | form | ms, p50 | over the exported file | standard error | nodes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for space in options.spaces:
        forms = forms_of(space, size)
        if "h-swish as its formula" in forms:
            check_formula(forms, size)
        samples = measure_models(
            {name: partial(bytes, data) for name, data in forms.items()},
            OnnxRuntimeCpu(threads=1),
            schedule,
        )
        whole = samples.whole(list(forms))  # (forms, passes, runs)
        by_pass = dict(zip(forms, np.median(whole, axis=2), strict=True))
        for name, data in forms.items():
            ratios = by_pass[name] / by_pass[_BASE]
            row = {
                "space": space,
                "form": name,
                "milliseconds": float(np.median(by_pass[name])),
                "ratio": float(np.median(ratios)),
                "error": 0.0 if name == _BASE else median_error(ratios),
                "nodes": len(onnx.load_from_string(data).graph.node),
            }
            rows.append(row)
            print(
                f"| {space} | {name} | {row['milliseconds']:.2f} | {row['ratio']:.3f} | "
                f"{row['error']:.3f} | {row['nodes']} |",
                flush=True,
            )
    if options.output is not None:
        about = {
            "device": this_cpu().to_json(),
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "image_size": list(size),
            "passes": options.passes,
        }
        options.output.mkdir(parents=True, exist_ok=True)
        write_json(options.output / "export.json", "benchmark", about | {"rows": rows})


if __name__ == "__main__":
    main()
