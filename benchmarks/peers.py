"""Detectors of others, trained from scratch: ultralytics' YOLO11n and torchvision's SSDLite320.

ultralytics is imported in processes of its own, and kept from the network and from the home folder.
"""

import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import tv_tensors
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.transforms import v2

from detofa.data.dataset import DetectionDataset, load_dataset
from detofa.errors import UserError
from detofa.files import write_bytes, write_text
from detofa.imaging import Preprocessing, read_image
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.runtime.session import (
    BOXES_NAME,
    SCORES_NAME,
    Closing,
    OnnxSession,
    Session,
    onnx_ports,
    open_onnx,
)
from detofa.subnet import PostProcessing
from detofa.supernet.recalibrate import recalibrate

YOLO_WIDTHS = {"yolo11n": 0.25, "yolo11n-w0.1875": 0.1875, "yolo11n-w0.125": 0.125}
"""Widths of YOLO11 by name; the first is YOLO11n as published, all have its depth."""
SSDLITE = "ssdlite320"
YOLO_SIZE = (256, 320)  # (height, width) of the exported input; it is trained on 320x320 mosaics
_YOLO_NMS, _SSDLITE_NMS = 0.7, 0.55  # what each comes with
_SSDLITE_SIZE = (320, 320)
_SSDLITE_RATE, _SSDLITE_DECAY = 2e-3, 0.05  # of AdamW
_BATCH = 8
_RECALIBRATED_ON = 64  # images
_VARY = v2.Compose(
    [
        v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(0.5),
        v2.ToDtype(torch.float32, scale=True),
        v2.SanitizeBoundingBoxes(),
        v2.ToPureTensor(),
    ]
)
_OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
Cost = dict[str, float]
Values = NDArray[np.float32]
Categories = tuple[tuple[int, str], ...]


def cost_of(work: Callable[[], object]) -> Cost:
    """Return the seconds of wall, and of processor in this process and those it starts."""
    spent, begin = _cpu_seconds(), time.monotonic()
    work()
    return {"cpu_seconds": _cpu_seconds() - spent, "wall_seconds": time.monotonic() - begin}


def _cpu_seconds() -> float:
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(sum(resource.getrusage(one)[:2]) for one in whose)


def yolo_row(label: int, box_xyxy: Values, size: tuple[int, int]) -> str:
    """Return a box as a line of a YOLO label file: centre and size as shares of (height, width)."""
    x_low, y_low, x_high, y_high = box_xyxy.astype(float) / np.tile(size[::-1], 2)
    centre = (x_low + x_high) / 2, (y_low + y_high) / 2, x_high - x_low, y_high - y_low
    return " ".join([str(label), *(f"{value:.8f}" for value in centre)])


def write_yolo_layout(data: Path, folder: Path) -> Path:
    """Write the training and validation split in YOLO's layout; images are links.

    Returns:
        The data.yaml.
    """
    datasets = {split: load_dataset(data, split) for split in ("train", "val")}
    for split, dataset in datasets.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        for image in dataset.images:
            link, size = images / image.path.name, (image.height, image.width)
            link.unlink(missing_ok=True)
            link.symlink_to(image.path.resolve())
            boxes = zip(image.labels.tolist(), image.boxes_xyxy, strict=True)
            rows = "".join(f"{yolo_row(label, box, size)}\n" for label, box in boxes)
            write_text(labels / f"{image.path.stem}.txt", rows)
    names = {i: category.name for i, category in enumerate(datasets["train"].categories)}
    record = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    write_text(folder / "data.yaml", yaml.safe_dump(record | {"names": names}))
    return folder / "data.yaml"


