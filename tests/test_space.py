import dataclasses
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detofa.arch import Arch
from detofa.blocks import MBConv
from detofa.errors import UserError
from detofa.presets import PRESETS, preset
from detofa.space import ABSENT, SearchSpace, Stage

SPACES = {
    name: preset(name, num_classes=3, image_sizes=[(96, 128), (128, 96), (256, 320)])
    for name in PRESETS
}
SEEDS = st.integers(0, 2**32 - 1)
ALL_SPACES = st.sampled_from(list(SPACES.values()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@st.composite
def small_spaces(draw):
    """Give spaces of a few hundred paths, with choices that no preset has."""
    choices = st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True).map(sorted)
    stages: list[Stage] = []
    for stride in (1, 2, 2, 2, 2):
        elastic = draw(st.booleans()) and sum(stage.max_depth > 1 for stage in stages) < 2
        stages.append(
            Stage(
                channels=draw(st.sampled_from([8, 16])),
                stride=stride,
                depths=tuple(draw(choices)) if elastic else (draw(st.integers(1, 2)),),
                kernel_sizes=(3, 5) if elastic else (3,),
                expand_ratios=(draw(st.integers(1, 4)),),
                activation="relu",
                squeeze_excite=draw(st.booleans()),
            )
        )
    sizes = draw(st.lists(st.sampled_from([(64, 64), (64, 96), (96, 64)]), min_size=1, unique=True))
    return SearchSpace(
        name="drawn",
        num_classes=draw(st.integers(1, 5)),
        image_sizes=tuple(sizes),
        stem_channels=8,
        stem_activation="relu",
        stages=tuple(stages),
        pyramid_stages=(2, 3, 4),
        neck_widths=(16, 24),
        head_widths=(16,),
        head_depths=(1, 2),
    )


def every_arch(space):
    """List the archs of a space by its definition, without genes."""
    per_stage = []
    for stage in space.stages:
        options = list(itertools.product(stage.kernel_sizes, stage.expand_ratios))
        per_stage.append(
            [
                blocks
                for depth in stage.depths
                for blocks in itertools.product(options, repeat=depth)
            ]
        )
    for size, neck, head, depth, *stages in itertools.product(
        space.image_sizes, space.neck_widths, space.head_widths, space.head_depths, *per_stage
    ):
        yield Arch(
            image_size=size,
            kernel_sizes=tuple(tuple(kernel for kernel, _ in stage) for stage in stages),
            expand_ratios=tuple(tuple(ratio for _, ratio in stage) for stage in stages),
            neck_width=neck,
            head_width=head,
            head_depth=depth,
        )


def macs(space, genes):
    """Count the multiply-accumulates of the backbone's convolutions: enough to tell sizes."""
    totals = []
    for row in genes:
        blocks = [block for block in space.blocks(space.arch(row)) if isinstance(block, MBConv)]
        totals.append(
            sum(
                block.height
                * block.width
                * block.mid_channels
                * (
                    block.in_channels
                    + (block.kernel_size**2 + block.out_channels) / block.stride**2
                )
                for block in blocks
            )
        )
    return np.array(totals, float)


def assert_canonical(space, genes):
    """Check every gene: absent exactly where its block does not run, else one of its choices."""
    assert genes.dtype == np.int8
    assert genes.shape[1:] == (space.num_genes,)
    first = space.block_gene(0, 0)
    assert (genes[:, :first] >= 0).all()
    assert (genes < space.num_choices).all()
    for index, stage in enumerate(space.stages):
        depths = np.array(stage.depths)[genes[:, first - len(space.stages) + index]]
        for position in range(stage.max_depth):
            column = space.block_gene(index, position)
            for kind in (column, column + 1):
                assert ((genes[:, kind] == ABSENT) == (depths <= position)).all()


# ---- genes and archs --------------------------------------------------------------------------


@given(ALL_SPACES, SEEDS)
def test_genes_and_archs_are_two_forms_of_one_thing(space, seed):
    genes = space.sample(np.random.default_rng(seed), 8)
    assert_canonical(space, genes)
    for row in genes:
        arch = space.arch(row)
        assert np.array_equal(space.genes(arch), row)
        again = Arch.from_json(json.loads(json.dumps(arch.to_json())))
        assert again == arch
        assert np.array_equal(space.genes(again), row)


@given(ALL_SPACES, SEEDS)
def test_equal_networks_are_equal_archs_with_equal_hashes(space, seed):
    rng = np.random.default_rng(seed)
    complete = rng.integers(0, space.num_choices, (6, space.num_genes)).astype(np.int8)
    other = rng.integers(0, space.num_choices, (6, space.num_genes)).astype(np.int8)
    first = space.canonical(complete)
    # Whatever stands where no block runs must not matter.
    second = space.canonical(np.where(first == ABSENT, other, complete))
    for left, right in zip(first, second, strict=True):
        assert space.arch(left) == space.arch(right)
        assert len({space.arch(left), space.arch(right)}) == 1
    for left, right in itertools.combinations(first, 2):
        assert (space.arch(left) == space.arch(right)) == np.array_equal(left, right)


@given(ALL_SPACES, SEEDS, st.floats(0, 1))
def test_whatever_is_drawn_mutated_or_crossed_is_in_the_space_and_canonical(space, seed, rate):
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng, 8), space.sample_spread(rng, 8)
    untouched = first.copy(), second.copy()
    for genes in (
        first,
        second,
        space.mutate(first, rng, rate),
        space.crossover(first, second, rng),
        space.sample(rng, 0),
    ):
        assert_canonical(space, genes)
        for row in genes:
            space.check(space.arch(row))
    assert np.array_equal(first, untouched[0])
    assert np.array_equal(second, untouched[1])


