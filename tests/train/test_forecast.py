"""What a forecast says of memory: from hand-made measurements."""

from types import SimpleNamespace

import pytest
import torch

from daybreak.config import Training
from daybreak.train import forecast as module
from daybreak.train.forecast import Forecast

GIB = 2**30


def forecast(peak, available=10 * GIB) -> Forecast:
    return Forecast(200.0, peak, GIB / 16, available, (16, 32))


def test_the_sentence_gives_time_epochs_and_memory():
    said = forecast(4 * GIB).sentence(images=720_000, count=50_000)
    assert said == ("200 images/s, 720,000 images (14.4 epochs) in 1.00 hours, memory 4.0 of 10.0 GiB "
                    "(from steps of 16 and 32 images)")


def test_memory_that_suffices_or_is_not_known_is_no_warning():
    assert forecast(9 * GIB).warning(128) is None and forecast(None).warning(128) is None


def test_a_batch_that_will_not_fit_comes_with_one_that_will():
    """12 GiB at 128 images of 1/16 GiB each; 9 may be used, so 3 GiB or 48 images must go: 80, hence 64."""
    assert "a batch of 64 or" in forecast(12 * GIB).warning(128)
    assert "a batch" not in forecast(40 * GIB).warning(128)  # no batch will do


@pytest.mark.parametrize(("slope", "tried", "speed"), [(GIB // 64, [16, 16, 32, 128], 128 / 2.0), (GIB, [16, 16, 32], 128 / 1.3)])
def test_a_whole_batch_is_timed_where_it_fits(slope, tried, speed, monkeypatch):
    """A step of b images takes 0.02 + 0.01 b seconds up to 32 of them, and 2 of 128, which no longer lie in a cache."""
    seen = []

    def trial(*arguments, warm=2, measured=3):
        seen.append(arguments[-1])
        return {16: 0.18, 32: 0.34, 128: 2.0}[arguments[-1]], GIB + slope * arguments[-1]

    monkeypatch.setattr(module, "trial", trial)
    monkeypatch.setattr(module, "prepare", lambda *_: (None, None))
    monkeypatch.setattr(module, "available", lambda _: 10 * GIB)
    config = SimpleNamespace(training=Training(batch_size=128))
    found = module.forecast(SimpleNamespace(exact_accumulation=False), None, config, SimpleNamespace(device=torch.device("cpu")))
    assert seen == tried and found.images_per_second == pytest.approx(speed)
    assert found.peak_bytes == GIB + 128 * slope and found.tried == (16, 32)