def train_yolo(
    data: Path, folder: Path, output: Path, width: float, epochs: int, seed: int, threads: int
) -> Cost:
    """Train YOLO11 at a width from random weights to the last epoch, and export it without NMS.

    Mosaics end 8 epochs before the end; with `nbs` 8 every batch is an update. ultralytics looks at
    the validation split once, after the last epoch, and nothing is chosen by it: the averaged
    weights of that epoch count.

    Returns:
        What the training cost.

    Raises:
        UserError: ultralytics is not installed.
    """
    if find_spec("ultralytics") is None or find_spec("onnxslim") is None:
        raise UserError(
            "YOLO needs ultralytics and onnxslim, whose licences and requirements are their own: "
            "in an environment that has detofa, apart from the usual one, `pip install "
            "ultralytics==8.4.190 onnxslim`, and run this with its Python"
        )
    os.environ |= _OFFLINE | {"YOLO_CONFIG_DIR": str(folder / "settings")}
    import ultralytics
    from ultralytics.utils import torch_utils

    torch_utils.NUM_THREADS = threads
    published = Path(ultralytics.__file__).parent / "cfg" / "models" / "11" / "yolo11.yaml"
    architecture = yaml.safe_load(published.read_text())
    architecture["scales"] = {"n": [architecture["scales"]["n"][0], width, 1024]}
    write_text(folder / "architecture.yaml", yaml.safe_dump(architecture))
    settings: dict[str, Any] = {
        "data": str(write_yolo_layout(data, folder / "data")),
        "epochs": epochs,
        "imgsz": max(YOLO_SIZE),
        "batch": _BATCH,
        "nbs": _BATCH,
        "optimizer": "auto",
        "close_mosaic": 8,
        "amp": False,
        "pretrained": False,
        "patience": 0,
        "val": False,
        "plots": False,
        "workers": 0,
        "device": "cpu",
        "seed": seed,
        "project": str(folder.resolve()),
        "name": "train",
        "exist_ok": True,
    }
    model = ultralytics.YOLO(str(folder / "architecture.yaml"), task="detect")
    cost = cost_of(lambda: model.train(**settings))
    trained = ultralytics.YOLO(str(folder / "train" / "weights" / "last.pt"))
    file = trained.export(format="onnx", imgsz=list(YOLO_SIZE), device="cpu", nms=False)
    write_bytes(output, Path(file).read_bytes())
    return cost


def yolo_candidates(output: Values) -> tuple[Values, Values]:
    """Return boxes_xyxy (B, K, 4) and scores (B, K, C) of (B, 4 + C, K), cxcywh and scores."""
    rows = output.transpose(0, 2, 1)
    centres, halves = rows[..., :2], rows[..., 2:4] / 2
    return np.concatenate([centres - halves, centres + halves], axis=-1), rows[..., 4:]


class YoloSession(Closing):
    """A file of ultralytics in ONNX Runtime; see `detofa.runtime.session.Session`."""

    takes_pixels = suppresses = False
    image_size = YOLO_SIZE

    def __init__(self, model: Path) -> None:
        self._session = open_onnx(model)
        (port,) = onnx_ports(self._session)
        assert port.shape == (1, 3, *YOLO_SIZE), port
        self._input = port.name

    def run(self, images: NDArray[Any]) -> tuple[Values, Values]:
        """Run the model on one image."""
        return yolo_candidates(self._session.run(None, {self._input: images})[0])

    def run_suppressed(self, images: NDArray[Any]) -> list[Detections]:
        """Not called: `suppresses` is false."""
        raise AssertionError


def ssdlite(num_classes: int) -> Any:
    """Return SSDLite320 with random weights; torchvision counts the background as a class."""
    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=num_classes + 1
    )


