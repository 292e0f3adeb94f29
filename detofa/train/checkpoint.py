"""Weights and training state on disk: safetensors files with a JSON header, written atomically."""

import hashlib
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
from detofa.train.loss_guard import LossGuard
from detofa.train.supernet_record import TRAIN, SupernetRecord, earlier_state, read_header

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
    path: Path,
    supernet: ArchModule[Any],
    averaged: nn.Module,
    optimiser: Optimizer,
    step: int,
    guard: LossGuard,
) -> None:
    """Write all that a training run needs to go on, in one file; the one before it is kept."""
    tensors = {f"weights/{name}": value for name, value in supernet.state_dict().items()}
    tensors |= {f"averaged/{name}": value for name, value in averaged.state_dict().items()}
    for name, parameter in supernet.named_parameters():
        for part, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{name}/{part}"] = value
    header = {"step": step, "guard": guard.to_json()}
    write_tensors(path, tensors, "training_state", header, keep=earlier_state(path))


def load_training_state(
    path: Path, supernet: ArchModule[Any], averaged: nn.Module, optimiser: Optimizer
) -> tuple[int, LossGuard, str]:
    """Restore what `save_training_state` wrote: the newest state, or the one before it.

    Returns:
        The step to go on with, what the guard knew, and a note for the user where the newest state
        is broken, else an empty text.

    Raises:
        UserError: missing, or both truncated or damaged; or of another supernet.
    """
    path, tensors, header, note = _newest_whole(path)
    try:
        supernet.load_state_dict(_under(tensors, "weights/"))
        averaged.load_state_dict(_under(tensors, "averaged/"))
        for name, parameter in supernet.named_parameters():
            state = _under(tensors, f"optimiser/{name}/")
            optimiser.state.pop(parameter, None)  # of a run that goes back to its start
            if state:
                optimiser.state[parameter] = {
                    part: state[part].to(parameter.device if part != "step" else "cpu")
                    for part in _OPTIMISER_PARTS
                }
        return int(header["step"]), LossGuard.from_json(header["guard"]), note
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a state of this run ({str(error).splitlines()[0]}); remove it to start "
            "again"
        ) from error


def _newest_whole(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any], str]:
    """Return the newest training state that can be read, and what is wrong with a newer one."""
    earlier, note = earlier_state(path), ""
    try:
        return path, *read_tensors(path, "training_state", remake=TRAIN), note
    except UserError as error:
        if not earlier.is_file():
            raise
        note = f"{error}; going on from the state before it" if path.exists() else ""
    return earlier, *read_tensors(earlier, "training_state", remake=TRAIN), note


def write_tensors(
    path: Path,
    tensors: dict[str, Tensor],
    kind: str,
    header: dict[str, Any],
    *,
    keep: Path | None = None,
) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically.

    Args:
        path: The file.
        tensors: By name.
        kind: What it is; `read_tensors` asks for it.
        header: More of the header.
        keep: Where the file that is there already goes, once the new one is whole.
    """
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    known = {"schema": SCHEMA, "kind": kind, "sha256": _digest(whole)}
    text = json.dumps({**known, **header}, allow_nan=False)
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata={"detofa": text})
        if keep is not None and path.is_file():
            path.replace(keep)


def read_tensors(path: Path, kind: str, *, remake: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        UserError: missing, truncated, damaged, from elsewhere, of another kind or schema.
    """
    header = read_header(path, kind, remake=remake)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); make it again with {remake}"
        ) from error
    if header.get("sha256") not in (None, _digest(tensors)):  # None: written by an earlier version
        raise UserError(
            f"{path} is damaged: its weights are not those that were written; make it again with "
            f"{remake}"
        )
    return tensors, header


def _digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].contiguous().view(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


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
    except ValueError as error:
        raise UserError(
            f"{weights} does not hold the weights of the arch in {path}: {error}; make both again "
            "with `detofa search`"
        ) from error
    return subnet, detector.eval()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
