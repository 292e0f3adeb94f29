import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest

from detofa.blocks import MBConv, NeckHead, Stem, make_divisible
from detofa.presets import PRESETS, preset


def test_make_divisible_never_rounds_down_by_more_than_a_tenth():
    for value in range(1, 2000):
        rounded = make_divisible(value)
        assert rounded % 8 == 0
        assert rounded >= 8
        assert rounded >= 0.9 * value
        assert rounded <= max(8, value + 8)


@pytest.mark.parametrize(
    ("mid_channels", "squeeze_channels"),
    [
        (72, 24),  # 18 is nearest to 16, which is more than a tenth less
        (96, 24),
        (120, 32),
        (144, 40),  # 36 rounds half up
        (160, 40),
        (240, 64),
        (320, 80),
        (336, 88),
        (448, 112),
        (480, 120),
        (640, 160),
        (672, 168),
        (960, 240),
    ],
)
def test_squeeze_channels_are_those_of_once_for_all(mid_channels, squeeze_channels):
    assert make_divisible(mid_channels // 4) == squeeze_channels


def test_widths_of_once_for_all_are_scaled_as_it_scales_them():
    widths = [make_divisible(width * 1.2) for width in (16, 16, 24, 40, 80, 112, 160, 960, 1280)]
    assert widths == [24, 24, 32, 48, 96, 136, 192, 1152, 1536]


def test_the_backbone_of_once_for_all_has_its_channels_and_activations():
    space = preset("ofa-mbv3", num_classes=80, image_sizes=[(224, 224)])
    stem, *blocks, _ = space.blocks(space.largest)
    assert isinstance(stem, Stem)
    assert (stem.out_channels, stem.activation) == (16, "hardswish")
    assert len(blocks) == 21
    first = [block for block in blocks if isinstance(block, MBConv) and block.position == 0]
    assert [block.out_channels for block in first] == [16, 24, 40, 80, 112, 160]
    assert [block.in_channels for block in first] == [16, 16, 24, 40, 80, 112]
    assert [block.mid_channels for block in first] == [16, 96, 144, 240, 480, 672]
    assert [block.squeeze_channels for block in first] == [0, 0, 40, 0, 120, 168]
    assert [block.stride for block in first] == [1, 2, 2, 2, 1, 2]
    assert [block.height for block in first] == [112, 112, 56, 28, 14, 14]
    assert [block.has_expand for block in first] == [False, True, True, True, True, True]
    assert [block.residual for block in first] == [True, False, False, False, False, False]
    assert [block.activation for block in first] == ["relu"] * 3 + ["hardswish"] * 3


def test_lite0_has_the_channels_of_efficientnet_lite0():
    space = preset("lite0", num_classes=3, image_sizes=[(224, 224)])
    blocks = [block for block in space.blocks(space.largest) if isinstance(block, MBConv)]
    assert len(blocks) == 1 + 2 + 2 + 3 + 3 + 4
    assert [block.mid_channels for block in blocks[:5]] == [32, 96, 144, 144, 240]
    assert all(block.squeeze_channels == 0 and block.same_padding for block in blocks)


@pytest.mark.parametrize("name", PRESETS)
def test_each_block_takes_what_the_block_before_gives(name):
    space = preset(name, num_classes=3, image_sizes=[(256, 320), (96, 128)])
    rng = np.random.default_rng(0)
    for genes in space.sample(rng, 20):
        arch = space.arch(genes)
        stem, *blocks, neck_head = space.blocks(arch)
        assert isinstance(stem, Stem)
        assert isinstance(neck_head, NeckHead)
        assert (stem.height, stem.width) == arch.image_size
        channels, size = stem.out_channels, (stem.height // 2, stem.width // 2)
        ends = {}
        for block in blocks:
            assert isinstance(block, MBConv)
            assert (block.in_channels, (block.height, block.width)) == (channels, size)
            assert block.kernel_size == arch.kernel_sizes[block.stage][block.position]
            ratio = arch.expand_ratios[block.stage][block.position]
            assert block.mid_channels == make_divisible(block.in_channels * ratio)
            assert block.residual == (block.stride == 1 and block.in_channels == block.out_channels)
            channels = block.out_channels
            size = (block.height // block.stride, block.width // block.stride)
            ends[block.stage] = (channels, size)
        pyramid = [ends[stage] for stage in space.pyramid_stages]
        assert tuple(width for width, _ in pyramid) == neck_head.in_channels
        assert tuple(level for _, level in pyramid) == neck_head.level_sizes[:3]
        assert (neck_head.height, neck_head.width) == arch.image_size


def test_levels_halve_and_an_odd_last_one_rounds_up():
    space = preset("tiny", num_classes=3, image_sizes=[(96, 160)])
    neck_head = space.neck_head(space.smallest)
    assert neck_head.level_sizes == ((12, 20), (6, 10), (3, 5), (2, 3))


@pytest.mark.parametrize("name", PRESETS)
def test_blocks_share_a_key_only_where_they_are_the_same_but_for_their_place(name):
    space = preset(name, num_classes=3, image_sizes=[(128, 160), (160, 128)])
    found: dict[str, dict[str, object]] = {}
    for stage, spec in enumerate(space.stages):
        choices = itertools.product(spec.kernel_sizes, spec.expand_ratios, range(spec.max_depth))
        for (kernel, ratio, position), size in itertools.product(choices, space.image_sizes):
            block = space.block(stage, position, kernel, ratio, size)
            shapes = {k: v for k, v in asdict(block).items() if k not in ("stage", "position")}
            assert found.setdefault(block.key, shapes) == shapes
    assert len(found) > 10


def test_a_block_without_expansion_has_another_key_than_one_that_expands_by_one():
    space = preset("tiny", num_classes=3)
    plain = space.block(0, 0, 3, 1, (96, 128))
    assert not plain.has_expand
    assert replace(plain, has_expand=True).key != plain.key
