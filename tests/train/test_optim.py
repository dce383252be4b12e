"""AdamW, its schedule, and the order of the rows."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from minipalm.config import PRESETS, OptimConfig
from minipalm.model.palm import PaLM
from minipalm.train.optim import (
    adamw,
    batch_rows,
    lr_scale,
    micro_batches,
    optimizer_step,
    set_lr,
)
from tests.train.worlds import NET

# --- the schedule -------------------------------------------------------------------


def test_47_the_rate_rises_on_a_line_and_falls_on_half_a_cosine():
    scale = [lr_scale(step, 100, warmup=0.1, final=0.1) for step in range(1, 101)]
    assert scale[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert scale[9] == max(scale) == 1
    assert scale[54] == pytest.approx((1 + 0.1) / 2)  # halfway down, at step 55
    assert scale[99] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(scale[9:], scale[10:]))
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2
    assert scale[39] == pytest.approx(quarter)


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "final", "expected"),
    [
        (1, 1, 0.05, 0.1, 1),  # one step: at the peak, not at nothing
        (1, 1, 0.0, 0.0, 1),
        (1, 10, 0.0, 0.1, 1),  # without a rise the first step has the peak
        (10, 10, 0.0, 0.0, 0),  # down to nothing
        (10, 10, 1.0, 0.1, 1),  # rising all the way
        (5, 10, 1.0, 0.1, 0.5),
        (1, 2, 0.05, 0.1, 1),
        (2, 2, 0.05, 0.1, 0.1),
        (20, 20, 0.1, 1.0, 1),  # no fall
    ],
)
def test_the_rate_at_the_ends(step, steps, warmup, final, expected):
    assert lr_scale(step, steps, warmup, final) == pytest.approx(expected)


# --- AdamW --------------------------------------------------------------------------


def test_weight_decay_leaves_vectors_alone():
    model = PaLM(NET)
    model.register_parameter("frozen", nn.Parameter(torch.ones(3, 3), False))
    decayed, spared = adamw(model, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {w.dim() for w in decayed["params"]} == {2}
    assert {w.dim() for w in spared["params"]} == {1}
    trained = sum(1 for w in model.parameters() if w.requires_grad)
    assert len(decayed["params"]) + len(spared["params"]) == trained


def adamw_by_hand(weights, gradients, rates, decay, betas, eps):
    """Algorithm 2 of Loshchilov and Hutter, one number at a time, in float64."""
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    for t, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
        for i, g in enumerate(gradient):
            weights[i] -= rate * decay * weights[i]
            first[i] = betas[0] * first[i] + (1 - betas[0]) * g
            second[i] = betas[1] * second[i] + (1 - betas[1]) * g * g
            mean = first[i] / (1 - betas[0] ** t)
            square = second[i] / (1 - betas[1] ** t)
            weights[i] -= rate * mean / (math.sqrt(square) + eps)
    return weights


@pytest.mark.parametrize("eps", [1e-8, 1e-5, 0.1])
def test_47_adamw_is_the_loop_of_the_paper(eps):
    """ε is outside of the root and after the correction of bias, as in PyTorch."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    config = OptimConfig(
        steps=5, batch_size=1, lr=0.1, warmup=0.4, weight_decay=0.5, grad_clip=1e9
    )
    optimizer = adamw(model, config.weight_decay, config.betas, eps)
    matrix = model.weight.flatten().tolist()
    vector = model.bias.tolist()
    gradients = 1e-3 * torch.randn(5, 8, dtype=torch.double)
    for step, gradient in enumerate(gradients, start=1):
        model.weight.grad = gradient[:6].view(2, 3).clone()
        model.bias.grad = gradient[6:].clone()
        optimizer_step(model, optimizer, config, step)
    rates = [0.1 * lr_scale(step, 5, 0.4, 0.1) for step in range(1, 6)]
    split = [(gradient[:6].tolist(), gradient[6:].tolist()) for gradient in gradients]
    one, two = zip(*split)
    expected = adamw_by_hand(matrix, one, rates, 0.5, config.betas, eps)
    assert model.weight.flatten().tolist() == pytest.approx(expected, rel=1e-12)
    expected = adamw_by_hand(vector, two, rates, 0.0, config.betas, eps)
    assert model.bias.tolist() == pytest.approx(expected, rel=1e-12)


