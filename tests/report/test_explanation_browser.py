"""The page of ``explain`` in a real browser, moved by real clicks and taps; skipped where there is no Chromium."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

import daybreak
from daybreak.evaluate.protocols import Result
from daybreak.export.backbone import load, write_backbone
from daybreak.nn.encoder import Encoder
from daybreak.report.explanation import PALETTE
from daybreak.report.side_by_side import write_side_by_side

BINARY = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.long, pytest.mark.skipif(BINARY is None, reason="no Chromium here")]

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
# The browser listens on descriptor 3 and speaks on 4.
START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
PATIENCE = 120  # seconds for one answer, on a machine that has other work
NAMES = ("<script>", "plain")


class Browser:
    """A page in a headless browser, driven over its debugging pipe; ``events`` are what it said unasked."""

    def __init__(self, profile):
        pairs = [os.pipe(), os.pipe()]
        far = [fcntl.fcntl(pairs[0][0], fcntl.F_DUPFD, 20), fcntl.fcntl(pairs[1][1], fcntl.F_DUPFD, 20)]
        os.close(pairs[0][0])
        os.close(pairs[1][1])
        self.write, self.read = pairs[0][1], pairs[1][0]
        self.process = subprocess.Popen([sys.executable, "-c", START, *map(str, far), BINARY, *FLAGS, f"--user-data-dir={profile}"],
                                        pass_fds=far, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in far:
            os.close(end)
        self.events, self.rest, self.number, self.session = [], b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.bringToFront")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def next(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser did not answer"
            data = os.read(self.read, 1 << 20)
            assert data, "the browser ended"
            self.rest += data
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.next())

    def ask(self, expression):
        """Value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self):
        self.ask("new Promise((done) => setTimeout(done, 50))")  # lets what is under way be said
        loud = ("error", "warning", "assert")
        return [event for event in self.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
                or (event.get("method") == "Runtime.consoleAPICalled" and event["params"]["type"] in loud)]

    def window(self, width, height=844, mobile=True):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def close(self):
        os.close(self.write)  # the browser ends with its pipe
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A backbone, its page on a few images of two classes, one with a hostile name, and the images' folder."""
    folder, random = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    for name in NAMES:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(5):
            coarse = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (24, 16), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(folder / "images" / name / f"a-rather-long-name-without-any-space-in-it-{i}.png"), image)
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(16, 24), patch_size=4, width=64, depth=2).eval()
    write_backbone(encoder, folder / "backbone", mean=[0.5] * 3, std=[0.25] * 3, info={"method": "mae"})
    page = daybreak.explain(folder / "backbone", folder / "images", out=folder, count=4, console=Console(quiet=True))
    return folder, page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


# Pixels of the drawn map of figure I, as the browser shows them: [columns, rows, [red, green, blue, alpha, ...]].
DRAWN = """(async () => {
  const image = document.querySelectorAll(".similarity .drawn")[I];
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [canvas.width, canvas.height, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
})()"""
PLACE = """(() => {
  const button = document.querySelectorAll(".similarity button")[I];
  button.scrollIntoView({block: "center"});
  const box = button.getBoundingClientRect();
  return [box.left, box.top, box.width, box.height];
})()"""
KEY = 'document.querySelectorAll(".similarity")[I].closest("article").querySelector("h3 small").textContent'
SAID = 'document.querySelectorAll(".similarity")[I].querySelector("output").textContent'
# What stands out of the window and in no box that scrolls by itself.
OVERFLOWING = """Array.from(document.querySelectorAll("main *")).filter((part) => !part.closest(".scroll") && !part.closest("svg")
  && part.getBoundingClientRect().right > innerWidth + 0.5).map((part) => part.outerHTML.slice(0, 120))"""


def of(script, figure):
    return script.replace("[I]", f"[{figure}]")


def drawn(browser, figure):
    """Cosines that the map of a figure shows, (rows, columns), read from its colours."""
    width, height, values = browser.ask(of(DRAWN, figure))
    colours = {tuple(colour): level for level, colour in enumerate(PALETTE.tolist())}
    pixels = np.array(values).reshape(height, width, 4)
    assert (pixels[..., 3] == 255).all()
    return np.array([[colours[tuple(pixel[:3])] for pixel in row] for row in pixels.tolist()]) / 127.5 - 1


def expected(folder, key, row, column):
    """Cosines of all patches of an image with one of them, from the backbone alone."""
    backbone = load(folder / "backbone")
    with torch.no_grad():
        features = backbone.map(backbone.transform(folder / "images" / key)[None])[0]  # (D, h, w)
    return torch.cosine_similarity(features, features[:, row, column][:, None, None], dim=0).numpy()


