"""Detections: the one data type for what a detector found in one image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes found in one image, best score first.

    Attributes:
        boxes_xyxy: (N, 4) float32, pixels of the original image.
        scores: (N,) float32, from 0 to 1.
        labels: (N,) int64, indices into the list of categories (not the data set's own ids).
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check the shapes."""
        count = len(self.scores)
        assert self.boxes_xyxy.shape == (count, 4), self.boxes_xyxy.shape
        assert self.labels.shape == (count,), self.labels.shape

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.scores)
