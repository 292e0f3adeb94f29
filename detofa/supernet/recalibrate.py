"""BN recalibration: the statistics of one path, from one fixed set of images."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detofa.supernet.layers import ConvNorm


@torch.no_grad()
def recalibrate(detector: nn.Module, images: Tensor, *, batch_size: int = 16) -> None:
    """Replace every BatchNorm's running statistics by those of `images`, in place.

    Mean and variance are pooled over all images, so a smaller last batch does not count for more.
    The detector comes back in evaluation mode.

    Args:
        detector: Any module with BatchNorm2d layers, such as an extracted subnet.
        images: (N, 3, H, W), normalised; the same set for every path that is compared.
        batch_size: Images a forward pass.
    """
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: _Sums(norm) for norm in norms}
    hooks = [norm.register_forward_hook(sums[norm].add) for norm in norms]
    momenta = {norm: norm.momentum for norm in norms}
    detector.train()
    try:
        for norm in norms:
            norm.momentum = 1.0  # a layer's running statistics are then those of the last batch
        for batch in torch.split(images, batch_size):
            detector(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.momentum = momenta[norm]
        detector.eval()
    for norm in norms:
        sums[norm].store(norm)


def fuse_batch_norms(network: nn.Module) -> None:
    """Fold each BatchNorm after a convolution of its own into that one, in place.

    For a network in evaluation mode that is only to be run: it computes the same in less time.
    """
    for module in network.modules():
        if isinstance(module, ConvNorm):
            assert isinstance(module.norm, nn.BatchNorm2d), "fused before"
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()


class _Sums:
    """First and second moments of one layer's input."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.total = torch.zeros(norm.num_features, dtype=torch.float64)
        self.squares = torch.zeros(norm.num_features, dtype=torch.float64)
        self.count = 0

    def add(self, norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        """Add the batch (B, C, H, W) that the layer has just normalised, whose moments it keeps."""
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        mean = norm.running_mean.double().cpu()
        variance = norm.running_var.double().cpu() * (count - 1) / count  # kept unbiased
        self.total += mean * count
        self.squares += (variance + mean**2) * count
        self.count += count

    def store(self, norm: nn.BatchNorm2d) -> None:
        """Write the pooled statistics into the layer; one that never ran keeps its own."""
        if self.count == 0:
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = self.total / self.count
        variance = (self.squares / self.count - mean**2).clamp_min(0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
