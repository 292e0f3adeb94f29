"""The blocks a detector is made of, each with its shapes: data only, no weights.

`SearchSpace.blocks(arch)` lists them; the supernet builds from them, latency tables are keyed by
them, and compute is counted on them.
"""

from dataclasses import dataclass

STRIDES = (8, 16, 32, 64)
"""Strides of the pyramid's levels P3 to P6."""


@dataclass(frozen=True, kw_only=True)
class Stem:
    """3x3 convolution with stride 2 from RGB; `height` and `width` are of its input."""

    out_channels: int
    activation: str
    same_padding: bool
    height: int
    width: int

    @property
    def key(self) -> str:
        """Return the name under which equal blocks share a latency."""
        return f"stem {self.height}x{self.width} out{self.out_channels} {self.activation}"


@dataclass(frozen=True, kw_only=True)
class MBConv:
    """Inverted residual block (MobileNetV2, arXiv 1801.04381).

    1x1 expansion, depthwise convolution, squeeze-and-excitation if `squeeze_channels`, 1x1
    projection; `height` and `width` are of its input.
    """

    stage: int
    position: int
    in_channels: int
    mid_channels: int
    out_channels: int
    squeeze_channels: int
    has_expand: bool
    kernel_size: int
    stride: int
    residual: bool
    activation: str
    same_padding: bool
    height: int
    width: int

    @property
    def key(self) -> str:
        """Return the name under which equal blocks share a latency."""
        return (
            f"mbconv {self.height}x{self.width} in{self.in_channels} mid{self.mid_channels} "
            f"out{self.out_channels} k{self.kernel_size} s{self.stride} {self.activation}"
            + (f" se{self.squeeze_channels}" if self.squeeze_channels else "")
            + (" residual" if self.residual else "")
            + ("" if self.has_expand else " no-expand")
        )


@dataclass(frozen=True, kw_only=True)
class NeckHead:
    """Feature pyramid, head and box decoding; `height` and `width` are of the network's input."""

    in_channels: tuple[int, int, int]
    neck_width: int
    head_width: int
    head_depth: int
    num_classes: int
    box_bins: int
    height: int
    width: int

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Return (height, width) of P3 to P6; an odd P5 rounds P6 up."""
        sizes = [(self.height // stride, self.width // stride) for stride in STRIDES[:3]]
        return (*sizes, (-(-sizes[2][0] // 2), -(-sizes[2][1] // 2)))

    @property
    def key(self) -> str:
        """Return the name under which equal blocks share a latency."""
        return (
            f"neck-head {self.height}x{self.width} in{'/'.join(map(str, self.in_channels))} "
            f"neck{self.neck_width} head{self.head_width}x{self.head_depth} "
            f"classes{self.num_classes} bins{self.box_bins}"
        )


Block = Stem | MBConv | NeckHead


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round channels to a multiple of `divisor`, never more than 10 % down.

    Source: MobileNet's reference code, as used by once-for-all.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
