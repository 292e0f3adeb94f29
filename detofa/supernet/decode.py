"""From raw head outputs to boxes: anchor points, box sides as distributions, static top-k."""

import torch
from torch import Tensor, nn

from detofa.blocks import STRIDES, NeckHead
from detofa.subnet import Subnet


def anchor_points(neck_head: NeckHead) -> tuple[Tensor, Tensor]:
    """Return where each prediction sits.

    Returns:
        points_xy: (A, 2) float32, pixels of the input image, centres of the cells of P3 to P6.
        strides: (A,) float32, pixels.
    """
    points, strides = [], []
    for (height, width), stride in zip(neck_head.level_sizes, STRIDES, strict=True):
        ys = (torch.arange(height, dtype=torch.float32) + 0.5) * stride
        xs = (torch.arange(width, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack([grid_x.flatten(), grid_y.flatten()], dim=1))
        strides.append(torch.full((height * width,), float(stride)))
    return torch.cat(points), torch.cat(strides)


def expected_sides(side_logits: Tensor) -> Tensor:
    """Return the mean of each side's distribution, in units of the stride.

    Maps (..., 4, bins) to (..., 4). Source: arXiv 2006.04388, equation 5.
    """
    bins = torch.arange(side_logits.shape[-1], dtype=side_logits.dtype, device=side_logits.device)
    return (side_logits.softmax(dim=-1) * bins).sum(dim=-1)


def boxes_from_sides(points_xy: Tensor, sides: Tensor) -> Tensor:
    """Return boxes_xyxy (..., 4) from points (..., 2) and left, top, right, bottom (..., 4)."""
    return torch.cat([points_xy - sides[..., :2], points_xy + sides[..., 2:]], dim=-1)


class DecodedDetector(nn.Module):
    """A detector with its outputs decoded to a fixed number of candidate boxes.

    This is what is exported: the detector itself has no export branches.

    Args:
        detector: Maps images (B, 3, H, W) to class_logits (B, A, C) and side_logits
            (B, A, 4, bins).
        neck_head: The detector's last block, for the anchor points.
        top_k: Candidates kept: the anchors whose best class scores highest.
    """

    points_xy: Tensor
    strides: Tensor

    def __init__(self, detector: nn.Module, neck_head: NeckHead, top_k: int) -> None:
        super().__init__()
        self.detector = detector
        points_xy, strides = anchor_points(neck_head)
        self.top_k = min(top_k, len(strides))
        self.register_buffer("points_xy", points_xy, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    @classmethod
    def of_subnet(cls, detector: nn.Module, subnet: Subnet) -> "DecodedDetector":
        """Return the detector that a subnet describes, decoded, in evaluation mode."""
        neck_head = subnet.space.neck_head(subnet.arch)
        return cls(detector, neck_head, subnet.postprocessing.top_k).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect.

        Returns:
            boxes_xyxy: (B, K, 4), pixels of the input; not clipped.
            scores: (B, K, C), from 0 to 1, best anchor first.
            class_logits: (B, A, C), raw, for parity checks.
            side_logits: (B, A, 4, bins), raw, for parity checks.
        """
        class_logits, side_logits = self.detector(images)
        _, index = class_logits.amax(dim=2).topk(self.top_k, dim=1)
        rows = index[..., None]
        scores = class_logits.gather(1, rows.expand(-1, -1, class_logits.shape[2])).sigmoid()
        bins = side_logits.shape[3]
        chosen = side_logits.gather(1, rows[..., None].expand(-1, -1, 4, bins))
        sides = expected_sides(chosen) * self.strides[index][..., None]
        return boxes_from_sides(self.points_xy[index], sides), scores, class_logits, side_logits
