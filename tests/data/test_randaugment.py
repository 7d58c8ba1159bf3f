"""RandAugment: what each operation does, and that a sample's result is its own."""

import pytest
import torch

from daybreak.data import randaugment
from daybreak.data.philox import Random
from daybreak.data.randaugment import SIGNED, UNSIGNED, move, operations_for, rand_augment


def some(count: int = 48, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 12, 10, generator=torch.Generator().manual_seed(0))


def drawn(count: int, epoch: int = 0) -> Random:
    return Random(0, epoch, torch.arange(count))


@pytest.mark.parametrize(("channels", "number"), [(1, 14), (3, 15), (4, 10)])
def test_every_operation_keeps_shape_and_range(channels, number):
    table = operations_for(channels)
    assert len(table) == number
    for name, operation in table.items():
        for strength in (0.4, 1.0) if name in UNSIGNED else (-1.0, 0.9):
            x = some(3, channels)
            found = operation(x.clone(), strength, [0.5] * channels)
            assert found.shape == x.shape and found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1 + 1e-6, name
            assert not torch.allclose(found, x, atol=1e-3), name


def test_operations_by_hand():
    x, fill = some(2), [0.1, 0.2, 0.3]
    torch.testing.assert_close(UNSIGNED["invert"](x, 0.9, fill), 1 - x)
    torch.testing.assert_close(UNSIGNED["solarize"](x, 0.9, fill), torch.where(x >= 0.1, 1 - x, x), atol=1e-6, rtol=0)
    torch.testing.assert_close(SIGNED["brightness"](x, -0.5, fill), x * 0.55)
    assert len(UNSIGNED["posterize"](x, 0.9, fill).unique()) == 2  # one bit
    right = move(x, fill, right=0.5)  # five of ten columns come in from the left
    torch.testing.assert_close(right[..., 5:], x[..., :5])
    torch.testing.assert_close(right[:, :, :, :5], torch.tensor(fill)[None, :, None, None].expand(2, 3, 12, 5))
    torch.testing.assert_close(SIGNED["shear x"](x, 0.0, fill), x)


def test_what_is_added_below_one_half_by_hand():
    x = torch.tensor([0.0, 0.4, 0.499, 0.5, 0.9])
    found = UNSIGNED["solarize add"](x, 1.0, [0.0])
    torch.testing.assert_close(found, torch.tensor([110 / 255, 0.4 + 110 / 255, 0.499 + 110 / 255, 0.5, 0.9]))


def test_strengths_are_half_a_step_about_the_magnitude_and_of_either_sign(monkeypatch):
    """Of one signed and one unsigned operation; nothing is stronger than 10."""
    seen = []
    monkeypatch.setattr(randaugment, "operations_for", lambda channels: {
        name: lambda x, m, fill, name=name: seen.extend([(name, round(m, 6))] * len(x)) or x for name in ("rotate", "invert")})
    rand_augment(some(800), drawn(800), 9.0, (0.5, 0.5, 0.5))
    counts = {kind: seen.count(kind) for kind in seen}
    assert counts.keys() == {("invert", 0.85), ("invert", 0.95), *(("rotate", s * m) for s in (-1, 1) for m in (0.85, 0.95))}
    assert all(count == pytest.approx(200 if name == "invert" else 100, abs=50) for (name, _), count in counts.items())
    seen.clear()
    rand_augment(some(20), drawn(20), 10.0, (0.5, 0.5, 0.5))
    assert {abs(m) for _, m in seen} == {0.95, 1.0}


def test_a_sample_is_changed_as_its_index_says_whatever_the_batch():
    x = some()
    whole = rand_augment(x.clone(), drawn(48), 9.0, (0.5, 0.5, 0.5))
    part = rand_augment(x[20:30].clone(), Random(0, 0, torch.arange(20, 30)), 9.0, (0.5, 0.5, 0.5))
    torch.testing.assert_close(part, whole[20:30])
    other = rand_augment(x.clone(), drawn(48, epoch=1), 9.0, (0.5, 0.5, 0.5))
    assert not torch.equal(other, whole)


def test_a_quarter_is_left_alone_and_no_magnitude_changes_nothing():
    """Each of two operations is left out with probability 1/2; a few change nothing by themselves."""
    x = some(400)
    same = (rand_augment(x.clone(), drawn(400), 9.0, (0.5, 0.5, 0.5)) == x).all((1, 2, 3)).float().mean()
    assert 0.18 < same < 0.34
    assert torch.equal(rand_augment(x.clone(), drawn(400), 0.0, (0.5, 0.5, 0.5)), x)
