"""What a detector costs: exact compute, and latency measured and predicted on a device."""
