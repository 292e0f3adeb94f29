"""TorchSession: a PyTorch detector behind the same interface as an exported one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detofa.blocks import NeckHead
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
        self.image_size = (neck_head.height, neck_head.width)
        self.device = next(detector.parameters()).device
        self._module = DecodedDetector(detector, neck_head, top_k).to(self.device).eval()

    @torch.inference_mode()
    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Map (B, 3, H, W) to boxes_xyxy (B, K, 4) and scores (B, K, C)."""
        inputs = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
        boxes_xyxy, scores, _, _ = self._module(inputs)
        return boxes_xyxy.cpu().numpy(), scores.cpu().numpy()
