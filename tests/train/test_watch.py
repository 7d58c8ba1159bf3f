"""The judgement on made-up records: what is said, when, since when, and what is left unsaid."""

import math
from types import SimpleNamespace

import pytest
from conftest import tiny_method

from daybreak.train.loop import watch_of
from daybreak.train.watch import STOP_AFTER, Alarm, Watch

LN = math.log(4096)
DINO = {"ln 4096: the output is uniform": LN, "0: every image goes to one prototype": 0.0}
START = dict(kind="health", images=0, rankme=20.0, spread=0.5, knn_accuracy=0.6, knn_error=0.02)


def train(images, loss=5.0, norm=1.0, **numbers):
    return dict(kind="train", images=images, loss=loss, gradient_norm=norm, **numbers)


def health(images, **numbers):
    return START | dict(images=images) | numbers


def feed(watch, records, budget=10_000) -> list[Alarm]:
    return [alarm for record in records if (alarm := watch.see(record, record["images"] / budget))]


def uniform(images):
    return train(images, loss=LN, assignment_entropy=LN, mean_entropy=LN)


def good(images):
    return train(images, loss=6.0, assignment_entropy=2.0, mean_entropy=8.0)


def test_a_uniform_output_is_named_once_with_its_image():
    records = [START, *map(good, range(100, 3000, 100)), *map(uniform, range(3000, 6000, 100))]
    (alarm,) = feed(Watch(DINO, prototypes=4096), records)
    assert alarm == Alarm("since image 3,200 the loss stands at 8.318 = ln 4096 and the assignment entropy is full: the output is "
                          "uniform. Try a lower learning rate or a longer warm-up of the teacher temperature.", 3200,
                          ("loss", "entropy"))


def test_nothing_is_said_in_the_first_twentieth_and_then_since_when_it_began():
    watch, stuck = Watch(DINO, prototypes=4096), [train(i, loss=LN, norm=0.0) for i in range(10, 510, 10)]
    assert not feed(watch, stuck[:-1])
    (alarm,) = feed(watch, stuck[-1:])
    assert alarm.since == 30  # the third record: fewer have no median


def test_an_alarm_that_passes_is_taken_back_and_may_come_again():
    watch = Watch(DINO, prototypes=4096)
    parts = [map(kind, range(*where, 100)) for kind, *where in ((good, 100, 500), (uniform, 500, 1000), (good, 1000, 2000),
                                                                (uniform, 2000, 3000))]
    found = feed(watch, [record for part in parts for record in part])
    assert [bool(alarm.signs) for alarm in found] == [True, False, True]
    assert found[1].sentence == "what stood since image 700 has passed."
    assert watch.alarm is found[2]


@pytest.mark.parametrize(("records", "signs", "words"), [
    ([uniform(i) for i in range(100, 3000, 100)], ("loss", "entropy"), "since image 2,000 the loss stands at 8.318 = ln 4096 and"),
    ([train(i, loss=0.01, assignment_entropy=0.0, mean_entropy=0.001) for i in range(100, 2000, 100)], ("loss", "entropy"),
     "every image goes to one prototype"),
    ([*map(train, range(100, 1000, 100)), *(train(i, loss=9.0, norm=500) for i in range(1000, 2000, 100)),
      health(1950, spread=0.01)], ("explosion", "spread"), "the training diverges"),
    ([*map(train, range(100, 1000, 100)), *(train(i, loss=9.0) for i in range(1000, 2000, 100)), health(1950, rankme=1.5)],
     ("rise", "rank"), "the loss rose from 5 to 9"),
    ([*(train(i, loss=LN, norm=0.0) for i in range(100, 2000, 100))], ("loss", "gradient"), "the gradient is zero"),
    ([*map(train, range(100, 1000, 100)), *(train(i, loss=LN, norm=1e-4) for i in range(1000, 2000, 100))],
     ("loss", "gradient"), "the gradient norm fell from 1 to 0.0001"),
    ([*(train(i, loss=LN) for i in range(100, 3000, 100))], ("loss", "still"),
     "since image 2,000 the loss stands at 8.318 = ln 4096 and the loss has not fallen since the start (8.318)"),
    ([*(train(i, loss=8.5 + i / 1e4) for i in range(100, 3000, 100))], ("above", "still"),
     "the loss of 8.680 is above 8.318 = ln 4096 and the loss has not fallen since the start (8.520)"),
    ([*(train(i, agreement=0.9999) for i in range(100, 2000, 100)), health(1950, spread=0.05)], ("agreement", "spread"),
     "all images get one vector"),
    ([*(train(i, loss=LN, pixel_spread=0.0) for i in range(100, 2000, 100))], ("images", "loss"),
     "the images of a batch are all the same, or flat (their pixels deviate by 0)"),
    ([*map(train, range(100, 2000, 100)), health(1950, rankme=1.2, spread=0.02)], ("spread", "rank"), "nearly one vector"),
    ([*map(train, range(100, 2000, 100)), health(1950, rankme=1.2, knn_accuracy=0.3)], ("rank", "knn"),
     "30.0%, below the 60.0% of random weights"),
])
def test_two_signs_make_an_alarm(records, signs, words):
    (alarm,) = feed(Watch(DINO, prototypes=4096), [START, *records])
    assert alarm.signs == signs and words in alarm.sentence and ". Try " in alarm.sentence


