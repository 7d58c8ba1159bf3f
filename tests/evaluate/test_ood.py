"""ood-v1: its scores against scalar loops, its numbers on sets that are apart or the same."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from daybreak.evaluate.logistic import logistic_v1
from daybreak.evaluate.ood import mahalanobis, msp, ood_v1, similarities


def blobs(count: int, seed: int, shift: float = 0.0):
    centres = torch.randn(3, 5, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % 3
    return centres[labels] + shift + torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), labels


def test_mahalanobis_equals_scikit_learn_class_by_class():
    x, y = blobs(90, 0)
    test, _ = blobs(20, 1)
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit((x - means[y]).double().numpy())
    plain = -np.min([covariance.mahalanobis((test - mean).double().numpy()) for mean in means], 0)
    np.testing.assert_allclose(mahalanobis(test, x, y).numpy(), plain, rtol=1e-4)


def test_mahalanobis_of_fewer_images_than_dimensions_is_finite():
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    assert mahalanobis(x, x, torch.arange(6) % 2).isfinite().all()


def test_similarities_by_a_loop():
    x, test = blobs(30, 0)[0], blobs(7, 1)[0]
    plain = [sorted((float(a @ b / a.norm() / b.norm()) for b in x), reverse=True)[:4] for a in test]
    np.testing.assert_allclose(similarities(test, x, 4).numpy(), plain, atol=1e-5)


def test_msp_is_the_classifier_of_logistic_v1():
    (x, y), (test, truth) = blobs(90, 0), blobs(20, 1)
    np.testing.assert_allclose(np.exp(msp(test, x, y, None)), logistic_v1(x, y, test, truth, 3).score.max(1), atol=1e-5)


def test_numbers_of_far_and_of_same_images():
    x, y = blobs(120, 0)
    test, _ = blobs(90, 1)
    far = {n.metric: n for n in ood_v1(x, y, test, blobs(80, 2, shift=-40.0)[0])[0]}
    same = {n.metric: n for n in ood_v1(x, y, test, blobs(80, 2)[0])[0]}
    assert set(far) == {f"{m} ({s})" for m in ("AUROC", "FPR95") for s in ("nearest instance", "kNN", "Mahalanobis", "MSP")}
    assert far["AUROC (Mahalanobis)"].value == 1 and far["FPR95 (Mahalanobis)"].value == 0
    for score in ("nearest instance", "kNN", "Mahalanobis", "MSP"):
        assert abs(same[f"AUROC ({score})"].value - 0.5) < 4 * same[f"AUROC ({score})"].error
        assert same[f"FPR95 ({score})"].value > 0.8
    other = blobs(80, 2, shift=1.0)[0]
    found = {n.metric: n for n in ood_v1(x, y, test, other)[0]}
    scores = torch.cat([mahalanobis(test, x, y), mahalanobis(other, x, y)]).numpy()
    assert found["AUROC (Mahalanobis)"].value == pytest.approx(roc_auc_score(np.arange(170) < 90, scores))


def test_a_bank_smaller_than_k_is_said():
    x, y = blobs(30, 0)
    assert "30 images, fewer than k = 50" in ood_v1(x, y, *(blobs(20, seed)[0] for seed in (1, 2)))[1][0]
    assert not ood_v1(*blobs(60, 0), *(blobs(20, seed)[0] for seed in (1, 2)))[1]
