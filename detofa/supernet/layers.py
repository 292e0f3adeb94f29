"""The plain layers a detector is made of. Nothing here is elastic."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from detofa.blocks import STRIDES, MBConv, NeckHead, Stem
from detofa.supernet.depthwise import DepthwiseConv2d

_Layer = TypeVar("_Layer", bound=nn.Module)
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # its output needs no memory of its own
    "relu6": partial(nn.ReLU6, inplace=True),
    "hardswish": nn.Hardswish,
}


def layer(kind: Callable[..., _Layer], *arguments: Hashable) -> _Layer:
    """Return a layer of some kind.

    On the meta device it is the one of an earlier call with the same arguments: it has shapes but
    no weights, and to make all the layers of a network anew takes as long as to run it.
    """
    if torch.get_default_device().type == "meta":
        return cast(_Layer, _shape_of(kind, *arguments))
    return kind(*arguments)


@lru_cache(maxsize=4096)
def _shape_of(kind: Callable[..., nn.Module], *arguments: Hashable) -> nn.Module:
    return kind(*arguments)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel.
        stride: 1 or 2.
        activation: A key of `relu`, `relu6`, `hardswish`, or None.
        depthwise: One filter a channel.
        same_padding: At stride 2, pad one more on the far side, as TensorFlow does for even sizes.
        eps: Epsilon of the batch normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        activation: str | None = None,
        depthwise: bool = False,
        same_padding: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        shifted = same_padding and stride == 2
        near = (kernel_size - 2) // 2
        far = kernel_size - 2 - near
        self.pad = nn.ZeroPad2d((near, far, near, far)) if shifted else nn.Identity()
        padding = 0 if shifted else kernel_size // 2
        self.conv: nn.Conv2d
        if depthwise:
            assert in_channels == out_channels, "one filter a channel"
            self.conv = DepthwiseConv2d(in_channels, kernel_size, stride=stride, padding=padding)
        else:
            self.conv = nn.Conv2d(
                in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False
            )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels, eps=eps)
        self.activation = _ACTIVATIONS[activation]() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        out: Tensor = self.activation(self.norm(self.conv(self.pad(x))))
        return out


class SqueezeExcite(nn.Module):
    """Channel gates from global means (arXiv 1709.01507), with MobileNetV3's hard sigmoid."""

    def __init__(self, channels: int, squeeze_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeeze_channels, 1)
        self.expand = nn.Conv2d(squeeze_channels, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of (B, channels, H, W)."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        out: Tensor = x * self.gate(self.expand(self.reduce(mean).relu()))
        return out


class MBConvLayer(nn.Module):
    """The layers of an `MBConv` block."""

    def __init__(self, block: MBConv, eps: float) -> None:
        super().__init__()
        self.residual = block.residual
        self.expand = (
            ConvNorm(block.in_channels, block.mid_channels, 1, activation=block.activation, eps=eps)
            if block.has_expand
            else nn.Identity()
        )
        self.depthwise = ConvNorm(
            block.mid_channels,
            block.mid_channels,
            block.kernel_size,
            stride=block.stride,
            activation=block.activation,
            depthwise=True,
            same_padding=block.same_padding,
            eps=eps,
        )
        self.squeeze = (
            SqueezeExcite(block.mid_channels, block.squeeze_channels)
            if block.squeeze_channels
            else nn.Identity()
        )
        self.project = ConvNorm(block.mid_channels, block.out_channels, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        out: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


class Backbone(nn.Module):
    """Stem and stages."""

    def __init__(self, stem: Stem, blocks: Sequence[MBConv], eps: float) -> None:
        super().__init__()
        self.stem = ConvNorm(
            3,
            stem.out_channels,
            3,
            stride=2,
            activation=stem.activation,
            same_padding=stem.same_padding,
            eps=eps,
        )
        self.stages = nn.ModuleList()
        for block in blocks:
            if block.position == 0:
                self.stages.append(nn.ModuleList())
            stage = self.stages[block.stage]
            assert isinstance(stage, nn.ModuleList)
            stage.append(layer(MBConvLayer, block, eps))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage for images (B, 3, H, W)."""
        x = self.stem(images)
        outputs = []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for layer in stage:
                x = layer(x)
            outputs.append(x)
        return outputs


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each with batch normalisation; ReLU at the end."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(in_channels, in_channels, 3, stride=stride, depthwise=True)
        self.pointwise = ConvNorm(in_channels, out_channels, 1, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class Neck(nn.Module):
    """Light feature pyramid (arXiv 1612.03144): top-down sums, separable smoothing, and P6."""

    def __init__(self, block: NeckHead) -> None:
        super().__init__()
        width = block.neck_width
        self.laterals = nn.ModuleList(ConvNorm(c, width, 1) for c in block.in_channels)
        self.smooth = nn.ModuleList(SeparableConv(width, width) for _ in block.in_channels)
        self.down = SeparableConv(width, width, stride=2)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map C3, C4, C5 to P3, P4, P5, P6, all of `neck_width` channels."""
        sums = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for level in (1, 0):
            sums[level] = sums[level] + nn.functional.interpolate(sums[level + 1], scale_factor=2.0)
        levels = [smooth(x) for smooth, x in zip(self.smooth, sums, strict=True)]
        return [*levels, self.down(levels[-1])]


class SharedConv(nn.Module):
    """A separable convolution shared by all levels, with batch normalisation of each level."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.depthwise_norms = nn.ModuleList(nn.BatchNorm2d(in_channels) for _ in STRIDES)
        self.pointwise_norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in STRIDES)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Map (B, in_channels, H, W) of one level to (B, out_channels, H, W)."""
        x = self.depthwise_norms[level](self.depthwise(x))
        out: Tensor = self.activation(self.pointwise_norms[level](self.pointwise(x)))
        return out


class Tower(nn.Module):
    """Shared convolutions of one branch of the head, and its output convolution."""

    def __init__(self, block: NeckHead, out_channels: int) -> None:
        super().__init__()
        widths = [block.neck_width] + [block.head_width] * block.head_depth
        self.convs = nn.ModuleList(SharedConv(before, after) for before, after in pairwise(widths))
        self.output = nn.Conv2d(block.head_width, out_channels, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map the levels (B, neck_width, H_l, W_l) to (B, A, out_channels)."""
        outputs = []
        for level, x in enumerate(levels):
            for conv in self.convs:
                x = conv(x, level)
            outputs.append(self.output(x).flatten(2))
        return torch.cat(outputs, dim=2).transpose(1, 2)


class Head(nn.Module):
    """Decoupled head: class logits, and box sides as distributions (arXiv 2006.04388)."""

    def __init__(self, block: NeckHead) -> None:
        super().__init__()
        self.box_bins = block.box_bins
        self.class_tower = Tower(block, block.num_classes)
        self.side_tower = Tower(block, 4 * block.box_bins)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class_logits (B, A, C) and side_logits (B, A, 4, bins)."""
        sides: Tensor = self.side_tower(levels)
        return self.class_tower(levels), torch.unflatten(sides, 2, (4, self.box_bins))


def initialise_layers(network: nn.Module) -> None:
    """Initialise from nothing: fan-out weights, residual branches that start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, MBConvLayer) and module.residual:
            norm = module.project.norm
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)
