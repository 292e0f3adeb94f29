import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detofa.arch import Arch
from detofa.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)

STAGES = st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=4), max_size=6)


@st.composite
def archs(draw):
    stages = draw(STAGES)
    whole = st.integers(1, 4096)
    return Arch(
        image_size=(draw(whole), draw(whole)),
        kernel_sizes=tuple(tuple(kernel for kernel, _ in stage) for stage in stages),
        expand_ratios=tuple(tuple(ratio for _, ratio in stage) for stage in stages),
        neck_width=draw(whole),
        head_width=draw(whole),
        head_depth=draw(whole),
    )


def example():
    return Arch(
        image_size=(96, 128),
        kernel_sizes=((3,), (3, 5)),
        expand_ratios=((1,), (2, 4)),
        neck_width=32,
        head_width=48,
        head_depth=1,
    )


@given(archs())
def test_json_text_gives_the_same_arch_and_hash(arch):
    again = Arch.from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert hash(again) == hash(arch)
    assert len({again, arch}) == 1


def test_an_arch_lists_the_blocks_that_run():
    assert example().depths == (1, 2)
    assert str(example()) == "96x128 k3e1 k3e2,k5e4 neck32 head48x1"


def test_an_arch_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        setattr(example(), "neck_width", 64)  # noqa: B010 - mypy knows it is frozen
    assert replace(example(), neck_width=64) != example()


@pytest.mark.parametrize("name", sorted(Arch.__dataclass_fields__))
def test_a_missing_or_unknown_field_is_named(name):
    record = example().to_json()
    del record[name]
    with pytest.raises(UserError, match=rf"missing \['{name}'\]"):
        Arch.from_json(record)
    with pytest.raises(UserError, match=r"unknown \['depth'\]"):
        Arch.from_json(example().to_json() | {"depth": 2})


@pytest.mark.parametrize("name", sorted(Arch.__dataclass_fields__))
@pytest.mark.parametrize("broken", [None, "32", 1.5, True, [True], [[1.0]], {}, float("nan")])
def test_a_value_that_is_not_whole_numbers_is_named(name, broken):
    with pytest.raises(UserError, match=name):
        Arch.from_json(example().to_json() | {name: broken})


def test_kernels_and_expansions_of_different_blocks_are_refused():
    record = example().to_json() | {"expand_ratios": [[1], [2]]}
    with pytest.raises(UserError, match=r"\[1, 2\] against \[1, 1\]"):
        Arch.from_json(record)


@given(JSON, st.sampled_from(sorted(Arch.__dataclass_fields__)))
def test_any_json_is_read_or_refused_plainly(value, name):
    for candidate in (value, example().to_json() | {name: value}):
        try:
            Arch.from_json(candidate)
        except UserError:
            continue
