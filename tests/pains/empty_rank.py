"""What a test starts twice: python -m tests.pains.empty_rank. The second rank has no boxes."""

import torch

from detofa.presets import preset
from detofa.supernet.decode import anchor_points
from detofa.supernet.detector import StaticDetector
from detofa.supernet.loss import LossWeights, assign, detection_loss
from detofa.train.ranks import join_ranks

SPACE = preset("tiny", num_classes=2, image_sizes=[(64, 64)])


def gradients_of(detector, boxes_xyxy):
    """Return the loss of two images with the same boxes, and the gradients of all parameters."""
    neck_head = SPACE.neck_head(SPACE.smallest)
    points_xy, strides = anchor_points(neck_head)
    generator = torch.Generator().manual_seed(0)
    class_logits, side_logits = detector(torch.randn(2, 3, 64, 64, generator=generator))
    boxes = [torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4)] * 2
    labels = [torch.ones(len(one), dtype=torch.int64) for one in boxes]
    targets = assign(class_logits, side_logits, points_xy, strides, boxes, labels)
    loss = detection_loss(class_logits, side_logits, targets, points_xy, strides, LossWeights())
    parameters = list(detector.parameters())
    return loss, list(torch.autograd.grad(loss, parameters, allow_unused=True)), parameters


def main() -> None:
    """Take the mean of the gradients of both ranks."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with join_ranks(torch.device("cpu")) as (ranks, _):
        found = gradients_of(
            StaticDetector(SPACE, SPACE.smallest), [[8, 8, 40, 40]] if ranks.is_first else []
        )
        loss, gradients, parameters = found
        if not ranks.is_first:
            gradients[-1] = None  # as of a head that took no part
        _, mean = ranks.mean(float(loss), gradients, parameters)
        assert all(one is not None and torch.isfinite(one).all() for one in mean)
        print("both went on")


if __name__ == "__main__":
    main()