@given(ALL_SPACES, SEEDS)
def test_mutation_at_rate_zero_changes_nothing_and_at_one_draws_afresh(space, seed):
    rng = np.random.default_rng(seed)
    genes = space.sample(rng, 8)
    assert np.array_equal(space.mutate(genes, rng, 0.0), genes)
    assert not np.array_equal(space.mutate(genes, rng, 1.0), genes)


@given(ALL_SPACES, SEEDS)
def test_every_gene_of_a_child_is_one_of_its_parents(space, seed):
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng, 16), space.sample(rng, 16)
    child = space.crossover(first, second, rng)
    assert ((child == first) | (child == second) | (child == ABSENT)).all()
    twin = space.crossover(first, first, rng)
    assert np.array_equal(twin, first)


@given(ALL_SPACES, SEEDS)
def test_one_seed_gives_one_sample(space, seed):
    for draw in (space.sample, space.sample_spread):
        first, second = (draw(np.random.default_rng(seed), 4) for _ in range(2))
        assert np.array_equal(first, second)


@pytest.mark.parametrize("name", PRESETS)
def test_uniform_samples_choose_every_option_equally_often(name):
    space = SPACES[name]
    genes = space.sample(np.random.default_rng(0), 4000)
    for column, options in enumerate(space.num_choices):
        present = genes[genes[:, column] != ABSENT, column]
        shares = np.bincount(present, minlength=options) / len(present)
        np.testing.assert_allclose(shares, 1 / options, atol=0.06)


@given(small_spaces())
@settings(max_examples=25)
def test_the_size_is_the_number_of_archs_and_each_has_its_own_encodings(space):
    archs = list(every_arch(space))
    assert space.size == len(archs) == len(set(archs))
    genes = np.stack([space.genes(arch) for arch in archs])
    assert_canonical(space, genes)
    assert len(np.unique(genes, axis=0)) == space.size
    assert len(np.unique(space.encode_one_hot(genes), axis=0)) == space.size
    assert space.arch(genes[0]) == archs[0]
    assert {space.smallest, space.largest} <= set(archs)


def test_the_sizes_of_the_presets_are_known():
    options = sum(9**depth for depth in (2, 3, 4))
    assert preset("ofa-mbv3", num_classes=80).size == options**5 * 8
    assert preset("lite0", num_classes=80).size == 8 * (6 + 6**2) ** 2 * (6**2 + 6**3) ** 2 * (
        6**3 + 6**4
    )
    assert preset("tiny", num_classes=10).size == 3 * 8 * (6 + 6**2) ** 4


