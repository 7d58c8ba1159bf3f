"""The page of ``explain``: one escaped file with words for every picture, made from a ViT or a CNN, or a refusal."""

import base64
import hashlib
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from test_report import EVIL, Page

import daybreak
from daybreak.cli import main
from daybreak.errors import Refused
from daybreak.explain.maps import Explained, Explanation, Score, average
from daybreak.explain.thumbnails import Thumbnail
from daybreak.export.backbone import write_backbone
from daybreak.nn.encoder import Encoder
from daybreak.report.explanation import PALETTE, stretch, write_explanation


def explanation(name: str = "cat", side: int = 64, count: int = 2, rows: int = 3, columns: int = 4) -> Explanation:
    random = np.random.default_rng(0)
    patches = rows * columns

    def image(i: int) -> Explained:
        return Explained(
            Thumbnail(f"{name}/{i}.png", name, random.integers(0, 256, (side, side, 3), dtype=np.uint8)),
            {"Eigen-CAM": random.normal(size=(rows, columns))}, random.random((2, rows, columns)),
            random.integers(0, 256, (rows, columns, 3), dtype=np.uint8),
            np.full((patches, patches), 200, np.uint8) + np.arange(patches, dtype=np.uint8))

    return Explanation([image(i) for i in range(count)], [Score("Eigen-CAM", (0.4, 0.01), (0.6, float("nan")))], 0.25, 0.5, 0.75,
                       {"Eigen-CAM": 0.9}, [f"a note on {name}"])


@pytest.fixture(scope="module")
def vit():
    return Encoder("vit_micro", image_size=(12, 16), patch_size=4, width=64, depth=1)


def write(folder, vit, found, name="cat"):
    return write_explanation(folder, found, None, backbone=vit, name=name, info={"method": name}, data=f"9 images of {name}",
                             bank=0)


class Words(Page):
    """A page that also keeps the attributes of pictures and figures."""

    def __init__(self, text):
        self.pictures, self.figures = [], []
        super().__init__(text)

    def handle_starttag(self, tag, attributes):
        super().handle_starttag(tag, attributes)
        if tag in ("img", "figure"):
            (self.pictures if tag == "img" else self.figures).append(dict(attributes))


def test_all_text_stays_text_and_one_script_runs(tmp_path, vit):
    text = write(tmp_path, vit, explanation(EVIL), EVIL).read_text()
    page = Words(text)
    assert page.tags.count("script") == 1 and not page.handlers
    for where in (f"a note on {EVIL}", f"9 images of {EVIL}", f"{EVIL}/0.png"):
        assert where in page.text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_one_file_that_needs_nothing_else_with_words_for_every_picture(tmp_path, vit):
    path = write(tmp_path / "new" / "folder", vit, explanation())
    text = path.read_text()
    page = Words(text)
    assert path.name == "explain.html" and [p.name for p in path.parent.iterdir()] == ["explain.html"]
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?:|@import|url\(", text)
    assert len(page.pictures) == 2 * (2 + 1 + 1 + 2)  # picture and cosines, a map, colours, two heads
    assert all(len(picture["alt"]) > 8 for picture in page.pictures)


def test_words_say_where_a_map_is_strongest(tmp_path, vit):
    found = explanation(count=1)
    found.images[0].maps["Eigen-CAM"] = np.eye(3, 4) * [[1], [1], [5]]
    page = Words(write(tmp_path, vit, found).read_text())
    assert any(p["alt"] == "Eigen-CAM of cat/0.png: strongest in row 3 of 3, column 3 of 4" for p in page.pictures)


def test_the_page_holds_the_upper_triangle_of_the_levels(tmp_path, vit):
    found = explanation(count=1)
    random = np.random.default_rng(1).integers(0, 256, (12, 12), dtype=np.uint8)
    found.images[0].cosines = np.triu(random) + np.triu(random, 1).T
    (figure,) = [f for f in Words(write(tmp_path, vit, found).read_text()).figures if "data-cosines" in f]
    packed = base64.b64decode(figure["data-cosines"])
    assert len(packed) == 78 and (figure["data-rows"], figure["data-columns"]) == ("3", "4")
    for i in range(12):
        for j in range(i, 12):
            assert packed[i * 12 - i * (i - 1) // 2 + j - i] == random[i, j]  # as the script reads it


def test_maps_begin_at_zero_or_at_their_least_value():
    assert stretch(np.array([[-3.0, 0.0], [1.0, 2.0]])).tolist() == [[0, 0], [128, 255]]
    assert stretch(np.array([[1.0, 2.0, 3.0]])).tolist() == [[0, 128, 255]]
    assert (stretch(np.full((2, 2), 4.0)) == 0).all()


def test_colours_of_the_palette_differ_and_grow_lighter():
    assert len(np.unique(PALETTE, axis=0)) == 256
    light = PALETTE @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light[::5]) > 0).all()


