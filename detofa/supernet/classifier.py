"""A backbone with its classification tail: what published weights were trained as."""

from torch import Tensor, nn

from detofa.arch import Arch
from detofa.blocks import MBConv, Stem, make_divisible
from detofa.errors import UserError
from detofa.space import SearchSpace
from detofa.supernet.layers import Backbone, ConvNorm, MBConvLayer


class Classifier(nn.Module):
    """The classifier of one arch: the detector's backbone, then the tail of its family.

    Args:
        space: A space of the `lite0` or `ofa-mbv3` family.
        arch: A point of it; neck and head play no part.
        num_classes: Outputs of the last layer.

    Raises:
        UserError: the space's family has no classifier.
    """

    def __init__(self, space: SearchSpace, arch: Arch, num_classes: int = 1000) -> None:
        super().__init__()
        stem, *middle = space.blocks(arch)[:-1]
        assert isinstance(stem, Stem)
        mbconvs = [block for block in middle if isinstance(block, MBConv)]
        self.backbone = Backbone(stem, mbconvs, space.batch_norm_eps)
        self.tail: nn.Module
        if space.name == "lite0":
            self.tail = Lite0Tail(space, num_classes)
        elif space.name.startswith("ofa-mbv3"):
            self.tail = MobileNetV3Tail(space, num_classes)
        else:
            raise UserError(f"space {space.name} has no classifier; lite0 and ofa-mbv3 have one")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) for images (B, 3, H, W)."""
        logits: Tensor = self.tail(self.backbone(images)[-1])
        return logits


class Lite0Tail(nn.Module):
    """EfficientNet-Lite0 after its sixth stage: one more block, a 1x1 head, a linear layer."""

    def __init__(self, space: SearchSpace, num_classes: int) -> None:
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
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 192, H, W) to (B, num_classes)."""
        logits: Tensor = self.linear(self.head(self.stage(x)).mean(dim=(2, 3)))
        return logits


class MobileNetV3Tail(nn.Module):
    """Once-for-all's MobileNetV3 after its last stage."""

    def __init__(self, space: SearchSpace, num_classes: int) -> None:
        super().__init__()
        channels = space.stages[-1].channels
        width_multiplier = 1.2 if space.name.endswith("w1.2") else 1.0
        features = make_divisible(1280 * width_multiplier)
        self.expand = ConvNorm(
            channels, channels * 6, 1, activation="hardswish", eps=space.batch_norm_eps
        )
        self.mix = nn.Conv2d(channels * 6, features, 1, bias=False)
        self.activation = nn.Hardswish()
        self.linear = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, num_classes)."""
        mean = self.expand(x).mean(dim=(2, 3), keepdim=True)
        logits: Tensor = self.linear(self.activation(self.mix(mean)).flatten(1))
        return logits
