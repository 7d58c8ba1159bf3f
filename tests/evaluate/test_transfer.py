"""Scores of transferability against loops written from their definitions, and where their values are known."""

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from scipy.stats import multivariate_normal

from daybreak.errors import Refused
from daybreak.evaluate import transfer
from daybreak.evaluate.transfer import check, h_score, leep, logme, push_apart, tmi, transfer_scores


def blobs(count: int = 60, width: int = 5, classes: int = 4, apart: float = 2.0, seed: int = 0):
    """Vectors (N, D) about class centres, labels (N,) that skip numbers, classes of unequal sizes."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count).sqrt().long() % classes
    centres = apart * torch.randn(classes, width, generator=random)
    return centres[labels] + torch.randn(count, width, generator=random) + 0.5, 3 * labels + 1


def members(features, labels) -> list[list[list[float]]]:
    return [[row for row, y in zip(features.double().tolist(), labels.tolist(), strict=True) if y == c]
            for c in sorted(set(labels.tolist()))]


def tmi_loop(features, labels) -> float:
    found, width = [], features.shape[1]
    for rows in members(features, labels):
        if len(rows) == 1:
            found.append(0.0)
        elif len(rows) > 3:
            logs = []
            for i, a in enumerate(rows):
                near = sorted(max(abs(p - q) for p, q in zip(a, b, strict=True)) for j, b in enumerate(rows) if j != i)
                logs.append(math.log(2 * max(near[2], 1.0)))
            entropy = digamma(len(rows)) - digamma(3) + width / len(rows) * sum(logs)
            found.append(len(rows) / len(features) * entropy)
    return sum(found) / len(found)


def test_tmi_by_a_loop_with_classes_of_one_and_of_three_images(monkeypatch):
    features, labels = blobs()
    labels[:4] = torch.tensor([50, 60, 60, 60])
    monkeypatch.setattr(transfer, "CHUNK", 7)
    assert tmi(2 * features, labels)[0] == pytest.approx(tmi_loop(2 * features, labels), rel=1e-9)


def test_tmi_by_hand():
    """Third neighbours of 0, 10, 20, 30 are 30, 20, 20, 30 away; psi(4) - psi(3) is 1/3."""
    line = torch.tensor([[0.0], [10], [20], [30]])
    features, labels = torch.cat([line, line + 7]), torch.tensor([0] * 4 + [1] * 4)
    entropy = 1 / 3 + (math.log(60) + math.log(40)) / 2
    assert tmi(features, labels) == pytest.approx((entropy / 2, 0.0))
    assert tmi(10 * features, labels)[0] == pytest.approx(entropy / 2 + math.log(10) / 2)
    assert tmi(features / 1000, labels) == pytest.approx(((1 / 3 + math.log(2)) / 2, 1.0))  # all are taken as 1


def ped_loop(features, labels, reference) -> tuple[np.ndarray, int]:
    """Moved vectors and the steps taken."""
    x, base, y = features.double().numpy(), reference.double().numpy(), labels.numpy()
    shift, scale, classes = base.mean(0), np.maximum(base.std(0), 1e-3), sorted(set(y.tolist()))
    first = None
    for step in range(6):
        z = (x - shift) / scale
        means = [z[y == c].mean(0) for c in classes]
        radii = [math.sqrt(sum(((z[y == c] - m) ** 2).mean(0))) for c, m in zip(classes, means, strict=True)]
        moves = [np.zeros(x.shape[1]) for _ in classes]
        for a in range(len(classes)):
            for b in range(a + 1, len(classes)):
                d = math.sqrt(sum((means[a] - means[b]) ** 2))
                overlap = max(0.6 * (radii[a] + radii[b]) - d, 0)
                length = min(0.5 * 0.1**2 * overlap, overlap)
                moves[a] += length * (means[a] - means[b]) / d
                moves[b] -= length * (means[a] - means[b]) / d
        change = sum(abs(v) for move in moves for v in move)
        first = change if first is None else first
        if first == 0 or change / first <= 0.5:
            return x, step
        x = np.stack([row + moves[classes.index(c)] for row, c in zip(z, y, strict=True)]) * scale + shift
    return x, 6


@pytest.mark.parametrize(("classes", "steps"), [(4, 6), (100, None)])
def test_ped_by_a_loop_to_its_last_step_and_to_one_that_is_not_taken(classes, steps):
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(3)
    features = torch.randn(len(labels), 3, generator=random) * torch.tensor([1.0, 3.0, 0.2])
    reference = torch.randn(50, 3, generator=random) * 2 + 1
    wanted, taken = ped_loop(features, labels, reference)
    assert taken == steps if steps else 1 <= taken < 6
    np.testing.assert_allclose(push_apart(features, labels, reference).numpy(), wanted, atol=1e-9)
    own, _ = ped_loop(features, labels, features)
    np.testing.assert_allclose(push_apart(features, labels).numpy(), own, atol=1e-9)


def test_ped_by_hand():
    """Two balls of radius 1 at distance 1 overlap by 0.2, and a step leaves 99 % of the overlap."""
    features, labels = torch.tensor([[0.0], [2], [1], [3]]), torch.tensor([0, 0, 1, 1])
    moved = push_apart(features, labels, torch.tensor([[-1.0], [1.0]]))[:, 0]
    assert float(moved[2:].mean() - moved[:2].mean()) == pytest.approx(1.2 - 0.2 * 0.99**6)
    assert float(moved[1] - moved[0]) == pytest.approx(2) and float(moved.mean()) == pytest.approx(1.5)


def test_ped_leaves_alone_what_does_not_overlap_or_has_no_direction():
    labels = torch.tensor([0, 0, 1, 1])
    for features in (torch.tensor([[0.0], [1], [100], [101]]), torch.tensor([[0.0], [2], [0], [2]])):
        torch.testing.assert_close(push_apart(features, labels), features.double())


def evidence_loop(features, labels) -> float:
    """The fixed point by sums over directions, then the evidence as the density of t ~ N(0, I / beta + X X' / alpha)."""
    x, y, found = features.double().numpy(), labels.numpy(), []
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    for c in sorted(set(y.tolist())):
        t, alpha, beta = (y == c).astype(float), 1.0, 1.0
        p = [float(u[:, k] @ t) for k in range(len(s))]
        r0 = t @ t - sum(v * v for v in p)
        for _ in range(11):
            tau = alpha / beta
            gamma = sum(v * v / (v * v + tau) for v in s)
            m2 = sum(v * v * q * q / (tau + v * v) ** 2 for v, q in zip(s, p, strict=True))
            res = sum(q * q / (1 + v * v / tau) ** 2 for v, q in zip(s, p, strict=True)) + r0
            alpha, beta = gamma / (m2 + 1e-5), (len(x) - gamma) / (res + 1e-5)
            if abs(alpha / beta - tau) / tau <= 1e-3:
                break
        # The density at alpha and beta, with m2 and res of the round before as the definition has them.
        mean2, left = (sum(v * v * q * q / (alpha / beta + v * v) ** 2 for v, q in zip(s, p, strict=True)),
                       sum(q * q / (1 + v * v * beta / alpha) ** 2 for v, q in zip(s, p, strict=True)) + r0)
        density = multivariate_normal(np.zeros(len(x)), np.eye(len(x)) / beta + x @ x.T / alpha).logpdf(t)
        found.append((density - beta / 2 * (res - left) - alpha / 2 * (m2 - mean2)) / len(x))
    return float(np.mean(found))


@pytest.mark.parametrize(("count", "width"), [(60, 5), (20, 60)])
def test_logme_is_the_evidence_of_a_linear_model_with_fewer_images_than_dimensions_too(count, width):
    features, labels = blobs(count, width, 3, apart=0.5)
    assert logme(features, labels) == pytest.approx(evidence_loop(features, labels), rel=1e-6)
    idle = torch.cat([features, torch.zeros(count, 7)], 1)  # directions without data add nothing
    assert logme(idle, labels) == pytest.approx(logme(features, labels), rel=1e-9)


def test_logme_by_hand():
    """Vectors that are the targets, one each: sigma is 1, u^2 is 1, and the first round has gamma = 2 / 2."""
    features, labels = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([0, 1])
    tau, alpha, beta = 1.0, 1.0, 1.0
    for _ in range(11):
        gamma, m2, res = 2 / (1 + tau), 1 / (1 + tau) ** 2, tau**2 / (1 + tau) ** 2
        alpha, beta = gamma / (m2 + 1e-5), (2 - gamma) / (res + 1e-5)
        if abs(alpha / beta - tau) / tau <= 1e-3:
            break
        tau = alpha / beta
    logs = math.log(alpha) + math.log(beta) - math.log(alpha + beta) - math.log(2 * math.pi)
    assert logme(features, labels) == pytest.approx((logs - beta * res / 2 - alpha * m2 / 2) / 2, rel=1e-9)


def test_h_score_by_a_loop_and_by_hand():
    features, labels = blobs()
    x, y = features.double().numpy(), labels.numpy()
    g = np.stack([x[y == c].mean(0) for c in y])
    wanted = np.trace(np.linalg.pinv(np.cov(x.T), rcond=1e-15) @ np.cov(g.T))
    assert h_score(features, labels) == pytest.approx(wanted, rel=1e-9)
    assert h_score(torch.cat([features, features[:, :2]], 1), labels) == pytest.approx(wanted, rel=1e-6)  # no new direction
    hand = torch.tensor([[0.0], [2], [10], [12]])  # squares of -6, -4, 4, 6 and of -5, -5, 5, 5
    assert h_score(hand, torch.tensor([0, 0, 1, 1])) == pytest.approx(100 / 104)
    assert h_score(torch.randn(12, 30, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4) == pytest.approx(3)


def test_leep_by_a_loop_and_by_hand():
    random = torch.Generator().manual_seed(0)
    theta, labels = torch.randn(30, 6, generator=random).double().softmax(1), 2 * (torch.arange(30) % 3)
    rows, y, n = theta.tolist(), labels.tolist(), 30
    joint = {(c, z): sum(rows[i][z] for i in range(n) if y[i] == c) / n for c in set(y) for z in range(6)}
    mass = [sum(joint[c, z] for c in set(y)) for z in range(6)]
    wanted = sum(math.log(sum(joint[y[i], z] / mass[z] * rows[i][z] for z in range(6))) for i in range(n)) / n
    assert leep(theta, labels) == pytest.approx(wanted, rel=1e-9)
    own = torch.eye(4)[torch.tensor([0, 0, 1, 1])]  # two of four classes never occur
    assert leep(own, torch.tensor([5, 5, 8, 8])) == pytest.approx(0)
    assert leep(torch.full((4, 4), 0.25), torch.tensor([0, 0, 1, 1])) == pytest.approx(math.log(0.5))
    with pytest.raises(Refused, match="after softmax"):
        leep(theta.log(), labels)


def test_vectors_that_tell_classes_apart_score_higher():
    near, far = ({s.name: s.value for s in transfer_scores(*blobs(200, apart=apart))} for apart in (0.2, 3.0))
    assert all(far[name] > near[name] for name in ("PED", "LogME", "H-score"))


def test_what_means_nothing_is_refused_in_a_sentence():
    features, labels = blobs(12, classes=3)
    with pytest.raises(Refused, match="1 class; 2 or more"):
        transfer_scores(features, torch.zeros(12, dtype=torch.int64))
    with pytest.raises(Refused, match="0 labelled images are of 0 classes"):
        check(features[:0], labels[:0])
    with pytest.raises(Refused, match="12 labelled images of 20 classes are fewer than one a class"):
        check(features, labels, 20)
    with pytest.raises(Refused, match="the backbone has collapsed"):
        transfer_scores(torch.ones(12, 4), labels)
    broken = features.clone()
    broken[7, 2] = torch.nan
    with pytest.raises(Refused, match="1 of 12 vectors of the images are not finite .*image 7"):
        transfer_scores(broken, labels)


def test_a_score_that_cannot_be_had_leaves_the_others():
    features, _ = blobs(6, classes=3)
    found = {s.name: s for s in transfer_scores(features, torch.tensor([0, 0, 1, 1, 2, 2]))}
    assert found["TMI"].value is None and "a class of 4 images or more; the largest here has 2" in found["TMI"].note
    assert found["LogME"].value is not None and "LEEP" not in found and all(s.seconds >= 0 for s in found.values())
    features, labels = blobs()
    found = {s.name: s for s in transfer_scores(features / 100, labels, probabilities=torch.full((60, 2), 0.5))}
    assert found["LEEP"].value == pytest.approx(leep(torch.full((60, 2), 0.5), labels)) and not found["LogME"].note
    assert found["TMI"].note.startswith("100% of the distances")
