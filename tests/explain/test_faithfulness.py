"""Insertion and deletion by hand on features that are known; an oracle beats chance."""

import numpy as np
import pytest
import torch

from daybreak.data.photometric import blur
from daybreak.explain.faithfulness import area, baselines, faithfulness, strongest


class Corner:
    """An encoder whose feature is the upper left quarter of the image; it keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return images[:, :, : images.shape[2] // 2, : images.shape[3] // 2].flatten(1)


def picture(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))


def test_area_is_the_trapezoid_rule():
    assert area(torch.tensor([0.0, 1.0, 1.0])) == pytest.approx(0.75)  # half of the first step, all of the second
    assert area(torch.tensor([1.0, 0.5, 0.25, 0.0])) == pytest.approx((1.5 / 2 + 0.75 / 2 + 0.25 / 2) / 3)


def test_the_strongest_cells_come_first_and_ties_in_order():
    saliency = torch.tensor([[1.0, 3.0, 1.0], [2.0, 1.0, 9.0]])
    order = [(1, 2), (0, 1), (1, 0), (0, 0), (0, 2), (1, 1)]
    found = strongest(saliency, 3, (4, 9))  # cells of 2 x 3 pixels, two a step
    assert found.shape == (4, 1, 4, 9)
    for step in range(4):
        for y in range(4):
            for x in range(9):
                assert bool(found[step, 0, y, x]) == ((y // 2, x // 3) in order[: 2 * step])


def test_states_and_scores_are_those_of_the_paper_with_a_cosine():
    image, encoder = picture(8, 12), Corner()
    saliency = torch.arange(6.0).reshape(2, 3)
    found = faithfulness(encoder, image, saliency, steps=6)
    _, deleted, inserted = encoder.seen
    soft = blur(image[None].clone(), torch.full((1, 1, 1, 1), 5.0), 5)[0]
    torch.testing.assert_close(deleted[0], image)
    assert (deleted[-1] == 0).all()
    torch.testing.assert_close(inserted[0], soft)
    torch.testing.assert_close(inserted[-1], image)
    first = slice(4, 8), slice(8, 12)  # the strongest cell, at the lower right
    assert (deleted[1][:, *first] == 0).all() and torch.equal(inserted[1][:, *first], image[:, *first])
    assert torch.equal(deleted[1][:, :4], image[:, :4]) and torch.equal(inserted[1][:, :4], soft[:, :4])
    for step in range(7):
        a, b = encoder.pooled(inserted[step : step + 1])[0].double(), encoder.pooled(image[None])[0].double()
        assert float(found.insertion.scores[step]) == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-6)
    assert found.insertion.area == pytest.approx(area(found.insertion.scores))
    assert float(found.deletion.scores[0]) == pytest.approx(1) and float(found.deletion.scores[-1]) == 0


def test_an_oracle_beats_chance_and_its_opposite():
    image, oracle = picture(), torch.zeros(4, 4)
    oracle[:2, :2] = 1
    known = faithfulness(Corner(), image, oracle)
    for other in (*baselines((4, 4), 0).values(), -oracle):
        found = faithfulness(Corner(), image, other)
        assert known.deletion.area < found.deletion.area and known.insertion.area > found.insertion.area


def test_only_the_order_of_a_map_counts():
    saliency = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    one, other = (faithfulness(Corner(), picture(), x) for x in (saliency, saliency.exp() * 3 + 1))
    assert torch.equal(one.deletion.scores, other.deletion.scores) and one.insertion.area == other.insertion.area


def test_maps_that_know_nothing_are_fixed():
    one, same, other = (baselines((3, 5), i) for i in (0, 0, 1))
    assert torch.equal(one["Random map"], same["Random map"]) and not torch.equal(one["Random map"], other["Random map"])
    middle = one["Middle of the picture"].numpy()
    assert np.unravel_index(middle.argmax(), (3, 5)) == (1, 2)
    np.testing.assert_allclose(middle, middle[::-1, ::-1])
