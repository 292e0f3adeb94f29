"""The detector of one arch, and the supernet that runs any arch on shared weights."""

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from detofa.arch import Arch
from detofa.blocks import MBConv, NeckHead, Stem
from detofa.space import SearchSpace
from detofa.supernet.layers import Backbone, Head, MBConvLayer, Neck

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
        self.neck = Neck(neck_head)
        self.head = Head(neck_head)

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


class Supernet(nn.Module):
    """All detectors of a space on one set of weights.

    The weights are those of the largest detector, plus matrices that derive smaller depthwise
    kernels from larger ones. Any other detector uses the first blocks of a stage, the first
    channels of a layer and the transformed centre of a kernel (once-for-all, arXiv 1908.09791).

    Args:
        space: The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.largest = StaticDetector(space, space.largest)
        self.kernel_transforms = nn.ParameterDict()
        for index, stage in enumerate(space.stages):
            for position in range(stage.max_depth):
                for small in stage.kernel_sizes[:-1]:
                    key = _transform_key(index, position, small)
                    self.kernel_transforms[key] = nn.Parameter(torch.eye(small * small))
        _initialise(self.largest)

    def forward(self, images: Tensor, arch: Arch) -> tuple[Tensor, Tensor]:
        """Run one arch on images (B, 3, H, W); outputs as `StaticDetector.forward`.

        Gradients flow to the shared weights. The shared running statistics are used in evaluation
        mode but never updated: a mixture of many archs' statistics fits none, so each is
        recalibrated before use. One thread may run one arch while another thread runs another.
        """
        skeleton = _skeleton(self.space, arch)
        skeleton.train(self.training)
        outputs: tuple[Tensor, Tensor] = functional_call(
            skeleton, self.sliced_state(arch), (images,), strict=True
        )
        return outputs

    def sliced_state(self, arch: Arch) -> dict[str, Tensor]:
        """Return the state of `StaticDetector(space, arch)` as slices of the shared weights."""
        shared: dict[str, Tensor] = dict(self.largest.named_parameters())
        shared.update(self.largest.named_buffers())
        wanted = _shapes(self.space, arch)
        return {name: self._slice(name, shared[name], shape) for name, shape in wanted.items()}

    def extract(self, arch: Arch) -> StaticDetector:
        """Return the detector of `arch` with its own copy of the weights.

        It equals `self(images, arch)`; its running statistics must be recalibrated before use.

        Raises:
            UserError: the arch is not in the space.
        """
        self.space.check(arch)
        state = {name: value.detach().clone() for name, value in self.sliced_state(arch).items()}
        return detector_from_state(self.space, arch, state).train(self.training)

    def _slice(self, name: str, shared: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 4 and shape[2:] != shared.shape[2:]:
            _, _, stage, position, *_ = name.split(".")  # backbone.stages.S.P.depthwise.conv.weight
            shared = self._smaller_kernel(shared[: shape[0]], int(stage), int(position), shape[3])
        if shared.shape == shape:
            return shared
        return shared[tuple(slice(length) for length in shape)]

    def _smaller_kernel(self, weight: Tensor, stage: int, position: int, size: int) -> Tensor:
        for small in reversed(self.space.stages[stage].kernel_sizes):
            if size <= small < weight.shape[-1]:
                margin = (weight.shape[-1] - small) // 2
                centre = weight[..., margin : margin + small, margin : margin + small]
                matrix = self.kernel_transforms[_transform_key(stage, position, small)]
                weight = nn.functional.linear(centre.flatten(2), matrix)
                weight = weight.reshape(*centre.shape)
        return weight


def detector_from_state(
    space: SearchSpace, arch: Arch, state: Mapping[str, Tensor]
) -> StaticDetector:
    """Return a detector that holds the given tensors; nothing is initialised and thrown away."""
    with torch.device("meta"):
        detector = StaticDetector(space, arch)
    detector.load_state_dict(state, assign=True)
    return detector


@lru_cache(maxsize=16)  # some 2 MB each; random paths hardly ever come back
def _skeleton(space: SearchSpace, arch: Arch) -> StaticDetector:
    with torch.device("meta"):
        skeleton = StaticDetector(space, arch)
    for module in skeleton.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    return skeleton


def _shapes(space: SearchSpace, arch: Arch) -> dict[str, tuple[int, ...]]:
    state = _skeleton(space, arch).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def _transform_key(stage: int, position: int, small: int) -> str:
    return f"stage{stage}_block{position}_to{small}"


def _initialise(detector: StaticDetector) -> None:
    """Initialise from nothing: fan-out weights, residual branches that start at zero."""
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, MBConvLayer) and module.residual:
            nn.init.zeros_(module.project.norm.weight)
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