def point(browser, figure, row, column, rows=4, columns=6):
    left, top, width, height = browser.ask(of(PLACE, figure))
    return left + (column + 0.3) / columns * width, top + (row + 0.7) / rows * height


def click(browser, x, y):
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def tap(browser, x, y):
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def check(browser, folder, figure, row, column):
    for _ in range(100):  # the event is handled on its own time
        if browser.ask(of(SAID, figure)).startswith(f"Row {row + 1}, column {column + 1}:"):
            break
        time.sleep(0.05)
    shown, key = drawn(browser, figure), browser.ask(of(KEY, figure))
    assert browser.ask(of(SAID, figure)).startswith(f"Row {row + 1}, column {column + 1}:")
    wanted = expected(folder, key, row, column)
    assert shown.shape == wanted.shape == (4, 6)
    assert np.abs(shown - wanted).max() <= 1 / 255 + 1e-5
    assert wanted.min() < 0.9  # the patches differ, so that another map would not pass


def test_the_map_at_first_is_that_of_the_middle(browser, made):
    folder, page = made
    browser.window(1200, mobile=False)
    browser.open(page)
    for figure in range(4):
        wanted = expected(folder, browser.ask(of(KEY, figure)), 2, 3)
        assert np.abs(drawn(browser, figure) - wanted).max() <= 1 / 255 + 1e-5
    assert not browser.complaints()


@pytest.mark.parametrize(("move", "width"), [(click, 1200), (tap, 390)], ids=["mouse", "finger"])
def test_a_click_on_a_patch_draws_its_cosines(browser, made, move, width):
    folder, page = made
    browser.window(width, mobile=width < 500)
    browser.open(page)
    for figure, row, column in ((0, 0, 0), (1, 3, 5), (3, 1, 4), (3, 2, 0)):
        move(browser, *point(browser, figure, row, column))
        check(browser, folder, figure, row, column)
    assert not browser.complaints()


def test_arrow_keys_choose_and_stay_inside(browser, made):
    folder, page = made
    browser.window(1200, mobile=False)
    browser.open(page)
    browser.ask('document.querySelectorAll(".similarity button")[1].focus()')
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "Enter"):  # from row 3, column 4 of 4 x 6
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)
    check(browser, folder, 1, 1, 5)
    assert not browser.complaints()


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_a_phone_and_text_stands_out(browser, made, scheme, media):
    browser.window(390)
    browser.call("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        browser.open(made[1])
        browser.ask('document.querySelectorAll("details").forEach((part) => { part.open = true; })')
        assert browser.ask("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        assert browser.ask(OVERFLOWING) == []
        colours = browser.ask('(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))')
        ink, paper = (luminance(colour) for colour in colours)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
        if media == "screen":
            assert (ink > paper) == (scheme == "dark")
        assert not browser.complaints()
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])


def test_runs_side_by_side_fit_a_phone_and_a_desk(browser, tmp_path):
    result = Result("knn", "v1", "accuracy", 0.5, 0.01, "trained", "a", 0)
    rows = [(f"knn-v1 accuracy (number {i})", [replace(result, value=v) for v in (0.5, 1.0, 0.0)], ["50.0% ± 1.0% *"] * 3)
            for i in range(2)]
    page = write_side_by_side(tmp_path / "runs.html", [f"runs/{'long-name-' * 9}{i}" for i in range(3)], rows, "A note.")
    for width in (390, 1200):
        browser.window(width, mobile=width < 500)
        browser.open(page)
        assert browser.ask("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert browser.ask('(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.querySelector(".scroll"))') == 0
        tops = browser.ask('Array.from(document.querySelectorAll("tbody tr:first-child td"), (x) => x.getBoundingClientRect().top)')
        assert len(set(tops)) == (3 if width == 390 else 1)  # one below another, or beside
        assert not browser.complaints()


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(red, green, blue)``, as WCAG 2 defines it."""
    shares = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_it_prints(browser, made):
    browser.window(1200, mobile=False)
    browser.open(made[1])
    printed = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF") and len(printed) > 10_000


def test_a_hostile_name_stays_text(browser, made):
    browser.window(390)
    browser.open(made[1])
    titles = browser.ask('Array.from(document.querySelectorAll("article h3"), (part) => part.firstChild.textContent.trim())')
    assert sorted(set(titles)) == sorted(NAMES)
    assert browser.ask('document.querySelectorAll("script").length') == 1
    assert not browser.complaints()


def test_no_other_script_may_run(browser, made):
    """The policy holds, and what it forbids would be seen among the complaints."""
    browser.window(1200, mobile=False)
    browser.open(made[1])
    browser.ask('document.body.append(Object.assign(document.createElement("script"), {textContent: "window.evil = true"}))')
    assert browser.ask("window.evil === undefined")
    assert any("Content Security Policy" in json.dumps(event) for event in browser.complaints())