@pytest.mark.parametrize("name", PRESETS)
def test_the_largest_and_smallest_have_the_ends_of_every_choice(name):
    space = SPACES[name]
    assert space.largest.image_size == space.image_sizes[-1]
    assert space.largest.depths == tuple(stage.depths[-1] for stage in space.stages)
    assert space.smallest.depths == tuple(stage.depths[0] for stage in space.stages)
    assert all(
        set(kernels) == {stage.kernel_sizes[0]}
        for kernels, stage in zip(space.smallest.kernel_sizes, space.stages, strict=True)
    )


# ---- sampling by cost -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_spread_samples_reach_both_ends_where_uniform_ones_do_not(name):
    space = preset(name, num_classes=3, image_sizes=[(256, 320)])
    ends = macs(space, np.stack([space.genes(space.smallest), space.genes(space.largest)]))

    def shares(genes):
        found = (macs(space, genes) - ends[0]) / (ends[1] - ends[0])
        return found.min(), found.max()

    low, high = shares(space.sample_spread(np.random.default_rng(0), 500))
    assert low < 0.05
    assert high > 0.95
    if space.size > 1e9:
        low, high = shares(space.sample(np.random.default_rng(0), 500))
        assert low > 0.05
        assert high < 0.95


def test_budget_bins_are_filled_evenly_with_distinct_paths_in_order():
    space = SPACES["tiny"]
    ends = macs(space, np.stack([space.genes(space.smallest), space.genes(space.largest)]))
    edges = np.linspace(ends[0] * 1.05, ends[1], 5)
    rng = np.random.default_rng(0)
    genes = space.sample_bins(rng, lambda rows: macs(space, rows), edges, 20)
    assert_canonical(space, genes)
    assert len(np.unique(genes, axis=0)) == len(genes) == 80
    costs = macs(space, genes).reshape(4, 20)
    assert (costs > edges[:-1, None]).all()
    assert (costs <= edges[1:, None]).all()


def test_the_upper_edge_of_a_bin_belongs_to_it_and_the_lower_does_not():
    space = preset("tiny", num_classes=3)
    rng = np.random.default_rng(0)
    edges = np.array([0.0, 1.0, 2.0])
    genes = space.sample_bins(rng, lambda rows: rows[:, 0].astype(float), edges, 5)
    assert (genes[:5, 0] == 1).all()
    assert (genes[5:, 0] == 2).all()


def test_a_starved_bin_is_named_with_what_was_found():
    space = preset("tiny", num_classes=3)
    calls = []

    def cost(rows):
        calls.append(len(rows))
        return rows[:, 0].astype(float)

    edges = np.array([-1.0, 1.0, 2.0, 9.0])
    with pytest.raises(UserError, match=r"only 0 of 5 archs found between 2 and 9 in 3000 draws"):
        space.sample_bins(np.random.default_rng(0), cost, edges, 5, max_draws=3000)
    assert sum(calls) == 3000


def test_more_paths_than_a_bin_holds_is_starved_too():
    space = next(iter(SPACES.values()))
    only = space.genes(space.smallest)
    edges = np.array([0.0, 1.0])

    def cost(rows):
        return np.where((rows == only).all(axis=1), 0.5, 7.0)

    with pytest.raises(UserError, match=r"only [01] of 2 archs"):
        space.sample_bins(np.random.default_rng(0), cost, edges, 2, max_draws=2000)


# ---- encodings --------------------------------------------------------------------------------


def one_hot_by_hand(space, row):
    values = []
    for gene, options in zip(row, space.num_choices, strict=True):
        values += [float(gene == option) for option in range(options)]
    return values


def compact_by_hand(space, row):
    arch = space.arch(row)

    def share(value, choices):
        return choices.index(value) / max(len(choices) - 1, 1)

    values = [
        share(arch.image_size, space.image_sizes),
        share(arch.neck_width, space.neck_widths),
        share(arch.head_width, space.head_widths),
        share(arch.head_depth, space.head_depths),
    ]
    values += [share(d, s.depths) for d, s in zip(arch.depths, space.stages, strict=True)]
    for index, stage in enumerate(space.stages):
        kernels = [share(k, stage.kernel_sizes) for k in arch.kernel_sizes[index]]
        ratios = [share(e, stage.expand_ratios) for e in arch.expand_ratios[index]]
        values += [float(np.mean(kernels)), float(np.mean(ratios))]
    return values


