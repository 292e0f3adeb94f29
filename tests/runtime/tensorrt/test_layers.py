"""What an engine's inspector says of its layers' precision, in the words of several versions."""

import json

import pytest

from detofa.errors import UserError
from detofa.runtime.tensorrt.layers import precision_of_convs, share_in


def layer(name="conv", kind="CaskConvolution", metadata="", **fields):
    return {"Name": name, "LayerType": kind, "Metadata": metadata, **fields}


def said(*layers):
    return json.dumps({"Layers": list(layers), "Bindings": []})


def tensor(text, field="Format/Datatype"):
    return [{"Name": "in", "Location": "Device", "Dimensions": [1, 3, 8, 8], field: text}]


@pytest.mark.parametrize(
    ("inputs", "precision"),
    [
        (tensor("Row major linear FP32"), "fp32"),
        (tensor("Row major linear FP32 format"), "fp32"),
        (tensor("Float"), "fp32"),
        (tensor("Channel major FP16 format where channel % 4 == 0"), "fp16"),
        (tensor("Half"), "fp16"),
        (tensor("Thirty-two wide channel vectorized row major Int8 format"), "int8"),
        (tensor("Row major linear INT8 format"), "int8"),
        (tensor("Half", "DataType"), "fp16"),
        (tensor("Row major linear FP32 format (kLINEAR)", "Format"), "fp32"),
        (tensor("BFloat16"), "unknown"),
        (tensor("FP8"), "unknown"),
        ([], "unknown"),
        ([{"Name": "in"}], "unknown"),
        ("in", "unknown"),
    ],
)
def test_the_format_of_the_first_input_counts(inputs, precision):
    assert precision_of_convs(said(layer(Inputs=inputs)), {"conv": 1}) == {"conv": precision}


def test_weights_in_a_wider_format_are_what_is_computed_in():
    wide = layer(Inputs=tensor("Int8"), Weights={"Type": "Half", "Count": 9})
    narrow = layer(Inputs=tensor("Half"), Weights={"Type": "Int8", "Count": 9})
    for one in (wide, narrow):
        assert precision_of_convs(said(one), {"conv": 1}) == {"conv": "fp16"}


@pytest.mark.parametrize(
    "naming",
    [
        {"name": "conv + relu"},
        {"name": "other || conv + relu"},
        {"name": "__myl_ConvMul_0", "metadata": "[ONNX Layer: mul]\x1e[ONNX Layer: conv]"},
        {"name": "{ForeignNode[a...b]}", "metadata": "[ONNX Layer: conv][ONNX Layer: mul]"},
    ],
)
def test_a_fused_layer_is_found_by_the_nodes_in_it(naming):
    text = said(layer(Inputs=tensor("Half"), **naming))
    assert precision_of_convs(text, {"conv": 1, "con": 1}) == {"conv": "fp16", "con": "unknown"}


def test_of_several_layers_the_widest_counts_and_those_that_only_move_do_not():
    half = layer("a", metadata="[ONNX Layer: conv]", Inputs=tensor("Half"))
    full = layer("b", metadata="[ONNX Layer: conv]", Inputs=tensor("Float"))
    moved = layer("c", "Reformat", metadata="[ONNX Layer: conv]", Inputs=tensor("Float"))
    assert precision_of_convs(said(half, full), {"conv": 1}) == {"conv": "fp32"}
    assert precision_of_convs(said(full, half), {"conv": 1}) == {"conv": "fp32"}
    assert precision_of_convs(said(half, moved), {"conv": 1}) == {"conv": "fp16"}


def test_an_engine_without_details_says_nothing_of_its_precision():
    text = json.dumps({"Layers": ["conv + relu", "next"]})
    assert precision_of_convs(text, {"conv": 1}) == {"conv": "unknown"}


def test_the_share_goes_by_multiply_accumulates():
    found = {"a": "fp16", "b": "fp32", "c": "unknown"}
    assert share_in("fp16", found, {"a": 80, "b": 15, "c": 5}) == pytest.approx(0.8)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"Layers"', "[" * 100_000])
def test_what_no_inspector_says_is_refused(text):
    with pytest.raises(UserError, match="inspector"):
        precision_of_convs(text, {"conv": 1})
