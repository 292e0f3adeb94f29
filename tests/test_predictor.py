import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from detofa.errors import UserError
from detofa.predictor import MIN_LABELS, RidgePredictor
from detofa.presets import preset

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def problem(count, width, noise, seed=0):
    rng = np.random.default_rng(seed)
    encoding = rng.uniform(0, 1, (count, width))
    labels = 30 + encoding @ rng.normal(0, 2, width) + noise * rng.normal(0, 1, count)
    return encoding, labels


def ridge_by_solving(encoding, labels, held_out, penalty):
    """Fit without one path, scaled as all paths are, and predict it: the definition."""
    scales = encoding.std(axis=0)
    kept = np.arange(len(labels)) != held_out
    design = np.column_stack([np.ones(kept.sum()), encoding[kept] / scales])
    ridge = np.diag([0.0, *[penalty] * encoding.shape[1]])
    solution = np.linalg.solve(design.T @ design + ridge, design.T @ labels[kept])
    return solution[0] + encoding[held_out] / scales @ solution[1:]


def test_a_linear_label_is_predicted_on_paths_not_seen():
    encoding, labels = problem(60, 12, noise=0.0)
    predictor = RidgePredictor.fit(encoding[:40], labels[:40])
    np.testing.assert_allclose(predictor.predict(encoding[40:]), labels[40:], atol=0.05)
    assert predictor.leave_one_out_tau > 0.98
    assert predictor.standard_error < 0.05


def test_leave_one_out_equals_fitting_without_each_path():
    encoding, labels = problem(15, 6, noise=1.0)
    predictor = RidgePredictor.fit(encoding, labels)
    penalty = predictor.regularisation * len(labels)
    left_out = np.array([ridge_by_solving(encoding, labels, i, penalty) for i in range(15)])
    error = np.sqrt(np.mean((labels - left_out) ** 2))
    assert predictor.standard_error == pytest.approx(error, rel=1e-9)
    others = (labels.sum() - labels) / 14
    tau = kendalltau(labels, left_out - others).statistic
    assert predictor.leave_one_out_tau == pytest.approx(tau, abs=1e-12)


def test_the_standard_error_is_about_the_noise_of_the_labels():
    encoding, labels = problem(400, 8, noise=0.5)
    assert RidgePredictor.fit(encoding, labels).standard_error == pytest.approx(0.5, rel=0.1)


def test_labels_without_signal_are_answered_with_their_mean():
    rng = np.random.default_rng(3)
    encoding, labels = rng.uniform(0, 1, (40, 10)), rng.normal(20, 1, 40)
    predictor = RidgePredictor.fit(encoding, labels)
    assert np.std(predictor.predict(encoding)) < 0.5
    assert abs(predictor.leave_one_out_tau) < 0.5


def test_more_noise_is_shrunk_more():
    clean = RidgePredictor.fit(*problem(30, 10, noise=0.01))
    noisy = RidgePredictor.fit(*problem(30, 10, noise=5.0))
    assert noisy.regularisation > clean.regularisation


def test_fewer_paths_than_columns_and_constant_columns_are_fine():
    space = preset("tiny", num_classes=3)
    genes = space.sample(np.random.default_rng(0), 8)
    encoding = space.encode_one_hot(genes)
    predictor = RidgePredictor.fit(encoding, np.arange(8.0))
    assert np.isfinite(predictor.predict(encoding)).all()


def test_equal_labels_are_predicted_and_have_no_rank():
    encoding, _ = problem(10, 4, noise=0.0)
    predictor = RidgePredictor.fit(encoding, np.full(10, 7.0))
    np.testing.assert_allclose(predictor.predict(encoding), 7.0)
    assert predictor.leave_one_out_tau == 0
    assert predictor.standard_error == pytest.approx(0, abs=1e-12)


def test_scaling_the_labels_scales_the_predictions():
    encoding, labels = problem(25, 5, noise=1.0)
    once, tenfold = (RidgePredictor.fit(encoding, labels * factor) for factor in (1, 10))
    np.testing.assert_allclose(tenfold.predict(encoding), 10 * once.predict(encoding), rtol=1e-9)
    assert tenfold.leave_one_out_tau == once.leave_one_out_tau


def test_a_json_file_gives_the_same_predictions_exactly():
    encoding, labels = problem(20, 5, noise=1.0)
    predictor = RidgePredictor.fit(encoding, labels)
    record = json.loads(json.dumps({"schema": 1, "kind": "predictor"} | predictor.to_json()))
    again = RidgePredictor.from_json(record)
    assert again == predictor
    assert np.array_equal(again.predict(encoding), predictor.predict(encoding))


def test_too_few_paths_are_refused():
    with pytest.raises(UserError, match="at least 3 evaluated paths, got 2"):
        RidgePredictor.fit(np.zeros((2, 4)), np.zeros(2))
    assert RidgePredictor.fit(np.zeros((3, 4)), np.arange(3.0)).num_labels == MIN_LABELS


def test_a_label_that_is_not_a_number_is_named():
    with pytest.raises(UserError, match="path 2 has the label nan"):
        RidgePredictor.fit(np.zeros((4, 2)), [1.0, 2.0, np.nan, 4.0])


def test_an_encoding_of_another_space_is_refused():
    predictor = RidgePredictor.fit(*problem(10, 4, noise=1.0))
    with pytest.raises(UserError, match=r"4 numbers per path.*fit it for this search space"):
        predictor.predict(np.zeros((2, 5)))


@pytest.mark.parametrize("name", sorted(RidgePredictor.__dataclass_fields__))
def test_a_record_without_or_with_a_broken_field_is_refused(name):
    record = RidgePredictor.fit(*problem(10, 4, noise=1.0)).to_json()
    with pytest.raises(UserError, match=name):
        RidgePredictor.from_json({key: value for key, value in record.items() if key != name})
    for broken in (None, "1", float("nan"), [None], True):
        with pytest.raises(UserError):
            RidgePredictor.from_json(record | {name: broken})


@given(JSON, st.sampled_from(sorted(RidgePredictor.__dataclass_fields__)))
def test_any_json_is_read_or_refused_plainly(value, name):
    record = RidgePredictor.fit(*problem(5, 2, noise=1.0)).to_json()
    for candidate in (value, record | {name: value}):
        try:
            RidgePredictor.from_json(candidate)
        except UserError:
            continue