def test_a_page_too_large_to_mail_is_refused_and_not_written(tmp_path, vit):
    with pytest.raises(Refused, match=r"--count 150: the page would have \d+\.\d MB"):
        write(tmp_path, vit, explanation(side=256, count=150))
    assert not list(tmp_path.iterdir())


def test_an_average_has_the_standard_error_of_a_mean():
    class Area:
        def __init__(self, area):
            self.area = area

    class Both:
        def __init__(self, deletion, insertion):
            self.deletion, self.insertion = Area(deletion), Area(insertion)

    found = average("map", [Both(0.1, 0.5), Both(0.3, 0.5), Both(0.8, 0.5)])
    assert found.deletion == pytest.approx((0.4, (0.13 ** 0.5) / 3 ** 0.5)) and found.insertion == (0.5, 0.0)
    assert np.isnan(average("map", [Both(0.1, 0.5)]).deletion[1])


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Folders of a ViT and of a CNN with random weights."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    for name, encoder in (("vit", Encoder("vit_micro", image_size=(16, 24), patch_size=4, width=64, depth=2)),
                          ("cnn", Encoder("convnext_mini", image_size=(32, 32)))):
        write_backbone(encoder.eval(), folder / name, mean=[0.5] * 3, std=[0.25] * 3, info={"method": "mae", "images_seen": 12_345})
    return folder


def test_explain_a_vit(backbones, textures, tmp_path):
    path = daybreak.explain(backbones / "vit", textures, out=tmp_path, count=3, console=Console(quiet=True))
    page = Words(path.read_text())
    for words in ("Attention rollout", "Eigen-CAM, centred", "Random map", "Middle of the picture", "class token", "12,345",
                  "The bank has 597 images", "600 images"):
        assert words in page.text, words
    assert len([f for f in page.figures if "data-cosines" in f]) == 3
    assert page.text.count("Head 1") == 3 and "NaN" not in page.text and "± nan" not in page.text


def test_of_a_cnn_attention_is_left_out_and_that_is_said(backbones, textures, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["explain", str(backbones / "cnn"), str(textures), "--out", str(tmp_path), "--count", "2"])
    assert end.value.code in (0, None)
    assert "convnext_mini is a CNN and has no attention" in capsys.readouterr().out
    page = Words((tmp_path / "explain.html").read_text())
    assert "no attention, so the maps of attention are left out" in page.text
    assert "Attention rollout" not in page.text and "Head 1" not in page.text and "Eigen-CAM" in page.text


def test_one_image_has_no_neighbours_and_no_error(backbones, tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3))
    page = Words(daybreak.explain(backbones / "vit", tmp_path, out=tmp_path / "out", console=Console(quiet=True)).read_text())
    assert "there are no neighbours" in page.text and page.pictures


def test_a_count_below_one_is_refused(backbones, textures, tmp_path):
    with pytest.raises(Refused, match="--count 0"):
        daybreak.explain(backbones / "vit", textures, out=tmp_path / "out", count=0)
    assert not (tmp_path / "out").exists()


def test_cosines_that_would_make_the_page_too_large_are_left_out(textures):
    from daybreak.data.images import open_images
    from daybreak.explain.maps import explain_images

    encoder, images = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=1).eval(), open_images(textures)
    found = explain_images(encoder, images.subset(np.arange(3)), size=(16, 16), mean=[0.5] * 3, std=[0.25] * 3,
                           most_cosines=2 * 16 * 17 // 2)
    assert [image.cosines is not None for image in found.images] == [True, True, False]
    assert found.notes == ["The patches of 2 of 3 pictures can be chosen: the cosines of the others would make the page too large "
                           "to mail."]


def test_the_verbs_stay_functions_beside_rooms_of_their_names():
    code = ("import daybreak; from daybreak.explain.cam import eigen_cam; import daybreak.evaluate.knn; first = daybreak.explain; "
            "assert callable(first) and daybreak.explain is first and callable(daybreak.evaluate) and callable(daybreak.export)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
