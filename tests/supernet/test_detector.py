"""A supernet's paths, extracted or sliced, are the same networks."""

import numpy as np
import pytest
import torch

from detofa.arch import Arch
from detofa.errors import UserError
from detofa.presets import PRESETS, preset
from detofa.space import SearchSpace
from detofa.supernet.decode import DecodedDetector, anchor_points
from detofa.supernet.detector import StaticDetector, Supernet


def perturbed(space: SearchSpace, seed: int = 0) -> Supernet:
    """Return a supernet none of whose shortcuts, zero scales or identities can hide an error."""
    generator = torch.Generator().manual_seed(seed)
    supernet = Supernet(space).eval()
    with torch.no_grad():
        for name, value in supernet.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.add_(0.1 * (noise.abs() if name.endswith("running_var") else noise))
    return supernet


def images_of(arch: Arch, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *arch.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PRESETS)
def test_extracted_detector_equals_sliced_forward_on_every_sampled_arch(name: str) -> None:
    space = preset(name, num_classes=3, image_sizes=[(64, 96), (96, 64)])
    supernet = perturbed(space)
    drawn = [space.arch(row) for row in space.sample(np.random.default_rng(0), 6)]
    for arch in [space.largest, space.smallest, *drawn]:
        images = images_of(arch)
        with torch.no_grad():
            sliced = supernet(images, arch)
            extracted = supernet.extract(arch)(images)
        for left, right in zip(sliced, extracted, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def test_different_archs_give_different_outputs() -> None:
    space = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
    supernet = perturbed(space)
    images = images_of(space.largest)
    with torch.no_grad():
        assert not torch.allclose(
            supernet(images, space.largest)[0], supernet(images, space.smallest)[0]
        )


def test_a_smaller_kernel_is_the_transformed_centre_of_the_next_larger_one() -> None:
    space = preset("ofa-mbv3", num_classes=2, image_sizes=[(64, 64)])
    supernet = perturbed(space)
    name = "backbone.stages.1.0.depthwise.conv.weight"
    full = dict(supernet.largest.named_parameters())[name]
    small = dict(supernet.path(space.smallest)[0].named_parameters())[name]
    to5 = supernet.kernel_transforms["stage1_block0_to5"]
    to3 = supernet.kernel_transforms["stage1_block0_to3"]
    channel = full[3, 0]
    five = (to5 @ channel[1:6, 1:6].flatten()).reshape(5, 5)
    three = (to3 @ five[1:4, 1:4].flatten()).reshape(3, 3)
    torch.testing.assert_close(small[3, 0], three)


def test_gradients_of_a_path_reach_its_slices_and_nothing_else() -> None:
    space = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
    supernet = perturbed(space).train()
    logits, sides = supernet(images_of(space.smallest), space.smallest)
    (logits.sum() + sides.square().sum()).backward()
    expand = supernet.get_parameter("largest.backbone.stages.1.0.expand.conv.weight")
    used = space.block(1, 0, 3, 2, (64, 64)).mid_channels
    assert expand.grad is not None
    assert expand.grad[:used].abs().sum() > 0
    assert expand.grad[used:].abs().sum() == 0
    assert supernet.get_parameter("largest.backbone.stages.1.1.expand.conv.weight").grad is None


def test_training_leaves_the_shared_statistics_alone_and_evaluation_uses_them() -> None:
    space = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
    supernet = perturbed(space)
    before = {name: value.clone() for name, value in supernet.named_buffers()}
    trained = supernet.train()(images_of(space.smallest), space.smallest)
    for name, value in supernet.named_buffers():
        assert torch.equal(value, before[name]), name
    evaluated = supernet.eval()(images_of(space.smallest), space.smallest)
    assert not torch.allclose(trained[0], evaluated[0], atol=1e-3)
    norm = "largest.backbone.stages.1.0.expand.norm.running_mean"
    supernet.get_buffer(norm).add_(1.0)
    moved = supernet(images_of(space.smallest), space.smallest)
    assert not torch.allclose(moved[0], evaluated[0], atol=1e-3)


def test_leaves_of_a_path_are_the_slices_whose_gradients_reach_the_weights() -> None:
    space = preset("ofa-mbv3", num_classes=2, image_sizes=[(64, 64)])
    supernet = perturbed(space).train()
    arch = space.arch(space.sample(np.random.default_rng(3), 1)[0])
    supernet(images_of(arch), arch)[1].square().sum().backward()
    network, leaves = supernet.path(arch)
    loss = network(images_of(arch))[1].square().sum()
    parts = torch.autograd.grad(loss, [leaf.tensor for leaf in leaves], allow_unused=True)
    sums: dict[torch.Tensor, torch.Tensor] = {w: torch.zeros_like(w) for w in supernet.parameters()}
    for leaf, part in zip(leaves, parts, strict=True):
        assert leaf.tensor.data_ptr() == leaf.weight.data_ptr()  # a view, and of the first entries
        if part is not None:
            sums[leaf.weight][leaf.place] += part
    for name, weight in supernet.named_parameters():
        expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(sums[weight], expected, msg=name)


def test_what_is_done_to_an_extracted_detector_stays_there() -> None:
    space = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
    supernet = perturbed(space)
    arch = space.smallest
    before = supernet(images_of(arch), arch)
    first, second = supernet.extract(arch), supernet.extract(arch)
    calls: list[str] = []
    for name, module in first.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        module.added = 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.9
    with torch.no_grad():
        for tensor in first.state_dict().values():
            tensor.add_(1)
    again, other = supernet(images_of(arch), arch), second(images_of(arch))
    assert not calls
    for left, middle, right in zip(before, again, other, strict=True):
        assert torch.equal(left, middle)
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
    for module in [*second.modules(), *supernet.extract(arch).modules()]:
        assert not hasattr(module, "added")
        assert getattr(module, "momentum", 0.1) == 0.1
    memory = [tensor.data_ptr() for tensor in second.state_dict().values()]
    shared = [tensor.data_ptr() for tensor in supernet.state_dict().values()]
    assert not set(memory) & set(shared)


def test_extracting_an_arch_outside_the_space_names_what_is_allowed() -> None:
    space = preset("tiny", num_classes=2, image_sizes=[(64, 64)])
    outside = preset("tiny", num_classes=2, image_sizes=[(96, 96)]).largest
    with pytest.raises(UserError, match=r"image_size is \(96, 96\); this space allows"):
        Supernet(space).extract(outside)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (160, 224)])
