"""What a pruned space prefers: shares of every option among its archs and in the whole bin."""

from dataclasses import dataclass

import numpy as np

from detofa.path_filter.drawing import draw_per_bin
from detofa.path_filter.pruned_space import PrunedSpace
from detofa.space import Genes, SearchSpace


@dataclass(frozen=True, kw_only=True)
class OptionShare:
    """How often one option of one choice is taken in one budget bin.

    Attributes:
        bin: The bin.
        choice: What is chosen, such as `stage 2 kernel size`.
        option: What is taken, such as `5`.
        members: Share among archs of the pruned space, 0 to 1.
        whole: Share among all archs of the bin.
    """

    bin: int
    choice: str
    option: str
    members: float
    whole: float


def option_shares(
    pruned: PrunedSpace, rng: np.random.Generator, *, per_bin: int = 500
) -> tuple[OptionShare, ...]:
    """Draw archs of every bin, from the pruned space and from the whole, and count options.

    Kernel sizes and expand ratios are counted over the blocks of a stage that run. Choices with
    one option are left out.

    Args:
        pruned: The pruned space.
        rng: Source of randomness.
        per_bin: Archs of each bin, of each kind.

    Raises:
        UserError: a bin is starved; names it.
    """
    space, bins = pruned.space, pruned.bins
    wanted = np.full(bins.count, per_bin)
    whole = draw_per_bin(space, pruned.cost, bins, rng, wanted)
    members = draw_per_bin(space, pruned.cost, bins, rng, wanted, passes=pruned.passes)
    return tuple(
        OptionShare(bin=index, choice=choice, option=option, members=share, whole=other)
        for index in range(bins.count)
        for (choice, option, share), (_, _, other) in zip(
            _shares(space, members[index]), _shares(space, whole[index]), strict=True
        )
    )


def _shares(space: SearchSpace, genes: Genes) -> list[tuple[str, str, float]]:
    """Return (choice, option, share) of every option of every choice that there is."""
    shares = []
    for choice, options, columns in _choices(space):
        taken = genes[:, columns]
        counts = np.bincount(taken[taken >= 0], minlength=len(options))
        found = (counts / counts.sum()).tolist()
        shares += [(choice, name, share) for name, share in zip(options, found, strict=True)]
    return shares


def _choices(space: SearchSpace) -> list[tuple[str, list[str], list[int]]]:
    """Return the name, the options and the genes of each choice that has several options."""
    sizes = [f"{height}x{width}" for height, width in space.image_sizes]
    choices = [("image size", sizes, [0])]
    others = {
        "neck width": space.neck_widths,
        "head width": space.head_widths,
        "head depth": space.head_depths,
    }
    for column, (name, options) in enumerate(others.items(), start=1):
        choices.append((name, [str(option) for option in options], [column]))
    first_depth = space.block_gene(0, 0) - len(space.stages)
    for index, stage in enumerate(space.stages):
        columns = [space.block_gene(index, position) for position in range(stage.max_depth)]
        stage_choices = (
            ("depth", stage.depths, [first_depth + index]),
            ("kernel size", stage.kernel_sizes, columns),
            ("expand ratio", stage.expand_ratios, [column + 1 for column in columns]),
        )
        for name, options, genes in stage_choices:
            choices.append((f"stage {index} {name}", [str(option) for option in options], genes))
    return [choice for choice in choices if len(choice[1]) > 1]
