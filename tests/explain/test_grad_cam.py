"""Grad-CAM against differences of the logit, taken number by number; on networks whose class lies in one place; in the page."""

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import daybreak
from daybreak.cli import main
from daybreak.data.sources import Labels
from daybreak.errors import Refused
from daybreak.evaluate import logistic
from daybreak.evaluate.class_head import fit_head
from daybreak.evaluate.linear import standardise_by
from daybreak.explain.cam import grad_cam
from daybreak.export.backbone import load, write_backbone
from daybreak.nn.encoder import Encoder
from daybreak.nn.heads import ClassHead

STEP = 1e-4


def noise(*shape, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved_head(width: int, classes: int) -> nn.Module:
    """A head whose slope differs from place to place."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, classes)).double()


def by_differences(logits_of, activations: Tensor, classes: list[int]) -> list[list[float]]:
    """The map of each image: activations (B, N, D), one number of them moved at a time, in loops."""
    count, places, width = activations.shape
    found = []
    for b in range(count):
        moved = []
        for place in range(places):
            for k in range(width):
                for sign in (1, -1):
                    other = activations[b].clone()
                    other[place, k] += sign * STEP
                    moved.append(other)
        logits = logits_of(torch.stack(moved))[:, classes[b]].view(places, width, 2)
        slope = (logits[..., 0] - logits[..., 1]) / (2 * STEP)
        weights = [sum(float(slope[place, k]) for place in range(places)) / places for k in range(width)]
        sums = [sum(weights[k] * float(activations[b, place, k]) for k in range(width)) for place in range(places)]
        found.append([max(0.0, total) for total in sums])
    return found


class Tiny(nn.Module):
    """A CNN of one convolution, as far as Grad-CAM looks at an encoder."""

    pooling, name = "mean", "tiny"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 3, 2, stride=2).double()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 2, width // 2

    def map(self, images: Tensor) -> Tensor:
        return self.convolution(images).relu()

    def pooled(self, images: Tensor) -> Tensor:
        return self.map(images).mean((2, 3))


def test_of_a_cnn_equals_differences_in_loops():
    encoder, head, images = Tiny(), curved_head(3, 4), noise(2, 1, 4, 6)
    with torch.no_grad():
        features = encoder.map(images).flatten(2).transpose(1, 2)
        expected = by_differences(lambda x: head(x.mean(1)), features, [2, 0])
    found = grad_cam(encoder, head, images, torch.tensor([2, 0]))
    assert found.shape == (2, 2, 3) and (found > 0).any() and encoder.convolution.weight.grad is None
    torch.testing.assert_close(found.flatten(1), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"name": "vit_small_patch16_dinov3"}])
def test_of_a_class_token_equals_differences_in_loops(settings):
    torch.manual_seed(0)
    encoder = Encoder(**({"name": "vit_micro"} | settings), image_size=(8, 12), patch_size=4, width=64, heads=1, depth=2)
    encoder = encoder.double().eval()
    head, images, norm = curved_head(64, 3), noise(1, 3, 8, 12), encoder.model.blocks[-1].norm1
    prefix, caught = encoder.num_prefix, []
    with torch.no_grad():
        handle = norm.register_forward_hook(lambda *given: caught.append(given[2]))
        encoder.tokens(images)
        handle.remove()

        def logits_of(patches: Tensor) -> Tensor:
            """Logits where these stand in the place of the patches' activations, (b, N, D) to (b, C)."""
            given = torch.cat([caught[0][:, :prefix].expand(len(patches), -1, -1), patches], 1)
            handle = norm.register_forward_hook(lambda *_: given)
            logits = head(encoder.pooled(images.expand(len(patches), -1, -1, -1)))
            handle.remove()
            return logits

        expected = by_differences(logits_of, caught[0][:, prefix:], [1])
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)  # a frozen backbone has maps too
    found = grad_cam(encoder, head, images, torch.tensor([1]))
    assert found.shape == (1, 2, 3) and (found > 0).any() and not norm._forward_hooks
    torch.testing.assert_close(found.flatten(1), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), [("test_resnet", {}), ("vit_micro", {"pool": "mean", "width": 64, "depth": 1})])
