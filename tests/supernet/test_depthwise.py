"""The depthwise convolution's own gradient is PyTorch's."""

import pytest
import torch
from torch import Tensor

from detofa.supernet.depthwise import DepthwiseConv2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_gradients_equal_those_of_the_plain_convolution(
    kernel_size: int, stride: int, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv2d(6, kernel_size, stride=stride, padding=kernel_size // 2).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=memory_format)
    x.requires_grad_()

    def outcome(training: bool) -> tuple[Tensor, ...]:
        out = conv.train(training)(x)
        wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
        return (out, *torch.autograd.grad((out * wanted).sum(), [x, conv.weight]))

    for own, plain in zip(outcome(True), outcome(False), strict=True):
        assert own.shape == plain.shape
        torch.testing.assert_close(own, plain, rtol=1e-10, atol=1e-10)


def test_a_frozen_weight_or_an_input_without_gradient_is_left_out() -> None:
    conv = DepthwiseConv2d(4, 5, stride=1, padding=2).train()
    x = torch.randn(1, 4, 6, 6)
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    conv.weight.requires_grad_(False)
    (of_input,) = torch.autograd.grad(conv(x.requires_grad_()).sum(), [x])
    assert of_input.shape == x.shape
