"""Nuclei: metrics, targets, loss, post-processing and tiling."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from python_ref.nuclei import (
    Quality,
    aggregated_jaccard,
    central,
    dice,
    hover_loss,
    label_nuclei,
    make_targets,
    panoptic_quality,
    predict_image,
)
from python_ref.nuclei.loss import axis_gradients, dice_loss, gradient_loss

METRICS = (dice, aggregated_jaccard, lambda t, p: panoptic_quality(t, p).pq)


def rectangles(shape, *boxes):
    """Label map with boxes (top, bottom, left, right) numbered from 1."""
    labels = np.zeros(shape, dtype=np.int64)
    for index, (top, bottom, left, right) in enumerate(boxes, start=1):
        labels[top:bottom, left:right] = index
    return labels


def discs(shape, *circles):
    """Label map with discs (row, column, radius) numbered from 1."""
    labels = np.zeros(shape, dtype=np.int64)
    rows, columns = np.indices(shape)
    for index, (row, column, radius) in enumerate(circles, start=1):
        labels[np.hypot(rows - row, columns - column) <= radius] = index
    return labels


TRUTH = rectangles((6, 8), (0, 3, 0, 3), (0, 3, 4, 8), (4, 6, 0, 2))
PREDICTED = rectangles((6, 8), (0, 3, 0, 3), (0, 3, 3, 5), (0, 3, 5, 8), (4, 6, 6, 8))


def test_metrics_of_a_small_example():
    assert dice(TRUTH, PREDICTED) == pytest.approx(42 / 53)
    assert aggregated_jaccard(TRUTH, PREDICTED) == pytest.approx(18 / 35)
    assert panoptic_quality(TRUTH, PREDICTED) == pytest.approx(Quality(4 / 7, 7 / 8, 1 / 2))


@pytest.mark.parametrize("metric", METRICS)
def test_empty_maps_agree_with_each_other_only(metric):
    empty = np.zeros_like(TRUTH)
    assert metric(empty, empty) == 1
    assert metric(TRUTH, empty) == 0
    assert metric(empty, TRUTH) == 0
    assert metric(empty[:0], empty[:0]) == 1


def test_a_prediction_taken_by_two_truths_counts_twice_in_aji():
    truth = rectangles((1, 6), (0, 1, 0, 3), (0, 1, 3, 6))
    predicted = rectangles((1, 6), (0, 1, 0, 6))
    assert aggregated_jaccard(truth, predicted) == pytest.approx(6 / 12)


def test_aji_takes_the_lowest_id_of_equal_ious():
    # One prediction has 1 of its 1 pixels inside, the other 2 of 5: both IoUs are 1/3.
    truth = np.array([[0, 0, 1, 1, 1, 0, 0, 0]])
    predicted = np.array([[0, 0, 1, 2, 2, 2, 2, 2]])
    assert aggregated_jaccard(truth, predicted) == pytest.approx(1 / (3 + 5))
    swapped = np.array([0, 2, 1])[predicted]
    assert aggregated_jaccard(truth, swapped) == pytest.approx(2 / (6 + 1))


label_maps = arrays.arrays(np.int64, (5, 6), elements=st.integers(0, 4))


def sets_of(labels):
    return [set(np.flatnonzero(labels == i)) for i in np.unique(labels) if i]


def iou(a, b):
    return len(a & b) / len(a | b)


@given(label_maps, label_maps)
@settings(max_examples=100, deadline=None)
def test_metrics_equal_their_definition_with_sets(truth, predicted):
    truths, predictions = sets_of(truth), sets_of(predicted)
    if not truths or not predictions:
        return
    inside, union, taken = 0, 0, set()
    for t in truths:
        best = max(range(len(predictions)), key=lambda k: (iou(t, predictions[k]), -k))
        if t & predictions[best]:
            inside += len(t & predictions[best])
            union += len(t | predictions[best])
            taken.add(best)
        else:
            union += len(t)
    union += sum(len(p) for k, p in enumerate(predictions) if k not in taken)
    assert aggregated_jaccard(truth, predicted) == pytest.approx(inside / union)

    matches = [iou(t, p) for t in truths for p in predictions if iou(t, p) > 0.5]
    missed, surplus = len(truths) - len(matches), len(predictions) - len(matches)
    dq = len(matches) / (len(matches) + surplus / 2 + missed / 2)
    sq = sum(matches) / len(matches) if matches else 0
    assert panoptic_quality(truth, predicted) == pytest.approx(Quality(dq, sq, dq * sq))

    t, p = set().union(*truths), set().union(*predictions)
    assert dice(truth, predicted) == pytest.approx(2 * len(t & p) / (len(t) + len(p)))


@given(label_maps, label_maps)
@settings(max_examples=50, deadline=None)
def test_metrics_lie_in_the_unit_interval_and_ignore_the_numbering(truth, predicted):
    for metric in METRICS:
        value = metric(truth, predicted)
        assert 0 <= value <= 1
        assert metric(truth * 7, predicted * 1000) == pytest.approx(value)
        assert metric(truth, truth) == 1


@given(label_maps, label_maps)
@settings(max_examples=50, deadline=None)
def test_dice_and_panoptic_quality_are_symmetric(truth, predicted):
    assert dice(truth, predicted) == pytest.approx(dice(predicted, truth))
    quality = panoptic_quality(truth, predicted)
    assert quality == pytest.approx(panoptic_quality(predicted, truth))


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (TRUTH, PREDICTED[:3], r"got shapes \(6, 8\) and \(3, 8\)"),
        (TRUTH[None], PREDICTED[None], "label maps"),
        (TRUTH, PREDICTED > 0, "predicted must hold integers, got bool"),
        (TRUTH / 1, PREDICTED, "truth must hold integers, got float64"),
    ],
)
def test_bad_label_maps_are_named(truth, predicted, message):
    for metric in METRICS:
        with pytest.raises(ValueError, match=message):
            metric(truth, predicted)


def test_distances_reach_from_minus_one_to_one_on_both_axes():
    labels = discs((80, 90), (20, 20, 11), (50, 60, 17), (22, 60, 9))
    foreground, distances = make_targets(labels)
    assert np.array_equal(foreground, labels > 0)
    for label in (1, 2, 3):
        for axis in (0, 1):
            inside = distances[axis][labels == label]
            assert (inside.min(), inside.max()) == (-1, 1)
    assert not distances[:, labels == 0].any()
    np.testing.assert_allclose(distances[0, 50, 43:78], np.arange(-17, 18) / 17, rtol=1e-6)
    np.testing.assert_allclose(distances[1, 33:68, 60], np.arange(-17, 18) / 17, rtol=1e-6)
    assert not distances[0, :, 60].any()
    assert not distances[1, 50, 43:78].any()


def test_each_side_of_a_lopsided_nucleus_is_scaled_by_itself():
    labels = rectangles((20, 40), (0, 10, 0, 8), (0, 2, 8, 30))
    labels[labels == 2] = 1
    columns = np.nonzero(labels)[1]
    centre = int(columns.mean() + 0.5)
    row = make_targets(labels).distances[0, 0, :30]
    np.testing.assert_allclose(row[: centre + 1], np.linspace(-1, 0, centre + 1), atol=1e-6)
    np.testing.assert_allclose(row[centre:], np.linspace(0, 1, 30 - centre), atol=1e-6)


def test_a_crop_keeps_the_distances_of_whole_nuclei():
    labels = discs((100, 100), (50, 22, 14), (50, 70, 8), (14, 50, 8))
    whole, cropped = make_targets(labels), make_targets(labels, crop=60)
    assert np.array_equal(cropped.foreground, central(whole.foreground, 60))
    kept = central(labels, 60)
    assert 0 < np.count_nonzero(kept == 3) < 30  # a sliver: foreground without distances
    expected = np.where(kept == 3, 0, central(whole.distances, 60))
    np.testing.assert_array_equal(cropped.distances, expected)
    assert expected[0][kept == 1].min() > -1  # the left end of the first is outside


def test_a_crop_must_fit():
    with pytest.raises(ValueError, match=r"crop = 61, got shape \(60, 80\)"):
        make_targets(np.zeros((60, 80), dtype=np.int64), crop=61)


def test_touching_nuclei_are_separated():
    labels = discs((96, 120), (30, 30, 13), (30, 55, 12), (52, 42, 12), (60, 90, 15))
    foreground, distances = make_targets(labels)
    found = label_nuclei(foreground.astype(np.float32), distances)
    assert panoptic_quality(labels, found).pq > 0.95
    assert np.array_equal(found > 0, foreground > 0)


def test_specks_and_empty_maps_give_no_nucleus():
    probability = np.zeros((40, 50), dtype=np.float32)
    distances = np.zeros((2, 40, 50), dtype=np.float32)
    assert not label_nuclei(probability, distances).any()
    probability[5:8, 5:8] = 1  # nine pixels
    assert not label_nuclei(probability, distances).any()
    assert label_nuclei(np.zeros((1, 1)), np.zeros((2, 1, 1))).shape == (1, 1)


def test_a_nucleus_at_the_border_of_the_image_is_found():
    labels = discs((60, 60), (0, 30, 14), (40, 59, 14))
    foreground, distances = make_targets(labels)
    found = label_nuclei(foreground.astype(np.float32), distances)
    assert panoptic_quality(labels, found).dq == 1


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"got \(4, 5\) and \(4, 5, 2\)"):
        label_nuclei(np.zeros((4, 5)), np.zeros((4, 5, 2)))


def test_gradients_are_taken_along_their_own_axis():
    ramp = torch.arange(9.0).expand(1, 1, 7, 9)
    gradients = axis_gradients(torch.cat([ramp, ramp], dim=1))[..., 2:-2, 2:-2]
    # The sum of x * x / (x^2 + y^2) over 5 x 5 positions; by symmetry half of the 24 outer ones.
    torch.testing.assert_close(gradients[:, 0], torch.full((1, 3, 5), 12.0))
    torch.testing.assert_close(gradients[:, 1], torch.zeros(1, 3, 5))


def random_problem():
    torch.manual_seed(0)
    foreground = torch.zeros(2, 9, 11, dtype=torch.long)
    foreground[0, 2:6, 3:8] = 1
    true_distances = torch.rand(2, 2, 9, 11, dtype=torch.float64) * foreground[:, None]
    logits = torch.randn(2, 2, 9, 11, dtype=torch.float64, requires_grad=True)
    distances = torch.randn(2, 2, 9, 11, dtype=torch.float64, requires_grad=True)
    return logits, distances, foreground, true_distances


def test_loss_of_a_perfect_prediction_vanishes():
    _, _, foreground, true_distances = random_problem()
    logits = 50.0 * torch.stack([1 - foreground, foreground], dim=1).double()
    assert hover_loss(logits, true_distances, foreground, true_distances) < 1e-9


def test_loss_adds_its_four_parts_with_weight_one():
    logits, distances, foreground, true_distances = random_problem()
    chance = logits.softmax(1).gather(1, foreground[:, None])
    expected = -chance.log().mean() + (distances - true_distances).square().mean()
    expected = expected + dice_loss(logits, foreground)
    expected = expected + gradient_loss(distances, true_distances, foreground)
    found = hover_loss(logits, distances, foreground, true_distances)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(
        lambda a, b: hover_loss(a, b, foreground, true_distances), (logits, distances)
    )


def test_dice_loss_sums_over_classes_and_takes_the_batch_together():
    logits, _, foreground, _ = random_problem()
    p = logits.softmax(1)[:, 1]
    terms = [
        1 - (2 * q[t].sum() + 1e-3) / (q.sum() + t.sum() + 1e-3)
        for q, t in ((1 - p, foreground == 0), (p, foreground == 1))
    ]
    torch.testing.assert_close(dice_loss(logits, foreground), terms[0] + terms[1])


def test_gradient_loss_looks_at_nuclei_only():
    _, distances, foreground, true_distances = random_problem()
    loss = gradient_loss(distances, true_distances, foreground)
    (gradient,) = torch.autograd.grad(loss, distances)
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0  # the second image has none
    assert gradient[0, :, :, 10].abs().sum() == 0  # three pixels from the nucleus
    assert gradient_loss(distances, true_distances, torch.zeros_like(foreground)) == 0


class PerPixel(torch.nn.Module):
    """Outputs that depend on the pixel itself only, so that tiling must not be seen."""

    def forward(self, x):
        assert x.shape[-2:] == (32, 32)
        return torch.stack([x[:, 0], x[:, 1]], dim=1), x[:, 1:] * 2 - 1


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (21, 59), (64, 33)])
def test_tiles_cover_the_image_once(size):
    torch.manual_seed(0)
    image = torch.rand(3, *size)
    probability, distances = predict_image(PerPixel().eval(), image, window=32, crop=20)
    np.testing.assert_allclose(probability, image[:2].softmax(0)[1], rtol=1e-6)
    np.testing.assert_allclose(distances, image[1:] * 2 - 1, rtol=1e-6)


def test_windows_are_mirrored_at_the_border():
    class Shifted(torch.nn.Module):
        def forward(self, x):
            x = torch.roll(x, shifts=3, dims=-1)  # every pixel sees the one three to its left
            return x[:, :2], x[:, 1:]

    image = torch.rand(3, 10, 40)
    _, distances = predict_image(Shifted(), image, window=32, crop=20)
    np.testing.assert_allclose(distances[..., 3:], image[1:, :, :-3])
    np.testing.assert_allclose(distances[..., :3], image[1:, :, :3].flip(-1))
