"""The demo: the whole loop on handwritten digits, from making the data to measured detectors."""

from detofa.demo.loop import DemoSize, run_demo

__all__ = ["DemoSize", "run_demo"]
