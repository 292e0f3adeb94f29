"""Export: from a PyTorch detector to a checked file for another runtime."""
