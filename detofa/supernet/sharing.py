"""Weight sharing: any network of a space runs on slices of the largest one's weights."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from detofa.arch import Arch
from detofa.space import SearchSpace

Network = TypeVar("Network", bound=nn.Module)
Build = Callable[[SearchSpace, Arch], Network]
"""Makes the static network of one arch."""


class ArchModule(nn.Module, ABC, Generic[Network]):
    """A module that is told which arch to run: one of many, or the only one it has.

    Attributes:
        space: The space that the archs are of.
    """

    space: SearchSpace

    @abstractmethod
    def forward(self, images: Tensor, arch: Arch) -> Any:
        """Run one arch on images (B, 3, H, W); outputs are those of its static network."""

    @abstractmethod
    def extract(self, arch: Arch) -> Network:
        """Return the static network of `arch` with its own copy of the weights."""


class OneNetwork(ArchModule[Network]):
    """A static network by itself, to be trained as a supernet is.

    Args:
        space: The search space.
        arch: The network's.
        network: Its weights are trained in place.
    """

    def __init__(self, space: SearchSpace, arch: Arch, network: Network) -> None:
        super().__init__()
        self.space, self.arch = space, arch
        self.network = network

    def forward(self, images: Tensor, arch: Arch) -> Any:
        """Run the network, which must be of `arch`."""
        assert arch == self.arch, "a static network runs its own arch only"
        return self.network(images)

    def extract(self, arch: Arch) -> Network:
        """Return a copy of the network; its running statistics are to be recalibrated."""
        assert arch == self.arch, "a static network has its own arch only"
        return copy.deepcopy(self.network)


class WeightSharing(ArchModule[Network]):
    """All networks of a space on one set of weights.

    The weights are those of the largest network, plus matrices that derive smaller depthwise
    kernels from larger ones. Any other network uses the first blocks of a stage, the first
    channels of a layer and the transformed centre of a kernel (once-for-all, arXiv 1908.09791).

    Args:
        space: The search space.
        build: Makes the static network of an arch; its backbone is under `backbone`.
    """

    def __init__(self, space: SearchSpace, build: Build[Network]) -> None:
        super().__init__()
        self.space = space
        self._build = build
        self.largest: Network = build(space, space.largest)
        self.kernel_transforms = nn.ParameterDict()
        for index, stage in enumerate(space.stages):
            for position in range(stage.max_depth):
                for small in stage.kernel_sizes[:-1]:
                    key = _transform_key(index, position, small)
                    self.kernel_transforms[key] = nn.Parameter(torch.eye(small * small))

    def forward(self, images: Tensor, arch: Arch) -> Any:
        """Run one arch on images (B, 3, H, W); outputs are those of its static network.

        Gradients flow to the shared weights. The shared running statistics are used in evaluation
        mode but never updated: a mixture of many archs' statistics fits none, so each is
        recalibrated before use. One thread may run one arch while another thread runs another.
        """
        skeleton = _skeleton(self._build, self.space, arch)
        skeleton.train(self.training)
        return functional_call(skeleton, self.sliced_state(arch), (images,), strict=True)

    def sliced_state(self, arch: Arch) -> dict[str, Tensor]:
        """Return the state of the static network of `arch` as slices of the shared weights."""
        shared: dict[str, Tensor] = dict(self.largest.named_parameters())
        shared.update(self.largest.named_buffers())
        wanted = _shapes(self._build, self.space, arch)
        return {name: self._slice(name, shared[name], shape) for name, shape in wanted.items()}

    def extract(self, arch: Arch) -> Network:
        """Return the static network of `arch` with its own copy of the weights.

        It equals `self(images, arch)`; its running statistics must be recalibrated before use.

        Raises:
            UserError: the arch is not in the space.
        """
        self.space.check(arch)
        state = {name: value.detach().clone() for name, value in self.sliced_state(arch).items()}
        network = network_from_state(self._build, self.space, arch, state)
        network.train(self.training)
        return network

    def _slice(self, name: str, shared: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 4 and shape[2:] != shared.shape[2:]:
            _, _, stage, position, *_ = name.split(".")  # backbone.stages.S.P.depthwise.conv.weight
            shared = self._smaller_kernel(shared[: shape[0]], int(stage), int(position), shape[3])
        if shared.shape == shape:
            return shared
        return shared[tuple(slice(length) for length in shape)]

    def _smaller_kernel(self, weight: Tensor, stage: int, position: int, size: int) -> Tensor:
        for small in reversed(self.space.stages[stage].kernel_sizes):
            if size <= small < weight.shape[-1]:
                margin = (weight.shape[-1] - small) // 2
                centre = weight[..., margin : margin + small, margin : margin + small]
                matrix = self.kernel_transforms[_transform_key(stage, position, small)]
                weight = nn.functional.linear(centre.flatten(2), matrix)
                weight = weight.reshape(*centre.shape)
        return weight


def network_from_state(
    build: Build[Network], space: SearchSpace, arch: Arch, state: Mapping[str, Tensor]
) -> Network:
    """Return a network that holds the given tensors; nothing is initialised and thrown away."""
    with torch.device("meta"):
        network = build(space, arch)
    network.load_state_dict(state, assign=True)
    return network


@lru_cache(maxsize=16)  # some 2 MB each; random paths hardly ever come back
def _skeleton(build: Build[nn.Module], space: SearchSpace, arch: Arch) -> nn.Module:
    with torch.device("meta"):
        skeleton = build(space, arch)
    for module in skeleton.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    return skeleton


def _shapes(build: Build[nn.Module], space: SearchSpace, arch: Arch) -> dict[str, tuple[int, ...]]:
    state = _skeleton(build, space, arch).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def _transform_key(stage: int, position: int, small: int) -> str:
    return f"stage{stage}_block{position}_to{small}"
