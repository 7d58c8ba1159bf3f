"""Advice is measured by what it foretells: a simulated run, before and after the change, says whether it holds."""

import heapq
from pathlib import Path

import pytest
import torch

from daybreak.data.loader import Times
from daybreak.data.trial import Packing
from daybreak.train.advice import LEAST_WAITING, Adviser, Costs, Pace, changes
from daybreak.train.timing import Meter, Spans

PATH = Path("photos")
SMALL, RAW = Packing(256, "auto", 0.15, 0.3), Packing(256, "raw", 0.05, 2.0)


def simulate(*, threads, processors, work, disk=0.0, device, images=4000, ahead=64) -> Pace:
    """A run with a decoder of known delay, on a clock of its own.

    A thread waits ``disk`` seconds for the bytes, then for a processor, which it needs for ``work`` seconds;
    the device takes the images in order, ``device`` seconds each, and at most ``ahead`` of them are loaded before.
    """
    idle, free = [0.0] * threads, [0.0] * processors  # from when on
    taken, clock, waited, in_threads = [0.0] * images, 0.0, 0.0, 0.0
    for i in range(images):
        begin = max(heapq.heappop(idle), taken[i - ahead] if i >= ahead else 0.0)
        end = max(begin + disk, heapq.heappop(free)) + work
        heapq.heappush(idle, end)
        heapq.heappush(free, end)
        in_threads += end - begin
        waited += max(0.0, end - clock)
        taken[i] = max(end, clock)
        clock = taken[i] + device
    costs = Costs(read=disk, decode=in_threads / images - disk, place=0.0, processor=work, others=0.0, copy=0.0, augment=0.0,
                  step=device)
    return Pace(waiting=waited / clock, speed=images / clock, costs=costs, threads=threads, processors=processors)