def test_outputs_have_one_row_for_each_anchor_point(size: tuple[int, int]) -> None:
    space = preset("tiny", num_classes=4, image_sizes=[size])
    neck_head = space.neck_head(space.smallest)
    points_xy, strides = anchor_points(neck_head)
    logits, sides = StaticDetector(space, space.smallest)(images_of(space.smallest))
    assert logits.shape == (2, len(points_xy), 4)
    assert sides.shape == (2, len(points_xy), 4, space.box_bins)
    assert points_xy[0].tolist() == [4.0, 4.0]
    assert strides[-1] == 64
    assert (points_xy[strides == 8] < torch.tensor([size[1], size[0]])).all()


class Fixed(torch.nn.Module):
    """Say one thing, whatever the image."""

    def __init__(self, logits: torch.Tensor, sides: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.sides = logits, sides

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits, self.sides


def test_decoding_gives_the_box_that_the_sides_describe_best_anchor_first() -> None:
    space = preset("tiny", num_classes=2, image_sizes=[(64, 96)])
    neck_head = space.neck_head(space.largest)
    points_xy, strides = anchor_points(neck_head)
    anchor = int((strides == 16).nonzero()[0]) + 2  # second row of strides: centre (40, 8)
    logits = torch.full((1, len(strides), 2), -9.0)
    logits[0, anchor, 1] = 3.0
    sides = torch.full((1, len(strides), 4, space.box_bins), -50.0)
    for side, steps in enumerate((1, 0, 2, 3)):
        sides[0, anchor, side, steps] = 50.0
    detector = DecodedDetector(Fixed(logits, sides), neck_head, top_k=5)
    boxes, scores, _, _ = detector(torch.zeros(1, 3, 64, 96))
    assert boxes.shape == (1, 5, 4)
    assert points_xy[anchor].tolist() == [40.0, 8.0]
    torch.testing.assert_close(boxes[0, 0], torch.tensor([24.0, 8.0, 72.0, 56.0]))
    torch.testing.assert_close(scores[0, 0], torch.tensor([-9.0, 3.0]).sigmoid())
