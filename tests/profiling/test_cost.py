import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detofa.blocks import Block, MBConv, NeckHead
from detofa.presets import PRESETS, preset
from detofa.profiling.cost import (
    AdditiveCost,
    all_blocks,
    arch_macs,
    arch_num_params,
    block_macs,
    block_num_params,
    macs_cost,
    num_params_cost,
)

SPACES = {name: preset(name, num_classes=3) for name in PRESETS}


def _uneven_price(block: Block) -> float:
    """A price that no two blocks share and that float sums do not hold exactly."""
    return (hash(block.key) % 10_007) / 7.0


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(PRESETS), seed=st.integers(0, 2**31))
def test_cost_of_genes_is_the_sum_over_blocks_to_the_last_bit(name: str, seed: int) -> None:
    space = SPACES[name]
    genes = space.sample(np.random.default_rng(seed), 4)
    costs = AdditiveCost(space, _uneven_price)(genes)
    for row, cost in zip(genes, costs, strict=True):
        total = 0.0
        for block in space.blocks(space.arch(row)):
            total += _uneven_price(block)
        assert cost == total


@pytest.mark.parametrize("name", PRESETS)
def test_parts_add_up_and_are_named(name: str) -> None:
    space = SPACES[name]
    genes = space.sample_spread(np.random.default_rng(0), 20)
    cost = macs_cost(space)
    parts = cost.per_part(genes)
    assert list(parts) == ["stem", *(f"stage {i}" for i in range(len(space.stages))), "neck_head"]
    np.testing.assert_array_equal(sum(parts.values()), cost(genes))


def test_one_arch_costs_what_its_genes_cost() -> None:
    space = SPACES["tiny"]
    assert macs_cost(space).of(space.largest) == arch_macs(space, space.largest)
    assert num_params_cost(space).of(space.smallest) == arch_num_params(space, space.smallest)


def test_macs_and_parameters_of_a_block_counted_by_hand() -> None:
    space = SPACES["tiny"]
    block = space.block(1, 0, kernel_size=5, expand_ratio=2, size=(96, 128))
    assert isinstance(block, MBConv)
    assert block_macs(block) == 48 * 64 * 16 * 32 + 24 * 32 * 32 * 25 + 24 * 32 * 32 * 24
    assert block_num_params(block) == 16 * 32 + 2 * 32 + 32 * 25 + 2 * 32 + 32 * 24 + 2 * 24


def test_squeeze_and_excitation_is_counted() -> None:
    space = SPACES["ofa-mbv3"]
    block = space.block(2, 1, kernel_size=3, expand_ratio=3, size=(320, 320))
    assert (block.mid_channels, block.squeeze_channels) == (120, 32)
    positions = 40 * 40
    expected = positions * (40 * 120 + 9 * 120 + 120 * 40) + 2 * 120 * 32
    assert block_macs(block) == expected


def test_all_blocks_holds_every_block_of_random_archs_and_nothing_more() -> None:
    space = preset("tiny", num_classes=3, image_sizes=[(64, 64)])
    blocks = all_blocks(space)
    # Stem, first stage, four stages of a first and a second block with 6 options each, 8 heads.
    assert len(blocks) == 1 + 1 + 4 * 2 * 6 + 8
    seen = {
        block.key
        for row in space.sample(np.random.default_rng(0), 300)
        for block in space.blocks(space.arch(row))
    }
    assert seen == set(blocks)


def test_many_archs_are_costed_at_once() -> None:
    space = SPACES["lite0"]
    genes = np.repeat(space.sample(np.random.default_rng(0), 100), 1000, axis=0)
    assert macs_cost(space)(genes).shape == (100_000,)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("count", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_macs_and_parameters_equal_those_of_the_torch_detector(name: str, count: int) -> None:
    torch = pytest.importorskip("torch")
    analysis = pytest.importorskip("fvcore.nn")
    from detofa.supernet.detector import StaticDetector

    space = preset(name, num_classes=3, image_sizes=[(96, 128), (160, 96)])
    drawn = space.sample(np.random.default_rng(count), count)
    for arch in [space.smallest, space.largest, *(space.arch(row) for row in drawn)]:
        detector = StaticDetector(space, arch).eval()
        counter = analysis.FlopCountAnalysis(detector, torch.zeros(1, 3, *arch.image_size))
        counter.unsupported_ops_warnings(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own tracer warns of its own deprecation
            counted = counter.by_operator()
        assert set(counted) <= {"conv", "batch_norm", "upsample_nearest2d", "mean"}
        assert arch_macs(space, arch) == counted["conv"]
        assert arch_num_params(space, arch) == sum(p.numel() for p in detector.parameters())


def test_odd_p5_rounds_p6_up_in_the_count() -> None:
    block = SPACES["tiny"].neck_head_at((96, 96), 32, 32, 1)
    assert isinstance(block, NeckHead)
    assert block.level_sizes == ((12, 12), (6, 6), (3, 3), (2, 2))
