"""Split a data set without splits: seeded, stratified by class, copies kept together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detofa import files
from detofa.data.dataset import SPLITS_FILE, DetectionDataset, image_name, load_dataset, own_splits
from detofa.data.records import SPLITS
from detofa.errors import UserError


def split_dataset(
    root: Path,
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    skip_bad: bool = False,
) -> Path:
    """Write `detofa_splits.json` into a data set's folder: which image is in which split.

    Every class gets a share of its boxes close to the fraction in every split. Images with the
    same bytes stay together. The images are not moved.

    Args:
        root: The data set's folder, with fewer than two splits of its own.
        fractions: Shares of train, val and test; they sum to 1.
        seed: Not negative.
        skip_bad: Leave out what is faulty instead of stopping.

    Returns:
        The file written; an earlier one is replaced.

    Raises:
        UserError: wrong fractions, splits are there already, faulty data, or too few images.
    """
    shares = np.array(fractions, np.float64)
    if shares.shape != (3,) or (shares < 0).any() or shares[0] == 0 or abs(shares.sum() - 1) > 1e-6:
        raise UserError(
            "fractions should be three shares of train, val and test that sum to 1, such as "
            f"0.7 0.15 0.15; got {' '.join(str(fraction) for fraction in fractions)}"
        )
    if seed < 0:
        raise UserError(f"the seed should be 0 or more, got {seed}")
    own = own_splits(root)
    if len(own) > 1:
        raise UserError(f"{root} has splits of its own ({', '.join(own)}); use these")
    dataset = load_dataset(root, "all", skip_bad=skip_bad)
    groups = _groups_of_copies(dataset)
    wanted = int((shares > 0).sum())
    if len(groups) < wanted:
        raise UserError(
            f"{root} has {len(groups)} different images, too few for {wanted} splits; add images"
        )
    counts = _counts(dataset, groups)
    assigned = stratify(counts, shares, np.random.default_rng(seed))
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for group, split in zip(groups, assigned, strict=True):
        names[SPLITS[split]] += [image_name(root, dataset.images[i].path) for i in group]
    path = root / SPLITS_FILE
    files.write_json(
        path,
        "splits",
        {
            "seed": seed,
            "fractions": [float(share) for share in shares],
            "splits": {split: sorted(names[split]) for split in SPLITS},
        },
    )
    return path


def stratify(
    counts: NDArray[np.float64], shares: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Assign groups to splits so that every column's sum is shared out as asked, greedily.

    Groups with rare classes come first, while there is most freedom; each goes where what it
    holds is missed most, counted in shares of the class (after Sechidis et al., "On the
    stratification of multi-label data", 2011).

    Args:
        counts: (groups, columns); what each group holds, e.g. boxes of each class and images.
        shares: (splits,); sums to 1.
        generator: Breaks ties.

    Returns:
        (groups,) int64, the split of each group; every split with a share gets one at least.
    """
    totals = np.maximum(counts.sum(axis=0), 1e-12)
    weights = counts / totals
    order = generator.permutation(len(counts))
    order = order[np.argsort(-weights[order].max(axis=1), kind="stable")]
    missing = np.repeat(shares[:, None], counts.shape[1], axis=1)
    assigned = np.full(len(counts), -1, np.int64)
    for position, group in enumerate(order):
        left = len(order) - position
        empty = [s for s in np.flatnonzero(shares > 0) if not (assigned == s).any()]
        allowed = empty if len(empty) >= left else list(np.flatnonzero(shares > 0))
        # How much of each split's own target is still missing, weighed by what the group holds.
        need = (missing[allowed] / shares[allowed][:, None]) @ weights[group]
        best = np.flatnonzero(need >= need.max() - 1e-12)
        split = allowed[int(best[generator.integers(len(best))])]
        assigned[group] = split
        missing[split] -= weights[group]
    return assigned


def _groups_of_copies(dataset: DetectionDataset) -> list[list[int]]:
    """Return the indices of images, those with the same bytes together."""
    groups: dict[str, list[int]] = {}
    for index, image in enumerate(dataset.images):
        groups.setdefault(files.sha256_file(image.path), []).append(index)
    return list(groups.values())


def _counts(dataset: DetectionDataset, groups: list[list[int]]) -> NDArray[np.float64]:
    """Return per group the boxes of each class, and in the last column the images."""
    counts = np.zeros((len(groups), len(dataset.categories) + 1))
    for row, group in zip(counts, groups, strict=True):
        for index in group:
            np.add.at(row, dataset.images[index].labels, 1)
            row[-1] += 1
    return counts