def test_of_a_mean_and_a_linear_head_it_is_cam_over_the_number_of_places(name, settings):
    encoder = Encoder(name, image_size=(64, 96), **settings).eval()
    head = nn.Linear(encoder.dim, 5)
    images = noise(2, 3, 64, 96).float()
    with torch.no_grad():
        features = encoder.map(images).double()
        cam = torch.einsum("k,bkhw->bhw", head.weight[3].double(), features).relu()
    found = grad_cam(encoder, head, images, torch.tensor([3, 3]))
    torch.testing.assert_close(found, cam / (cam.shape[1] * cam.shape[2]), atol=1e-7, rtol=1e-4)


def test_a_cnn_whose_class_is_one_region_is_marked_there_only():
    """The first channel is bright where the image is, the second is 1 everywhere and counts for the other class."""
    encoder = Tiny()
    with torch.no_grad():
        encoder.convolution.weight.zero_()
        encoder.convolution.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        encoder.convolution.weight[0] = 1
    head = nn.Linear(3, 2).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[:, :, 4:6, 2:4] = 1
    found = grad_cam(encoder, head, image, torch.tensor([0]))[0]
    assert found[2, 1] == found.sum() > 0
    assert (grad_cam(encoder, head, image, torch.tensor([1])) > 0).all()


def test_a_vit_that_averages_and_whose_class_is_one_region_is_marked_there_only():
    """Patches do not mix, so that the first number of each is its brightness, less the mean, and the second the same in all."""
    encoder = Encoder("vit_micro", image_size=(16, 16), channels=1, patch_size=4, width=64, heads=1, depth=1, pool="mean").eval()
    model, head = encoder.model, nn.Linear(64, 2)
    with torch.no_grad():
        for part in (model.blocks[0].attn.proj, model.blocks[0].mlp.fc2, model.patch_embed.proj, head):
            part.weight.zero_()
            part.bias.zero_()
        model.pos_embed.zero_()
        model.patch_embed.proj.weight[0] = 1 / 16
        model.patch_embed.proj.bias[1] = 1
        head.weight[[0, 1], [0, 1]] = 1
    image = torch.zeros(1, 1, 16, 16)
    image[:, :, 4:8, 8:12] = 2
    found = grad_cam(encoder, head, image, torch.tensor([0]))[0]
    assert found[1, 2] == found.sum() > 0
    assert (grad_cam(encoder, head, image, torch.tensor([1])) > 0).all()


