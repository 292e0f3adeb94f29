"""Priors: what blocks are thought to cost before whole detectors are looked at.

A fit starts from a prior and corrects it. Which prior is best depends on the device: where blocks
run one by one, measuring them alone or in chains tells most; where the runtime fuses across
blocks, compute, bytes and launches do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from detofa.blocks import Block, MBConv, NeckHead
from detofa.errors import UserError
from detofa.export.onnx_from_blocks import block_onnx
from detofa.profiling.conditions import CPU_RUNTIMES
from detofa.profiling.cost import convolutions
from detofa.profiling.parts import AFTER_BACKBONE, time_of_places

Floats = NDArray[np.float64]
Builder = Callable[[], bytes]
PriorName = Literal["isolated", "chain", "compute", "profile"]

TOP_K = 300  # candidate boxes, as in the export
_SHORT, _LONG = 2, 4  # blocks of a chain
_LEAST_SHARE = 0.2  # of a short chain's time for each block, that a difference cannot fall below


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What a prior may go by.

    Attributes:
        blocks: Every block of a space, by its key.
        p50_ms: What the prior's models took, by name.
        detectors: The keys of each measured detector's blocks.
        detectors_ms: (N,) time of each.
        operators_ms: What the operators of each take, where they were looked at and the runtime
            tells; else empty. See `Runtime.operator_ms`.
    """

    blocks: Mapping[str, Block]
    p50_ms: Mapping[str, float]
    detectors: Sequence[Sequence[str]]
    detectors_ms: Floats
    operators_ms: Sequence[Mapping[str, float]]


class Prior(Protocol):
    """What blocks are thought to cost."""

    def models(self, blocks: Mapping[str, Block]) -> dict[str, Builder]:
        """Return the models to time beside whole detectors, by name; names are not `fit N`."""
        ...

    def prices(self, found: Measured) -> dict[str, float]:
        """Return the cost of every block, in milliseconds, above zero."""
        ...


class Isolated:
    """Every block measured alone, once-for-all's way (arXiv 1908.09791)."""

    def models(self, blocks: Mapping[str, Block]) -> dict[str, Builder]:
        """Return a model for each block; see `Prior.models`."""
        return {key: _builder(block) for key, block in blocks.items()}

    def prices(self, found: Measured) -> dict[str, float]:
        """Return what was measured; see `Prior.prices`."""
        return {key: found.p50_ms[key] for key in found.blocks}


class Chain:
    """A block's share of a longer chain of blocks: no call overhead, and fusion is in it.

    Only blocks whose output can be their input form chains; the others are measured alone.
    """

    def models(self, blocks: Mapping[str, Block]) -> dict[str, Builder]:
        """Return two chains or one model for each block; see `Prior.models`."""
        found: dict[str, Builder] = {}
        for key, block in blocks.items():
            if isinstance(block, MBConv) and block.residual:
                for length in (_SHORT, _LONG):
                    found[_chain_name(key, length)] = _builder(block, repeats=length)
            else:
                found[key] = _builder(block)
        return found

    def prices(self, found: Measured) -> dict[str, float]:
        """Return differences of chains, or what was measured; see `Prior.prices`."""
        prices, p50_ms = {}, found.p50_ms
        for key in found.blocks:
            if key in p50_ms:
                prices[key] = p50_ms[key]
                continue
            short, long = (p50_ms[_chain_name(key, length)] for length in (_SHORT, _LONG))
            difference = (long - short) / (_LONG - _SHORT)
            prices[key] = max(difference, _LEAST_SHARE * short / _SHORT)
        return prices


