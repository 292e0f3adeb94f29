"""What an arch costs: exact MACs and parameters, and any cost that is a sum over blocks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detofa.arch import Arch
from detofa.blocks import Block, MBConv, NeckHead, Stem
from detofa.space import Genes, SearchSpace

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution of an extracted detector.

    Attributes:
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        kernel_size: Side of its square kernel.
        groups: Groups of channels: 1, or `in_channels` for a depthwise one.
        positions: Output positions, height times width, over all pyramid levels it runs on.
        norms: Batch normalisations that follow it: the head's convolutions are shared by the
            pyramid's levels, but each level has its own; 0 if it has a bias instead.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    groups: int
    positions: int
    norms: int = 1

    @property
    def weights(self) -> int:
        """Return the number of weights, without the bias."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel_size**2

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates; adding the bias is not counted."""
        return self.weights * self.positions

    @property
    def num_params(self) -> int:
        """Return the number of weights, and of scales and offsets, or biases, that follow."""
        return self.weights + self.out_channels * (2 * self.norms if self.norms else 1)


def convolutions(block: Block) -> Iterator[Convolution]:
    """Yield every convolution of a block, in the order they run."""
    match block:
        case Stem():
            positions = (block.height // 2) * (block.width // 2)
            yield _dense(3, block.out_channels, positions, kernel_size=3)
        case MBConv():
            yield from _mbconv_convolutions(block)
        case NeckHead():
            yield from _neck_convolutions(block)
            yield from _head_convolutions(block)


def block_macs(block: Block) -> int:
    """Return a block's multiply-accumulates for one image.

    Convolutions only, as fvcore counts them (it calls them flops): no bias, normalisation,
    activation, pooling, addition, or box decoding.
    """
    return sum(convolution.macs for convolution in convolutions(block))


def block_num_params(block: Block) -> int:
    """Return a block's number of parameters, as torch counts those of the extracted detector.

    Weights, biases, and scales and offsets of batch normalisation; what is shared by the pyramid's
    levels counts once. Times four, it is nearly the size in bytes of the exported file.
    """
    return sum(convolution.num_params for convolution in convolutions(block))


def arch_macs(space: SearchSpace, arch: Arch) -> int:
    """Return the multiply-accumulates of a whole detector for one image."""
    return sum(map(block_macs, space.blocks(arch)))


def arch_num_params(space: SearchSpace, arch: Arch) -> int:
    """Return the number of parameters of a whole detector; see `block_num_params`."""
    return sum(map(block_num_params, space.blocks(arch)))


def macs_cost(space: SearchSpace) -> "AdditiveCost":
    """Return the multiply-accumulates of archs as a function of their genes."""
    return AdditiveCost(space, block_macs)


def num_params_cost(space: SearchSpace) -> "AdditiveCost":
    """Return the number of parameters of archs as a function of their genes."""
    return AdditiveCost(space, block_num_params)


class AdditiveCost:
    """The cost of many archs at once, where an arch costs the sum of what its blocks cost.

    Prices of all blocks of the space are looked up once; then costs are sums over small tables,
    a few million archs a second for the shipped spaces.

    Args:
        space: The search space.
        price: The cost of one block.
    """

    def __init__(self, space: SearchSpace, price: Callable[[Block], float]) -> None:
        self.space = space
        self._stem = np.array([price(stem_of(space, size)) for size in space.image_sizes])
        self._stages = [
            [_slot_prices(space, index, position, price) for position in range(stage.max_depth)]
            for index, stage in enumerate(space.stages)
        ]
        self._neck_head = np.array(
            [
                price(space.neck_head_at(size, neck_width, head_width, head_depth))
                for size in space.image_sizes
                for neck_width in space.neck_widths
                for head_width in space.head_widths
                for head_depth in space.head_depths
            ],
            np.float64,
        ).reshape(space.num_choices[:4])

    def __call__(self, genes: Genes) -> NDArray[np.float64]:
        """Return the cost of each arch: (N, num_genes) to (N,).

        Equal to the last bit to adding the prices of `space.blocks(arch)` in order.
        """
        costs = np.empty(len(genes), np.float64)
        for start in range(0, len(genes), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            total = self._stem[genes[rows, 0]].astype(np.float64)
            for index in range(len(self._stages)):
                for part in self._slots(genes[rows], index):
                    total += part
            costs[rows] = total + self._of_neck_head(genes[rows])
        return costs

    def of(self, arch: Arch) -> float:
        """Return the cost of one arch.

        Raises:
            UserError: the arch is not in the space.
        """
        return float(self(self.space.genes(arch)[None])[0])

    def per_part(self, genes: Genes) -> dict[str, NDArray[np.float64]]:
        """Return what each part costs, by `stem`, `stage 0` and on, and `neck_head`.

        Args:
            genes: (N, num_genes).

        Returns:
            Per part, (N,) costs.
        """
        parts = {"stem": self._stem[genes[:, 0]].astype(np.float64)}
        for index in range(len(self._stages)):
            parts[f"stage {index}"] = np.sum(list(self._slots(genes, index)), axis=0)
        return parts | {"neck_head": self._of_neck_head(genes)}

    def _slots(self, genes: Genes, stage: int) -> Iterator[NDArray[np.float64]]:
        for position, prices in enumerate(self._stages[stage]):
            column = self.space.block_gene(stage, position)
            yield prices[genes[:, 0], genes[:, column], genes[:, column + 1]]

    def _of_neck_head(self, genes: Genes) -> NDArray[np.float64]:
        prices: NDArray[np.float64] = self._neck_head[
            genes[:, 0], genes[:, 1], genes[:, 2], genes[:, 3]
        ]
        return prices


def stem_of(space: SearchSpace, size: tuple[int, int]) -> Stem:
    """Return a space's stem for an input of `size`, (height, width)."""
    return Stem(
        out_channels=space.stem_channels,
        activation=space.stem_activation,
        same_padding=space.same_padding,
        height=size[0],
        width=size[1],
    )


