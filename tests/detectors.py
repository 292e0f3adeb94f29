"""Detectors with random weights, and pictures to compare them on."""

import numpy as np
import torch
from torch import nn

from detofa.export.export import export_subnet
from detofa.supernet.decode import DecodedDetector
from detofa.supernet.detector import StaticDetector


def make_detector(subnet, seed=0):
    """Return a decoded detector with random weights whose outputs differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    detector = StaticDetector(subnet.space, subnet.arch)
    with torch.no_grad():
        for name, tensor in detector.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dtype.is_floating_point and tensor.ndim <= 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif tensor.ndim > 1:
                fan_in = tensor[0].numel()
                gain = 0.3 if "tower.output" in name else 1.0
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(gain * noise * (2 / fan_in) ** 0.5)
    return DecodedDetector.of_subnet(detector, subnet)


def export_detector(subnet, path, images, **how):
    """Export a detector with random weights, compared on some images; see `export_subnet`."""
    rng = np.random.default_rng(0)
    return export_subnet(make_detector(subnet), subnet, path, images=images, rng=rng, **how)


class SmallDetector(nn.Module):
    """One box in each cell of 32 pixels: exports much sooner than a real one."""

    def __init__(self, seed=0):
        super().__init__()
        self.conv = nn.Conv2d(3, 2 + 4, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator))
            self.conv.bias = nn.Parameter(torch.randn(6, generator=generator))

    def forward(self, images):
        cells = self.conv(nn.functional.avg_pool2d(images, 32)).flatten(2).transpose(1, 2)
        class_logits, side_logits = cells[..., :2], cells[..., 2:].unflatten(2, (4, 1))
        width = images.shape[3] // 32
        index = torch.arange(cells.shape[1])
        points = 32 * torch.stack([index % width, index // width], dim=1) + 16
        sides = 10 + 10 * side_logits[..., 0].sigmoid()
        boxes = torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=2)
        return boxes, class_logits.sigmoid(), class_logits, side_logits


def make_pictures():
    """Return smooth pictures of several shapes by name."""
    rng = np.random.default_rng(3)
    pictures = {}
    for name, (height, width) in {"wide": (60, 200), "tall": (200, 60), "even": (96, 96)}.items():
        waves = np.add.outer(np.linspace(0, 9, height), np.linspace(0, 7, width))
        shades = 127 + 100 * np.sin(waves[..., None] + rng.uniform(0, 6, 3))
        pictures[name] = shades.astype(np.uint8)
    return pictures