@given(ALL_SPACES, SEEDS)
def test_encodings_of_many_are_those_of_each_by_hand(space, seed):
    genes = space.sample(np.random.default_rng(seed), 5)
    one_hot, compact = space.encode_one_hot(genes), space.encode_compact(genes)
    assert one_hot.dtype == compact.dtype == np.float32
    assert compact.shape == (5, 4 + 3 * len(space.stages))
    for row, hot, short in zip(genes, one_hot, compact, strict=True):
        assert hot.tolist() == one_hot_by_hand(space, row)
        np.testing.assert_allclose(short, compact_by_hand(space, row), atol=1e-6)
        assert np.array_equal(space.encode_one_hot(row[None])[0], hot)
        assert np.array_equal(space.encode_compact(row[None])[0], short)


@pytest.mark.parametrize("name", PRESETS)
def test_compact_encodings_run_from_zero_to_one(name):
    space = SPACES[name]
    ends = np.stack([space.genes(space.smallest), space.genes(space.largest)])
    low, high = space.encode_compact(ends)
    assert (low == 0).all()
    fixed = [len(stage.kernel_sizes) == 1 for stage in space.stages]
    assert (high == 0).sum() == 3 * sum(fixed)
    assert set(high.tolist()) == {0.0, 1.0}


# ---- records ----------------------------------------------------------------------------------


@given(small_spaces())
def test_a_record_as_json_text_gives_the_same_space(space):
    again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert again.digest == space.digest
    assert hash(again) == hash(space)


def test_digests_of_presets_differ_and_name_what_was_set():
    digests = {space.digest for space in SPACES.values()}
    digests |= {space.with_task(num_classes=4).digest for space in SPACES.values()}
    digests |= {preset(name, num_classes=3).digest for name in PRESETS}
    assert len(digests) == 3 * len(PRESETS)


def test_image_sizes_are_put_in_order_of_area_and_kept_once():
    sizes = [(256, 320), (96, 128), (128, 96), (96, 128)]
    space = preset("tiny", num_classes=3, image_sizes=sizes)
    assert space.image_sizes == ((96, 128), (128, 96), (256, 320))


@pytest.mark.parametrize("size", [(100, 128), (96, 100), (32, 96), (0, 96), (-96, 96)])
def test_a_size_that_the_strides_do_not_divide_is_refused(size):
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]}.*multiples of 32"):
        preset("tiny", num_classes=3, image_sizes=[size])


def test_no_classes_no_sizes_and_unknown_presets_are_refused():
    with pytest.raises(UserError, match="at least one class, got 0"):
        preset("tiny", num_classes=0)
    with pytest.raises(UserError, match="at least one image size"):
        preset("tiny", num_classes=1, image_sizes=[])
    with pytest.raises(UserError, match=r"unknown search space 'big'; choose one of ofa-mbv3"):
        preset("big", num_classes=1)


@pytest.mark.parametrize("name", sorted(SearchSpace.__dataclass_fields__))
def test_a_record_without_a_field_or_with_another_is_refused(name):
    record = SPACES["tiny"].to_json()
    with pytest.raises(UserError, match=name):
        SearchSpace.from_json({key: value for key, value in record.items() if key != name})
    with pytest.raises(UserError, match="extra"):
        SearchSpace.from_json(record | {"extra": 1})


@pytest.mark.parametrize("name", sorted(Stage.__dataclass_fields__))
@pytest.mark.parametrize("broken", [None, [], [0], "a", -1, 1.5, [3, 3], [5, 3], [True], {"a": 1}])
def test_a_broken_stage_is_refused(name, broken):
    record = SPACES["tiny"].to_json()
    stages = record["stages"]
    with pytest.raises(UserError):
        SearchSpace.from_json(record | {"stages": [stages[0] | {name: broken}, *stages[1:]]})
    missing = {key: value for key, value in stages[1].items() if key != name}
    with pytest.raises(UserError, match=name):
        SearchSpace.from_json(record | {"stages": [stages[0], missing, *stages[2:]]})