def test_a_vit_that_learned_one_region_is_marked_there():
    """The class is whether the patch in row 2, column 3 is bright or dark; all else is faint noise."""
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(16, 16), channels=1, patch_size=4, width=64, heads=1, depth=1)
    head = nn.Linear(64, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 2e-3)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (count,))
        images = 0.1 * torch.randn(count, 1, 16, 16)
        images[:, :, 4:8, 8:12] += (2.0 * labels - 1)[:, None, None, None]
        return images, labels

    for _ in range(120):
        images, labels = draw(32)
        loss = nn.functional.cross_entropy(head(encoder.pooled(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    images, labels = draw(64)
    found = grad_cam(encoder.eval(), head, images, labels)
    shares = found[:, 1, 2] / found.sum((1, 2)).clamp(min=1e-12)
    assert shares.mean() > 0.5, shares.mean()  # chance is 1 / 16


def test_images_stand_by_themselves_and_norms_must_come_first():
    encoder, head = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, heads=1, depth=2).eval(), nn.Linear(64, 4)
    images, classes = noise(3, 3, 16, 16).float(), torch.tensor([0, 3, 1])
    together = grad_cam(encoder, head, images, classes)
    torch.testing.assert_close(together[1:2], grad_cam(encoder, head, images[1:2], classes[1:2]))
    other = Encoder("vit_tiny_patch16_224", image_size=(32, 32), width=64, heads=1, depth=1).eval()
    other.model.blocks[0] = nn.Sequential(other.model.blocks[0])
    with pytest.raises(Refused, match=r"its blocks \(Sequential\) do not begin with one norm"):
        grad_cam(other, head, noise(1, 3, 32, 32).float(), classes[:1])


@pytest.mark.parametrize("count", [2, 3])
def test_a_fitted_head_is_the_regression_of_logistic_v1(count):
    vectors, values = 3 * noise(60, 5).float() + 7, np.arange(60) % count
    vectors[:, 2] += torch.from_numpy(values).float() * 3
    values[:4] = -1  # unknown
    names = ("a", "b", "c", "never")
    head = fit_head(vectors, Labels("class", values, names), where="here")
    assert head.classes == names[:count] and head.said == "logistic-v1 on 56 images of here"
    x = standardise_by(vectors[4:], vectors)[0].double().numpy()
    model, _ = logistic.fit_chosen(x[4:], values[4:], None)
    np.testing.assert_allclose(head.chances(head(vectors)).numpy(), model.predict_proba(x), atol=1e-4)


def test_a_head_of_several_labels_and_what_gives_none():
    vectors = noise(80, 5).float()
    table = np.stack([vectors[:, 0] > 0, np.zeros(80), vectors[:, 1] > 0], 1).astype(np.float32)
    table[3, 0] = np.nan
    head = fit_head(vectors, Labels("multi", table, ("one", "never", "two")), where="here")
    assert head.classes == ("one", "two") and head.kind == "multi"
    right = (head(vectors) > 0).numpy() == (table[:, [0, 2]] == 1)
    assert right[4:].mean() > 0.9
    with pytest.raises(Refused, match="'tow' is no class of the head .*did you mean 'two'"):
        head.place("tow")
    for labels, words in ((None, "has no labels"), (Labels("value", np.zeros(80)), "has numbers for labels"),
                          (Labels("class", np.zeros(80, int), ("a",)), "80 labelled images of 1 classes; .* two classes")):
        with pytest.raises(Refused, match=words):
            fit_head(vectors, labels, where="here")
    vectors[0] = np.nan
    with pytest.raises(Refused, match="not finite"):
        fit_head(vectors, Labels("class", np.arange(80) % 2, ("a", "b")), where="here")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A ViT with a head of its own and a CNN without one."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    known: dict = dict(mean=[0.5] * 3, std=[0.25] * 3, info={"method": "mae"})
    vit = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, depth=1).eval()
    head = ClassHead(nn.Linear(64, 3), ("cat", "dog", "owl"), "class", "finetune-v1 on 9 images of photos")
    write_backbone(vit, folder / "vit", head=head, **known)
    write_backbone(Encoder("test_resnet", image_size=(32, 32)).eval(), folder / "cnn", **known)
    return folder, head


def test_a_backbone_brings_its_own_head(folders, textures, tmp_path):
    folder, head = folders
    kept = load(folder / "vit").head
    assert torch.equal(kept.layer.weight, head.layer.weight) and (kept.classes, kept.kind, kept.said) == (
        head.classes, head.kind, head.said)
    assert load(daybreak.export(folder / "vit", to="timm", out=tmp_path / "copy")).head.classes == head.classes
    page = daybreak.explain(folder / "vit", textures, out=tmp_path, count=2, target="owl", console=Console(quiet=True)).read_text()
    assert page.count("<figcaption>Grad-CAM, owl: 0.") == 2 and "finetune-v1 on 9 images of photos" in page
    assert "the class owl is followed" in page.replace("\n", " ").replace("    ", "")
    assert page.count('<th scope="row">Random map</th>') == 2 and page.count('<th scope="row">Grad-CAM</th>') == 2


def test_a_head_is_fitted_on_labelled_images_and_that_is_said(folders, textures, tmp_path, capsys):
    folder, _ = folders
    with pytest.raises(SystemExit) as end:
        main(["explain", str(folder / "cnn"), str(textures), "--train", str(textures), "--count", "1", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert end.value.code in (0, None) and f"class head: logistic-v1 on 600 images of {textures}" in out
    page = (tmp_path / "explain.html").read_text()
    assert "the predicted one of each picture" in page and page.count("Grad-CAM, ") >= 1


@pytest.mark.parametrize(("name", "arguments", "words"), [
    ("vit", ["--class", "dgo"], "'dgo' is no class of the head (finetune-v1 on 9 images of photos); did you mean 'dog'?"),
    ("cnn", ["--class", "dog"], "has no class head; give labelled images to fit one on (--train DATA)"),
    ("cnn", ["--train", "PLAIN"], "has no labels, and a class head needs classes"),
])
def test_a_class_that_is_not_there_is_refused_in_a_sentence(folders, textures, tmp_path, capsys, name, arguments, words):
    (tmp_path / "plain").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "plain" / f"{i}.png"), np.full((16, 16, 3), 60 * i, np.uint8))
    arguments = [str(tmp_path / "plain") if a == "PLAIN" else a for a in arguments]
    with pytest.raises(SystemExit) as end:
        main(["explain", str(folders[0] / name), str(textures), *arguments, "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and words in capsys.readouterr().err and not (tmp_path / "out").exists()
