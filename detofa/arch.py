"""Arch: one point of a search space, canonical and hashable."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detofa.errors import UserError


@dataclass(frozen=True, kw_only=True, order=True)
class Arch:
    """One detector of a search space.

    Only blocks that run are listed, so equal networks are equal archs.

    Attributes:
        image_size: (height, width) of the network's input, in pixels.
        kernel_sizes: Per stage, the depthwise kernel size of each block.
        expand_ratios: Per stage, the expansion of each block's middle channels.
        neck_width: Channels of the feature pyramid.
        head_width: Channels of the head's two towers.
        head_depth: Depthwise-separable convolutions in each tower.
    """

    image_size: tuple[int, int]
    kernel_sizes: tuple[tuple[int, ...], ...]
    expand_ratios: tuple[tuple[int, ...], ...]
    neck_width: int
    head_width: int
    head_depth: int

    def __post_init__(self) -> None:
        """Check that kernels and expansions describe the same blocks."""
        assert [len(k) for k in self.kernel_sizes] == [len(e) for e in self.expand_ratios]

    @property
    def depths(self) -> tuple[int, ...]:
        """Return the number of blocks of each stage."""
        return tuple(len(kernels) for kernels in self.kernel_sizes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return {
            "image_size": list(self.image_size),
            "kernel_sizes": [list(kernels) for kernels in self.kernel_sizes],
            "expand_ratios": [list(ratios) for ratios in self.expand_ratios],
            "neck_width": self.neck_width,
            "head_width": self.head_width,
            "head_depth": self.head_depth,
        }

    @classmethod
    def from_json(cls, record: Any) -> "Arch":
        """Read what `to_json` wrote. `SearchSpace.check` then says whether a space holds it.

        Raises:
            UserError: a field is missing, unknown, or not made of whole numbers.
        """
        if not isinstance(record, Mapping):
            raise UserError(f"an arch should be a JSON object, got {type(record).__name__}")
        names = set(cls.__dataclass_fields__)
        if set(record) != names:
            raise UserError(
                f"an arch has the fields {sorted(names)}; missing {sorted(names - set(record))}, "
                f"unknown {sorted(set(record) - names)}"
            )
        size = _integers(record["image_size"], "image_size")
        kernels = _nested(record["kernel_sizes"], "kernel_sizes")
        ratios = _nested(record["expand_ratios"], "expand_ratios")
        if len(size) != 2 or [len(k) for k in kernels] != [len(e) for e in ratios]:
            raise UserError(
                "an arch needs image_size as [height, width] and as many kernel_sizes as "
                f"expand_ratios in every stage; got {size} and depths "
                f"{[len(k) for k in kernels]} against {[len(e) for e in ratios]}"
            )
        return cls(
            image_size=(size[0], size[1]),
            kernel_sizes=kernels,
            expand_ratios=ratios,
            neck_width=_integers([record["neck_width"]], "neck_width")[0],
            head_width=_integers([record["head_width"]], "head_width")[0],
            head_depth=_integers([record["head_depth"]], "head_depth")[0],
        )

    def __str__(self) -> str:
        """Return a short text for people."""
        height, width = self.image_size
        stages = " ".join(
            ",".join(f"k{k}e{e}" for k, e in zip(kernels, ratios, strict=True))
            for kernels, ratios in zip(self.kernel_sizes, self.expand_ratios, strict=True)
        )
        return f"{height}x{width} {stages} neck{self.neck_width} " + (
            f"head{self.head_width}x{self.head_depth}"
        )


def _integers(value: Any, name: str) -> tuple[int, ...]:
    whole = isinstance(value, list | tuple) and all(type(item) is int for item in value)
    if not whole:
        raise UserError(f"{name} of an arch should be whole numbers, got {value!r}")
    return tuple(value)


def _nested(value: Any, name: str) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} of an arch should be a list of lists, got {value!r}")
    return tuple(_integers(item, name) for item in value)
