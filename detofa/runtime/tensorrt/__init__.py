"""TensorRT: engines built, checked, opened and timed; 10.16 and 11, strongly typed.

Nothing here needs PyTorch or ONNX, so that a device can build its own engine: engines run only on
the GPU and the version that built them.
"""
