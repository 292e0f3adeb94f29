"""One regressor over all budgets, as once-for-all fits: what the path filter is compared with."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WIDTH = 400
_STEPS = 100
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 10.0  # strong: few labels, many weights


def fit_regressor(
    encoding: NDArray[np.float32], labels: NDArray[np.float64], seed: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Fit a network of three layers to labels by mean squared error (arXiv 1908.09791).

    Args:
        encoding: (N, D) one-hot encoding of archs.
        labels: (N,) their labels.
        seed: Decides the initial weights.

    Returns:
        Maps (M, D) encodings to (M,) predictions, in standard deviations of the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    widths = [encoding.shape[1], _WIDTH, _WIDTH, 1]
    weights = [
        (torch.randn(pair, generator=generator) * math.sqrt(2 / pair[0])).requires_grad_()
        for pair in itertools.pairwise(widths)
    ]
    biases = [torch.zeros(width).requires_grad_() for width in widths[1:]]

    def network(inputs: Tensor) -> Tensor:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs = torch.relu(inputs @ weight + bias)
        return (inputs @ weights[-1] + biases[-1]).squeeze(1)

    inputs = torch.from_numpy(encoding)
    targets = torch.from_numpy((labels - labels.mean()) / (labels.std() or 1)).float()
    parameters = [*weights, *biases]
    optimiser = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(_STEPS):
        loss = torch.nn.functional.mse_loss(network(inputs), targets)
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        optimiser.step()

    def predict(others: NDArray[np.float32]) -> NDArray[np.float64]:
        with torch.no_grad():
            predicted: NDArray[np.float64] = network(torch.from_numpy(others)).double().numpy()
        return predicted

    return predict