SITUATIONS = {
    "decoding on idle processors": dict(threads=2, processors=8, work=0.010, device=0.0005),
    "decoding on all processors": dict(threads=8, processors=8, work=0.010, device=0.0002),
    "more threads than processors": dict(threads=8, processors=2, work=0.010, device=0.0005),
    "a slow disk": dict(threads=4, processors=4, work=0.001, disk=0.020, device=0.0005),
    "a disk and a decoder": dict(threads=4, processors=4, work=0.010, disk=0.010, device=0.0005),
    "a device that is soon the limit": dict(threads=2, processors=8, work=0.010, device=0.003),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_is_foretold_is_what_then_happens(name):
    """Within a tenth, and so are the measured shares that it rests on."""
    situation = SITUATIONS[name]
    now = simulate(**situation)
    assert now.waiting > LEAST_WAITING
    foretold = {"threads": now.gain(now.useful_threads()), "small": now.gain(now.threads, SMALL), "raw": now.gain(now.threads, RAW)}
    then = {"threads": simulate(**situation | {"threads": now.useful_threads()})}
    for key, packing in (("small", SMALL), ("raw", RAW)):
        then[key] = simulate(**situation | {"work": situation["work"] * packing.processor,
                                            "disk": situation.get("disk", 0.0) * packing.size})
    assert foretold == pytest.approx({key: pace.speed / now.speed for key, pace in then.items()}, rel=0.1)


def test_no_more_threads_than_are_of_use():
    assert simulate(**SITUATIONS["decoding on idle processors"]).useful_threads() == 8
    assert simulate(**SITUATIONS["more threads than processors"]).useful_threads() == 8  # those there are
    assert simulate(**SITUATIONS["a slow disk"]).useful_threads() == 42  # the device then takes all that comes
    assert simulate(**SITUATIONS["a device that is soon the limit"]).useful_threads() == 4
    tiny = simulate(threads=1, processors=8, work=1e-4, device=1e-6)
    assert tiny.useful_threads() == 1


def pace(waiting=0.8, speed=100.0, **changed) -> Pace:
    """12 processors and 6 threads that each need 60 ms for an image; the device needs 1 ms."""
    costs = dict(read=0.0, decode=0.055, place=0.005, processor=0.06, others=0.0, copy=0.0, augment=0.0, step=0.001)
    numbers = dict(threads=6, processors=12) | {k: changed.pop(k) for k in ("threads", "processors") if k in changed}
    return Pace(waiting=waiting, speed=speed, costs=Costs(**costs | changed), **numbers)


def adviser(packings=(SMALL, RAW)):
    asked = []
    made = Adviser(PATH, lambda seconds, one: asked.append(one) or list(packings))
    assert made.look(pace()) is None and not asked  # the start
    return made, asked


def test_the_sentence_names_the_best_change_the_others_and_how():
    made, asked = adviser([SMALL])
    assert made.look(pace()) == (
        "waiting for images takes 80% of the time: packing to 256 px would give about 6.7x; 12 threads about 2.0x "
        "(next: daybreak pack photos OUT --short-side 256)")
    assert asked == [pytest.approx(0.06)]


def test_of_nearly_equal_gains_the_change_that_costs_least_comes_first():
    near = pace(step=0.0055)  # the device is the limit at 1.8 times the speed
    assert [c.name for c in changes(near, [SMALL, RAW], PATH)] == [
        "11 threads", "packing to 256 px", "packing to 256 px as raw pixels"]
    assert [round(c.gain, 1) for c in changes(near, [SMALL, RAW], PATH)] == [1.8, 1.8, 1.8]
    assert changes(pace(), [SMALL, RAW], PATH)[0].how == "daybreak pack photos OUT --short-side 256 --encoding raw"
    spaced = changes(pace(), [SMALL], Path("my photos"))[0].how
    assert spaced == "daybreak pack 'my photos' OUT --short-side 256"


def test_nothing_is_said_where_the_loader_is_not_the_limit():
    made, asked = adviser()
    assert made.look(pace(waiting=0.09)) is None
    assert made.look(pace(step=0.0095)) is None  # a thread ran ahead of its device and waits, which costs nothing
    assert not asked  # no trial without need


def test_nothing_is_said_where_nothing_helps():
    made, asked = adviser([Packing(64, "raw", 1.0, 1.1)])
    assert made.look(pace(threads=12, speed=200.0)) is None and len(asked) == 1
    assert made.look(pace(threads=12, speed=200.0)) is None and len(asked) == 1  # one trial a run


def test_a_sentence_is_said_again_only_if_it_changed():
    made, asked = adviser([SMALL])
    assert "6.7x" in made.look(pace())
    assert made.look(pace(step=0.005)) is None  # batches loaded during the trial
    assert made.look(pace()) is None and made.look(pace(decode=0.05, processor=0.055)) is None
    assert made.look(pace(waiting=0.05)) is None
    assert "2.0x" in made.look(pace(step=0.005))  # the same change, but far less to gain
    assert len(asked) == 1


def test_where_a_cpu_also_trains_its_own_work_bounds_the_gain():
    shared = pace(threads=2, processors=2, speed=20.0, others=0.04, step=0.02)
    assert shared.gain(2, RAW) == pytest.approx((2 / 0.043) / (2 / 0.1), rel=0.01)


def test_stages_add_up_on_a_clock_that_stands_still_in_between():
    now = [0.0]
    spans = Spans(torch.device("cpu"), clock=lambda: now[0])
    with spans.copying() as move:
        assert torch.equal(move(torch.ones(3)), torch.ones(3))
        now[0] += 0.5
    for _ in range(2):
        since = spans.now()
        now[0] += 2.0
        spans.add("step", since)
        now[0] += 7.0
    assert spans.close() == {"copy": 0.5, "augment": 0.0, "step": 4.0}
    assert spans.close() == {"copy": 0.0, "augment": 0.0, "step": 0.0}


def test_a_meter_gives_seconds_an_image_since_the_last_look():
    class Made:
        times = Times(10, 1.0, 1.0, 1.0, 1.0)

    now, processor, made = [0.0], [100.0], Made()
    spans = Spans(torch.device("cpu"), clock=lambda: now[0])
    meter = Meter(made, spans, 1000, processor=lambda: processor[0])
    assert meter.close(1000) is None
    made.times, processor[0] = Times(30, 3.0, 5.0, 2.0, 7.0), 110.0
    since = spans.now()
    now[0] = 8.0
    spans.add("step", since)
    assert meter.close(1016) == Costs(read=0.1, decode=0.2, place=0.05, processor=0.3, others=0.25, copy=0.0, augment=0.0, step=0.5)
    assert meter.close(1032) is None  # nothing was loaded
