"""disentangle-v1: how far each dimension of a code follows one factor of the images, and each factor has one dimension.

The measures and their settings are those of Locatello et al. 2018 (arXiv 1811.12359). There images are drawn from a full
grid of factors; here from the images at hand, with repetition, those that share a factor's value being found among them. So
both are the same of a large uniform sample, and of data whose factors hang together it says so of them too.

N training images, n test images, d dimensions of the code, J factors, M votes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..errors import Refused
from .protocols import Backbone, Result, Skipped
from .tasks import few, not_finite

if TYPE_CHECKING:
    from ..data.sources import Labels

NAME = "disentangle-v1"
BINS = 20  # of equal width, for mutual information
TRAIN_VOTES, TEST_VOTES = 10_000, 5_000
VOTE = 64  # images, or pairs of images, behind one vote
STILL = 0.05  # deviation below which a dimension counts as unused
TINY = 1e-11  # added to importances, whose logarithm is taken


def evaluate_factors(train: Tensor, train_labels: Mapping[str, "Labels"], test: Tensor, test_labels: Mapping[str, "Labels"], *,
                     backbone: Backbone = "trained", data: str = "", test_data: str = "", seed: int = 0,
                     backbone_hash: str = "") -> tuple[list[Result], list[Skipped]]:
    """Apply disentangle-v1 to codes (N, d) and (n, d) of images with a label column for each factor.

    Columns that are no classes, that one side lacks, whose value some image lacks, or with one value are left out, which a
    sentence says; so are codes that are not finite, or fewer than two factors.
    """
    for side, codes in (("training images", train), ("test images", test)):
        if reason := not_finite(codes, side):
            return [], [Skipped(NAME, reason)]
    names = [name for name, held in train_labels.items()
             if held.kind == "class" and name in test_labels and test_labels[name].kind == "class"]
    tables = {name: _together(train_labels[name], test_labels[name]) for name in names}
    factors = [name for name, (one, two) in tables.items() if min(one.min(), two.min()) >= 0 and one.min() < one.max()]
    left = [name for name in dict.fromkeys([*train_labels, *test_labels]) if name not in factors]
    notes = [Skipped(NAME, f"{len(left)} columns are no factors, known of every image and of several values on both sides; left "
                           f"out: {few(left)}.")] if left else []
    if len(factors) < 2:
        return [], [Skipped(NAME, f"{len(factors)} factors ({few(factors) or 'none'}); 2 label columns of classes, known of every "
                                  "image, are needed, such as those of dsprites:10000.")]
    one, two = (np.stack([tables[name][side] for name in factors], 1) for side in (0, 1))
    try:
        found = disentangle_v1(train.double().numpy(), one, test.double().numpy(), two, seed=seed)
    except Refused as error:
        return [], [*notes, Skipped(NAME, str(error))]
    return [Result("disentangle", "v1", metric, value, None, backbone, data, seed, len(train), len(test), len(factors), test_data,
                   backbone_hash, train.shape[1]) for metric, value in found.items()], notes


def _together(one: "Labels", two: "Labels") -> tuple[np.ndarray, np.ndarray]:
    """Values of both sides by the same numbers, -1 where unknown."""
    place = {name: i for i, name in enumerate(dict.fromkeys([*one.classes, *two.classes]))}
    first, second = (np.array([*(place[name] for name in held.classes), -1])[held.values] for held in (one, two))
    return first, second


def disentangle_v1(train: np.ndarray, train_factors: np.ndarray, test: np.ndarray, test_factors: np.ndarray, *, seed: int = 0,
                   votes: tuple[int, int] = (TRAIN_VOTES, TEST_VOTES)) -> dict[str, float]:
    """All measures, each from 0 to 1, higher being better, of codes (N, d) and (n, d) float64 and factors (N, J) and (n, J) int64.

    Factors are numbered from 0 and have two values or more; J is at least 2. FactorVAE and beta-VAE scores are accuracies, with
    1 / J for chance. Most of the time goes into DCI: 100 trees for each value of each factor.

    Raises:
        Refused: a code of one dimension, of which none can be the best.
    """
    if train.shape[1] < 2:
        raise Refused("the code has one dimension; 2 are needed to tell whether each factor has its own.")
    sides = (train, train_factors, test, test_factors)
    return {"MIG": mig(train, train_factors), "SAP": sap(*sides, seed=seed),
            "FactorVAE score": factorvae_score(*sides, seed=seed, votes=votes),
            "beta-VAE score": betavae_score(*sides, seed=seed, votes=votes), **dci(*sides, seed=seed)}


def mig(codes: np.ndarray, factors: np.ndarray) -> float:
    """Mutual information gap (Chen et al. 2018): of each factor, the best dimension's less the second's, over its entropy."""
    binned = np.stack([in_bins(column) for column in codes.T])  # (d, N)
    gaps = []
    for values in factors.T:
        information = np.sort([mutual_information(column, values) for column in binned])
        gaps.append((information[-1] - information[-2]) / mutual_information(values, values))
    return float(np.mean(gaps))


def in_bins(column: np.ndarray) -> np.ndarray:
    """Numbers (N,) as those of 20 bins of equal width between the smallest and the largest."""
    low, high = column.min(), column.max()
    if low == high:
        return np.zeros(len(column), np.int64)
    return np.minimum(((column - low) / (high - low) * BINS).astype(np.int64), BINS - 1)


def mutual_information(one: np.ndarray, two: np.ndarray) -> float:
    """In nats, of two series (N,) of whole numbers from 0; a series and itself give its entropy."""
    joint = np.zeros((one.max() + 1, two.max() + 1))
    np.add.at(joint, (one, two), 1 / len(one))
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    held = joint > 0
    return float((joint[held] * np.log(joint[held] / apart[held])).sum())


def factorvae_score(train: np.ndarray, train_factors: np.ndarray, test: np.ndarray, test_factors: np.ndarray, *, seed: int = 0,
                    votes: tuple[int, int] = (TRAIN_VOTES, TEST_VOTES)) -> float:
    """Kim and Mnih 2018: a factor is fixed, the dimension that varies least votes for it; accuracy of the majority's reading.

    Variances are relative to those over all training images; dimensions of a deviation below 0.05 have no vote.
    """
    whole = train.var(0, ddof=1)
    active = np.flatnonzero(np.sqrt(whole) >= STILL)
    if not len(active):
        return 0.0
    counts = []  # (J, active dimensions) of training and of test
    for side, (codes, factors) in enumerate(((train, train_factors), (test, test_factors))):
        random = np.random.default_rng([seed, 0, side])
        table = np.zeros((factors.shape[1], len(active)), np.int64)
        for factor, count in enumerate(shares(votes[side], factors.shape[1], random)):
            values = factors[:, factor]
            rows = of_value(values, values[random.integers(len(values), size=count)], VOTE, random)  # (M, 64)
            still = (codes[rows].var(1, ddof=1)[:, active] / whole[active]).argmin(1)
            table[factor] = np.bincount(still, minlength=len(active))
        counts.append(table)
    read = counts[0].argmax(0)  # the factor that each dimension stands for
    return float(counts[1][read, np.arange(len(active))].sum() / counts[1].sum())


def betavae_score(train: np.ndarray, train_factors: np.ndarray, test: np.ndarray, test_factors: np.ndarray, *, seed: int = 0,
                  votes: tuple[int, int] = (TRAIN_VOTES, TEST_VOTES)) -> float:
    """Higgins et al. 2017: accuracy of a linear classifier that tells from mean |c - c'| over 64 pairs which factor they share."""
    from sklearn.linear_model import LogisticRegression

    sets = []
    for side, (codes, factors) in enumerate(((train, train_factors), (test, test_factors))):
        random = np.random.default_rng([seed, 1, side])
        features, shared = [], []
        for factor, count in enumerate(shares(votes[side], factors.shape[1], random)):
            values = factors[:, factor]
            first = random.integers(len(values), size=(count, VOTE))
            second = of_value(values, values[first.ravel()], 1, random).reshape(first.shape)
            features.append(np.abs(codes[first] - codes[second]).mean(1))  # (M, d)
            shared.append(np.full(count, factor))
        sets.append((np.concatenate(features), np.concatenate(shared)))
    return float(LogisticRegression(max_iter=1000).fit(*sets[0]).score(*sets[1]))


