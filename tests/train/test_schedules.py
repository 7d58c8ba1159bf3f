"""Rates and budgets, by hand and with a clock that does what it is told."""

import pytest
import torch

from daybreak.config import Training
from daybreak.train.optim import clip, make_optimizer, parameter_groups, peak_rate, set_rates
from daybreak.train.schedules import Budget, warm_cosine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.55), (1.0, 0.1)])
def test_warm_up_and_cosine_by_hand(progress, rate):
    assert warm_cosine(progress, 1.0, 0.1, 0.1) == pytest.approx(rate)


def test_no_warm_up_starts_at_the_peak():
    assert warm_cosine(0.0, 1.0, 0.0, 0.0) == 1.0


def test_a_budget_of_images_ends_at_them_whatever_the_clock_says():
    clock = Clock()
    budget = Budget(100, clock=clock)
    budget.start()
    clock.now = 1e6
    budget.look(50)
    assert budget.images == 100 and budget.progress(50) == 0.5 and not budget.over(99) and budget.over(100)


def test_a_budget_of_time_follows_the_speed_and_ends_in_time():
    clock = Clock()
    budget = Budget(1000, seconds=100, clock=clock)
    budget.start()
    clock.now = 10
    budget.look(50)  # 5 a second
    assert budget.images == 500 and budget.progress(50) == pytest.approx(0.1)
    clock.now = 50
    budget.look(450)  # faster since: progress is the share of the time
    assert budget.progress(450) == pytest.approx(0.5)
    assert not budget.over(450)
    clock.now = 100
    budget.look(900)
    assert budget.images == 900 and budget.over(900)


def test_time_spent_before_an_interruption_counts():
    clock = Clock()
    first = Budget(1000, seconds=100, clock=clock)
    first.start()
    clock.now = 60
    second = Budget(1000, seconds=100, clock=clock)
    second.load_state_dict(first.state_dict())
    clock.now = 1000
    second.start()
    clock.now = 1039
    second.look(990)
    assert second.elapsed() == pytest.approx(99) and not second.over(990)
    clock.now = 1041
    second.look(995)
    assert second.over(995)


@pytest.mark.parametrize(("rule", "rate"), [("linear", 1e-3 * 512 / 256), ("sqrt", 1e-3 * 512**0.5), ("fixed", 1e-3)])
def test_rate_rules(rule, rate):
    assert peak_rate(Training(learning_rate=1e-3, learning_rate_rule=rule, batch_size=512)) == pytest.approx(rate)


def test_groups_and_rates():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module.register_parameter("cls_token", torch.nn.Parameter(torch.zeros(1, 1, 3)))
    module[1].weight.requires_grad_(False)
    decayed, spared = parameter_groups(module, "1d")
    assert [p.shape for p in decayed["params"]] == [(1, 1, 3), (2, 3)] and len(spared["params"]) == 2
    assert len(parameter_groups(module, "1d-and-tokens")[0]["params"]) == 1
    assert len(parameter_groups(module, "none")[0]["params"]) == 4
    optimizer = make_optimizer(module, Training())
    set_rates(optimizer, 0.3, 0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.3, 0.2), (0.3, 0.0)]


@pytest.mark.parametrize(("mode", "expected"), [("global", [1.8, 2.4]), ("per-tensor", [3.0, 3.0])])
def test_clip_by_hand(mode, expected):
    """Gradients of norms 3 * 1 and 4: together 5, so a limit of 3 scales by 0.6; each alone by 1 and 0.75."""
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))])
    module[0].grad, module[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert float(clip(module, 3.0, mode)) == pytest.approx(5.0)
    assert [float(p.grad) for p in module] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_optimiser_is_refused():
    from daybreak.errors import Refused

    with pytest.raises(Refused, match=r"training\.optimizer"):
        make_optimizer(torch.nn.Linear(2, 2), Training(optimizer="adamm"))
