"""The search spaces that ship: `ofa-mbv3`, `lite0` and `tiny`."""

from collections.abc import Sequence

from detofa.blocks import make_divisible
from detofa.errors import UserError
from detofa.space import Activation, SearchSpace, Stage

PRESETS = ("ofa-mbv3", "ofa-mbv3-w1.2", "lite0", "tiny")


def preset(
    name: str, *, num_classes: int, image_sizes: Sequence[tuple[int, int]] | None = None
) -> SearchSpace:
    """Return a shipped search space for a task.

    Args:
        name: One of `PRESETS`.
        num_classes: Categories of the data set.
        image_sizes: (height, width) choices; the preset's own if not given.

    Raises:
        UserError: an unknown name, no classes, or sizes that are not multiples of 32.
    """
    match name:
        case "ofa-mbv3":
            space = _ofa_mobilenet_v3("ofa-mbv3", width_multiplier=1.0)
        case "ofa-mbv3-w1.2":
            space = _ofa_mobilenet_v3("ofa-mbv3-w1.2", width_multiplier=1.2)
        case "lite0":
            space = _lite0()
        case "tiny":
            space = _tiny()
        case _:
            raise UserError(f"unknown search space {name!r}; choose one of {', '.join(PRESETS)}")
    return space.with_task(num_classes=num_classes, image_sizes=image_sizes)


def _static_stage(channels: int, activation: Activation) -> Stage:
    """Return the first stage of all presets: one block without expansion, nothing to choose."""
    return Stage(
        channels=channels,
        stride=1,
        depths=(1,),
        kernel_sizes=(3,),
        expand_ratios=(1,),
        activation=activation,
    )


def _ofa_mobilenet_v3(name: str, *, width_multiplier: float) -> SearchSpace:
    """Return once-for-all's MobileNetV3 (arXiv 1908.09791): depth 2-4, kernel 3-7, expand 3-6."""

    def width(channels: int) -> int:
        return make_divisible(channels * width_multiplier)

    def stage(channels: int, stride: int, activation: Activation, squeeze_excite: bool) -> Stage:
        return Stage(
            channels=width(channels),
            stride=stride,
            depths=(2, 3, 4),
            kernel_sizes=(3, 5, 7),
            expand_ratios=(3, 4, 6),
            activation=activation,
            squeeze_excite=squeeze_excite,
        )

    return SearchSpace(
        name=name,
        num_classes=80,
        image_sizes=((320, 320),),
        stem_channels=width(16),
        stem_activation="hardswish",
        stages=(
            _static_stage(width(16), "relu"),
            stage(24, 2, "relu", False),
            stage(40, 2, "relu", True),
            stage(80, 2, "hardswish", False),
            stage(112, 1, "hardswish", True),
            stage(160, 2, "hardswish", True),
        ),
        pyramid_stages=(2, 4, 5),
        neck_widths=(64, 96),
        head_widths=(64, 96),
        head_depths=(1, 2),
    )


def _lite0() -> SearchSpace:
    """Return EfficientNet-Lite0's stages made elastic (EfficientNet: arXiv 1905.11946)."""

    def stage(channels: int, stride: int, depth: int) -> Stage:
        return Stage(
            channels=channels,
            stride=stride,
            depths=(depth - 1, depth) if depth > 1 else (1,),
            kernel_sizes=(3, 5),
            expand_ratios=(3, 4, 6),
            activation="relu6",
        )

    return SearchSpace(
        name="lite0",
        num_classes=80,
        image_sizes=((320, 320),),
        stem_channels=32,
        stem_activation="relu6",
        stages=(
            _static_stage(16, "relu6"),
            stage(24, 2, 2),
            stage(40, 2, 2),
            stage(80, 2, 3),
            stage(112, 1, 3),
            stage(192, 2, 4),
        ),
        pyramid_stages=(2, 4, 5),
        neck_widths=(64, 96),
        head_widths=(64, 96),
        head_depths=(1, 2),
        same_padding=True,
        batch_norm_eps=1e-3,
    )


def _tiny() -> SearchSpace:
    """Return a narrow space that trains in minutes on a CPU: for the demo and for tests."""

    def stage(channels: int, stride: int) -> Stage:
        return Stage(
            channels=channels,
            stride=stride,
            depths=(1, 2),
            kernel_sizes=(3, 5),
            expand_ratios=(2, 3, 4),
            activation="relu",
        )

    return SearchSpace(
        name="tiny",
        num_classes=10,
        image_sizes=((96, 128), (128, 160), (160, 192)),
        stem_channels=16,
        stem_activation="relu",
        stages=(_static_stage(16, "relu"), stage(24, 2), stage(32, 2), stage(64, 2), stage(96, 2)),
        pyramid_stages=(2, 3, 4),
        neck_widths=(32, 48),
        head_widths=(32, 48),
        head_depths=(1, 2),
    )