def all_blocks(space: SearchSpace) -> dict[str, Block]:
    """Return every different block that archs of a space are made of, by its key."""
    found: dict[str, Block] = {}

    def note(block: Block) -> float:
        found.setdefault(block.key, block)
        return 0.0

    AdditiveCost(space, note)
    return found


def _slot_prices(
    space: SearchSpace, stage: int, position: int, price: Callable[[Block], float]
) -> NDArray[np.float64]:
    """Return (sizes, kernels + 1, ratios + 1) prices; index -1, an absent block, costs nothing."""
    spec = space.stages[stage]
    shape = (len(space.image_sizes), len(spec.kernel_sizes) + 1, len(spec.expand_ratios) + 1)
    prices = np.zeros(shape)
    for at_size, size in enumerate(space.image_sizes):
        for at_kernel, kernel in enumerate(spec.kernel_sizes):
            for at_ratio, ratio in enumerate(spec.expand_ratios):
                block = space.block(stage, position, kernel, ratio, size)
                prices[at_size, at_kernel, at_ratio] = price(block)
    return prices


def _dense(
    in_channels: int, out_channels: int, positions: int, *, kernel_size: int = 1, norms: int = 1
) -> Convolution:
    return Convolution(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        groups=1,
        positions=positions,
        norms=norms,
    )


def _depthwise(
    channels: int, positions: int, *, kernel_size: int = 3, norms: int = 1
) -> Convolution:
    return Convolution(
        in_channels=channels,
        out_channels=channels,
        kernel_size=kernel_size,
        groups=channels,
        positions=positions,
        norms=norms,
    )


def _mbconv_convolutions(block: MBConv) -> Iterator[Convolution]:
    positions = block.height * block.width
    after = (block.height // block.stride) * (block.width // block.stride)
    if block.has_expand:
        yield _dense(block.in_channels, block.mid_channels, positions)
    yield _depthwise(block.mid_channels, after, kernel_size=block.kernel_size)
    if block.squeeze_channels:
        yield _dense(block.mid_channels, block.squeeze_channels, 1, norms=0)
        yield _dense(block.squeeze_channels, block.mid_channels, 1, norms=0)
    yield _dense(block.mid_channels, block.out_channels, after)


def _neck_convolutions(block: NeckHead) -> Iterator[Convolution]:
    positions = [height * width for height, width in block.level_sizes]
    for channels, count in zip(block.in_channels, positions[:3], strict=True):
        yield _dense(channels, block.neck_width, count)
    for count in positions:  # the last one, with stride 2, makes P6
        yield _depthwise(block.neck_width, count)
        yield _dense(block.neck_width, block.neck_width, count)


def _head_convolutions(block: NeckHead) -> Iterator[Convolution]:
    positions = sum(height * width for height, width in block.level_sizes)
    norms = len(block.level_sizes)
    for outputs in (block.num_classes, 4 * block.box_bins):
        channels = block.neck_width
        for _ in range(block.head_depth):
            yield _depthwise(channels, positions, norms=norms)
            yield _dense(channels, block.head_width, positions, norms=norms)
            channels = block.head_width
        yield _dense(channels, outputs, positions, norms=0)