def test_images_that_are_all_alike_need_no_second_sign():
    """Planted in SiT, whose contrast then wanders above its degenerate value, and never stands at it or at its start."""
    degenerate = {"contrast: 0.8 ln 64: no view is told from another": 0.8 * math.log(64)}
    records = [train(i, loss=4.5 - i / 4000, contrast=3.5 + i % 300 / 500, pixel_spread=0.0) for i in range(100, 3000, 100)]
    (alarm,) = feed(Watch(degenerate), [START, *records, health(2500, rankme=3.2, knn_accuracy=0.57)])
    assert alarm == Alarm("since image 300 the images of a batch are all the same, or flat (their pixels deviate by 0): there is "
                          "nothing to tell apart. Try a look at the images that are read.", 300, ("images",))


@pytest.mark.parametrize("records", [
    [train(100, 8.0), train(200, 8.0), *(train(i, loss=LN) for i in range(300, 4000, 100))],  # a loss alone
    [train(i, pixel_spread=0.05, loss=LN) for i in range(100, 1900, 100)],  # images of which most of each is black
    [train(i, pixel_spread=0.0 if i % 300 == 0 else 0.9, loss=6 - i / 1e4) for i in range(100, 4000, 100)],  # an odd batch
    [train(i, loss=8.0) for i in range(100, 4000, 100)],  # a loss that does not move, alone
    [train(100, 7.0), train(200, 7.0), *(train(i, loss=7.9) for i in range(300, 4000, 100)), health(4000, knn_accuracy=0.3)],
    [train(i, assignment_entropy=LN, mean_entropy=LN) for i in range(100, 2000, 100)],  # an entropy alone
    [*map(train, range(100, 2000, 100)), health(1950, rankme=1.2)],  # a rank alone
    [*(train(i, loss=LN) for i in range(100, 1900, 100)), health(1900, knn_accuracy=0.3)],  # two, but none that must be
    [*(train(i, loss=9 - i / 1e4) for i in range(100, 3000, 100)), health(3000, rankme=3.6, spread=0.16, knn_accuracy=0.53)],
    [*(train(i, loss=LN if i % 300 == 0 else 6.0, assignment_entropy=LN if i % 300 == 0 else 2.0, mean_entropy=8.0)
       for i in range(100, 2000, 100))],  # odd batches
    [*map(train, range(100, 1000, 100)), *(train(i, loss=7.9) for i in range(1000, 4000, 100))],  # a rise, which is no fall
    [uniform(100), uniform(2000)],  # too few to have a median
])
def test_one_sign_or_an_odd_batch_is_no_alarm(records):
    assert not feed(Watch(DINO, prototypes=4096), [START, *records])


def test_without_probes_labels_or_prototypes_it_judges_by_what_there_is():
    assert not feed(Watch({}), [train(i, loss=0.0) for i in range(100, 2000, 100)])
    blind = [{k: v for k, v in r.items() if not k.startswith("knn")} for r in (START, health(1950, rankme=1.1, spread=0.01))]
    assert len(feed(Watch({}), blind)) == 1


