"""Weights and training state on disk: safetensors files with a JSON header, written atomically."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from detofa.errors import UserError
from detofa.files import SCHEMA, atomic_path
from detofa.subnet import Subnet
from detofa.supernet.classifier import ClassifierSupernet
from detofa.supernet.detector import StaticDetector, Supernet
from detofa.supernet.sharing import ArchModule, WeightSharing, network_from_state
from detofa.train.supernet_record import TRAIN, SupernetRecord, read_header

_CLASS_OUTPUTS = ("largest.head.class_tower.output.", "largest.tail.linear.")
_OPTIMISER_PARTS = ("step", "exp_avg", "exp_avg_sq")


def save_supernet(path: Path, supernet: WeightSharing[Any], record: SupernetRecord) -> None:
    """Write a supernet's weights and record atomically."""
    network = "detector" if isinstance(supernet, Supernet) else "classifier"
    header = {"network": network} | record.to_json()
    write_tensors(path, dict(supernet.state_dict()), "supernet", header)


def load_supernet(path: Path) -> tuple[Supernet, SupernetRecord]:
    """Read the supernet of detectors that `save_supernet` wrote.

    Returns:
        The supernet, in evaluation mode, and its record.

    Raises:
        UserError: missing, truncated, of another kind, or not whole.
    """
    supernet, record = load_any_supernet(path)
    if not isinstance(supernet, Supernet):
        raise UserError(
            f"{path} holds classifiers, which find no objects; start from it with `detofa train "
            f"--init {path}`"
        )
    return supernet, record


def load_any_supernet(path: Path) -> tuple[WeightSharing[Any], SupernetRecord]:
    """Read a supernet of detectors or of classifiers; see `load_supernet`."""
    tensors, header = read_tensors(path, "supernet", remake=TRAIN)
    record = SupernetRecord.from_json(header, path)
    try:
        supernet: WeightSharing[Any] = (
            Supernet(record.space)
            if header["network"] == "detector"
            else ClassifierSupernet(record.space)
        )
        supernet.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not hold a whole supernet: {reason}; see {TRAIN}") from error
    return supernet.eval(), record


def load_earlier_supernet(
    supernet: WeightSharing[Any], path: Path, categories: tuple[tuple[int, str], ...]
) -> None:
    """Start from an earlier supernet, perhaps of other classes, or of classifiers.

    All weights of equal name and shape are taken; the class outputs of a class that both know by
    name are taken too, those of a new class stay as initialised. Between detectors and classifiers
    that leaves the backbone.

    Raises:
        UserError: the earlier supernet is of another family of spaces.
    """
    earlier, record = load_any_supernet(path)
    if earlier.space.name != supernet.space.name:
        raise UserError(
            f"{path} holds a supernet of space {earlier.space.name}, this run trains "
            f"{supernet.space.name}; choose --space {earlier.space.name}"
        )
    own, given = supernet.state_dict(), earlier.state_dict()
    rows = {name: row for row, (_, name) in enumerate(record.categories)}
    with torch.no_grad():
        for name, value in own.items():
            source = given.get(name)
            if source is None:
                continue
            if name.startswith(_CLASS_OUTPUTS):
                for row, (_, category) in enumerate(categories):
                    if category in rows:
                        value[row].copy_(source[rows[category]])
            elif source.shape == value.shape:
                value.copy_(source)


def save_training_state(
    path: Path, supernet: ArchModule[Any], averaged: nn.Module, optimiser: Optimizer, step: int
) -> None:
    """Write all that a training run needs to go on, in one file."""
    tensors = {f"weights/{name}": value for name, value in supernet.state_dict().items()}
    tensors |= {f"averaged/{name}": value for name, value in averaged.state_dict().items()}
    for name, parameter in supernet.named_parameters():
        for part, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{name}/{part}"] = value
    write_tensors(path, tensors, "training_state", {"step": step})


def load_training_state(
    path: Path, supernet: ArchModule[Any], averaged: nn.Module, optimiser: Optimizer
) -> int:
    """Restore what `save_training_state` wrote; return the step to go on with.

    Raises:
        UserError: missing, truncated, or of another supernet.
    """
    tensors, header = read_tensors(path, "training_state", remake=TRAIN)
    try:
        supernet.load_state_dict(_under(tensors, "weights/"))
        averaged.load_state_dict(_under(tensors, "averaged/"))
        for name, parameter in supernet.named_parameters():
            state = _under(tensors, f"optimiser/{name}/")
            if state:
                optimiser.state[parameter] = {
                    part: state[part].to(parameter.device if part != "step" else "cpu")
                    for part in _OPTIMISER_PARTS
                }
        return int(header["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a state of this run ({str(error).splitlines()[0]}); remove it to start "
            "again"
        ) from error


def write_tensors(
    path: Path, tensors: dict[str, Tensor], kind: str, header: dict[str, Any]
) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically."""
    text = json.dumps({"schema": SCHEMA, "kind": kind, **header}, allow_nan=False)
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata={"detofa": text})


def read_tensors(path: Path, kind: str, *, remake: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        UserError: missing, truncated, from elsewhere, of another kind or schema.
    """
    header = read_header(path, kind, remake=remake)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); make it again with {remake}"
        ) from error


def save_subnet_weights(path: Path, detector: StaticDetector) -> None:
    """Write the weights of an extracted and recalibrated detector."""
    write_tensors(path, dict(detector.state_dict()), "subnet_weights", {})


def load_subnet(path: Path) -> tuple[Subnet, StaticDetector]:
    """Read a subnet.json and the detector that its weights make, in evaluation mode.

    Raises:
        UserError: see `Subnet.load`; or the weights are not those of its arch.
    """
    subnet = Subnet.load(path)
    weights = path.parent / subnet.weights_file
    tensors, _ = read_tensors(weights, "subnet_weights", remake="`detofa search`")
    try:
        detector = network_from_state(StaticDetector, subnet.space, subnet.arch, tensors)
    except RuntimeError as error:
        raise UserError(
            f"{weights} does not hold the weights of the arch in {path}: "
            f"{str(error).splitlines()[0]}; make both again with `detofa search`"
        ) from error
    return subnet, detector.eval()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