def test_45_the_norm_is_of_all_weights_together_and_from_before_clipping():
    model = nn.Linear(2, 1)
    config = OptimConfig(steps=1, batch_size=1, lr=0.0, grad_clip=1.0)
    model.weight.grad, model.bias.grad = torch.tensor([[2.0, 3.0]]), torch.tensor([6.0])
    seen = {}
    optimizer = adamw(model)
    optimizer.register_step_pre_hook(
        lambda *_: seen.update({w.numel(): w.grad.clone() for w in model.parameters()})
    )
    assert optimizer_step(model, optimizer, config, 1) == pytest.approx(7)
    assert seen[2][0].tolist() == pytest.approx([2 / 7, 3 / 7], rel=1e-5)
    assert seen[1].tolist() == pytest.approx([6 / 7], rel=1e-5)
    assert model.weight.grad is None and model.bias.grad is None


def test_a_step_sets_the_rate_of_every_group():
    model = PaLM(NET)
    optimizer = adamw(model)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    set_lr(optimizer, 0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}
    model(torch.tensor([[3, 4]])).sum().backward()
    config = OptimConfig(steps=10, batch_size=1, lr=2.0, warmup=0.5)
    optimizer_step(model, optimizer, config, 2)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.8, 0.8])


# --- rows ---------------------------------------------------------------------------


def seen(n, batch, steps, seed=5):
    rows = [batch_rows(n, batch, step, seed).tolist() for step in range(1, steps + 1)]
    assert all(len(row) == batch for row in rows)
    return [row for one in rows for row in one]


@pytest.mark.parametrize(("n", "batch"), [(12, 4), (10, 4), (7, 7), (3, 8), (1, 2)])
def test_44_every_row_is_seen_once_an_epoch(n, batch):
    """Also where a batch spans the end of an epoch, or several epochs."""
    rows = seen(n, batch, steps=6 * n)
    for epoch in range(6 * batch):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_44_every_epoch_has_an_order_of_its_own():
    rows = seen(20, 5, steps=40)
    orders = {tuple(rows[epoch * 20 : (epoch + 1) * 20]) for epoch in range(10)}
    assert len(orders) == 10
    first = Counter(seen(20, 1, steps=1, seed=seed)[0] for seed in range(400))
    assert len(first) == 20 and max(first.values()) < 50  # no row is preferred


def test_49_the_rows_depend_on_step_and_seed_alone():
    rows = seen(10, 4, steps=9)
    torch.manual_seed(1)
    assert batch_rows(10, 4, 7, 5).tolist() == rows[24:28]
    assert seen(10, 4, steps=9, seed=6) != rows
    assert rows[:10] != seen(10, 5, steps=2, seed=4)


def test_the_next_epoch_of_a_seed_is_not_the_first_of_the_next_seed():
    assert seen(30, 30, 2, seed=5)[30:] != seen(30, 30, 1, seed=6)


def test_no_rows_at_all_are_an_error():
    with pytest.raises(ValueError, match="expected rows to train on, got none"):
        batch_rows(0, 4, 1, 0)


def test_micro_batches_are_the_batch_in_parts():
    rows = torch.arange(7)
    assert [part.tolist() for part in micro_batches(rows, 3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]
    for size in (0, 7, 100):
        assert [part.tolist() for part in micro_batches(rows, size)] == [rows.tolist()]


def test_presets_have_schedules_that_end_where_they_say():
    for preset in PRESETS.values():
        for config in (preset.pretrain, preset.sft, preset.reward.optim):
            ends = lr_scale(config.steps, config.steps, config.warmup, config.final_lr)
            assert ends == pytest.approx(config.final_lr)
