"""TorchSession: a PyTorch detector behind the same interface as an exported one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detofa.blocks import NeckHead
from detofa.runtime.detections import Detections
from detofa.runtime.session import Closing
from detofa.supernet.decode import DecodedDetector


class TorchSession(Closing):
    """Run a detector in PyTorch; see `detofa.runtime.session.Session`.

    Args:
        detector: Maps images to class and side logits, in evaluation mode.
        neck_head: The detector's last block.
        top_k: Candidate boxes that leave the network.
    """

    def __init__(self, detector: nn.Module, neck_head: NeckHead, top_k: int) -> None:
        self.neck_head = neck_head
        self.image_size = (neck_head.height, neck_head.width)
        self.takes_pixels = self.suppresses = False
        self.device = next(detector.parameters()).device
        self._module = DecodedDetector(detector, neck_head, top_k).to(self.device).eval()

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Map (B, 3, H, W) to boxes_xyxy (B, K, 4) and scores (B, K, C)."""
        boxes_xyxy, scores, _, _ = self.run_all(images)
        return boxes_xyxy.cpu().numpy(), scores.cpu().numpy()

    def run_suppressed(self, images: NDArray[np.float32]) -> list[Detections]:
        """Refuse: see `suppresses`."""
        raise AssertionError("a PyTorch detector gives candidates")

    @torch.inference_mode()
    def run_all(self, images: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the same, and class_logits (B, A, C) and side_logits (B, A, 4, bins)."""
        inputs = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = self._module(inputs)
        return outputs
