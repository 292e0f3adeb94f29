import numpy as np
import onnx
import pytest
import torch
from torch import nn

from detofa.errors import UserError
from detofa.export.to_onnx import export_onnx, onnx_model
from detofa.runtime.session import OnnxSession, open_onnx
from tests.detectors import make_detector
from tests.samples import make_subnet


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Give one small detector of which one export serves all tests here."""
    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    module = make_detector(make_subnet((96, 160))).train()
    states = [layer.training for layer in module.modules()]
    export = export_onnx(module, path, image_size=(96, 160), metadata={"key": "é"})
    assert [layer.training for layer in module.modules()] == states
    return module, path, export


def test_the_file_has_one_input_two_outputs_a_free_batch_and_its_metadata(exported):
    _, path, export = exported
    with OnnxSession(path) as session:
        assert session.image_size == (96, 160)
        assert session.metadata == {"key": "é"}
    assert export.inputs == {"images": ("batch", 3, 96, 160)}
    assert export.outputs == {"boxes_xyxy": ("batch", 300, 4), "scores": ("batch", 300, 2)}
    model = onnx.load(path)
    assert export.opset == model.opset_import[0].version >= 18
    assert not list(path.parent.glob("*.data"))
    assert [entry.name for entry in path.parent.iterdir()] == ["a.onnx"]


def test_the_checked_model_is_the_same_graph_with_the_heads_kept(exported):
    _, path, export = exported
    checked, written = onnx.load_from_string(export.checked_model), onnx.load(path)
    names = [output.name for output in checked.graph.output]
    assert names == ["boxes_xyxy", "scores", "class_logits", "side_logits"]
    assert checked.graph.node == written.graph.node
    assert checked.graph.initializer == written.graph.initializer


def test_the_file_names_no_path_of_the_machine_that_made_it(exported):
    content = exported[1].read_bytes()
    for word in (b".py", b"/home", b"stack_trace", b"site-packages", b"detofa/"):
        assert word not in content


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_batch_size_gives_what_torch_gives_in_evaluation_mode(exported, batch):
    module, path, _ = exported
    images = torch.randn(batch, 3, 96, 160, generator=torch.Generator().manual_seed(batch))
    was_training = module.training
    with torch.inference_mode():
        boxes, scores, *_ = module.eval()(images)
    module.train(was_training)
    with OnnxSession(path) as session:
        found_boxes, found_scores = session.run(images.numpy())
    assert found_boxes.shape == (batch, 300, 4)
    # Ties may change places, so the best scores are compared in order and boxes as a whole.
    np.testing.assert_allclose(
        np.sort(found_scores.max(2)), np.sort(scores.numpy().max(2)), atol=1e-5
    )
    np.testing.assert_allclose(found_boxes.mean((1, 2)), boxes.numpy().mean((1, 2)), atol=1e-2)


@pytest.mark.slow
def test_equal_modules_give_equal_files(exported, tmp_path):
    module, path, _ = exported
    again = tmp_path / "again.onnx"
    export_onnx(module, again, image_size=(96, 160), metadata={"key": "é"})
    assert again.read_bytes() == path.read_bytes()


def test_exporting_is_quiet(tmp_path, capfd):
    conv = nn.Conv2d(3, 4, 3)
    model = onnx_model(conv, [torch.zeros(2, 3, 8, 8)], input_names=["x"], output_names=["y"])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    session = open_onnx(model.SerializeToString())
    pixels = np.ones((7, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = conv(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(session.run(["y"], {"x": pixels})[0], expected, atol=1e-6)


def test_a_fixed_batch_stays_fixed():
    model = onnx_model(
        nn.ReLU(),
        [torch.zeros(1, 3)],
        input_names=["x"],
        output_names=["y"],
        dynamic_batch=False,
    )
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3]


class Branching(nn.Module):
    """Decides by its input's values, which no graph can hold."""

    def forward(self, images):
        return images * 2 if images.sum() > 0 else images


def test_a_module_that_cannot_be_exported_is_a_plain_error_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="torch cannot export this module"):
        export_onnx(
            Branching(),
            tmp_path / "a.onnx",
            image_size=(64, 64),
            output_names=["y"],
            drop_outputs=[],
            metadata={},
        )
    assert not list(tmp_path.iterdir())


def test_padding_of_one_side_only_is_merged_into_the_convolution(tmp_path):
    """TensorFlow's `same` padding at stride 2: the runtime must not copy the image for it."""

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2)

        def forward(self, images):
            return self.conv(nn.functional.pad(images, (0, 1, 0, 1)))

    model = onnx_model(Same(), [torch.zeros(2, 3, 32, 32)], input_names=["x"], output_names=["y"])
    optimised = tmp_path / "optimised.onnx"
    assert optimised_operators(model, optimised) == ["Conv"]


def optimised_operators(model, path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(path).graph.node]
