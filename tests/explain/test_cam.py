"""Eigen-CAM against power iteration in scalar loops, by hand, and on a ViT and a CNN."""

import pytest
import torch

from daybreak.explain.cam import eigen_cam
from daybreak.nn.encoder import Encoder


def noise(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def strongest_direction(table: list[list[float]]) -> tuple[list[float], float]:
    """First right singular vector of a table and its share of the squares, by power iteration."""
    width = len(table[0])
    gram = [[sum(row[i] * row[j] for row in table) for j in range(width)] for i in range(width)]
    vector, length = [1.0 + 0.1 * i for i in range(width)], 0.0
    for _ in range(5000):
        moved = [sum(gram[i][j] * vector[j] for j in range(width)) for i in range(width)]
        length = sum(x * x for x in moved) ** 0.5
        vector = [x / length for x in moved]
    return vector, length / sum(gram[i][i] for i in range(width))


@pytest.mark.parametrize("centred", [False, True])
def test_equals_power_iteration(centred):
    features = noise(2, 3, 2, 4)  # two images, width 3, 2 x 4 positions
    found = eigen_cam(features, centred=centred)
    assert found.map.shape == (2, 2, 4)
    for i in range(2):
        table = [[float(features[i, d, p // 4, p % 4]) for d in range(3)] for p in range(8)]
        if centred:
            means = [sum(row[d] for row in table) / 8 for d in range(3)]
            table = [[row[d] - means[d] for d in range(3)] for row in table]
        vector, share = strongest_direction(table)
        projection = [sum(row[d] * vector[d] for d in range(3)) for row in table]
        if abs(min(projection)) > abs(max(projection)):
            projection = [-x for x in projection]
        torch.testing.assert_close(found.map[i].flatten(), torch.tensor(projection, dtype=torch.float64), atol=1e-5, rtol=1e-4)
        assert float(found.share[i]) == pytest.approx(share, abs=1e-5)


def test_by_hand():
    strength = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    features = (strength[None] * torch.tensor([3.0, 4.0])[:, None, None])[None]  # one direction, of length 5
    torch.testing.assert_close(eigen_cam(features).map[0], 5 * strength.double())
    torch.testing.assert_close(eigen_cam(features).share, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(eigen_cam(features, centred=True).map[0], 5 * (strength.double() - 2))
    torch.testing.assert_close(eigen_cam(-features).map, eigen_cam(features).map)  # the sign is not an accident
    assert eigen_cam(torch.zeros(1, 3, 2, 2)).map.abs().max() == 0 == float(eigen_cam(torch.zeros(1, 3, 2, 2)).share)


def test_images_stand_by_themselves():
    features = noise(3, 5, 2, 3)
    torch.testing.assert_close(eigen_cam(features).map[1:2], eigen_cam(features[1:2]).map)


@pytest.mark.parametrize("name", ["vit_micro", "convnext_mini"])
def test_any_encoder_has_one(name):
    encoder = Encoder(name, image_size=(32, 48)).eval()
    with torch.no_grad():
        found = eigen_cam(encoder.map(noise(2, 3, 32, 48)))
    assert found.map.shape == (2, *encoder.grid(32, 48)) and found.map.isfinite().all()
    assert ((found.share > 0) & (found.share <= 1)).all()