def test_images_that_are_all_alike_show_in_the_spread_whatever_it_was_at_the_start():
    same = [r | {"spread": 0.0, "rankme": 1.0} for r in (START, health(1950))]
    (alarm,) = feed(Watch({}), same)
    assert alarm.signs == ("spread", "rank")


@pytest.mark.parametrize(("accuracy", "said"), [(0.72, False), (0.65, True)])
def test_narrow_features_that_tell_more_than_those_of_the_start_are_no_collapse(accuracy, said):
    """MAE on the demo: a sixth of the spread and of the rank of the start, and kNN accuracy from 52 to 64 %."""
    narrow = [health(2000, spread=0.08, rankme=3.0, knn_accuracy=accuracy)]
    assert bool(feed(Watch({}), [START, *map(train, range(100, 2000, 100)), *narrow])) == said


def test_policies():
    watch = Watch(DINO, prototypes=4096)
    assert not watch.stops("stop", 0.1)
    feed(watch, [*map(good, range(100, 500, 100)), *map(uniform, range(500, 1000, 100))])
    began = watch.alarmed
    assert watch.stops("stop", began) and not watch.stops("warn", 1.0)
    assert not watch.stops("warn-then-stop", began + 0.99 * STOP_AFTER) and watch.stops("warn-then-stop", began + STOP_AFTER)


def test_records_read_again_give_the_same_judgement():
    records = [START, *map(good, range(100, 3000, 100)), *map(uniform, range(3000, 4000, 100))]
    whole, again = Watch(DINO, prototypes=4096), Watch(DINO, prototypes=4096)
    found = feed(whole, records)
    for record in [*records[:20], dict(kind="alarm", images=1900, sentence="x", since=3, signs=[]), *records[20:]]:
        again.see(record, record["images"] / 10_000)
    assert again.alarm == found[0] and again.since == whole.since


def test_weights_that_a_run_continues_from_and_makes_worse_are_said_once_by_one_sign():
    watch = Watch(DINO, prototypes=4096, start="the starting weights")
    falling = [good(i) | dict(loss=7.0 - i / 1000) for i in range(100, 1000, 100)]
    (alarm,) = feed(watch, [START, *falling, health(1000, knn_accuracy=0.4), health(2000, knn_accuracy=0.4)])
    assert alarm.sentence.startswith("kNN accuracy is 40.0%, below the 60.0% of the starting weights") and watch.alarm is None
    lost, dipped = ([{k: v for k, v in record.items() if "knn" not in k} for record in (START, health(1000, rankme=rank))]
                    for rank in (6.0, 8.0))  # MAE that goes on from MAE dips to 0.4 of its rank, and is the better for it
    (alarm,) = feed(Watch(DINO, start="the starting weights"), lost)
    assert "6.0 directions by RankMe, 20.0 those of the starting weights" in alarm.sentence
    assert not feed(Watch(DINO, start="the starting weights"), dipped)
    assert not feed(Watch(DINO, prototypes=4096), [START, health(1000, knn_accuracy=0.4)])


def test_without_labels_lost_neighbours_of_the_starting_weights_are_said():
    start, before = {k: v for k, v in START.items() if "knn" not in k}, dict(start="the starting weights")
    kept = [[start | dict(neighbours_kept=1.0), start | dict(images=1000, neighbours_kept=share)] for share in (0.15, 0.3)]
    (alarm,) = feed(Watch(DINO, **before), kept[0])
    assert alarm.sentence.startswith("15.0% of the nearest neighbours under the starting weights remain: what they told apart")
    assert not feed(Watch(DINO, **before), kept[1])


def entropies(gaps, part="class"):
    """Lines of a method whose output is ``gaps`` nats from uniform; its loss is the entropy, and one that falls beside it."""
    return [train(100 * i, loss=LN - gap + 7 - i / 10, assignment_entropy=LN - gap, mean_entropy=LN - gap / 2, **{part: LN - gap})
            for i, gap in enumerate(gaps, 1)]


CLASS = {"class: ln 4096: the labels of images are uniform": LN}


