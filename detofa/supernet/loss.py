"""Assignment of objects to anchors, and the losses of one subnet against it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from detofa.supernet.decode import boxes_from_sides, expected_sides

_TINY = 1e-30  # IoU^6 of a small object is far below usual epsilons at first
_SMALLEST_SIDE = 16.0  # pixels: a smaller object still reaches the centres of four P3 cells


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What each anchor of each image should say.

    Attributes:
        scores: (B, A, C) class targets from 0 to 1: `weights` times the best IoU of the object.
        boxes_xyxy: (P, 4) box of each positive anchor, pixels of the input.
        positive: (B, A) bool; P of them are true, in row-major order.
        weights: (P,) how well each positive anchor fits, relative to its object's best (1).
        normaliser: What sums of losses are divided by, a scalar: the total of `weights`, at least
            1; where several processes share a batch, the mean over them.
    """

    scores: Tensor
    boxes_xyxy: Tensor
    positive: Tensor
    weights: Tensor
    normaliser: Tensor


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the parts of the loss.

    Attributes:
        classes: Quality focal loss (arXiv 2006.04388).
        boxes: Generalised IoU loss (arXiv 1902.09630).
        sides: Distribution focal loss (arXiv 2006.04388).
        focus: Exponent of the quality focal loss; 0 makes it binary cross-entropy.
    """

    classes: float = 1.0
    boxes: float = 2.0
    sides: float = 0.5
    focus: float = 1.0


@torch.no_grad()
def assign(
    class_logits: Tensor,
    side_logits: Tensor,
    points_xy: Tensor,
    strides: Tensor,
    boxes_xyxy: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    candidates: int = 10,
    score_power: float = 1.0,
    iou_power: float = 6.0,
) -> Targets:
    """Give each object the anchors that already fit it best.

    Task-aligned assignment (arXiv 2108.07755): anchors inside an object are ranked by
    score^score_power x IoU^iou_power; the best `candidates` are positive. Their class target is the
    object's best IoU, times how near they come to its best anchor. Box losses are weighted by that
    nearness alone, so that an object no anchor fits yet (a small one, at first) pulls as strongly.
    An anchor wanted by two objects takes the better IoU.

    Args:
        class_logits: (B, A, C).
        side_logits: (B, A, 4, bins).
        points_xy: (A, 2) pixels.
        strides: (A,) pixels.
        boxes_xyxy: Per image (N, 4), pixels of the input.
        labels: Per image (N,) class indices.
        candidates: Positive anchors for an object, at most.
        score_power: Weight of the class score in the ranking.
        iou_power: Weight of the overlap in the ranking.
    """
    predicted = boxes_from_sides(points_xy, expected_sides(side_logits) * strides[:, None])
    scores = torch.zeros_like(class_logits)
    positive = torch.zeros(class_logits.shape[:2], dtype=torch.bool, device=class_logits.device)
    boxes, weights = [], []
    for image, (truth, classes) in enumerate(zip(boxes_xyxy, labels, strict=True)):
        if len(truth) == 0:
            continue
        overlap = box_iou(truth, predicted[image])  # (N, A)
        confidence = class_logits[image].sigmoid()[:, classes].T  # (N, A)
        alignment = confidence**score_power * overlap**iou_power
        alignment = alignment.masked_fill(~_inside(points_xy, truth), -1.0)
        best, index = alignment.topk(min(candidates, alignment.shape[1]), dim=1)
        chosen = torch.zeros_like(alignment, dtype=torch.bool)
        chosen.scatter_(1, index, best >= 0)
        owner = overlap.masked_fill(~chosen, -1.0).argmax(dim=0)
        taken = chosen.any(dim=0)
        chosen &= nn.functional.one_hot(owner, len(truth)).T.bool()
        alignment = alignment.masked_fill(~chosen, 0.0)
        fit = alignment / alignment.amax(dim=1, keepdim=True).clamp_min(_TINY)
        quality = fit * overlap.masked_fill(~chosen, 0.0).amax(dim=1, keepdim=True)
        anchors = taken.nonzero().squeeze(1)
        owner = owner[anchors]
        scores[image, anchors, classes[owner]] = quality[owner, anchors]
        positive[image, anchors] = True
        boxes.append(truth[owner])
        weights.append(fit[owner, anchors])
    weight = torch.cat(weights) if weights else points_xy.new_zeros(0)
    return Targets(
        scores=scores,
        boxes_xyxy=torch.cat(boxes) if boxes else points_xy.new_zeros((0, 4)),
        positive=positive,
        weights=weight,
        normaliser=weight.sum().clamp_min(1.0),
    )


def detection_loss(
    class_logits: Tensor,
    side_logits: Tensor,
    targets: Targets,
    points_xy: Tensor,
    strides: Tensor,
    weights: LossWeights,
) -> Tensor:
    """Return the loss of one subnet on one batch, a scalar.

    Shapes as in `assign`. Every output takes part, also when no image has an object. Sums are
    divided by the targets' normaliser.
    """
    entropy = nn.functional.binary_cross_entropy_with_logits(
        class_logits, targets.scores, reduction="none"
    )
    focus = (class_logits.sigmoid() - targets.scores).abs() ** weights.focus
    class_loss = (entropy * focus).sum()
    batch, anchors = targets.positive.nonzero(as_tuple=True)
    sides = side_logits[batch, anchors]  # (P, 4, bins)
    points, stride = points_xy[anchors], strides[anchors, None]
    predicted = boxes_from_sides(points, expected_sides(sides) * stride)
    overlap_loss = generalized_box_iou_loss(predicted, targets.boxes_xyxy, reduction="none")
    box_loss = (overlap_loss * targets.weights).sum() + 0.0 * side_logits.sum()
    wanted = torch.cat([points - targets.boxes_xyxy[:, :2], targets.boxes_xyxy[:, 2:] - points], 1)
    side_loss = (_side_entropy(sides, wanted / stride).mean(dim=1) * targets.weights).sum()
    total: Tensor = (
        weights.classes * class_loss + weights.boxes * box_loss + weights.sides * side_loss
    )
    return total / targets.normaliser


def distillation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], targets: Targets
) -> Tensor:
    """Return how far a subnet's outputs are from the largest path's (detached), a scalar.

    Class logits towards the teacher's probabilities everywhere; box sides towards the teacher's
    distributions at the positive anchors. Normalised as `detection_loss`.
    """
    goal = teacher[0].detach().sigmoid()
    entropy = nn.functional.binary_cross_entropy_with_logits(student[0], goal, reduction="none")
    class_loss = (entropy * (student[0].sigmoid() - goal).abs()).sum()
    log_sides = student[1][targets.positive].log_softmax(dim=-1)
    wanted = teacher[1].detach()[targets.positive].softmax(dim=-1)
    divergence = nn.functional.kl_div(log_sides, wanted, reduction="none").sum(dim=-1).mean(dim=1)
    return (class_loss + (divergence * targets.weights).sum()) / targets.normaliser


def _inside(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return (N, A): whether each point lies in each box, small boxes grown about their centre."""
    centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    half = ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / 2).clamp_min(_SMALLEST_SIDE / 2)
    inside: Tensor = ((points_xy[None] - centre[:, None]).abs() < half[:, None]).all(dim=2)
    return inside


def _side_entropy(side_logits: Tensor, wanted: Tensor) -> Tensor:
    """Return cross-entropy (P, 4) towards the two bins around each wanted side, in strides."""
    last = side_logits.shape[-1] - 1
    wanted = wanted.clamp(0, last - 0.01)
    below = wanted.floor()
    share = wanted - below
    log_probabilities = side_logits.log_softmax(dim=-1)
    low = log_probabilities.gather(-1, below.long()[..., None]).squeeze(-1)
    high = log_probabilities.gather(-1, below.long()[..., None] + 1).squeeze(-1)
    return -(low * (1 - share) + high * share)
