"""The detector of one arch, and the supernet that runs any arch on shared weights."""

import math

import torch
from torch import Tensor, nn

from detofa.arch import Arch
from detofa.blocks import MBConv, NeckHead, Stem
from detofa.space import SearchSpace
from detofa.supernet.layers import Backbone, Head, Neck, initialise_layers, layer
from detofa.supernet.sharing import WeightSharing

_SIDE_DECAY = 0.4  # a side is about two strides at the start, so that small objects overlap too
_CLASS_PRIOR = 0.01  # probability of every class at the start: RetinaNet, arXiv 1708.02002


class StaticDetector(nn.Module):
    """The detector of one arch, as plain layers."""

    def __init__(self, space: SearchSpace, arch: Arch) -> None:
        super().__init__()
        stem, *middle, neck_head = space.blocks(arch)
        assert isinstance(stem, Stem)
        assert isinstance(neck_head, NeckHead)
        mbconvs = [block for block in middle if isinstance(block, MBConv)]
        self.pyramid_stages = space.pyramid_stages
        self.backbone = Backbone(stem, mbconvs, space.batch_norm_eps)
        self.neck = layer(Neck, neck_head)
        self.head = layer(Head, neck_head)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Detect in images (B, 3, H, W), normalised.

        Returns:
            class_logits: (B, A, C) over the anchors of P3 to P6.
            side_logits: (B, A, 4, bins), left, top, right, bottom in units of the stride.
        """
        stages = self.backbone(images)
        levels = self.neck([stages[index] for index in self.pyramid_stages])
        outputs: tuple[Tensor, Tensor] = self.head(levels)
        return outputs


class Supernet(WeightSharing[StaticDetector]):
    """All detectors of a space on one set of weights.

    Args:
        space: The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space, StaticDetector)
        _initialise(self.largest)

    def forward(self, images: Tensor, arch: Arch) -> tuple[Tensor, Tensor]:
        """Run one arch on images (B, 3, H, W); outputs as `StaticDetector.forward`."""
        outputs: tuple[Tensor, Tensor] = super().forward(images, arch)
        return outputs


def _initialise(detector: StaticDetector) -> None:
    initialise_layers(detector)
    for tower in (detector.head.class_tower, detector.head.side_tower):
        nn.init.normal_(tower.output.weight, std=0.01)
    class_bias = detector.head.class_tower.output.bias
    side_bias = detector.head.side_tower.output.bias
    assert class_bias is not None
    assert side_bias is not None
    nn.init.constant_(class_bias, -math.log((1 - _CLASS_PRIOR) / _CLASS_PRIOR))
    bins = detector.head.box_bins
    with torch.no_grad():
        side_bias.copy_((-_SIDE_DECAY * torch.arange(bins)).repeat(4))