def shares(count: int, factors: int, random: np.random.Generator) -> np.ndarray:
    """How many of ``count`` votes fix each factor (J,), each vote's drawn uniformly."""
    return np.bincount(random.integers(factors, size=count), minlength=factors)


def of_value(values: np.ndarray, wanted: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Return (M, size) positions in ``values`` (N,), drawn with repetition from those that hold each of ``wanted`` (M,)."""
    order = np.argsort(values, kind="stable")
    start = np.searchsorted(values[order], wanted)
    count = np.searchsorted(values[order], wanted, side="right") - start
    return order[start[:, None] + (random.random((len(wanted), size)) * count[:, None]).astype(np.int64)]


def sap(train: np.ndarray, train_factors: np.ndarray, test: np.ndarray, test_factors: np.ndarray, *, seed: int = 0) -> float:
    """Kumar et al. 2018: of each factor, the best dimension's test accuracy less the second's, of linear classifiers of one."""
    from sklearn.svm import LinearSVC

    gaps = []
    for values, truth in zip(train_factors.T, test_factors.T, strict=True):
        scores = []
        for column, tested in zip(train.T, test.T, strict=True):
            machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, random_state=seed)
            scores.append(machine.fit(column[:, None], values).score(tested[:, None], truth))
        best = np.sort(scores)
        gaps.append(best[-1] - best[-2])
    return float(np.mean(gaps))


def dci(train: np.ndarray, train_factors: np.ndarray, test: np.ndarray, test_factors: np.ndarray, *,
        seed: int = 0) -> dict[str, float]:
    """Eastwood and Williams 2018, of gradient-boosted trees that read each factor from the whole code.

    Disentanglement: whether a dimension matters for one factor; completeness: whether a factor needs one dimension; both
    from the trees' importances. Informativeness: test accuracy, mean over factors.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    importances, scores = [], []
    for values, truth in zip(train_factors.T, test_factors.T, strict=True):
        trees = GradientBoostingClassifier(random_state=seed).fit(train, values)
        importances.append(np.abs(trees.feature_importances_))
        scores.append(trees.score(test, truth))
    disentanglement, completeness = concentration(np.stack(importances, 1))
    return {"DCI disentanglement": disentanglement, "DCI completeness": completeness, "DCI informativeness": float(np.mean(scores))}


def concentration(importance: np.ndarray) -> tuple[float, float]:
    """Of importances (d, J), 1 less the entropy of rows and of columns (1 for evenly spread), weighted by their sums."""
    found = []
    for table in (importance, importance.T):
        share = (table + TINY) / (table + TINY).sum(1, keepdims=True)
        one_sided = 1 + (share * np.log(share)).sum(1) / np.log(table.shape[1])
        total = table.sum()
        weight = table.sum(1) / total if total else np.full(len(table), 1 / len(table))
        found.append(float((weight * one_sided).sum()))
    return found[0], found[1]
