"""PathFilter: ranks archs against others of the same budget, learnt from labelled archs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from detofa.errors import UserError
from detofa.files import check_companion, is_number, read_json, sha256_json, write_bytes, write_json
from detofa.path_filter.bins import BudgetBins, Indices, Values
from detofa.path_filter.ensemble import Ensemble, FilterSettings, fit_ensemble
from detofa.path_filter.linear_score import LinearScore, fit_linear_score
from detofa.path_filter.pairs import compare_labels
from detofa.path_filter.records import REMAKE, fields_of
from detofa.space import Genes, SearchSpace

KIND = "path_filter"
_RECORD_FILE = "path_filter.json"
_WEIGHTS_FILE = "path_filter.safetensors"
_FIELDS = (
    *("schema", "kind", "space", "space_sha256", "bins", "settings", "seed", "label"),
    *("label_sha256", "num_labels", "noise", "linear", "weights_sha256"),
)
_LEAST_DEVIATION = 0.2  # of a feature over the labels, so that what few of them have stays small
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class PathFilter:
    """Scores of archs among others of the same budget; scores of two budgets do not compare.

    The score is a linear one, fitted by ridge regression on all labels, and what an ensemble adds
    to it that was fitted on pairs of the same bin: single options, rules that change with the
    budget, and what is not linear.

    Attributes:
        space: The search space.
        bins: The budget bins.
        settings: Settings of the fit.
        seed: What decided the fit.
        label: Name of the label, such as `ap`.
        label_sha256: Hash of the labelled archs with their labels.
        num_labels: Labelled archs it was fitted on.
        noise: Standard error of a label, as the fit took it.
        means: (D,) mean of each feature over the labelled archs.
        scales: (D,) factor of each feature; zero where all labelled archs are equal.
        linear: The linear part of the score.
        ensemble: What is added to it.
    """

    space: SearchSpace
    bins: BudgetBins
    settings: FilterSettings
    seed: int
    label: str
    label_sha256: str
    num_labels: int
    noise: float
    means: Tensor
    scales: Tensor
    linear: LinearScore
    ensemble: Ensemble

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        genes: Genes,
        labels: Values,
        costs: Values,
        bins: BudgetBins,
        *,
        seed: int,
        label: str,
        noise: float = 0.0,
        settings: FilterSettings | None = None,
    ) -> "PathFilter":
        """Fit on labelled archs, each compared with others of about its budget.

        Args:
            space: The search space.
            genes: (N, num_genes) labelled archs.
            labels: (N,) larger is better; for a loss, pass minus the loss.
            costs: (N,) of the bins' kind.
            bins: The budget bins.
            seed: Same seed, same filter.
            label: Name of the label.
            noise: Standard error of a label, in its units: pairs that differ by less count
                little. 0 for exact labels; `split_half_reliability` gives an estimate.
            settings: Settings of the fit.

        Raises:
            UserError: a label is not finite, there are fewer labels than bins, a bin has none (it
                is named), or no labels differ.
        """
        settings = FilterSettings() if settings is None else settings
        assert genes.shape == (len(labels), space.num_genes), genes.shape
        assert costs.shape == labels.shape, (costs.shape, labels.shape)
        index = bins.index(costs)
        _check_labels(labels, index, bins)
        compact = _compact(space, bins, genes, costs)
        raw = _features(space, genes, compact)
        means, scales = raw.mean(axis=0), _scales(space, raw, settings)
        pairs = compare_labels(labels, index, bins, noise=noise, tolerance=settings.tolerance)
        budgets, item_budgets = (
            _scaled_budgets(bins, bins.upper(places)) for places in (index, pairs.bins)
        )
        rng = np.random.default_rng(seed)
        linear = fit_linear_score(compact, budgets, labels, pairs, item_budgets, rng)
        ensemble = fit_ensemble(
            torch.from_numpy(((raw - means) * scales)[pairs.archs]),
            torch.from_numpy(item_budgets)[:, None],
            torch.from_numpy(linear.log_odds(compact[pairs.archs], item_budgets)),
            pairs,
            num_labels=len(labels),
            settings=settings,
            generator=torch.Generator().manual_seed(seed),
        )
        return cls(
            space=space,
            bins=bins,
            settings=settings,
            seed=seed,
            label=label,
            label_sha256=sha256_json([genes.tolist(), labels.tolist()]),
            num_labels=len(labels),
            noise=float(noise),
            means=torch.from_numpy(means),
            scales=torch.from_numpy(scales),
            linear=linear,
            ensemble=ensemble,
        )

    def score(self, genes: Genes, costs: Values, budgets: Values | float) -> Values:
        """Score archs as candidates for a budget; compare scores of one budget only.

        Args:
            genes: (N, num_genes).
            costs: (N,) what they cost.
            budgets: (N,) or one for all, in the unit of costs and bins.

        Returns:
            (N,) larger is better; the difference of two is the log-odds of their order.
        """
        limits = np.broadcast_to(np.asarray(budgets, np.float64), (len(genes),))
        scores = np.empty(len(genes), np.float64)
        for start in range(0, len(genes), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            budgets_at = _scaled_budgets(self.bins, limits[rows])
            compact = _compact(self.space, self.bins, genes[rows], costs[rows])
            features = torch.from_numpy(_features(self.space, genes[rows], compact))
            added = self.ensemble.scores(
                (features - self.means) * self.scales,
                torch.from_numpy(budgets_at)[:, None],
                self.settings.interaction_scale,
            )
            linear = self.linear.log_odds(compact, budgets_at)
            scores[rows] = linear + added.mean(0).numpy()
        return scores

    def score_in_bin(self, genes: Genes, costs: Values) -> Values:
        """Score archs at the budget of their own bin: (N, num_genes) and (N,) costs to (N,)."""
        return self.score(genes, costs, self.bins.upper(self.bins.index(costs)))

    # ---- files ----------------------------------------------------------------------------

    @property
    def sha256(self) -> str:
        """Return the hash of what the filter is: its record and its weights."""
        return sha256_json(self._record(tensor_bytes(self._tensors())))

    def save(self, folder: Path) -> None:
        """Write `path_filter.safetensors` and `path_filter.json` into a folder, atomically."""
        weights = tensor_bytes(self._tensors())
        write_bytes(folder / _WEIGHTS_FILE, weights)
        write_json(folder / _RECORD_FILE, KIND, self._record(weights))

    @classmethod
    def load(cls, folder: Path, space: SearchSpace) -> "PathFilter":
        """Read what `save` wrote.

        Args:
            folder: Holds both files.
            space: The search space that archs will come from.

        Raises:
            UserError: a file is missing, broken, or changed, or the filter is of another space.
        """
        path, weights = folder / _RECORD_FILE, folder / _WEIGHTS_FILE
        record = _read_record(path, space)
        check_companion(path, weights, record["weights_sha256"], remake=REMAKE)
        try:
            tensors = load_file(weights)
            means, scales = tensors.pop("means"), tensors.pop("scales")
            ensemble = Ensemble(**tensors)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise UserError(
                f"{weights} does not hold a path filter ({error}); make it again with {REMAKE}"
            ) from error
        return cls(
            space=space,
            bins=BudgetBins.from_json(record["bins"]),
            settings=_read_settings(record["settings"]),
            seed=record["seed"],
            label=record["label"],
            label_sha256=record["label_sha256"],
            num_labels=record["num_labels"],
            noise=float(record["noise"]),
            means=means,
            scales=scales,
            linear=LinearScore.from_json(record["linear"]),
            ensemble=ensemble,
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {"means": self.means, "scales": self.scales} | self.ensemble.tensors()

    def _record(self, weights: bytes) -> dict[str, Any]:
        names = self.settings.__dataclass_fields__
        return {
            "space": self.space.name,
            "space_sha256": self.space.digest,
            "bins": self.bins.to_json(),
            "settings": {name: getattr(self.settings, name) for name in names},
            "seed": self.seed,
            "label": self.label,
            "label_sha256": self.label_sha256,
            "num_labels": self.num_labels,
            "noise": self.noise,
            "linear": self.linear.to_json(),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }


def _check_labels(labels: Values, index: Indices, bins: BudgetBins) -> None:
    finite = np.isfinite(labels)
    if not finite.all():
        broken = int(np.argmin(finite))
        raise UserError(
            f"arch {broken}, in {bins.describe(int(index[broken]))}, has the label "
            f"{labels[broken]}: labels must be finite numbers; evaluate it again"
        )
    if len(labels) < bins.count:
        raise UserError(
            f"{len(labels)} labels are too few for {bins.count} bins; evaluate at least 8 archs a "
            "bin, or use fewer bins"
        )
    counts = np.bincount(index, minlength=bins.count)
    if not counts.all():
        raise UserError(
            f"{bins.describe(int(np.argmin(counts)))} has no labels; evaluate archs of it, or use "
            "fewer or wider bins"
        )


def _compact(space: SearchSpace, bins: BudgetBins, genes: Genes, costs: Values) -> Values:
    """Return the compact encoding and the place of the cost among all bins, 0 to 1: (N, C)."""
    low, high = bins.edges[0], bins.edges[-1]
    place = np.log(costs / low) / np.log(high / low)
    return np.concatenate([space.encode_compact(genes), place[:, None]], axis=1)


def _features(space: SearchSpace, genes: Genes, compact: Values) -> Values:
    """Return the compact and the one-hot encoding side by side: (N, D)."""
    return np.concatenate([compact, space.encode_one_hot(genes)], axis=1)


def _scales(space: SearchSpace, raw: Values, settings: FilterSettings) -> Values:
    """Return what standardises each feature over the labelled archs: (N, D) to (D,)."""
    deviations = raw.std(axis=0)
    scales = np.where(deviations > 1e-6, 1 / np.maximum(deviations, _LEAST_DEVIATION), 0.0)
    num_one_hot = int(space.num_choices.sum())
    scales[-num_one_hot:] *= settings.one_hot_scale
    return scales


def _scaled_budgets(bins: BudgetBins, budgets: Values) -> Values:
    """Return the logarithm of budgets, standardised over the bins: (N,) to (N,)."""
    known = np.log(bins.edges[1:])
    scaled: Values = (np.log(budgets) - known.mean()) / (known.std() or 1.0)
    return scaled


def _read_record(path: Path, space: SearchSpace) -> dict[str, Any]:
    record = fields_of(read_json(path, KIND, remake=REMAKE), _FIELDS, str(path))
    for name in ("space", "space_sha256", "label", "label_sha256", "weights_sha256"):
        if not isinstance(record[name], str):
            raise UserError(f"{name} in {path} should be text, got {record[name]!r}; see {REMAKE}")
    for name in ("seed", "num_labels"):
        if type(record[name]) is not int:
            raise UserError(f"{name} in {path} should be whole, got {record[name]!r}; see {REMAKE}")
    if not is_number(record["noise"]):
        raise UserError(f"noise in {path} should be a number, got {record['noise']!r}")
    if record["space_sha256"] != space.digest:
        raise UserError(
            f"{path} was fitted for space {record['space']} with SHA-256 "
            f"{record['space_sha256'][:12]}, this space is {space.name} with {space.digest[:12]}; "
            f"fit it for this space with {REMAKE}"
        )
    return record


def _read_settings(record: Any) -> FilterSettings:
    names = FilterSettings.__dataclass_fields__
    return FilterSettings(**fields_of(record, names, "the settings of a path filter"))
