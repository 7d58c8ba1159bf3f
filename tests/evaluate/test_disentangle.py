"""disentangle-v1 against loops written from the papers' definitions, and on codes whose quality is known."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.svm import LinearSVC

from daybreak.data.sources import Labels
from daybreak.evaluate import disentangle
from daybreak.evaluate.disentangle import (
    betavae_score,
    concentration,
    dci,
    disentangle_v1,
    evaluate_factors,
    factorvae_score,
    mig,
    of_value,
    sap,
)

SIZES = (2, 3, 4)
VOTES = (300, 150)


def grid(count, seed):
    """Factors (N, 3), uniform and independent."""
    random = np.random.default_rng(seed)
    return np.stack([random.integers(size, size=count) for size in SIZES], 1)


def codes_of(factors, kind, seed=0):
    """(N, 4): "own", each factor its dimension and one dimension of noise; "mixed", turned; "noise", nothing of them."""
    random = np.random.default_rng(seed + 10)
    own = np.concatenate([(factors - (np.array(SIZES) - 1) / 2) * 2, random.normal(size=(len(factors), 1))], 1)
    own[:, :3] += random.normal(0, 0.05, (len(factors), 3))
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 4)))[0]
    return {"own": own, "mixed": own @ turn, "noise": random.normal(size=own.shape)}[kind]


def sides(kind, count=400):
    train, test = grid(count, 0), grid(count // 2, 1)
    return codes_of(train, kind), train, codes_of(test, kind, 1), test


def loop_mig(codes, factors):
    n, width = codes.shape
    gaps = []
    for j in range(factors.shape[1]):
        values = factors[:, j].tolist()
        share = {v: c / n for v, c in Counter(values).items()}
        entropy = -sum(p * math.log(p) for p in share.values())
        found = []
        for i in range(width):
            low, high = min(codes[:, i]), max(codes[:, i])
            bins = [min(int((c - low) / (high - low) * 20), 19) for c in codes[:, i]]
            marginal = Counter(bins)
            joint = Counter(zip(bins, values, strict=True))
            found.append(sum(c / n * math.log((c / n) / (marginal[b] / n * share[v])) for (b, v), c in joint.items()))
        found.sort()
        gaps.append((found[-1] - found[-2]) / entropy)
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("kind", ["own", "mixed", "noise"])
def test_mig_by_a_loop(kind):
    codes, factors, *_ = sides(kind)
    assert mig(codes, factors) == pytest.approx(loop_mig(codes, factors), abs=1e-12)


def test_an_unused_dimension_tells_nothing():
    codes, factors, *_ = sides("own")
    assert mig(np.concatenate([codes, np.zeros((len(codes), 1))], 1), factors) == pytest.approx(mig(codes, factors))


def test_rows_of_a_value_are_drawn_evenly_from_those_that_have_it():
    values = np.array([3, 1, 3, 0, 1, 3])
    rows = of_value(values, np.array([3, 0, 1]), 3000, np.random.default_rng(0))
    assert [sorted(set(row)) for row in rows.tolist()] == [[0, 2, 5], [3], [1, 4]]
    assert min(Counter(rows[0].tolist()).values()) > 900


def loop_factorvae(train, train_factors, test, test_factors, seed):
    """The same draws, votes and variances one at a time."""
    width = train.shape[1]

    def variance(column):
        mean = sum(column) / len(column)
        return sum((x - mean) ** 2 for x in column) / (len(column) - 1)

    whole = [variance(train[:, i].tolist()) for i in range(width)]
    active = [i for i in range(width) if whole[i] ** 0.5 >= 0.05]
    tables = []
    for side, (codes, factors) in enumerate(((train, train_factors), (test, test_factors))):
        random = np.random.default_rng([seed, 0, side])
        table = Counter()
        counts = Counter(random.integers(factors.shape[1], size=VOTES[side]).tolist())
        for j in range(factors.shape[1]):
            fixed = factors[random.integers(len(factors), size=counts[j]), j]
            for chosen, value in zip(of_value(factors[:, j], fixed, 64, random), fixed, strict=True):
                assert set(factors[chosen, j]) == {value}
                ratios = {i: variance(codes[chosen, i].tolist()) / whole[i] for i in active}
                table[min(ratios, key=ratios.get), j] += 1
        tables.append(table)
    read = {i: max(range(train_factors.shape[1]), key=lambda j: (tables[0][i, j], -j)) for i in active}
    return sum(tables[1][i, read[i]] for i in active) / sum(tables[1].values())


@pytest.mark.parametrize("kind", ["own", "mixed"])
def test_factorvae_score_by_a_loop(kind):
    given = sides(kind)
    given[0][:, 3] *= 0.01  # a dimension that is not used
    assert factorvae_score(*given, seed=2, votes=VOTES) == pytest.approx(loop_factorvae(*given, seed=2), abs=1e-12)


def test_dimensions_that_do_not_move_have_no_vote():
    train, train_factors, test, test_factors = sides("own")
    assert factorvae_score(train * 1e-3, train_factors, test * 1e-3, test_factors, votes=VOTES) == 0.0


def test_betavae_features_are_mean_differences_of_pairs_that_share_a_factor(monkeypatch):
    """Of codes that are the factors themselves the shared one's difference is 0, and no other's is."""
    import sklearn.linear_model

    train, test = grid(300, 0), grid(200, 1)
    seen = []

    class Spy(sklearn.linear_model.LogisticRegression):
        def fit(self, features, shared):
            seen.append((features, shared))
            return super().fit(features, shared)

    monkeypatch.setattr(sklearn.linear_model, "LogisticRegression", Spy)
    assert betavae_score(train.astype(float), train, test.astype(float), test, votes=VOTES) == 1.0
    ((features, shared),) = seen
    assert features.shape == (300, 3) and all((row == 0).tolist() == [j == k for k in range(3)]
                                              for row, j in zip(features, shared, strict=True))
    assert features[shared != 2, 2].mean() == pytest.approx(1.25, abs=0.02)  # E|a - b| of two of 0 to 3


def test_sap_by_a_loop():
    train, train_factors, test, test_factors = sides("mixed", 200)
    gaps = []
    for j in range(3):
        scores = []
        for i in range(4):
            machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, random_state=0)
            machine.fit([[x] for x in train[:, i]], train_factors[:, j].tolist())
            right = [machine.predict([[x]])[0] == y for x, y in zip(test[:, i], test_factors[:, j], strict=True)]
            scores.append(sum(right) / len(right))
        scores.sort()
        gaps.append(scores[-1] - scores[-2])
    assert sap(train, train_factors, test, test_factors) == pytest.approx(sum(gaps) / 3)


def loop_concentration(table):
    total, found = sum(map(sum, table)), 0.0
    for row in table:
        whole = sum(row)
        entropy = -sum(x / whole * math.log(x / whole, len(row)) for x in row if x)
        found += whole / total * (1 - entropy)
    return found


def test_dci_by_a_loop():
    train, train_factors, test, test_factors = sides("mixed", 120)
    columns, right = [], []
    for j in range(3):
        trees = GradientBoostingClassifier(random_state=0).fit(train, train_factors[:, j])
        columns.append(trees.feature_importances_.tolist())
        right.append(sum(trees.predict(test) == test_factors[:, j]) / len(test))
    rows = [list(row) for row in zip(*columns, strict=True)]
    assert dci(train, train_factors, test, test_factors) == pytest.approx({
        "DCI disentanglement": loop_concentration(rows), "DCI completeness": loop_concentration(columns),
        "DCI informativeness": sum(right) / 3}, abs=1e-6)
    assert concentration(np.eye(4)[:, :3]) == pytest.approx((1, 1), abs=1e-6)  # a dimension that matters for nothing weighs nothing
    assert concentration(np.ones((4, 3))) == pytest.approx((0, 0), abs=1e-6)


def test_codes_of_known_quality():
    own, mixed, noise = (disentangle_v1(*sides(kind, 200), votes=VOTES) for kind in ("own", "mixed", "noise"))
    assert all(value > 0.85 for name, value in own.items() if name != "SAP") and own["SAP"] > 0.3
    assert noise["MIG"] < 0.1 and noise["SAP"] < 0.15 and noise["DCI disentanglement"] < 0.2 and noise["DCI completeness"] < 0.2
    assert noise["FactorVAE score"] < 0.55 and noise["beta-VAE score"] < 0.5  # one of three by chance
    for name in ("MIG", "FactorVAE score", "DCI disentanglement"):
        assert noise[name] < mixed[name] + 0.1 and mixed[name] < own[name] - 0.1
    assert own == disentangle_v1(*sides("own", 200), votes=VOTES)  # nothing but the seed decides


def columns(factors, **more):
    names = {name: tuple(map(str, range(size))) for name, size in zip("abc", SIZES, strict=True)}
    return {name: Labels("class", factors[:, j], names[name]) for j, name in enumerate(names)} | more


def test_columns_are_matched_by_name_and_what_is_no_factor_is_left_out(monkeypatch):
    seen = []
    monkeypatch.setattr(disentangle, "disentangle_v1", lambda *given, seed: seen.append(given) or {"MIG": 0.5})
    train, train_factors, test, test_factors = sides("own", 40)
    one = columns(train_factors, age=Labels("value", np.zeros(40)), same=Labels("class", np.zeros(40, np.int64), ("x",)))
    two = columns(test_factors)
    two["b"] = Labels("class", 2 - test_factors[:, 1], ("2", "1", "0"))
    known = dict(data="f00d", test_data="beef", seed=4, backbone_hash="ab")
    (result,), (note,) = evaluate_factors(torch.tensor(train), one, torch.tensor(test), two, **known)
    assert (result.protocol, result.version, result.num_train, result.num_test, result.num_classes, result.width) == (
        "disentangle", "v1", 40, 20, 3, 4)
    assert note.reason.endswith("left out: age, same.")
    assert (seen[0][1] == train_factors).all() and (seen[0][3] == test_factors).all()
    one["a"].values[0] = -1
    one.pop("b")
    results, notes = evaluate_factors(torch.tensor(train), one, torch.tensor(test), two, **known)
    assert not results and "1 factors (c); 2 label columns" in notes[0].reason
    train[3, 1] = np.nan
    results, notes = evaluate_factors(torch.tensor(train), columns(train_factors), torch.tensor(test), two)
    assert not results and "not finite" in notes[0].reason


def test_a_code_of_one_dimension_is_refused():
    train, test = grid(40, 0), grid(20, 1)
    results, notes = evaluate_factors(torch.rand(40, 1), columns(train), torch.rand(20, 1), columns(test))
    assert not results and "the code has one dimension" in notes[0].reason
