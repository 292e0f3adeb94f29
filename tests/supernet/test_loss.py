"""Assignment and losses do what their sources say."""

import pytest
import torch

from detofa.presets import preset
from detofa.supernet.decode import anchor_points
from detofa.supernet.loss import LossWeights, Targets, assign, detection_loss, distillation_loss

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 96)])
NECK_HEAD = SPACE.neck_head(SPACE.largest)
POINTS, STRIDES = anchor_points(NECK_HEAD)
BINS = SPACE.box_bins


def random_outputs(batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, len(POINTS), 3, generator=generator)
    return logits, torch.randn(batch, len(POINTS), 4, BINS, generator=generator)


def assigned(boxes: list[list[float]], labels: list[int]) -> Targets:
    truth = torch.tensor(boxes).reshape(-1, 4)
    return assign(*random_outputs(1), POINTS, STRIDES, [truth], [torch.tensor(labels).long()])


def test_positive_anchors_lie_in_their_object_and_carry_its_class() -> None:
    targets = assigned([[8, 8, 56, 56]], [2])
    positive = targets.positive[0].nonzero().squeeze(1)
    assert 1 <= len(positive) <= 10
    inside = (POINTS[positive] > 8).all() and (POINTS[positive] < 56).all()
    assert inside
    assert targets.weights.max() == 1
    assert (targets.scores[0, positive, 2] <= targets.weights).all()
    assert targets.scores[0, positive, 2].max() > 0
    assert targets.scores[0, :, :2].sum() == 0
    assert targets.scores[0, ~targets.positive[0]].sum() == 0
    assert targets.boxes_xyxy.tolist() == [[8, 8, 56, 56]] * len(positive)


def test_the_best_anchor_of_an_object_gets_its_overlap_as_quality() -> None:
    sides = torch.full((1, len(POINTS), 4, BINS), -50.0)
    sides[..., 2] = 50.0  # every side is two strides
    logits = torch.zeros(1, len(POINTS), 3)
    anchor = 13  # of stride 8: centre (12, 12) plus one row
    centre = POINTS[anchor]
    box = torch.cat([centre - 16, centre + 16])[None]
    targets = assign(logits, sides, POINTS, STRIDES, [box], [torch.tensor([0])])
    assert targets.scores[0, anchor, 0].item() == pytest.approx(1.0, abs=1e-5)
    assert targets.weights.max().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("side", [2.0, 5.0, 15.0])
def test_an_object_smaller_than_a_cell_still_gets_anchors(side: float) -> None:
    for corner in (1.0, 7.3, 30.5):
        targets = assigned([[corner, corner, corner + side, corner + side]], [1])
        assert targets.positive.any()


def test_an_anchor_belongs_to_one_object_only() -> None:
    targets = assigned([[8, 8, 56, 56], [10, 10, 58, 58]], [0, 1])
    assert int(targets.positive.sum()) == len(targets.weights) == len(targets.boxes_xyxy)
    assert ((targets.scores[0] > 0).sum(dim=1) <= 1).all()


def test_images_without_objects_give_a_finite_loss_with_gradients_everywhere() -> None:
    logits, sides = (value.requires_grad_() for value in random_outputs(2))
    none = [torch.zeros(0, 4)] * 2
    targets = assign(logits, sides, POINTS, STRIDES, none, [torch.zeros(0).long()] * 2)
    loss = detection_loss(logits, sides, targets, POINTS, STRIDES, LossWeights())
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert sides.grad is not None
    assert (logits.grad != 0).all()


def test_a_perfect_detector_has_almost_no_loss() -> None:
    box = torch.tensor([[4.0, 4.0, 36.0, 36.0]])
    anchor = 14  # centre (20, 12), stride 8
    assert POINTS[anchor].tolist() == [20.0, 12.0]
    targets = Targets(
        scores=torch.zeros(1, len(POINTS), 3),
        boxes_xyxy=box,
        positive=torch.zeros(1, len(POINTS), dtype=torch.bool),
        weights=torch.ones(1),
        normaliser=torch.tensor(1.0),
    )
    targets.scores[0, anchor, 1] = 1.0
    targets.positive[0, anchor] = True
    logits = torch.full((1, len(POINTS), 3), -20.0)
    logits[0, anchor, 1] = 20.0
    sides = torch.full((1, len(POINTS), 4, BINS), -30.0)
    for side, steps in enumerate((2, 1, 2, 3)):
        sides[0, anchor, side, steps] = 30.0
    perfect = detection_loss(logits, sides, targets, POINTS, STRIDES, LossWeights())
    assert perfect.item() < 1e-4
    wrong = detection_loss(logits.flip(2), sides, targets, POINTS, STRIDES, LossWeights())
    assert wrong.item() == pytest.approx(
        perfect.item(), abs=1e-4
    )  # the middle class is its own flip
    shifted = detection_loss(logits.roll(1, 2), sides, targets, POINTS, STRIDES, LossWeights())
    assert shifted.item() > 10


def test_distillation_towards_oneself_is_least() -> None:
    outputs = random_outputs(1)
    targets = assigned([[8, 8, 56, 56]], [0])
    same = distillation_loss(outputs, outputs, targets)
    assert same.item() == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(random_outputs(1, seed=5), outputs, targets) > same + 1
