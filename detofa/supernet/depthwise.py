"""A depthwise convolution whose gradient is fast for wide kernels, too."""

from typing import Any

import torch
from torch import Tensor, nn

_WIDEST = 3  # columns of a kernel whose gradient oneDNN has fast code for


class DepthwiseConv2d(nn.Conv2d):
    """One filter a channel, without bias.

    oneDNN 3 has fast code for the gradient of a kernel of up to three columns only: in training on
    a CPU wider ones are taken three columns at a time, unless they stride, where that gains
    nothing. Elsewhere it is PyTorch's own.

    Args:
        channels: Of input and output.
        kernel_size: Side of the square kernel.
        stride: 1 or 2.
        padding: On all sides.
    """

    def __init__(self, channels: int, kernel_size: int, *, stride: int, padding: int) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=padding,
            groups=channels,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels, H', W')."""
        is_wide = self.weight.shape[3] > _WIDEST and self.stride == (1, 1)
        if is_wide and self.training and x.device.type == "cpu":
            out: Tensor = _ByColumns.apply(x, self.weight, int(self.padding[0]))
            return out
        return super().forward(x)


class _ByColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return nn.functional.conv2d(x, weight, None, 1, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        padding = ctx.padding
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = _gradients(gradient, x, weight, (padding, padding), 0)
        if ctx.needs_input_grad[1]:
            padded = nn.functional.pad(x, (padding, padding))
            width = gradient.shape[3]
            strips = []
            for first in range(0, weight.shape[3], _WIDEST):
                strip = weight[..., first : first + _WIDEST]
                seen = padded[..., first : first + width + strip.shape[3] - 1]
                strips.append(_gradients(gradient, seen, strip, (padding, 0), 1))
            of_weight = torch.cat(strips, dim=3)
        return of_input, of_weight, None


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], which: int
) -> Tensor:
    """Return the gradient of a depthwise convolution's input (0) or weight (1); stride 1."""
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        (1, 1),
        padding,
        (1, 1),
        False,
        (0, 0),
        len(weight),
        (which == 0, which == 1, False),
    )[which]
    return found
