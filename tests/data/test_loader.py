"""The loader's batches are a function of seed and position: not of threads, ranks, restarts or timing."""

import contextlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from daybreak.data.images import Images, open_images
from daybreak.data.loader import Job, Loader, Times, evaluation_batches, place
from daybreak.data.philox import permutation
from daybreak.data.views import View, draw_boxes, fractions
from daybreak.errors import Failed, Refused

VIEWS = [View(size=(16, 24)), View(size=8, scale=(0.05, 0.3), count=2)]
SETS = {
    "plain": VIEWS,
    "reduced": [View(size=8, scale=(0.6, 1)), View(size=(4, 6), scale=(0.3, 0.6), count=2)],
    "multi-crop": [View(size=24, scale=(0.25, 1), count=2), View(size=10, scale=(0.05, 0.25), count=8)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """50 smooth JPEGs of several sizes, some large enough to be decoded reduced, in 2 classes."""
    root, random = tmp_path_factory.mktemp("loader"), np.random.default_rng(0)
    for i in range(50):
        path = root / ("cat" if i % 2 else "dog") / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3)).astype(np.uint8))
        small.resize((40 + 7 * (i % 11), 30 + 5 * (i % 13)), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


@pytest.fixture(scope="module")
def images(folder):
    return open_images(folder)


def take(images, count, state=None, **options):
    """Copies of the next batches, as tuples of tensors."""
    options = {"seed": 3, "threads": 2, "batch_size": 8} | options
    with contextlib.closing(Loader(images, options.pop("views", VIEWS), **options)) as loader:
        if state:
            loader.load_state_dict(state)
        return [copy(next(loader)) for _ in range(count)], loader.state_dict()


def copy(batch):
    everything = (*batch.images, batch.boxes, batch.flips, batch.index, batch.sizes, batch.labels, torch.tensor(batch.epoch))
    return tuple(tensor.clone() for tensor in everything)


def same(a, b):
    return len(a) == len(b) and all(all(map(torch.equal, x, y)) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def base(images):
    return take(images, 15)[0]  # two and a half epochs of 6 batches


@pytest.fixture(scope="module", params=list(SETS))
def views_and_base(images, request):
    return SETS[request.param], take(images, 15, views=SETS[request.param])[0]


@pytest.fixture
def reductions(monkeypatch):
    """At which fraction each image is decoded, in the order of the decodes."""
    found, pixels = [], Images.pixels
    monkeypatch.setattr(Images, "pixels", lambda self, data, reduce=1: found.append(reduce) or pixels(self, data, reduce))
    return found


def test_shapes_and_kinds(base, images):
    wide, small, third, boxes, flips, index, sizes, labels, epoch = base[0]
    assert wide.shape == (8, 3, 16, 24) and small.shape == third.shape == (8, 3, 8, 8) and wide.dtype == torch.uint8
    assert boxes.shape == (3, 8, 4) and boxes.dtype == torch.float32 and flips.dtype == torch.bool
    assert index.dtype == torch.int64 and labels.tolist() == images.labels.values[index.numpy()].tolist()
    assert sizes.tolist() == images.sizes[index.numpy()].tolist() and epoch == 0
    assert 0 < flips.float().mean() < 1 and not torch.equal(small, third)


def test_the_sets_of_views_ask_for_what_they_are_named_after(images, reductions):
    for name, wanted in [("plain", {1}), ("reduced", {1, 2, 4}), ("multi-crop", {1})]:
        reductions.clear()
        take(images, 6, views=SETS[name])
        assert set(reductions) >= wanted and 48 <= len(reductions) <= 64, name  # each image once, and 2 batches ahead
        assert name != "reduced" or np.count_nonzero(np.array(reductions) > 1) >= 10


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("ahead", [1, 3])
def test_threads_and_batches_ahead_change_no_bit(views_and_base, images, threads, ahead):
    views, base = views_and_base
    assert same(take(images, 15, views=views, threads=threads, ahead=ahead)[0], base)


def test_four_ranks_make_the_batches_of_one(views_and_base, images):
    views, base = views_and_base
    ranks = [take(images, 15, views=views, batch_size=2, rank=rank, world=4)[0] for rank in range(4)]
    for step, whole in enumerate(base):
        parts = [ranks[rank][step] for rank in range(4)]
        for number, tensor in enumerate(whole[:-1]):
            axis = 1 if number in (len(whole) - 6, len(whole) - 5) else 0  # boxes and flips have views first
            assert torch.equal(torch.cat([part[number] for part in parts], axis), tensor)


@pytest.mark.parametrize("after", range(14))
def test_a_restart_at_any_batch_goes_on_with_the_same_bits(views_and_base, images, after):
    views, base = views_and_base
    _, state = take(images, after, views=views)
    assert state == {"epoch": after // 6, "position": after % 6}
    assert same(take(images, 2, state, views=views, threads=1)[0], base[after : after + 2])


def test_each_epoch_has_each_image_at_most_once_in_another_order(base, images):
    for epoch in range(2):
        index = torch.cat([batch[5] for batch in base[6 * epoch : 6 * epoch + 6]])
        assert len(set(index.tolist())) == 48 and {int(b[-1]) for b in base[6 * epoch : 6 * epoch + 6]} == {epoch}
        assert index.tolist() == permutation(3, epoch, 50)[:48].tolist()
    assert not torch.equal(base[0][5], base[6][5])


def test_a_seed_changes_order_and_boxes(base, images):
    other = take(images, 1, seed=4)[0][0]
    assert not torch.equal(other[5], base[0][5])


def test_pixels_are_those_of_the_box(images):
    view = View(size=24, scale=(0.2, 0.5))  # boxes too small for a reduced decode
    with contextlib.closing(Loader(images, [view], 50, seed=0)) as loader:
        batch = next(loader)
    index = batch.index.numpy()
    boxes, flips = draw_boxes([view], images.sizes[index], index, 0, 0)
    assert torch.equal(batch.boxes, torch.from_numpy(fractions(boxes, images.sizes[index])))
    sides = boxes[0, :, 2:]
    rows = np.flatnonzero((sides.min(1) >= 24) & (sides.max(1) > 30))  # the others grow, or shrink slightly
    assert len(rows) >= 10
    for row in rows:
        top, left, height, width = boxes[0, row]
        wanted = shrunk(images.decode(int(index[row]))[top : top + height, left : left + width], 24, 24)
        wanted = wanted[:, ::-1] if flips[0, row] else wanted
        assert np.abs(batch.images[0][row].permute(1, 2, 0).numpy() - wanted).max() <= 1


@pytest.mark.parametrize("interpolation, how", [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
def test_a_box_that_grows_is_interpolated_as_its_view_says(images, interpolation, how):
    view = View(size=48, scale=(0.2, 0.5), flip=0.0, interpolation=interpolation)
    with contextlib.closing(Loader(images, [view], 50, seed=0)) as loader:
        batch = next(loader)
    index = batch.index.numpy()
    boxes, _ = draw_boxes([view], images.sizes[index], index, 0, 0)
    rows = np.flatnonzero(boxes[0, :, 2:].max(1) < 48)
    assert len(rows) >= 10
    for row in rows:
        top, left, height, width = boxes[0, row]
        crop = images.decode(int(index[row]))[top : top + height, left : left + width]
        wanted = cv2.resize(crop, (48, 48), interpolation=how)
        assert np.array_equal(batch.images[0][row].permute(1, 2, 0).numpy(), wanted)


def shrunk(image, height, width):
    """Area averages by a plain integral: each pixel's share of each target pixel."""

    def shares(size, target):
        edges = np.arange(target + 1) * size / target
        low = np.maximum(edges[:-1, None], np.arange(size))
        return np.maximum(np.minimum(edges[1:, None], np.arange(size) + 1) - low, 0) * target / size

    return np.einsum("yh,hwc,xw->yxc", shares(image.shape[0], height), image, shares(image.shape[1], width))


def test_a_reduced_decode_hardly_changes_the_view(images, reductions, monkeypatch):
    whole = View(size=8, resize="whole", flip=0)
    quick = take(images, 1, views=[whole])[0][0][0].float()
    pixels = Images.pixels
    monkeypatch.setattr(Images, "pixels", lambda self, data, reduce=1: pixels(self, data))
    full = take(images, 1, views=[whole])[0][0][0].float()
    assert set(reductions) >= {1, 2, 4} and 0 < (quick - full).abs().mean() < 2


def test_labels_may_be_left_out(images):
    with contextlib.closing(Loader(images, VIEWS, 8, seed=0, labels=False)) as loader:
        assert next(loader).labels is None


def test_a_batch_lasts_until_ahead_more_were_taken(images):
    with contextlib.closing(Loader(images, VIEWS, 8, seed=0, ahead=2)) as loader:
        kept = next(loader)
        before = kept.images[0].clone()
        next(loader)
        time.sleep(0.2)
        assert torch.equal(kept.images[0], before)
        addresses = {next(loader).images[0].data_ptr() for _ in range(12)}
    assert len(addresses) == 4  # memory is used again


def test_views_can_change_at_any_batch(base, images):
    with contextlib.closing(Loader(images, VIEWS, 8, seed=3)) as loader:
        next(loader)
        loader.set_views([view.scaled(2) for view in VIEWS])
        larger = next(loader)
        assert larger.images[0].shape == (8, 3, 32, 48) and torch.equal(larger.index, base[1][5])
        assert torch.equal(larger.boxes, base[1][3])
        loader.set_views(VIEWS)
        assert same([copy(next(loader))], base[2:3])


@pytest.mark.parametrize("at", [1, 5, 6, 7])
def test_a_change_of_views_falls_on_the_same_batch_after_a_restart(images, at):
    """A stage begins at batch ``at``, the last of an epoch among them, and the run is interrupted there or one later."""
    larger = [view.scaled(1.5) for view in VIEWS]
    with contextlib.closing(Loader(images, VIEWS, 8, seed=3, threads=8)) as loader:
        whole = [copy(next(loader)) for _ in range(at)]
        loader.set_views(larger)
        whole += [copy(next(loader)) for _ in range(3)]
    assert same(whole, take(images, at)[0] + take(images, at + 3, views=larger)[0][at:])
    for stop in (at, at + 1):
        state = {"epoch": stop // 6, "position": stop % 6}
        assert same(take(images, 2, state, views=larger, threads=1)[0], whole[stop : stop + 2])


def test_a_bad_image_is_replaced_by_the_next_and_counted(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    images = open_images(tmp_path / "set")
    for i in (4, 5):  # after the survey, as a disk may do
        (tmp_path / "set" / images.keys[i]).write_bytes(b"no")
    with contextlib.closing(Loader(images, VIEWS, 50, seed=0, threads=2)) as loader:
        batch = next(loader)
        assert set(loader.bad) == {4, 5} and "not an image" in loader.bad[4]
    (clean,), _ = take(open_images(folder), 1, views=VIEWS, batch_size=50, seed=0)
    order, index = clean[5], batch.index
    assert torch.equal(index, torch.where((order == 4) | (order == 5), 6, order))
    twin = int((order == 6).nonzero())
    for row in torch.isin(order, torch.tensor([4, 5])).nonzero().flatten().tolist():
        assert torch.equal(batch.boxes[:, row], clean[3][:, twin]) and torch.equal(batch.sizes[row], clean[6][twin])
        difference = batch.images[1][row].float() - clean[1][twin].float()
        assert difference.abs().mean() < 3  # a replacement is decoded in full, its twin perhaps reduced
        assert batch.labels[row] == clean[7][twin]


def test_a_set_that_is_all_gone_ends_the_run(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    images = open_images(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    with contextlib.closing(Loader(images, VIEWS, 8, seed=0)) as loader, pytest.raises(Failed, match="No such file"):
        next(loader)


def test_a_batch_larger_than_the_data_is_refused(images):
    with pytest.raises(Refused, match="--batch-size 50"):
        Loader(images, VIEWS, 51, seed=0)
    with pytest.raises(Refused, match="104"):
        Loader(images, VIEWS, 26, seed=0, rank=1, world=4)


def slow(monkeypatch, seconds):
    pixels = Images.pixels
    monkeypatch.setattr(Images, "pixels", lambda self, data, reduce=1: time.sleep(seconds) or pixels(self, data, reduce))


def test_waiting_is_counted(images, monkeypatch):
    slow(monkeypatch, 0.005)
    with contextlib.closing(Loader(images, VIEWS, 8, seed=0, threads=1)) as loader:
        next(loader)
        assert 0.03 < loader.waited < 5
        time.sleep(0.4)
        before = loader.waited
        next(loader)
        assert loader.waited - before < 0.03


def test_times_are_those_of_the_stages(images, monkeypatch):
    """A reader, a decoder and a resize of known delay, and a clock that only they move."""
    now = [0.0]

    def delayed(function, seconds):
        def run(*arguments, **options):
            now[0] += seconds
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(Images, "read", delayed(Images.read, 0.25))
    monkeypatch.setattr(Images, "pixels", delayed(Images.pixels, 2.0))
    monkeypatch.setattr("daybreak.data.loader.place", delayed(place, 0.5))
    with contextlib.closing(Loader(images, VIEWS, 8, seed=0, threads=1, clock=lambda: now[0])) as loader:
        assert loader.times == Times()
        for _ in range(3):
            next(loader)
    times = loader.times
    assert 24 <= times.images <= 40
    assert times[1:4] == (0.25 * times.images, 2.0 * times.images, 3 * 0.5 * times.images)
    assert 0 < times.processor < 60
    assert times.minus(times) == Times() and times.plus(Times()) == times


def test_sixteen_bit_images_stay_sixteen_bit(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (20, 20)).astype(np.uint16)
    for name in "ab":
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    images = open_images(tmp_path)
    whole = View(size=20, resize="whole", flip=0)
    with contextlib.closing(Loader(images, [whole], 2, seed=0)) as loader:
        batch = next(loader).images[0]
    assert batch.dtype == torch.uint16 and (batch[1, 0].numpy() == values).all()


@pytest.mark.parametrize("threads, batch_size", [(1, 50), (8, 7)])
def test_evaluation_sees_each_image_once_in_order(images, threads, batch_size):
    found = torch.cat([batch for _, batch in evaluation_batches(images, 12, 20, batch_size, threads)])
    assert found.shape == (50, 3, 12, 20) and found.dtype == torch.uint8
    for i in (0, 17, 49):
        height, width = images.sizes[i]
        tall, wide = (height, round(height * 20 / 12)) if width * 12 > height * 20 else (round(width * 12 / 20), width)
        top, left = (height - tall) // 2, (width - wide) // 2
        wanted = shrunk(images.decode(i)[top : top + tall, left : left + wide], 12, 20)
        assert np.abs(found[i].permute(1, 2, 0).numpy() - wanted).max() <= 1
    starts = [start for start, _ in evaluation_batches(images, 12, 20, batch_size, threads)]
    assert starts == list(range(0, 50, batch_size))


def test_evaluation_warns_of_an_image_that_went_bad(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    images = open_images(tmp_path / "set", background=9)
    (tmp_path / "set" / images.keys[1]).unlink()
    with pytest.warns(UserWarning, match="image 1 is unreadable"):
        (found,) = [batch for _, batch in evaluation_batches(images, 8, 8, 50)]
    assert (found[1] == 9).all() and found[0].float().std() > 0


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_closing_waits_for_the_images_in_hand_alone(images, monkeypatch):
    slow(monkeypatch, 0.1)
    loader = Loader(images, VIEWS, 48, seed=0, threads=2)  # a batch takes 2.4 seconds
    loader._fill()
    time.sleep(0.05)
    start = time.perf_counter()
    loader.close()
    assert time.perf_counter() - start < 1.5 and not loader_threads()


def test_an_interrupt_loses_no_batch(base, images, monkeypatch):
    with contextlib.closing(Loader(images, VIEWS, 8, seed=3)) as loader:
        next(loader)
        wait = Job.wait
        monkeypatch.setattr(Job, "wait", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(loader)
        monkeypatch.setattr(Job, "wait", wait)
        assert loader.state_dict() == {"epoch": 0, "position": 1}
        assert same([copy(next(loader)) for _ in range(2)], base[1:3])


def test_control_c_ends_a_program_at_once(folder):
    """One that only iterates, with batches of many seconds on their way."""
    program = textwrap.dedent(f"""
        import contextlib, signal, time
        from daybreak.data.images import Images, open_images
        from daybreak.data.loader import Loader
        from daybreak.data.views import View

        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        images, pixels = open_images({str(folder)!r}), Images.pixels
        Images.pixels = lambda self, data, reduce=1: time.sleep(1) or pixels(self, data, reduce)
        with contextlib.closing(Loader(images, [View(size=8)], 50, seed=0, threads=2)) as loader:
            print("ready", flush=True)
            for batch in loader:
                pass
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)  # the batches on their way would take 50 seconds
    assert process.returncode in (-signal.SIGINT, 130) and errors.count("Traceback") == 1, errors
    assert errors.strip().endswith("KeyboardInterrupt")


def test_multi_crop_of_real_images_keeps_every_bit(shared, reductions):
    """2 x 224 and 8 x 96 from one decode, for 1, 2 and 8 threads, for 1 and 4 ranks, and after a restart."""
    images = open_images(shared("photos-100.zip"))
    options = dict(views=[View(size=224, scale=(0.25, 1), count=2), View(size=96, scale=(0.05, 0.25), count=8)], seed=0)
    whole, state = take(images, 5, batch_size=20, **options)
    assert [tuple(view.shape) for view in whole[0][:10]] == 2 * [(20, 3, 224, 224)] + 8 * [(20, 3, 96, 96)]
    assert state == {"epoch": 1, "position": 0} and whole[0][0].float().std() > 30
    assert 100 <= len(reductions) <= 140
    for threads in (1, 8):
        assert same(take(images, 2, batch_size=20, threads=threads, **options)[0], whole[:2])
    assert same(take(images, 1, {"epoch": 0, "position": 3}, batch_size=20, **options)[0], whole[3:4])
    ranks = [take(images, 2, batch_size=5, rank=rank, world=4, **options)[0][1] for rank in range(4)]
    for view in range(10):
        assert torch.equal(torch.cat([part[view] for part in ranks]), whole[1][view])
