"""All readers of the package, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz import datasets, models, records
from tests.fuzz.reader import Reader

READERS: Mapping[str, Callable[[Path], Reader]] = {
    "subnet": records.subnet,
    "subnet weights": models.subnet_weights,
    "supernet": models.supernet,
    "safetensors": models.tensors,
    "checkpoint": models.checkpoints,
    "latency table": records.latency_table,
    "kit results": records.kit_results,
    "sample log": records.sample_log,
    "path filter": records.path_filter,
    "run config": records.run_config,
    "metrics": records.metrics,
    "coco": datasets.coco,
    "voc": datasets.voc,
    "yolo": datasets.yolo,
    "image": datasets.images,
    "image tar": datasets.image_tars,
    "onnx": models.onnx_files,
    "manifest": records.manifest,
    "engine record": records.engine_record,
    "engine layers": records.inspector,
    "packed detector": models.packed_detectors,
    "packed kit": models.packed_kits,
    "quantity": records.quantities,
}
"""Makers of readers; each may prepare its files in a folder."""
