"""The stages of DailyMAE: when each begins, how large its images are, how much it hides."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import noise_batch, step_for, tiny_method
from torch._dynamo.testing import CompileCounter

from daybreak.config import Training
from daybreak.errors import Refused
from daybreak.train.loop import views_at
from daybreak.train.stages import SCHEMES, WHOLE, stage_at, stages_of

HIDES, PLAIN = SimpleNamespace(mask_ratio=0.75), SimpleNamespace()
VISIBLE = {  # tokens at 224 px in patches of 16, from the card
    "daily-1": [50, 48, 49], "daily-2": [25, 36, 49], "daily-3": [49, 36, 25], "daily-4": [25, 28, 29], "daily-5": [49, 36, 49],
    "daily-6": [49, 36, 29],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_visible_tokens_are_those_of_the_paper_s_code(scheme):
    stages = stages_of(Training(scheme=scheme), HIDES)
    counts = [int((round(s.size * 224) // 16) ** 2 * (1 - s.mask_ratio)) for s in stages]
    assert counts == VISIBLE[scheme]


def test_a_stage_begins_at_its_share_of_the_budget():
    """Ramp 0 to 400 of 800 epochs: stage floor(e (n - 1) / 400), the last from 400 on."""
    stages = stages_of(Training(scheme="daily-1"), HIDES)
    for epoch in range(800):
        wanted = 2 if epoch >= 400 else epoch * 2 // 400
        assert stage_at(stages, epoch / 800) == stages[wanted]


def test_sizes_at_32_pixels_are_whole_patches():
    method = tiny_method("mae", size=(32, 32))
    stages = stages_of(Training(scheme="daily-1"), method.config)
    assert [views_at(stage, method)[0].size for stage in stages] == [(24, 24), (28, 28), (32, 32)]


def test_without_a_scheme_there_is_one_stage():
    assert stages_of(Training(), PLAIN) == [WHOLE] and stage_at([WHOLE], 0.7) == WHOLE


def test_a_method_that_hides_no_share_follows_the_sizes_alone():
    assert [stage.mask_ratio for stage in stages_of(Training(scheme="daily-2"), PLAIN)] == [None] * 3
    with pytest.raises(Refused, match="has no mask_ratio"):
        stages_of(Training(scheme="daily-1"), PLAIN)


@pytest.mark.slow
def test_a_stage_compiles_at_most_once_and_its_evaluation_too():
    """What is compiled is shared by all blocks; the second size makes the shape a variable, and the third costs nothing."""
    torch.compiler.reset()
    method, counter, compiled = tiny_method("mae", size=(32, 32)), CompileCounter(), []
    method.encoder.compile_blocks(backend=counter)
    for stage in stages_of(Training(scheme="daily-1"), method.config):
        views, before = views_at(stage, method), counter.frame_count
        for _ in range(3):
            batch = noise_batch(SimpleNamespace(views=views, encoder=method.encoder, labels="none"))
            method(batch, replace(step_for(batch), mask_ratio=stage.mask_ratio))[0].backward()
        trained = counter.frame_count - before
        with torch.no_grad():
            for _ in range(2):
                method.encoder(torch.rand(16, 3, 32, 32))
        compiled.append((trained, counter.frame_count - before - trained))
    assert compiled[0] == (1, 1) and all(step <= 1 and probe <= 1 for step, probe in compiled[1:])
    assert sum(step for step, _ in compiled) >= 2  # the counter sees a change of size
    torch.compiler.reset()
