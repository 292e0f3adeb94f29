import numpy as np
import pytest

from detofa.presets import preset
from detofa.profiling.cost import all_blocks, block_macs
from detofa.profiling.fit import (
    fit_block_costs,
    interval_half_width,
    noise_floor,
    prediction_errors,
)

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 64), (96, 96)])
BLOCKS = all_blocks(SPACE)
ISOLATED_MS = {key: 0.01 + block_macs(block) / 1e7 for key, block in BLOCKS.items()}


def _detectors(count: int, seed: int) -> list[list[str]]:
    genes = SPACE.sample(np.random.default_rng(seed), count)
    return [[block.key for block in SPACE.blocks(SPACE.arch(row))] for row in genes]


def _sums(costs: dict[str, float], detectors: list[list[str]]) -> np.ndarray:
    return np.array([sum(costs[key] for key in keys) for keys in detectors])


def test_additive_latencies_are_recovered_exactly() -> None:
    seen, unseen = _detectors(30, 0), _detectors(50, 1)
    fit = fit_block_costs(BLOCKS, ISOLATED_MS, seen, _sums(ISOLATED_MS, seen))
    np.testing.assert_allclose(
        _sums(dict(fit.block_ms), unseen), _sums(ISOLATED_MS, unseen), rtol=1e-9
    )
    np.testing.assert_allclose(fit.residuals, 0, atol=1e-9)


def test_one_common_factor_is_found_to_a_tenth_of_a_percent() -> None:
    seen, unseen = _detectors(20, 0), _detectors(50, 1)
    fit = fit_block_costs(BLOCKS, ISOLATED_MS, seen, 1.3 * _sums(ISOLATED_MS, seen))
    np.testing.assert_allclose(
        _sums(dict(fit.block_ms), unseen), 1.3 * _sums(ISOLATED_MS, unseen), rtol=1e-3
    )


def test_effects_shared_by_a_stage_carry_over_to_blocks_not_seen() -> None:
    def true_ms(key: str) -> float:
        return ISOLATED_MS[key] * (2.0 if getattr(BLOCKS[key], "stage", 0) == 1 else 0.8)

    truth = {key: true_ms(key) for key in BLOCKS}
    seen, unseen = _detectors(30, 0), _detectors(50, 1)
    noise = np.random.default_rng(2).normal(1, 0.01, len(seen))
    fit = fit_block_costs(BLOCKS, ISOLATED_MS, seen, _sums(truth, seen) * noise)
    errors = prediction_errors(_sums(dict(fit.block_ms), unseen), _sums(truth, unseen))
    alone = prediction_errors(_sums(ISOLATED_MS, unseen), _sums(truth, unseen))
    assert errors["mape"] < 0.02 < 0.05 < alone["mape"]


def test_left_out_residuals_equal_those_of_refits_without_each_detector() -> None:
    seen = _detectors(12, 0)
    measured = _sums(ISOLATED_MS, seen) * np.random.default_rng(3).normal(1.1, 0.05, 12)
    fit = fit_block_costs(BLOCKS, ISOLATED_MS, seen, measured)
    widths = dict(fit.widths)
    for index in (0, 5, 11):
        rest = [keys for at, keys in enumerate(seen) if at != index]
        again = fit_block_costs(
            BLOCKS, ISOLATED_MS, rest, np.delete(measured, index), widths=widths
        )
        predicted = _sums(dict(again.block_ms), seen[index : index + 1])[0]
        assert fit.residuals[index] == pytest.approx(predicted / measured[index] - 1, abs=1e-9)


def test_costs_stay_positive_whatever_is_measured() -> None:
    seen = _detectors(20, 0)
    wild = np.random.default_rng(0).uniform(0.01, 10, 20)
    fit = fit_block_costs(BLOCKS, ISOLATED_MS, seen, wild)
    assert min(fit.block_ms.values()) > 0


def test_errors_of_known_predictions() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    errors = prediction_errors(np.array([1.1, 1.8, 4.0]), measured)
    assert errors["mape"] == pytest.approx(0.2 / 3)
    assert errors["bias"] == pytest.approx(0)
    assert errors["worst"] == pytest.approx(0.1)
    assert errors["within_5_percent"] == pytest.approx(1 / 3)
    assert errors["kendall_tau"] == 1
    assert prediction_errors(measured[::-1].copy(), measured)["kendall_tau"] == -1


@pytest.mark.parametrize("distribution", ["normal", "laplace", "uniform", "logistic"])
def test_interval_covers_95_percent_of_further_residuals(distribution: str) -> None:
    rng = np.random.default_rng(0)
    draw = getattr(rng, distribution)
    covered = [
        np.mean(np.abs(draw(-0.02, 0.04, 200)) <= interval_half_width(draw(-0.02, 0.04, 80)))
        for _ in range(100)
    ]
    assert np.mean(covered) > 0.95
    assert interval_half_width(np.array([0.03, -0.04])) == pytest.approx(3 * 0.025 * np.sqrt(2))


def test_noise_floor_sees_noise_but_not_drift() -> None:
    rng = np.random.default_rng(0)
    levels = np.arange(1.0, 31.0)[:, None, None]
    drift = np.array([1.0, 1.1, 0.9, 1.2])[None, :, None]
    still = levels * drift * np.ones((30, 4, 2))
    assert noise_floor(still) == pytest.approx(0, abs=1e-12)
    noisy = still * np.exp(rng.normal(0, 0.05, still.shape[:2]))[..., None]
    floor = noise_floor(noisy)
    assert floor is not None
    assert 0.03 < floor < 0.06
    assert noise_floor(np.ones((1, 1, 2))) is None
    longer = np.repeat(still, 10, axis=1)  # a quarter of 40 passes averages noise that one has
    noisy = longer * np.exp(rng.normal(0, 0.05, longer.shape[:2]))[..., None]
    averaged = noise_floor(noisy)
    assert averaged is not None
    assert averaged < 0.6 * floor
