"""A backbone with its classification tail: what published weights were trained as."""

from torch import Tensor, nn

from detofa.arch import Arch
from detofa.blocks import MBConv, Stem, make_divisible
from detofa.space import SearchSpace
from detofa.supernet.layers import Backbone, ConvNorm, MBConvLayer, initialise_layers
from detofa.supernet.sharing import WeightSharing


class StaticClassifier(nn.Module):
    """The classifier of one arch: the detector's backbone, then a tail that all archs share.

    Args:
        space: A space; its `num_classes` are the classifier's.
        arch: A point of it; neck and head play no part.
    """

    def __init__(self, space: SearchSpace, arch: Arch) -> None:
        super().__init__()
        stem, *middle = space.blocks(arch)[:-1]
        assert isinstance(stem, Stem)
        mbconvs = [block for block in middle if isinstance(block, MBConv)]
        self.backbone = Backbone(stem, mbconvs, space.batch_norm_eps)
        self.tail: nn.Module
        if space.name == "lite0":
            self.tail = Lite0Tail(space)
        elif space.name.startswith("ofa-mbv3"):
            self.tail = MobileNetV3Tail(space)
        else:
            self.tail = PlainTail(space)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) for images (B, 3, H, W)."""
        logits: Tensor = self.tail(self.backbone(images)[-1])
        return logits


class ClassifierSupernet(WeightSharing[StaticClassifier]):
    """All classifiers of a space on one set of weights; the backbones are the detectors'.

    Args:
        space: The search space; its `num_classes` are the classifier's.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space, StaticClassifier)
        initialise_layers(self.largest)

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        """Run one arch on images (B, 3, H, W); returns logits (B, num_classes)."""
        logits: Tensor = super().forward(images, arch)
        return logits


class PlainTail(nn.Module):
    """A 1x1 convolution, the mean over all places, a linear layer; for spaces of our own."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        channels = space.stages[-1].channels
        self.head = ConvNorm(channels, 4 * channels, 1, activation="relu", eps=space.batch_norm_eps)
        self.linear = nn.Linear(4 * channels, space.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, num_classes)."""
        logits: Tensor = self.linear(self.head(x).mean(dim=(2, 3)))
        return logits


class Lite0Tail(nn.Module):
    """EfficientNet-Lite0 after its sixth stage: one more block, a 1x1 head, a linear layer."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        channels = space.stages[-1].channels
        block = MBConv(
            stage=len(space.stages),
            position=0,
            in_channels=channels,
            mid_channels=channels * 6,
            out_channels=320,
            squeeze_channels=0,
            has_expand=True,
            kernel_size=3,
            stride=1,
            residual=False,
            activation="relu6",
            same_padding=True,
            height=1,
            width=1,
        )
        self.stage = MBConvLayer(block, space.batch_norm_eps)
        self.head = ConvNorm(320, 1280, 1, activation="relu6", eps=space.batch_norm_eps)
        self.linear = nn.Linear(1280, space.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 192, H, W) to (B, num_classes)."""
        logits: Tensor = self.linear(self.head(self.stage(x)).mean(dim=(2, 3)))
        return logits


class MobileNetV3Tail(nn.Module):
    """Once-for-all's MobileNetV3 after its last stage."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        channels = space.stages[-1].channels
        width_multiplier = 1.2 if space.name.endswith("w1.2") else 1.0
        features = make_divisible(1280 * width_multiplier)
        self.expand = ConvNorm(
            channels, channels * 6, 1, activation="hardswish", eps=space.batch_norm_eps
        )
        self.mix = nn.Conv2d(channels * 6, features, 1, bias=False)
        self.activation = nn.Hardswish()
        self.linear = nn.Linear(features, space.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, num_classes)."""
        mean = self.expand(x).mean(dim=(2, 3), keepdim=True)
        logits: Tensor = self.linear(self.activation(self.mix(mean)).flatten(1))
        return logits
