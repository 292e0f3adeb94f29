"""The sandwich: which paths a step trains, and the same gradients however they are computed."""

import dataclasses

import pytest
import torch
from torch import Tensor

from detofa.arch import Arch
from detofa.data.loader import Batch
from detofa.presets import preset
from detofa.supernet.decode import anchor_points
from detofa.supernet.detector import Supernet
from detofa.supernet.loss import assign, detection_loss, distillation_loss
from detofa.train.config import TrainConfig
from detofa.train.detection import DetectionObjective
from detofa.train.gradients import Gradients, SandwichGradients
from detofa.train.ranks import ALONE
from detofa.train.sandwich import Sandwich

CPU = torch.device("cpu")
SIZES = ((64, 64), (64, 96))


def batch_of(images: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(images, 2, 2, generator=generator) * 20
    return Batch(
        images=torch.randn(images, 3, *SIZES[-1], generator=generator),
        boxes_xyxy=[torch.cat([corner, corner + 24], 1) for corner in corners],
        labels=[torch.tensor([0, 1])] * images,
    )


def supernet_of() -> Supernet:
    torch.manual_seed(0)
    return Supernet(preset("tiny", num_classes=2, image_sizes=SIZES)).train()


def paths_of(supernet: Supernet) -> list[Arch]:
    """Return both ends and one more path at the size of each."""
    space = supernet.space
    other = dataclasses.replace(space.smallest, image_size=space.largest.image_size)
    return [space.largest, space.smallest, other]


def gradients_of(
    supernet: Supernet,
    config: TrainConfig,
    archs: list[Arch],
    threads: int,
    batch: Batch | None = None,
) -> tuple[float, Gradients]:
    objective = DetectionObjective(supernet.space, config, CPU)
    return SandwichGradients(supernet, objective, CPU, threads, ALONE.means(len(archs)))(
        batch or batch_of(), archs
    )


def test_a_sandwich_has_both_ends_and_depends_on_seed_and_step_alone() -> None:
    space = preset("lite0", num_classes=2)
    sandwich = Sandwich(space, space, 3, seed=1)
    steps = [sandwich(step) for step in range(130)]
    assert all(paths[:2] == [space.largest, space.smallest] for paths in steps)
    assert all(len(set(paths)) == 5 for paths in steps)
    assert len({tuple(paths) for paths in steps}) == 130
    again = Sandwich(space, space, 3, seed=1)
    assert [again(step) for step in reversed(range(130))] == steps[::-1]
    assert Sandwich(space, space, 3, seed=2)(7) != steps[7]


def test_a_path_drawn_twice_is_trained_once() -> None:
    space = preset("tiny", num_classes=2, image_sizes=SIZES)
    paths = Sandwich(space, space, 3000, seed=0)(0)
    assert len(paths) < 3002
    assert len(set(paths)) == len(paths)


def test_a_sandwich_without_random_paths_is_both_ends() -> None:
    space = preset("tiny", num_classes=2, image_sizes=SIZES)
    assert Sandwich(space, space, 0, seed=0)(5) == [space.largest, space.smallest]


def test_gradients_are_those_of_the_summed_losses() -> None:
    supernet = supernet_of()
    archs = paths_of(supernet)
    config = TrainConfig(data="x", distillation=0.5)
    mean_loss, gradients = gradients_of(supernet, config, archs, threads=2)

    batch, losses = batch_of(), []
    teacher, targets = None, None
    for arch in archs:
        neck_head = supernet.space.neck_head(arch)
        points_xy, strides = anchor_points(neck_head)
        images, boxes = batch.images, batch.boxes_xyxy
        if arch.image_size == (64, 64):
            images = torch.nn.functional.interpolate(
                images, (64, 64), mode="bilinear", antialias=True
            )
            boxes = [box * torch.tensor([64 / 96, 1, 64 / 96, 1]) for box in boxes]
        outputs: tuple[Tensor, Tensor] = supernet(images, arch)
        if arch.image_size == (64, 64) or targets is None:
            goal = assign(*outputs, points_xy, strides, boxes, batch.labels)
        else:
            goal = targets
        loss = detection_loss(*outputs, goal, points_xy, strides, config.losses)
        if teacher is None:
            teacher, targets = outputs, goal
        elif arch.image_size == (64, 96):
            loss = loss + 0.5 * distillation_loss(outputs, teacher, goal)
        losses.append(loss)
    total = torch.stack(losses).sum()
    assert mean_loss == pytest.approx(total.item() / 3, rel=1e-5)
    total.backward()
    for (name, parameter), gradient in zip(supernet.named_parameters(), gradients, strict=True):
        if parameter.grad is None:
            assert gradient is None, name
        else:
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_threads_change_nothing_but_the_time() -> None:
    supernet = supernet_of()
    archs = paths_of(supernet)
    config = TrainConfig(data="x")
    alone = gradients_of(supernet, config, archs, threads=1)
    for _ in range(5):
        beside = gradients_of(supernet, config, archs, threads=3)
        assert beside[0] == alone[0]
        for left, right in zip(alone[1], beside[1], strict=True):
            assert _same(left, right)


def test_a_failing_first_path_fails_the_step_instead_of_hanging_it() -> None:
    supernet = supernet_of()
    batch = batch_of()
    broken = dataclasses.replace(batch, labels=batch.labels[:1])
    with pytest.raises(ValueError, match="shorter"):
        gradients_of(supernet, TrainConfig(data="x"), paths_of(supernet), 2, broken)


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right)
