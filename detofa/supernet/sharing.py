"""Weight sharing: any network of a space runs on slices of the largest one's weights."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from detofa.arch import Arch
from detofa.space import SearchSpace

Network = TypeVar("Network", bound=nn.Module)
Build = Callable[[SearchSpace, Arch], Network]
"""Makes the static network of one arch."""


Place = tuple[slice, ...]
"""Which part of a weight: the first so many along each axis; () is all of it."""

Part = Callable[[Tensor, Place], Tensor]
"""Takes a part of a weight."""


class Leaf(NamedTuple):
    """A part of a weight, for the gradient of one path.

    Attributes:
        weight: The whole weight.
        place: Which part of it.
        tensor: The part: it shares memory with the weight, but not its graph.
    """

    weight: Tensor
    place: Place
    tensor: Tensor


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
    def path(self, arch: Arch) -> tuple[Network, list[Leaf]]:
        """Return the network of `arch` on the weights of this module, and these as leaves.

        Gradients of its outputs end at the leaves. To go through the slices to the weights would
        fill a tensor of a weight's whole size for each slice that a path takes of it.
        """

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

    def path(self, arch: Arch) -> tuple[Network, list[Leaf]]:
        """Return the network itself and its weights."""
        assert arch == self.arch, "a static network runs its own arch only"
        return self.network, [Leaf(weight, (), weight) for weight in self.parameters()]

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
        self._sources = dict(self.largest.named_modules())
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
        return self._network(arch, _part, statistics=not self.training)(images)

    def path(self, arch: Arch) -> tuple[Network, list[Leaf]]:
        """Return the network of `arch` on slices of the shared weights, and these as leaves."""
        leaves: list[Leaf] = []

        def leaf(weight: Tensor, place: Place) -> Tensor:
            tensor = _part(weight.detach(), place).requires_grad_()
            leaves.append(Leaf(weight, place, tensor))
            return tensor

        return self._network(arch, leaf, statistics=not self.training), leaves

    @torch.no_grad()
    def extract(self, arch: Arch) -> Network:
        """Return the static network of `arch` with its own copy of the weights.

        It equals `self(images, arch)`; its running statistics must be recalibrated before use.

        Raises:
            UserError: the arch is not in the space.
        """
        self.space.check(arch)
        network = self._network(arch, _part, statistics=True)
        for module in network.modules():
            for name, weight in module._parameters.items():
                module._parameters[name] = None if weight is None else nn.Parameter(weight.clone())
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()
        return network

    def _network(self, arch: Arch, part: Part, *, statistics: bool) -> Network:
        """Return the network of `arch` on parts of the shared weights, with statistics or none."""

        def shared(path: str, name: str, wanted: Tensor) -> Tensor | None:
            source = self._sources[path]
            statistic = source._buffers.get(name)
            if statistic is not None:
                return _part(statistic, _first(wanted, statistic)) if statistics else None
            weight = source._parameters[name]
            assert weight is not None
            if wanted.dim() == 4 and wanted.shape[2:] != weight.shape[2:]:
                return self._smaller_kernel(path, weight, wanted, part)
            return part(weight, _first(wanted, weight))

        skeleton = _skeleton(self._build, self.space, arch)
        return cast(Network, _filled(skeleton, shared, training=self.training))

    def _smaller_kernel(self, path: str, weight: Tensor, wanted: Tensor, part: Part) -> Tensor:
        _, _, stage, position, *_ = path.split(".")  # backbone.stages.S.P.depthwise.conv
        kernel, size = part(weight, (slice(len(wanted)),)), wanted.shape[-1]
        for small in reversed(self.space.stages[int(stage)].kernel_sizes):
            if size <= small < kernel.shape[-1]:
                margin = (kernel.shape[-1] - small) // 2
                centre = kernel[..., margin : margin + small, margin : margin + small]
                matrix = self.kernel_transforms[_transform_key(int(stage), int(position), small)]
                kernel = nn.functional.linear(centre.flatten(2), part(matrix, ()))
                kernel = kernel.reshape(*centre.shape)
        return kernel


def network_from_state(
    build: Build[Network], space: SearchSpace, arch: Arch, state: Mapping[str, Tensor]
) -> Network:
    """Return a network that holds the given tensors; nothing is initialised and thrown away.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape; names it.
    """
    skeleton = _skeleton(build, space, arch)
    wanted = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    for name in sorted(wanted.keys() | state.keys()):
        given = tuple(state[name].shape) if name in state else None
        if given != wanted.get(name):
            raise ValueError(f"{name} should be {wanted.get(name)}, got {given}")

    def given_one(path: str, name: str, wanted: Tensor) -> Tensor:
        tensor = state[f"{path}.{name}"]
        return nn.Parameter(tensor) if isinstance(wanted, nn.Parameter) else tensor

    return cast(Network, _filled(skeleton, given_one, training=True))


def _filled(
    skeleton: nn.Module,
    tensor_of: Callable[[str, str, Tensor], Tensor | None],
    *,
    training: bool,
) -> nn.Module:
    """Return a copy of a module with other tensors; it shares nothing that can be changed.

    Args:
        skeleton: The module; its tensors have shapes and nothing else.
        tensor_of: Gives what takes the place of a tensor, from the path of the module that holds
            it, its name there, and itself.
        training: The mode that the copy is in.
    """

    def copied(module: nn.Module, path: str) -> nn.Module:
        found = module.__new__(type(module))
        held: dict[str, Any] = {
            key: value.copy() if isinstance(value, (dict, set)) else value
            for key, value in module.__dict__.items()
        }
        held["training"] = training
        found.__dict__ = held
        for tensors in (held["_parameters"], held["_buffers"]):
            for name, value in tensors.items():
                if value is not None:
                    tensors[name] = tensor_of(path, name, value)
        children = held["_modules"]
        for name, child in children.items():
            children[name] = copied(child, f"{path}.{name}" if path else name)
        return found

    return copied(skeleton, "")


@lru_cache(maxsize=16)  # random paths hardly ever come back; their layers do
def _skeleton(build: Build[nn.Module], space: SearchSpace, arch: Arch) -> nn.Module:
    with torch.device("meta"):
        return build(space, arch)


def _first(wanted: Tensor, given: Tensor) -> Place:
    """Return the place of the first entries along each axis, as many as are wanted."""
    if wanted.shape == given.shape:
        return ()
    return tuple(slice(length) for length in wanted.shape)


def _part(tensor: Tensor, place: Place) -> Tensor:
    return tensor[place] if place else tensor


def _transform_key(stage: int, position: int, small: int) -> str:
    return f"stage{stage}_block{position}_to{small}"
