"""Graphs rewritten: batch norms folded, fp16, int8, and what stays fp32."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from detofa.errors import UserError
from detofa.export.export import export_subnet
from detofa.export.precision import most_harmed_first
from detofa.export.quantize import to_int8
from detofa.export.rewrite import conv_macs, fold_batch_norms, share_of_format, to_fp16
from detofa.export.to_onnx import OUTPUT_NAMES, RAW_OUTPUTS, onnx_model
from detofa.files import read_json
from detofa.imaging import letterbox
from detofa.profiling.cost import arch_macs
from detofa.runtime.detector import open_detector
from detofa.runtime.gates import BARS, Judge
from detofa.runtime.session import open_onnx
from tests.detectors import export_detector, make_detector
from tests.samples import make_subnet

SUBNET = make_subnet((96, 160))


@pytest.fixture(scope="module")
def model():
    """Give a small detector with batch norms folded, its raw heads among the outputs."""
    import torch

    images = torch.zeros(2, 3, 96, 160)
    found = onnx_model(
        make_detector(SUBNET), (images,), input_names=["images"], output_names=OUTPUT_NAMES
    )
    before = onnx.ModelProto()
    before.CopyFrom(found)
    fold_batch_norms(found)
    return before, found


def run(model, batch=2, seed=0):
    images = np.random.default_rng(seed).standard_normal((batch, 3, 96, 160), np.float32)
    return dict(
        zip(
            OUTPUT_NAMES,
            open_onnx(model.SerializeToString()).run(None, {"images": images}),
            strict=True,
        )
    )


def operators(model):
    return {node.op_type for node in model.graph.node}


def inputs(images):
    return [
        SUBNET.preprocessing.normalise(letterbox(image, (96, 160), SUBNET.preprocessing.fill)[0])[
            None
        ]
        for image in images.values()
    ]


def test_batch_norms_are_folded_level_by_level_and_nothing_changes(model):
    before, after = model
    assert "BatchNormalization" in operators(before)
    assert "BatchNormalization" not in operators(after)
    assert [entry.name for entry in after.graph.initializer] == list(
        dict.fromkeys(entry.name for entry in after.graph.initializer)
    )
    wanted, found = run(before), run(after)
    for name in OUTPUT_NAMES:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4)


def test_a_norm_whose_convolution_has_another_reader_stays():
    from onnx import helper

    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    ones = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in "abcd"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
            helper.make_node("BatchNormalization", ["y", *"abcd"], ["z"], name="norm"),
            helper.make_node("Add", ["y", "z"], ["out"], name="add"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2, 4, 4])],
        [weight, *ones],
    )
    shared = helper.make_model(graph)
    fold_batch_norms(shared)
    assert operators(shared) == {"Conv", "BatchNormalization", "Add"}


def test_half_precision_ends_at_the_heads_and_is_close(model):
    _, full = model
    half = to_fp16(full, RAW_OUTPUTS)
    assert share_of_format(conv_macs(half), "fp16") == 1
    assert share_of_format(conv_macs(full), "fp32") == 1
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in half.graph.output}
    assert set(kinds.values()) == {TensorProto.FLOAT}
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    types = {entry.name: entry.type.tensor_type.elem_type for entry in half.graph.value_info}
    after = [node for node in half.graph.node if node.op_type in ("TopK", "Softmax", "Sigmoid")]
    assert len(after) == 3
    for node in after:  # boxes are decoded, and chosen, in full precision
        assert types.get(node.input[0], TensorProto.FLOAT) == TensorProto.FLOAT
    wanted, found = run(full), run(half)
    for name in RAW_OUTPUTS:
        error = np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()
        assert 0 < error < 0.01
    assert len(half.SerializeToString()) < 0.6 * len(full.SerializeToString())


def test_a_simulation_rounds_every_value(model):
    _, full = model
    simulated = to_fp16(full, RAW_OUTPUTS, simulate=True)
    assert TensorProto.FLOAT16 not in {one.data_type for one in simulated.graph.initializer}
    exact, weights_only, found = (
        run(one)["class_logits"] for one in (full, to_fp16(full, RAW_OUTPUTS), simulated)
    )
    least, error = (np.sqrt(np.mean((one - exact) ** 2)) for one in (weights_only, found))
    assert least < error < 10 * least
    rounded = found.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, rounded)


def test_nodes_that_are_kept_stay_in_full_precision(model):
    _, full = model
    macs = conv_macs(full)
    kept = sorted(macs)[::2]
    formats = {
        name: kind for name, (kind, _) in conv_macs(to_fp16(full, RAW_OUTPUTS, keep=kept)).items()
    }
    assert formats == {name: "fp32" if name in kept else "fp16" for name in macs}
    every = to_fp16(full, RAW_OUTPUTS, keep={node.name for node in full.graph.node})
    assert {node.op_type for node in every.graph.node} == operators(full)
    for name, wanted in run(full).items():
        np.testing.assert_allclose(run(every)[name], wanted, rtol=1e-3, atol=1e-3)


def test_values_beyond_half_precision_become_its_largest(model):
    full = onnx.ModelProto()
    full.CopyFrom(model[1])
    weight = next(one for one in full.graph.initializer if "output" in one.name)
    huge = numpy_helper.to_array(weight).copy()
    huge.flat[0] = 1e6
    weight.CopyFrom(numpy_helper.from_array(huge, weight.name))
    half = to_fp16(full, RAW_OUTPUTS)
    assert all(
        np.isfinite(numpy_helper.to_array(one)).all()
        for one in half.graph.initializer
        if one.data_type == TensorProto.FLOAT16
    )


def test_int8_is_symmetric_by_channel_and_leaves_biases_alone(model, images):
    _, full = model
    quantised = to_int8(full, inputs(images))
    assert share_of_format(conv_macs(quantised), "int8") == 1
    constants = {one.name: numpy_helper.to_array(one) for one in quantised.graph.initializer}
    producers = {name: node for node in quantised.graph.node for name in node.output}
    convs = [node for node in quantised.graph.node if node.op_type == "Conv"]
    for conv in convs:
        data, weight = (producers[name] for name in conv.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        stored, scale, zero = (constants[name] for name in weight.input)
        assert stored.dtype == np.int8
        assert scale.shape == zero.shape == (len(stored),)
        assert not zero.any()
        assert not constants[data.input[2]].any()
        assert constants[conv.input[2]].dtype == np.float32
    # Only quantised convolutions read what is rounded: residual sums and kept ones do not.
    readers = {
        node.op_type
        for node in quantised.graph.node
        for name in node.input
        if name in producers and producers[name].op_type == "DequantizeLinear"
    }
    assert readers == {"Conv"}
    towers = [one for one in convs if "tower" in one.input[1] and "depthwise" in one.input[1]]
    kept = {convs[0].name, convs[-1].name, towers[0].name}
    partly = to_int8(full, inputs(images), keep=kept)
    formats = conv_macs(partly)
    assert {name for name, (kind, _) in formats.items() if kind == "fp32"} == kept
    made = {name: node.op_type for node in partly.graph.node for name in node.output}
    for node in partly.graph.node:
        if node.name in kept:
            assert made.get(node.input[0]) != "DequantizeLinear"
    with pytest.raises(UserError, match="needs images to calibrate on"):
        to_int8(full, [])


def test_macs_are_those_of_the_arch(model):
    macs = conv_macs(model[1])
    assert sum(count for _, count in macs.values()) == arch_macs(SUBNET.space, SUBNET.arch)


def test_what_was_made_worse_on_purpose_is_found_first(model, images):
    """A weight for a channel that is always zero leaves no steps for the other weights."""
    full = onnx.ModelProto()
    full.CopyFrom(model[1])
    constants = {one.name: one for one in full.graph.initializer}
    producers = {name: node for node in full.graph.node for name in node.output}

    def change(name, place, value):
        values = numpy_helper.to_array(constants[name]).copy()
        values[place] = value
        constants[name].CopyFrom(numpy_helper.from_array(values, name))

    convs = [node for node in full.graph.node if node.op_type == "Conv"]
    groups = most_harmed_first(full, "int8", inputs(images))
    grouped = [name for group in groups for name in group]
    assert len(grouped) == len(set(grouped))
    assert {one.name for one in convs} < set(grouped)
    dense = [one for one in convs if "stages.2.0.project" in one.input[1]]
    assert len(dense) == 1
    source = producers[producers[dense[0].input[0]].input[0]]  # the depthwise one before it
    change(source.input[1], 0, 0.0)
    change(source.input[2], 0, 0.0)
    change(dense[0].input[1], (slice(None), 0), 1000.0)
    assert dense[0].name in most_harmed_first(full, "int8", inputs(images))[0]


def test_a_block_that_overflows_in_half_precision_is_found_and_mended(model, images):
    """Activations above 65504 between two convolutions, which the second one scales back."""
    full = onnx.ModelProto()
    full.CopyFrom(model[1])
    constants = {one.name: one for one in full.graph.initializer}
    producers = {name: node for node in full.graph.node for name in node.output}

    def scale(name, factor):
        values = numpy_helper.to_array(constants[name]) * np.float32(factor)
        constants[name].CopyFrom(numpy_helper.from_array(values, name))

    read = [name for node in full.graph.node for name in node.input]
    second = next(
        one
        for one in full.graph.node
        if one.op_type == "Conv"
        and producers.get(one.input[0], one).op_type == "Relu"
        and read.count(one.input[0]) == 1
    )
    first = producers[producers[second.input[0]].input[0]]
    for name in first.input[1:]:
        scale(name, 1e5)
    scale(second.input[1], 1e-5)
    wanted = run(full)["class_logits"]
    simulated = to_fp16(full, RAW_OUTPUTS, simulate=True)
    assert not np.isfinite(run(simulated)["class_logits"]).all()
    groups = most_harmed_first(full, "fp16", inputs(images))
    assert first.name in groups[0]
    keep = [*groups[0], *groups[1]]
    mended = run(to_fp16(full, RAW_OUTPUTS, keep=keep, simulate=True))["class_logits"]
    np.testing.assert_allclose(mended, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("space_name", ["ofa-mbv3", "lite0"])
def test_the_other_spaces_are_rewritten_as_well(tmp_path, images, space_name, precision):
    subnet = make_subnet((128, 192), space_name)
    done = export_detector(
        subnet,
        tmp_path / "a.onnx",
        images,
        precision=precision,
        judge=Judge(ap=lambda session: 0.5, reference_ap=0.5, about={}),
    )
    assert done.manifest.parity["share_of_macs"] >= 0.9
    kinds = operators(onnx.load(tmp_path / "a.onnx"))
    assert "BatchNormalization" not in kinds
    if space_name == "ofa-mbv3":
        assert {"HardSwish", "HardSigmoid"} <= kinds


def test_int8_needs_a_judge(tmp_path, images):
    how = {"images": images, "rng": np.random.default_rng(0), "precision": "int8"}
    with pytest.raises(UserError, match="judged by average precision"):
        export_subnet(make_detector(SUBNET), SUBNET, tmp_path / "a.onnx", **how)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_export_in_lower_precision_is_verified_and_opens(tmp_path, images, precision):
    path = tmp_path / "a.onnx"
    done = export_detector(
        SUBNET,
        path,
        images,
        precision=precision,
        judge=Judge(ap=lambda session: 0.5, reference_ap=0.501, about={"images": 3}),
    )
    assert done.manifest.precision == precision
    verified = done.manifest.parity
    assert verified["share_of_macs"] >= 0.9
    assert verified["num_matched"] >= 100
    judged = verified["average_precision"]
    assert judged == {"file": 0.5, "shown": 0.5, "pytorch": 0.501, "images": 3}
    assert verified["calibrated_on"] == (sorted(images) if precision == "int8" else [])
    with open_detector(path) as detector:
        assert len(detector.detect(list(images.values()), score_threshold=0.01)) == 3


def test_what_suffers_stays_fp32_until_the_file_is_good_enough(tmp_path, images):
    judged = iter([0.4, 0.4, 0.5])
    done = export_detector(
        SUBNET,
        tmp_path / "a.onnx",
        images,
        precision="int8",
        judge=Judge(ap=lambda session: next(judged), reference_ap=0.5, about={}),
    )
    verified = done.manifest.parity
    assert len(verified["kept_fp32"]) >= 2
    assert 0.9 <= verified["share_of_macs"] < 1
    kinds = conv_macs(onnx.load(tmp_path / "a.onnx"))
    assert (
        sorted(name for name, (kind, _) in kinds.items() if kind == "fp32") == verified["kept_fp32"]
    )


def test_a_file_that_never_gets_good_enough_is_rejected(tmp_path, images):
    with pytest.raises(UserError, match=r"a\.onnx\.rejected.*its AP is 0\.3000, PyTorch's 0\.5000"):
        export_detector(
            SUBNET,
            tmp_path / "a.onnx",
            images,
            precision="int8",
            judge=Judge(ap=lambda session: 0.3, reference_ap=0.5, about={}),
        )
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a.onnx.rejected", "a.onnx.rejected.json"]
    report = read_json(tmp_path / left[1], "rejected_export", remake="`detofa export`")
    assert "its AP is 0.3000" in report["reasons"][0]
    assert report["average_precision"]["file"] == 0.3
    convs = [name for group in report["most_harmed"] for name in group if "conv" in name.lower()]
    assert set(report["kept_fp32"]) < set(convs)


def test_a_full_precision_file_of_another_ap_is_rejected(tmp_path, images):
    judge = Judge(ap=lambda session: 0.502, reference_ap=0.5, about={})
    with pytest.raises(UserError, match=r"its AP is 0\.5020"):
        export_detector(
            SUBNET,
            tmp_path / "a.onnx",
            images,
            judge=judge,
        )
    assert BARS["fp32"].ap_gain == 0.001