def train_ssdlite(
    data: Path, folder: Path, output: Path, epochs: int, seed: int, threads: int
) -> Cost:
    """Train SSDLite from random weights, and export their average by PyTorch, without NMS.

    torchvision's augmentation for it; AdamW, whose rate rises and falls once. The model itself
    stretches images to 320x320. Its batch norms, whose momentum of 0.03 leaves them far behind
    after so few steps, are recalibrated as detofa's are: on images varied as in training.

    Returns:
        What the training cost.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    dataset = load_dataset(data, "train")
    model = ssdlite(len(dataset.categories))
    average = get_ema_multi_avg_fn(0.99)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    cost = cost_of(lambda: _fit_ssdlite(model.train(), averaged, _training_pairs(dataset), epochs))
    recalibrate_ssdlite(averaged.module, _training_pairs(dataset))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(averaged.module, str(folder / "weights.safetensors"))
    export_ssdlite(averaged.module, output)
    return cost


def recalibrate_ssdlite(model: Any, pairs: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> None:
    """Give the batch norms of SSDLite the statistics of some images as training shows them."""
    chosen = torch.randperm(len(pairs))[:_RECALIBRATED_ON].tolist()
    images = [_VARY(*pairs[index])[0] for index in chosen]
    inputs = model.transform(images)[0].tensors
    recalibrate(nn.Sequential(model.backbone, _Levels(model.head)), inputs)


class _Levels(nn.Module):
    """SSDLite's head on the named levels that its backbone gives."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, levels: Mapping[str, Tensor]) -> Any:
        return self.head(list(levels.values()))


def export_ssdlite(model: Any, output: Path) -> None:
    """Write SSDLite as ONNX: decoded, without NMS."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            SsdliteCandidates(model.eval()).eval(),
            (torch.zeros(1, 3, *_SSDLITE_SIZE),),
            output,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=[BOXES_NAME, SCORES_NAME],
        )


def _fit_ssdlite(
    model: nn.Module,
    averaged: AveragedModel,
    pairs: Sequence[tuple[Tensor, dict[str, Tensor]]],
    epochs: int,
) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), _SSDLITE_RATE, weight_decay=_SSDLITE_DECAY)
    steps = epochs * -(-len(pairs) // _BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _SSDLITE_RATE, steps, pct_start=0.1, cycle_momentum=False
    )
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.split(torch.randperm(len(pairs)), _BATCH):
            images, targets = zip(*(_VARY(*pairs[index]) for index in batch.tolist()), strict=True)
            loss = sum(model(list(images), list(targets)).values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
            averaged.update_parameters(model)
            total += loss.item() * len(batch)
        print(
            f"{SSDLITE}: epoch {epoch + 1} of {epochs}, loss {total / len(pairs):.3f}", flush=True
        )


def _training_pairs(dataset: DetectionDataset) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return images (3, H, W) uint8 and targets; class 0 is torchvision's background."""
    pairs: list[tuple[Tensor, dict[str, Tensor]]] = []
    for record in dataset.images:
        pixels = torch.from_numpy(read_image(record.path)).permute(2, 0, 1)
        boxes = tv_tensors.BoundingBoxes(
            record.boxes_xyxy, format="XYXY", canvas_size=(record.height, record.width)
        )
        target = {"boxes": boxes, "labels": torch.from_numpy(record.labels) + 1}
        pairs.append((tv_tensors.Image(pixels), target))
    return pairs


class SsdliteCandidates(nn.Module):
    """SSDLite from a normalised image to boxes and scores: decoded, without NMS."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        images = torch.zeros(1, 3, *_SSDLITE_SIZE)
        features = list(model.backbone(images).values())
        (anchors,) = model.anchor_generator(ImageList(images, [_SSDLITE_SIZE]), features)
        self.register_buffer("anchors", anchors)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found: Mapping[str, Tensor] = self.model.head(list(self.model.backbone(image).values()))
        boxes = self.model.box_coder.decode_single(found["bbox_regression"][0], self.anchors)
        return boxes[None], found["cls_logits"].softmax(-1)[..., 1:]


def ssdlite_around(session: Session, categories: Categories) -> Detector:
    """Return detofa's detector around SSDLite; it wants images stretched to its input."""
    return Detector(
        session=session,
        preprocessing=Preprocessing(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
        postprocessing=PostProcessing(nms_threshold=_SSDLITE_NMS),
        categories=categories,
    )


def open_peer(name: str, model: Path, categories: Categories) -> Detector:
    """Return detofa's detector around a peer's file."""
    if name == SSDLITE:
        return ssdlite_around(OnnxSession(model), categories)
    return Detector(
        session=YoloSession(model),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
        postprocessing=PostProcessing(nms_threshold=_YOLO_NMS),
        categories=categories,
    )
