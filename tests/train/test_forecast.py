"""What a forecast says of memory: from hand-made measurements."""

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
