"""Prototypes and their images, by scores given here."""

import cv2
import numpy as np
import torch

from daybreak.data.images import open_images
from daybreak.explain.clusters import clusters


def test_the_commonest_prototypes_come_with_their_nearest_images(tmp_path):
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8, 3), 40 * i, np.uint8))
    images = open_images(tmp_path)
    scores = torch.tensor([[5.0, 0, 1], [9, 0, 1], [0, 0, 2], [7, 0, 1], [0, 0, 8], [6, 9, 9.5]])
    first, second = clusters(scores, images, count=3, k=2)  # no image goes to the second prototype
    assert (first.prototype, first.size, first.of) == (0, 3, 6) and (second.prototype, second.size) == (2, 3)
    assert [t.key for t in first.found] == ["1.png", "3.png"] and [t.key for t in second.found] == ["5.png", "4.png"]
    assert [int(t.image[0, 0, 0]) for t in first.found] == [40, 120]
    assert [c.prototype for c in clusters(scores, images, count=1)] == [0]