def test_an_output_that_begins_uniform_and_leaves_that_state_is_learning():
    """However little: to the end its entropy is above 0.995 of the full one."""
    learns = entropies([0.005 * 1.05**i for i in range(40)])
    assert min(r["assignment_entropy"] for r in learns) > 0.995 * LN
    assert not feed(Watch(CLASS, prototypes=4096), [START, *learns])
    stands = entropies([0.005 * 1.05 ** (i % 3) for i in range(40)])
    (alarm,) = feed(Watch(CLASS, prototypes=4096), [START, *stands])
    assert alarm.signs == ("loss", "entropy") and alarm.since == 2000  # by when it should have left it


def test_an_output_that_becomes_uniform_is_not_leaving_that_state():
    """MC-SSL on the demo at its settings for small images: 0.092 nats from the full entropy at first, 0.0005 after 70 steps."""
    falls = entropies([0.092, 0.010, 0.038, 0.028, 0.009, 0.0015, 0.0005, 0.0004, 0.001, 0.0008])
    (alarm,) = feed(Watch(CLASS, prototypes=4096), [START, *falls], budget=1500)
    assert alarm.signs == ("loss", "entropy")


def test_a_part_that_has_not_moved_yet_is_no_failure_while_the_loss_falls():
    """DeVAE on 20,000 images of the demo: the code was unused for two thirds of them, and then no longer."""
    unused = {"unused: 1: the code says nothing of the image, and all are painted as their mean": 1.0}
    losses = [1086, 1084, 1078, 1066, 1038, 992.4, 963.2, 935.7]
    falls = [train(2560 * i, loss=loss, norm=350.0, unused=0.9989) for i, loss in enumerate(losses, 1)]
    assert not feed(Watch(unused), [START, *falls], budget=20_000)
    stands = [record | dict(loss=1086 - i / 10) for i, record in enumerate(falls)]
    (alarm,) = feed(Watch(unused), [START, *stands], budget=20_000)
    assert alarm.signs == ("loss", "still") and "the unused loss stands at 0.999 = 1 and the loss has not fallen" in alarm.sentence


def test_a_reading_may_be_of_one_of_the_method_s_numbers():
    """The sum of several losses is no loss of prototypes: only the number that the reading names is held against it."""
    degenerate = {"class: ln 4096: the labels of images are uniform": LN}
    high = [train(i, loss=2 * LN, **{"class": LN - 1}) for i in range(100, 5000, 100)]
    assert not feed(Watch(degenerate), high)
    stuck = [train(i, loss=3.0, norm=10.0 if i < 500 else 1e-3, **{"class": LN}) for i in range(100, 5000, 100)]
    (alarm,) = feed(Watch(degenerate), stuck)
    assert "the class loss stands at 8.318 = ln 4096" in alarm.sentence and alarm.signs == ("loss", "gradient")


@pytest.mark.parametrize(("several", "classes", "said"), [(False, False, 1), (True, False, 0), (True, True, 1)])
@pytest.mark.parametrize("start", ["random weights", "the starting weights"])
def test_narrow_features_are_no_sign_where_several_labels_are_learned(several, classes, said, start):
    """Unless there is a kNN accuracy, which then shows that they have become worse."""
    known = ("knn_accuracy", "knn_error")
    records = [{k: v for k, v in record.items() if classes or k not in known} for record in (
        START, health(2000, rankme=3.2, spread=0.14, knn_accuracy=0.3, neighbours_kept=0.1))]
    assert len(feed(Watch({}, start=start, several_labels=several), records)) == said


def test_one_vector_for_all_images_is_seen_where_several_labels_are_learned():
    records = [{k: v for k, v in record.items() if not k.startswith("knn")} for record in (
        START, health(2000, rankme=1.1, spread=0.0))]
    (alarm,) = feed(Watch({}, several_labels=True), records)
    assert alarm.signs == ("spread", "rank")


def test_a_run_tells_its_watch_what_it_learns_from():
    config = SimpleNamespace(encoder=SimpleNamespace(init=None))
    assert watch_of(tiny_method("lt_vit"), config).several_labels
    assert not any(watch_of(tiny_method(name), config).several_labels for name in ("mae", "hydra"))
