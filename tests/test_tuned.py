"""Fine-tuning by the command line: what it leaves in the run, what an interruption leaves, and what explain makes of it."""

import json

import pytest
import torch

from daybreak.cli import main
from daybreak.evaluate import finetune
from daybreak.export.backbone import load, write_backbone
from daybreak.nn.encoder import Encoder


def say(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code or 0, *capsys.readouterr()


def test_an_interrupted_command_goes_on_and_leaves_a_backbone_with_its_head(textures, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    encoder = Encoder("vit_micro", image_size=(16, 16), patch_size=4, width=64, heads=1, depth=1).eval()
    folder = write_backbone(encoder, tmp_path / "run", mean=[0.5] * 3, std=[0.25] * 3, info={"method": "mae", "labels": "none"})
    command = ["evaluate", folder, "--train", textures, "--test", textures, "--protocol", finetune.NAME, "--share", "0.1",
               "--share", "1", "--set", "finetune.epochs=1", "--set", "finetune.batch_size=32"]
    judge, calls = finetune.judge_classes, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "judge_classes", interrupt)
        code, _, err = say(capsys, *command)
    assert code == 1 and "was interrupted; what is done stays in" in err and "the same command goes on" in err
    assert len(list((folder / "finetuning").iterdir())) == 2 and not (folder / "evaluations.json").exists()
    code, out, err = say(capsys, *command)
    assert code == 0, err
    assert out.count("going on after") == 2 and "random weights are left out" in out
    assert not (folder / "finetuning").exists() and len(json.loads((folder / "evaluations.json").read_text())) == 6
    tuned = load(folder / "finetuned")
    assert tuned.head.classes == ("across", "checks", "diagonal", "dots", "upright") and "on 600 images of" in tuned.head.said
    assert tuned.info["labels"] == "class" and not torch.equal(tuned.encoder.model.norm.weight, encoder.model.norm.weight)

    code, out, _ = say(capsys, "explain", folder, textures, "--count", "1", "--out", tmp_path / "plain")
    assert code == 0 and f"note: a fine-tuned backbone with a class head is in {folder / 'finetuned'}" in out
    assert "Grad-CAM" not in (tmp_path / "plain" / "explain.html").read_text()
    code, out, _ = say(capsys, "explain", folder / "finetuned", textures, "--count", "1", "--out", tmp_path / "tuned")
    assert code == 0 and "class head: finetune-v1 on 600 images" in out
    assert "Grad-CAM, " in (tmp_path / "tuned" / "explain.html").read_text()