class Compute:
    """Multiply-accumulates, bytes moved and kernels launched, each with a price of its own.

    Nothing but whole detectors is measured; their times tell the three prices (non-negative least
    squares of relative errors).
    """

    def models(self, blocks: Mapping[str, Block]) -> dict[str, Builder]:
        """Return no models; see `Prior.models`."""
        return {}

    def prices(self, found: Measured) -> dict[str, float]:
        """Return what compute, bytes and launches come to; see `Prior.prices`."""
        features = {key: _work(block) for key, block in found.blocks.items()}
        sums = np.array(
            [np.sum([features[key] for key in keys], axis=0) for keys in found.detectors]
        )
        scale = sums.mean(axis=0)
        weights, _ = nnls(sums / scale / found.detectors_ms[:, None], np.ones(len(sums)))
        return {key: float(work / scale @ weights) for key, work in features.items()}


class Profile:
    """A block's mean share in the runtime's profile of whole detectors, of their measured times.

    It has what happens only inside a detector, such as fusion across blocks. A block that no
    measured detector holds is priced by its compute, at the level of the others.
    """

    def models(self, blocks: Mapping[str, Block]) -> dict[str, Builder]:
        """Return no models; see `Prior.models`."""
        return {}

    def prices(self, found: Measured) -> dict[str, float]:
        """Return mean shares of measured times; see `Prior.prices`.

        Raises:
            UserError: the runtime does not tell what operators take.
        """
        taken: dict[str, list[float]] = {key: [] for key in found.blocks}
        each = zip(found.detectors, found.detectors_ms, found.operators_ms, strict=True)
        for keys, detector_ms, operator_ms in each:
            took = time_of_places(operator_ms)
            if not sum(took.values()):
                raise UserError(
                    "this runtime did not tell what operators take; use --prior compute"
                )
            scale = float(detector_ms) / sum(took.values())
            *backbone, neck_head = keys
            for index, key in enumerate(backbone):
                taken[key].append(scale * took.get(f"backbone/{index}", 0.0))
            rest = sum(took.get(part, 0.0) for part in AFTER_BACKBONE)
            taken[neck_head].append(scale * rest)
        computed = Compute().prices(found)
        seen = {key: float(np.mean(ms)) for key, ms in taken.items() if sum(ms) > 0}
        level = float(np.median([price / computed[key] for key, price in seen.items()]))
        return {key: seen.get(key, level * computed[key]) for key in found.blocks}


PRIORS: dict[PriorName, Prior] = {
    "isolated": Isolated(),
    "chain": Chain(),
    "compute": Compute(),
    "profile": Profile(),
}


def prior_name(text: str) -> PriorName:
    """Return the name of a prior as such.

    Raises:
        UserError: there is none of that name.
    """
    for known in PRIORS:
        if known == text:
            return known
    raise UserError(f"no prior is called {text!r}; there are {', '.join(PRIORS)}")


def prior_of(name: str) -> Prior:
    """Return the prior of a name.

    Raises:
        UserError: there is none of that name.
    """
    return PRIORS[prior_name(name)]


def usual_prior(runtime: str) -> PriorName:
    """Return the prior to start from on a runtime: blocks alone mean little on a GPU."""
    return "isolated" if runtime in CPU_RUNTIMES else "compute"


def _builder(block: Block, repeats: int = 1) -> Builder:
    def build() -> bytes:
        return block_onnx(block, top_k=TOP_K, rng=np.random.default_rng(0), repeats=repeats)

    return build


def _chain_name(key: str, length: int) -> str:
    return f"{length} x {key}"


def _work(block: Block) -> Floats:
    """Return multiply-accumulates, values moved (inputs, outputs and weights), and kernels."""
    convs = list(convolutions(block))
    moved = sum(
        (conv.in_channels + conv.out_channels) * conv.positions + conv.weights for conv in convs
    )
    kernels = len(convs)
    if isinstance(block, NeckHead):  # the towers run once for each level of the pyramid
        on_all = sum(height * width for height, width in block.level_sizes)
        kernels += sum(conv.positions == on_all for conv in convs) * (len(block.level_sizes) - 1)
    return np.array([sum(conv.macs for conv in convs), moved, kernels], np.float64)
