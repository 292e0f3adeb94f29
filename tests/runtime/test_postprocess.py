import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from detofa.imaging import letterbox
from detofa.runtime.postprocess import (
    detections_from_outputs,
    non_maximum_suppression,
    pairwise_iou,
)
from detofa.subnet import PostProcessing


def random_boxes(rng, count, extent=100.0):
    corners = rng.uniform(0, extent, (count, 2))
    sides = rng.uniform(1, extent / 2, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def placed(image_size=(96, 128), original=(96, 128)):
    return letterbox(np.zeros((*original, 3), np.uint8), image_size)[1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("count", [200, 700])  # all compared at once, and in turns
def test_suppression_equals_torchvision(seed, iou_threshold, count):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, count)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    scores[50:100] = scores[0]  # ties keep their order
    labels = rng.integers(0, 3, count)
    kept = non_maximum_suppression(boxes, scores, labels, iou_threshold, count)
    peer = batched_nms(
        torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), iou_threshold
    )
    np.testing.assert_array_equal(np.sort(kept), np.sort(peer.numpy()))
    np.testing.assert_array_equal(scores[kept], scores[peer.numpy()])


def test_suppression_of_many_boxes_keeps_the_best_hundred():
    rng = np.random.default_rng(0)
    boxes, labels = random_boxes(rng, 5000, extent=1000), rng.integers(0, 20, 5000)
    scores = rng.uniform(0, 1, 5000).astype(np.float32)
    kept = non_maximum_suppression(boxes, scores, labels, 0.5, 100)
    peer = batched_nms(
        torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), 0.5
    )
    np.testing.assert_array_equal(kept, peer.numpy()[:100])


def test_overlap_equals_torchvision_and_is_zero_without_area():
    rng = np.random.default_rng(1)
    first, second = random_boxes(rng, 30), random_boxes(rng, 20)
    peer = box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(pairwise_iou(first, second), peer, rtol=1e-6, atol=1e-7)
    point = np.array([[5, 5, 5, 5]], np.float32)
    assert pairwise_iou(point, point)[0, 0] == 0


def test_no_boxes_give_no_boxes():
    none = np.zeros((0, 4), np.float32)
    kept = non_maximum_suppression(none, np.zeros(0, np.float32), np.zeros(0, np.int64), 0.5, 10)
    assert kept.shape == (0,)
    found = detections_from_outputs(
        np.array([[0, 0, 9, 9]], np.float32),
        np.array([[0.1, 0.2]], np.float32),
        PostProcessing(),
        placed(),
    )
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    dtypes = [found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype]
    assert dtypes == [np.dtype(np.float32), np.dtype(np.float32), np.dtype(np.int64)]


def test_one_box_can_be_found_under_two_labels():
    boxes = np.array([[10, 10, 30, 40]], np.float32)
    scores = np.array([[0.6, 0.2, 0.9]], np.float32)
    found = detections_from_outputs(boxes, scores, PostProcessing(), placed())
    assert found.labels.tolist() == [2, 0]
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.6], np.float32))
    agnostic = PostProcessing(class_aware_nms=False)
    assert detections_from_outputs(boxes, scores, agnostic, placed()).labels.tolist() == [2]


def test_a_score_at_the_threshold_counts_and_the_argument_comes_first():
    boxes = np.array([[10, 10, 30, 40]], np.float32)
    scores = np.array([[0.5]], np.float32)
    assert len(detections_from_outputs(boxes, scores, PostProcessing(), placed(), 0.5)) == 1
    assert len(detections_from_outputs(boxes, scores, PostProcessing(), placed(), 0.51)) == 0
    strict = PostProcessing(score_threshold=0.9)
    assert len(detections_from_outputs(boxes, scores, strict, placed(), 0.0)) == 1


def test_boxes_are_clipped_to_the_image_and_empty_or_undefined_ones_go():
    boxes = np.array(
        [
            [-20, -5, 30, 40],
            [200, 10, 220, 20],  # right of the image
            [20, 30, 10, 40],  # no width
            [np.nan, 0, 10, 10],
            [0, 0, np.inf, 10],
        ],
        np.float32,
    )
    scores = np.linspace(0.9, 0.5, 5, dtype=np.float32)[:, None]
    found = detections_from_outputs(boxes, scores, PostProcessing(), placed())
    np.testing.assert_array_equal(found.boxes_xyxy, [[0, 0, 30, 40], [0, 0, 128, 10]])


def test_boxes_in_the_padding_go_and_the_rest_moves_to_the_original_image():
    letterboxed = placed(original=(192, 64))  # scale 0.5: 96x32 inside 96x128, 48 columns left
    boxes = np.array([[0, 0, 40, 96], [48, 0, 80, 96], [56, 24, 64, 48]], np.float32)
    scores = np.array([[0.9], [0.8], [0.7]], np.float32)
    found = detections_from_outputs(boxes, scores, PostProcessing(), letterboxed)
    np.testing.assert_allclose(found.boxes_xyxy, [[0, 0, 64, 192], [16, 48, 32, 96]])


def test_the_cap_keeps_the_best():
    rng = np.random.default_rng(0)
    boxes = np.stack([[8 * i, 0, 8 * i + 6, 9] for i in range(10)]).astype(np.float32)
    scores = rng.permutation(np.linspace(0.4, 0.9, 10, dtype=np.float32))[:, None]
    found = detections_from_outputs(boxes, scores, PostProcessing(max_detections=3), placed())
    np.testing.assert_array_equal(found.scores, np.sort(scores[:, 0])[::-1][:3])
