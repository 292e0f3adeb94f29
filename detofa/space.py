"""SearchSpace: the choices of a supernet, and what can be done with points of it.

Archs are handled one by one as `Arch`, or many at once as genes: an (N, num_genes) int8 array of
choice indices, with -1 where a block does not run. Both forms are canonical.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detofa.arch import Arch
from detofa.blocks import Block, MBConv, NeckHead, Stem, make_divisible
from detofa.errors import UserError
from detofa.files import fields_of, sha256_json

Genes = NDArray[np.int8]
Activation = Literal["relu", "relu6", "hardswish"]
ABSENT = -1
_NUM_GLOBAL = 4  # image size, neck width, head width, head depth
_LARGEST = 65_536  # of any number of channels
_LARGEST_SIDE = 4_096  # of an image, in pixels
_MOST_STAGES = 32
_MOST_BLOCKS = 100_000  # that differ; the shipped spaces have some hundreds
_MOST_WEIGHTS = 1 << 26  # of the largest arch, or 256 MiB; the shipped spaces have some millions
_MAX_DEPTH = 64
_MAX_OPTIONS = 127  # int8 genes


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of one resolution: what is fixed, and what may be chosen."""

    channels: int
    stride: int
    depths: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    expand_ratios: tuple[int, ...]
    activation: Activation
    squeeze_excite: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: a field is of the wrong kind or out of range.
        """
        _whole(self.channels, "channels of a stage")
        for name in ("depths", "kernel_sizes", "expand_ratios"):
            _ascending(getattr(self, name), f"{name} of a stage")
        _require(
            self.depths[-1] <= _MAX_DEPTH, "depths of a stage", f"up to {_MAX_DEPTH}", self.depths
        )
        odd = all(kernel % 2 for kernel in self.kernel_sizes)
        _require(odd, "kernel_sizes of a stage", "odd", self.kernel_sizes)
        _require(self.stride in (1, 2), "stride of a stage", "1 or 2", self.stride)
        _one_of(self.activation, get_args(Activation), "activation of a stage")
        _require(type(self.squeeze_excite) is bool, "squeeze_excite", "a bool", self.squeeze_excite)

    @property
    def max_depth(self) -> int:
        """Return the largest number of blocks."""
        return self.depths[-1]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A family of detectors that share weights.

    Every tuple of choices is ascending, so the last one is the largest.

    Attributes:
        name: The preset it comes from.
        num_classes: Categories the head tells apart.
        image_sizes: (height, width) choices, multiples of 32, ascending by area.
        stem_channels: Output channels of the 3x3 stride-2 stem.
        stem_activation: Activation of the stem.
        stages: The backbone's stages.
        pyramid_stages: Indices of the stages that end at strides 8, 16 and 32.
        neck_widths: Choices for the channels of the feature pyramid.
        head_widths: Choices for the channels of the head's towers.
        head_depths: Choices for the convolutions of each tower.
        box_bins: Bins of each box side's distribution, in units of the level's stride.
        same_padding: Pad stride-2 convolutions as TensorFlow does (one more on the far side).
        batch_norm_eps: Epsilon of the backbone's batch normalisation.
    """

    name: str
    num_classes: int
    image_sizes: tuple[tuple[int, int], ...]
    stem_channels: int
    stem_activation: Activation
    stages: tuple[Stage, ...]
    pyramid_stages: tuple[int, int, int]
    neck_widths: tuple[int, ...]
    head_widths: tuple[int, ...]
    head_depths: tuple[int, ...]
    box_bins: int = 16
    same_padding: bool = False
    batch_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Check every field, and put the image sizes in order.

        Raises:
            UserError: a field is of the wrong kind or out of range.
        """
        _require(isinstance(self.name, str), "name", "text", self.name)
        few = isinstance(self.stages, tuple) and 1 <= len(self.stages) <= _MOST_STAGES
        _require(few, "stages", f"1 to {_MOST_STAGES}", self.stages)
        if self.num_classes == 0:
            raise UserError("a space needs at least one class, got 0")
        for name in ("num_classes", "stem_channels", "box_bins"):
            _whole(getattr(self, name), name)
        for name in ("neck_widths", "head_widths", "head_depths"):
            _ascending(getattr(self, name), name)
        _one_of(self.stem_activation, get_args(Activation), "stem_activation")
        _require(type(self.same_padding) is bool, "same_padding", "a bool", self.same_padding)
        eps = self.batch_norm_eps
        _require(isinstance(eps, float) and 0 < eps < 1, "batch_norm_eps", "between 0 and 1", eps)
        strides = [
            2 * math.prod(stage.stride for stage in self.stages[: index + 1])
            for index in range(len(self.stages))
        ]
        places = self.pyramid_stages
        fits = isinstance(places, tuple) and all(type(index) is int for index in places)
        fits = fits and all(0 <= index < len(strides) for index in places)
        fits = fits and [strides[index] for index in places] == [8, 16, 32] and strides[-1] == 32
        _require(fits, "pyramid_stages", "where strides 8, 16 and 32 end (the last)", places)
        object.__setattr__(self, "image_sizes", _ordered_sizes(self.image_sizes))
        self._check_amounts()

    def _check_amounts(self) -> None:
        """Raise UserError where the blocks or the weights would fill the memory.

        The weights are those of the largest arch's dense and depthwise convolutions, roughly.
        """
        blocks = len(self.neck_widths) * len(self.head_widths) * len(self.head_depths)
        neck, head = self.neck_widths[-1], self.head_widths[-1]
        weights = head * head * self.head_depths[-1] + head * (self.num_classes + 4 * self.box_bins)
        before = self.stem_channels
        for stage in self.stages:
            options = len(stage.kernel_sizes) * len(stage.expand_ratios)
            blocks += stage.max_depth * options
            middle = max(before, stage.channels) * stage.expand_ratios[-1]
            dense = middle if stage.squeeze_excite else before + stage.channels
            window = stage.kernel_sizes[-1] ** 2
            weights += stage.max_depth * middle * (before + stage.channels + dense + window)
            weights += neck * stage.channels
            before = stage.channels
        blocks *= len(self.image_sizes)
        _require(blocks <= _MOST_BLOCKS, "choices", f"of up to {_MOST_BLOCKS} blocks", blocks)
        few = weights + neck * (neck + head) <= _MOST_WEIGHTS
        _require(few, "channels", f"so few that there are {_MOST_WEIGHTS} weights", weights)

    # ---- identity -------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        record = dataclasses.asdict(self)
        return {key: _lists(value) for key, value in record.items()}

    @classmethod
    def from_json(cls, record: Any) -> "SearchSpace":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing or unknown, or a value is of the wrong kind.
        """
        fields = fields_of(record, cls.__dataclass_fields__, "a search space")
        try:
            fields = {key: _tuples(value) for key, value in fields.items()}
            stages = [
                fields_of(stage, Stage.__dataclass_fields__, "a stage")
                for stage in fields["stages"]
            ]
            return cls(**fields | {"stages": tuple(Stage(**stage) for stage in stages)})
        except (TypeError, RecursionError) as error:
            raise UserError(f"not the record of a search space: {error}") from error

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the space's record: what tables and weights are tied to."""
        return sha256_json(self.to_json())

    def with_task(
        self, *, num_classes: int, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> "SearchSpace":
        """Return this space for another list of classes and, if given, other input sizes."""
        sizes = self.image_sizes if image_sizes is None else tuple(image_sizes)
        return dataclasses.replace(self, num_classes=num_classes, image_sizes=sizes)

    @cached_property
    def size(self) -> int:
        """Return the exact number of archs."""
        size = len(self.image_sizes) * len(self.neck_widths)
        size *= len(self.head_widths) * len(self.head_depths)
        for stage in self.stages:
            options = len(stage.kernel_sizes) * len(stage.expand_ratios)
            size *= sum(options**depth for depth in stage.depths)
        return size

    @property
    def largest(self) -> Arch:
        """Return the arch with the largest choice everywhere."""
        return self.arch(self._uniform_genes(largest=True))

    @property
    def smallest(self) -> Arch:
        """Return the arch with the smallest choice everywhere."""
        return self.arch(self._uniform_genes(largest=False))

    @property
    def ends(self) -> Genes:
        """Return the genes of the smallest and of the largest arch: (2, num_genes)."""
        return np.stack([self.genes(self.smallest), self.genes(self.largest)])

    # ---- genes ----------------------------------------------------------------------------

    @cached_property
    def num_choices(self) -> NDArray[np.int64]:
        """Return the number of options of each gene: (num_genes,)."""
        counts = [len(self.image_sizes), len(self.neck_widths)]
        counts += [len(self.head_widths), len(self.head_depths)]
        counts += [len(stage.depths) for stage in self.stages]
        for stage in self.stages:
            counts += [len(stage.kernel_sizes), len(stage.expand_ratios)] * stage.max_depth
        return np.array(counts)

    @property
    def num_genes(self) -> int:
        """Return the number of genes of an arch."""
        return len(self.num_choices)

    def block_gene(self, stage: int, position: int) -> int:
        """Return the index of a block's kernel gene; its expand gene is the next one."""
        return self._first_genes[stage] + 2 * position

    @cached_property
    def _first_genes(self) -> list[int]:
        """Return the index of the first block's kernel gene of each stage."""
        depths = [0, *(stage.max_depth for stage in self.stages)]
        return [_NUM_GLOBAL + len(self.stages) + 2 * before for before in accumulate(depths)]

    def genes(self, arch: Arch) -> Genes:
        """Return an arch of this space as genes: (num_genes,) int8.

        Raises:
            UserError: the arch is not in this space; names the field and the allowed values.
        """
        self.check(arch)
        genes = np.full(self.num_genes, ABSENT, np.int8)
        genes[0] = self.image_sizes.index(arch.image_size)
        genes[1] = self.neck_widths.index(arch.neck_width)
        genes[2] = self.head_widths.index(arch.head_width)
        genes[3] = self.head_depths.index(arch.head_depth)
        for index, stage in enumerate(self.stages):
            kernels, ratios = arch.kernel_sizes[index], arch.expand_ratios[index]
            genes[_NUM_GLOBAL + index] = stage.depths.index(len(kernels))
            for position, (kernel, ratio) in enumerate(zip(kernels, ratios, strict=True)):
                column = self.block_gene(index, position)
                genes[column] = stage.kernel_sizes.index(kernel)
                genes[column + 1] = stage.expand_ratios.index(ratio)
        return genes

    def arch(self, genes: Genes) -> Arch:
        """Return the arch of one row of canonical genes: (num_genes,)."""
        kernels, ratios = [], []
        for index, stage in enumerate(self.stages):
            columns = [
                self.block_gene(index, position)
                for position in range(stage.depths[genes[_NUM_GLOBAL + index]])
            ]
            kernels.append(tuple(stage.kernel_sizes[genes[column]] for column in columns))
            ratios.append(tuple(stage.expand_ratios[genes[column + 1]] for column in columns))
        return Arch(
            image_size=self.image_sizes[genes[0]],
            kernel_sizes=tuple(kernels),
            expand_ratios=tuple(ratios),
            neck_width=self.neck_widths[genes[1]],
            head_width=self.head_widths[genes[2]],
            head_depth=self.head_depths[genes[3]],
        )

    def canonical(self, genes: Genes) -> Genes:
        """Mark the genes of blocks that do not run as absent: (N, num_genes) to the same shape.

        Only depth decides which blocks run; every other gene must hold a choice.
        """
        genes = genes.copy()
        for index, stage in enumerate(self.stages):
            depths = np.array(stage.depths)[genes[:, _NUM_GLOBAL + index]]
            for position in range(stage.max_depth):
                column = self.block_gene(index, position)
                genes[depths <= position, column : column + 2] = ABSENT
        return genes

    def check(self, arch: Arch) -> None:
        """Raise UserError unless this space holds `arch`, naming the field and what is allowed."""
        _one_of(arch.image_size, self.image_sizes, "image_size")
        _one_of(arch.neck_width, self.neck_widths, "neck_width")
        _one_of(arch.head_width, self.head_widths, "head_width")
        _one_of(arch.head_depth, self.head_depths, "head_depth")
        if len(arch.kernel_sizes) != len(self.stages):
            raise UserError(
                f"the arch has {len(arch.kernel_sizes)} stages, space {self.name} has "
                f"{len(self.stages)}"
            )
        for index, stage in enumerate(self.stages):
            _one_of(arch.depths[index], stage.depths, f"the depth of stage {index}")
            for kernel in arch.kernel_sizes[index]:
                _one_of(kernel, stage.kernel_sizes, f"kernel_sizes of stage {index}")
            for ratio in arch.expand_ratios[index]:
                _one_of(ratio, stage.expand_ratios, f"expand_ratios of stage {index}")

    # ---- sampling and variation -----------------------------------------------------------

    def sample(self, rng: np.random.Generator, count: int) -> Genes:
        """Draw archs with every option of every choice equally likely.

        Returns:
            (count, num_genes) canonical genes.
        """
        return self.canonical(self._random_genes(rng, count, np.zeros(count)))

    def sample_spread(self, rng: np.random.Generator, count: int) -> Genes:
        """Draw archs spread from the smallest to the largest.

        Uniform choices pile up in the middle of any cost. Here each arch first draws a tilt, and
        its options are weighted by exp(tilt x rank), so that both ends are reached.

        Returns:
            (count, num_genes) canonical genes.
        """
        return self.canonical(self._random_genes(rng, count, rng.uniform(-6, 6, count)))

    def sample_bins(
        self,
        rng: np.random.Generator,
        cost: Callable[[Genes], NDArray[np.float64]],
        edges: NDArray[np.float64],
        per_bin: int,
        *,
        max_draws: int = 100_000,
    ) -> Genes:
        """Draw the same number of distinct archs from every budget bin.

        Args:
            rng: Source of randomness.
            cost: Maps (N, num_genes) genes to (N,) costs.
            edges: (B + 1,) ascending bin edges; a bin holds edges[b] < cost <= edges[b + 1].
            per_bin: Archs wanted from each bin.
            max_draws: Give up on what is still missing after this many draws.

        Returns:
            (B * per_bin, num_genes) genes, bin after bin.

        Raises:
            UserError: a bin is starved; names it and how many were found.
        """
        found: list[dict[bytes, Genes]] = [{} for _ in range(len(edges) - 1)]
        batch = 1000
        for _ in range(math.ceil(max_draws / batch)):
            drawn = self.sample_spread(rng, batch)
            bins = np.searchsorted(edges, cost(drawn), side="left") - 1
            for row, index in zip(drawn, bins, strict=True):
                if 0 <= index < len(found) and len(found[index]) < per_bin:
                    found[index].setdefault(row.tobytes(), row)
            if all(len(rows) == per_bin for rows in found):
                return np.stack([row for rows in found for row in rows.values()])
        starved = min(range(len(found)), key=lambda index: len(found[index]))
        raise UserError(
            f"only {len(found[starved])} of {per_bin} archs found between {edges[starved]:.4g} and "
            f"{edges[starved + 1]:.4g} in {max_draws} draws; use fewer or wider bins"
        )

    def mutate(self, genes: Genes, rng: np.random.Generator, rate: float) -> Genes:
        """Redraw each gene with probability `rate`: (N, num_genes) to the same shape."""
        fresh = (rng.random(genes.shape) * self.num_choices).astype(np.int8)
        redraw = (genes == ABSENT) | (rng.random(genes.shape) < rate)
        return self.canonical(np.where(redraw, fresh, genes))

    def crossover(self, first: Genes, second: Genes, rng: np.random.Generator) -> Genes:
        """Take each gene from one parent or the other: two (N, num_genes) to one.

        A block that only one parent has comes from that parent.
        """
        swap = rng.random(first.shape) < 0.5
        child, other = np.where(swap, second, first), np.where(swap, first, second)
        return self.canonical(np.where(child == ABSENT, other, child))

    # ---- encodings ------------------------------------------------------------------------

    def encode_one_hot(self, genes: Genes) -> NDArray[np.float32]:
        """Encode (N, num_genes) genes as (N, sum(num_choices)) zeros and ones.

        A block that does not run is all zeros.
        """
        starts = np.cumsum(self.num_choices) - self.num_choices
        encoded = np.zeros((len(genes), int(self.num_choices.sum())), np.float32)
        rows, columns = np.nonzero(genes != ABSENT)
        encoded[rows, starts[columns] + genes[rows, columns]] = 1
        return encoded

    def encode_compact(self, genes: Genes) -> NDArray[np.float32]:
        """Encode (N, num_genes) genes as (N, 4 + 3 x stages) numbers from 0 to 1.

        Image size, neck width, head width, head depth; then per stage depth, mean kernel and mean
        expand: each as the (mean) index of the choice over the index of the largest.
        """
        largest = np.maximum(self.num_choices - 1, 1).astype(np.float32)
        scaled = np.where(genes == ABSENT, np.nan, genes / largest)
        columns = [scaled[:, : _NUM_GLOBAL + len(self.stages)]]
        for index, stage in enumerate(self.stages):
            start = self.block_gene(index, 0)
            block_genes = scaled[:, start : start + 2 * stage.max_depth]
            columns += [np.nanmean(block_genes[:, kind::2], axis=1)[:, None] for kind in (0, 1)]
        return np.concatenate(columns, axis=1).astype(np.float32)

    # ---- shapes ---------------------------------------------------------------------------

    def blocks(self, arch: Arch) -> tuple[Block, ...]:
        """Return every block of an arch in order, with its shapes: the one source of shapes."""
        height, width = arch.image_size
        blocks: list[Block] = [
            Stem(
                out_channels=self.stem_channels,
                activation=self.stem_activation,
                same_padding=self.same_padding,
                height=height,
                width=width,
            )
        ]
        for index in range(len(self.stages)):
            pairs = zip(arch.kernel_sizes[index], arch.expand_ratios[index], strict=True)
            for position, (kernel, ratio) in enumerate(pairs):
                blocks.append(self.block(index, position, kernel, ratio, arch.image_size))
        blocks.append(self.neck_head(arch))
        return tuple(blocks)

    def block(
        self, stage: int, position: int, kernel_size: int, expand_ratio: int, size: tuple[int, int]
    ) -> MBConv:
        """Return one backbone block. `size` is the network's input (height, width)."""
        spec = self.stages[stage]
        first = position == 0
        before = self.stages[stage - 1].channels if stage else self.stem_channels
        in_channels = before if first else spec.channels
        stride = spec.stride if first else 1
        reduction = 2 * math.prod(earlier.stride for earlier in self.stages[:stage])
        reduction *= 1 if first else spec.stride
        mid_channels = make_divisible(in_channels * expand_ratio)
        return MBConv(
            stage=stage,
            position=position,
            in_channels=in_channels,
            mid_channels=mid_channels,
            out_channels=spec.channels,
            squeeze_channels=make_divisible(mid_channels // 4) if spec.squeeze_excite else 0,
            has_expand=max(spec.expand_ratios) > 1,
            kernel_size=kernel_size,
            stride=stride,
            residual=stride == 1 and in_channels == spec.channels,
            activation=spec.activation,
            same_padding=self.same_padding,
            height=size[0] // reduction,
            width=size[1] // reduction,
        )

    def neck_head(self, arch: Arch) -> NeckHead:
        """Return the neck and head of an arch together: its last block."""
        return self.neck_head_at(arch.image_size, arch.neck_width, arch.head_width, arch.head_depth)

    def neck_head_at(
        self, size: tuple[int, int], neck_width: int, head_width: int, head_depth: int
    ) -> NeckHead:
        """Return the neck and head together. `size` is the network's input (height, width)."""
        c3, c4, c5 = (self.stages[index].channels for index in self.pyramid_stages)
        return NeckHead(
            in_channels=(c3, c4, c5),
            neck_width=neck_width,
            head_width=head_width,
            head_depth=head_depth,
            num_classes=self.num_classes,
            box_bins=self.box_bins,
            height=size[0],
            width=size[1],
        )

    # ---- private --------------------------------------------------------------------------

    def _uniform_genes(self, *, largest: bool) -> Genes:
        genes = (self.num_choices - 1) * int(largest)
        row: Genes = self.canonical(genes.astype(np.int8)[None])[0]
        return row

    def _random_genes(
        self, rng: np.random.Generator, count: int, tilts: NDArray[np.float64]
    ) -> Genes:
        genes = np.empty((count, self.num_genes), np.int8)
        for column, options in enumerate(self.num_choices):
            ranks = np.arange(options) / max(options - 1, 1)
            weights = np.exp(tilts[:, None] * ranks)
            edges = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
            draws = rng.random(count)
            genes[:, column] = np.minimum((draws[:, None] > edges).sum(axis=1), options - 1)
        return genes


def _one_of(value: object, allowed: Sequence[object], name: str) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; this space allows {list(allowed)}")


def _require(fits: bool, name: str, expected: str, value: object) -> None:
    if not fits:
        raise UserError(f"{name} should be {expected}, got {value!r}")


def _whole(value: object, name: str) -> None:
    fits = type(value) is int and 1 <= value <= _LARGEST
    _require(fits, name, f"a whole number from 1 to {_LARGEST}", value)


def _ascending(values: Any, name: str) -> None:
    fits = isinstance(values, tuple) and 1 <= len(values) <= _MAX_OPTIONS
    fits = fits and all(type(value) is int and 1 <= value <= _LARGEST for value in values)
    fits = fits and all(low < high for low, high in itertools.pairwise(values))
    _require(fits, name, "one or more ascending whole numbers from 1", values)


def _ordered_sizes(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    pairs = isinstance(sizes, list | tuple) and all(
        isinstance(size, list | tuple) and [type(side) for side in size] == [int, int]
        for size in sizes
    )
    _require(pairs, "image_sizes", "pairs of height and width, such as (256, 320)", sizes)
    for height, width in sizes:
        if (
            height % 32
            or width % 32
            or min(height, width) < 64
            or max(height, width) > _LARGEST_SIDE
        ):
            raise UserError(
                f"image size {height}x{width} (height x width) should be multiples of 32, "
                f"from 64 to {_LARGEST_SIDE}"
            )
    if not 1 <= len(sizes) <= _MAX_OPTIONS:
        raise UserError(
            f"a space needs at least one image size, such as 256x320, and at most {_MAX_OPTIONS}; "
            f"got {len(sizes)}"
        )
    unique = {(height, width) for height, width in sizes}
    return tuple(sorted(unique, key=lambda size: (size[0] * size[1], size)))


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
