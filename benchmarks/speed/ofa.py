"""Once-for-all's own code, package `ofa`, as its users call it."""

import random
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from detofa.arch import Arch
from detofa.space import SearchSpace

KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
LARGEST = {"ks": [7] * 20, "e": [6] * 20, "d": [4] * 5}
SMALLEST = {"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5}
Config = dict[str, list[int]]


def supernet(num_classes: int = 1000) -> Any:
    """Return its MobileNetV3 supernet, initialised, with statistics of one batch of noise."""
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
    from ofa.utils import init_models

    torch.manual_seed(0)
    network = OFAMobileNetV3(
        n_classes=num_classes,
        dropout_rate=0,
        ks_list=list(KERNELS),
        expand_ratio_list=list(EXPANSIONS),
        depth_list=list(DEPTHS),
    )
    init_models(network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 96, 96))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network


def arch_of(space: SearchSpace, config: Config) -> Arch:
    """Return the same network as a config, neck and head the largest."""
    kernels: list[tuple[int, ...]] = [(3,)]
    ratios: list[tuple[int, ...]] = [(1,)]
    for stage, depth in enumerate(config["d"]):
        kernels.append(tuple(config["ks"][4 * stage : 4 * stage + depth]))
        ratios.append(tuple(config["e"][4 * stage : 4 * stage + depth]))
    return replace(space.largest, kernel_sizes=tuple(kernels), expand_ratios=tuple(ratios))


def draw(rng: random.Random) -> Config:
    """Return a random network of its space."""
    return {
        "ks": [rng.choice(KERNELS) for _ in range(20)],
        "e": [rng.choice(EXPANSIONS) for _ in range(20)],
        "d": [rng.choice(DEPTHS) for _ in range(5)],
    }