@pytest.mark.parametrize("name", sorted(SearchSpace.__dataclass_fields__))
@pytest.mark.parametrize("broken", [None, [], [[]], {}, -1, float("nan"), [1.5], [True], [2, 1]])
def test_a_broken_field_is_refused(name, broken):
    with pytest.raises(UserError):
        SearchSpace.from_json(SPACES["tiny"].to_json() | {name: broken})


@given(JSON, st.sampled_from(sorted(SearchSpace.__dataclass_fields__)))
def test_any_json_is_refused_plainly_or_gives_a_space_that_works(value, name):
    for candidate in (value, SPACES["tiny"].to_json() | {name: value}):
        try:
            space = SearchSpace.from_json(candidate)
        except UserError:
            continue
        genes = space.sample(np.random.default_rng(0), 2)
        assert space.blocks(space.arch(genes[0]))
        assert np.isfinite(space.encode_compact(genes)).all()


# ---- what a space does not hold ---------------------------------------------------------------


def test_an_arch_outside_the_space_is_named_with_what_is_allowed():
    space = preset("tiny", num_classes=3)
    arch = space.smallest
    kernels = (*arch.kernel_sizes[:-1], (9,))
    ratios = (*arch.expand_ratios[:-1], (7,))
    deep = replace(
        arch,
        kernel_sizes=(*arch.kernel_sizes[:-1], (3, 3, 3)),
        expand_ratios=(*arch.expand_ratios[:-1], (2, 2, 2)),
    )
    for changed, message in [
        (replace(arch, image_size=(96, 96)), r"image_size is \(96, 96\).*\(96, 128\)"),
        (replace(arch, neck_width=33), r"neck_width is 33.*\[32, 48\]"),
        (replace(arch, head_width=1), r"head_width is 1.*\[32, 48\]"),
        (replace(arch, head_depth=3), r"head_depth is 3.*\[1, 2\]"),
        (replace(arch, kernel_sizes=kernels), r"kernel_sizes of stage 4 is 9.*\[3, 5\]"),
        (replace(arch, expand_ratios=ratios), r"expand_ratios of stage 4 is 7.*\[2, 3, 4\]"),
        (deep, r"the depth of stage 4 is 3.*\[1, 2\]"),
        (
            replace(arch, kernel_sizes=((3,),), expand_ratios=((1,),)),
            "has 1 stages, space tiny has 5",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            space.check(changed)
        with pytest.raises(UserError, match=message):
            space.genes(changed)


def test_a_space_does_not_hold_the_largest_of_a_wider_one():
    for first, second in [("lite0", "ofa-mbv3"), ("tiny", "lite0"), ("lite0", "tiny")]:
        with pytest.raises(UserError):
            SPACES[first].check(SPACES[second].largest)


def test_the_strides_of_the_pyramid_are_8_16_and_32():
    for space in SPACES.values():
        strides = 2 * np.cumprod([stage.stride for stage in space.stages])
        assert strides[list(space.pyramid_stages)].tolist() == [8, 16, 32]
        record = dataclasses.asdict(space)
        assert record["pyramid_stages"] == space.pyramid_stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_sizes": ((65536, 65536),)}, "from 64 to 4096"),
        ({"stem_channels": 65536}, "channels should be so few"),
        ({"head_widths": (65536,)}, "channels should be so few"),
        ({"stages": ()}, "stages should be 1 to 32"),
        ({"neck_widths": tuple(range(1, 128)), "head_depths": tuple(range(1, 128))}, "blocks"),
    ],
)
def test_a_space_that_would_fill_the_memory_is_refused(changes, message):
    space = preset("tiny", num_classes=3)
    if "neck_widths" in changes:
        changes = changes | {"head_widths": tuple(range(1, 128))}
    with pytest.raises(UserError, match=message):
        dataclasses.replace(space, **changes)


def test_a_space_of_ten_thousand_stages_is_refused_at_once():
    record = preset("tiny", num_classes=3).to_json()
    with pytest.raises(UserError, match="stages should be 1 to 32"):
        SearchSpace.from_json(record | {"stages": record["stages"] * 2000})
