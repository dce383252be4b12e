"""DPO, RLOO, GRPO and offline PPO where the best of 64 answers' laws is known.

GRPO does not go to the best policy for score − β KL, and the tests say where it goes
instead: its stationary point can be worked out place by place.
"""

import pytest
import torch

from minipalm.config import DPOConfig, GroupConfig, OfflineConfig, OptimConfig
from minipalm.rlhf.best_of_n import best_of_n, best_of_n_kl
from minipalm.rlhf.dpo import dpo_loss, sequence_logprobs
from minipalm.rlhf.log import log_answers
from minipalm.rlhf.pairs import Pairs
from minipalm.train.dpo import train_dpo
from minipalm.train.group import train_group
from minipalm.train.offline import train_offline
from minipalm.train.run import Run, read_metrics
from tests.rlhf.test_bandit import ANSWERS, PROMPT, T, V, kl, law, small_world, table
from tests.small import ppo_config, seeded

BETA = 1.0
ENDS = dict(max_response=T, eos_id=-1)


@pytest.fixture
def world():
    """Policy, reference, critic, scores, and the best policy's law."""
    policy, reference, critic = small_world(0)
    scores = torch.randn(64, generator=seeded(100))
    best = (law(reference) + scores / BETA).log_softmax(0)
    assert kl(law(reference), best) > 0.3  # it has somewhere to go
    return policy, reference, critic, scores, best


def groups(folder, world, **changes):
    policy, reference, _, scores, _ = world
    config = dict(
        method="rloo",
        iterations=100,
        batch_size=256,
        group_size=16,
        minibatch_size=128,
        epochs=2,
        lr=4e-3,
        kl_coef=BETA,
        final_lr=0.0,
        missing_eos_penalty=0.0,
    )
    train_group(
        policy,
        reference,
        table(scores),
        PROMPT,
        PROMPT > 0,
        GroupConfig(**{**config, **changes}),
        Run(folder),
        seed=0,
        checkpoint_every=10_000,
        **ENDS,
    )
    return law(policy)


# --- to the best policy ---------------------------------------------------------------


def test_rloo_reaches_the_best_policy_there_is(tmp_path, world):
    found = groups(tmp_path, world)
    assert kl(found, world[-1]) < 0.02


def labelled(world, number, always=False):
    """Places among ANSWERS of the better and of the worse of pairs of the reference's
    answers; the larger score wins always, or as often as Bradley and Terry say."""
    _, reference, _, scores, _ = world
    generator = seeded(5)
    rows = torch.multinomial(
        law(reference).exp(), 2 * number, replacement=True, generator=generator
    )
    first, second = rows.view(2, -1)
    chance = torch.sigmoid(scores[first] - scores[second])
    drawn = torch.rand(number, generator=generator) < chance
    won = chance > 0.5 if always else drawn
    return torch.where(won, first, second), torch.where(won, second, first)


@pytest.mark.parametrize("always", [False, True])
def test_dpo_reaches_it_from_labels_drawn_as_bradley_and_terry_say(world, always):
    """And passes it if the better answer always wins: then no finite Δ is enough.

    All pairs at every step: their answers are only 64 different ones.
    """
    policy, reference, _, _, best = world
    chosen, rejected = labelled(world, 16_384, always)
    ref = law(reference).float()
    prompts = PROMPT.expand(64, -1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(400):
        logprobs = sequence_logprobs(
            policy, prompts, prompts > 0, ANSWERS, ANSWERS >= 0
        )
        loss = dpo_loss(
            logprobs[chosen], logprobs[rejected], ref[chosen], ref[rejected], BETA
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    off = kl(law(policy), best)
    assert off > 0.1 if always else off < 0.02


def test_the_loop_of_dpo_goes_there_batch_by_batch(tmp_path, world):
    policy, reference, _, _, best = world
    places = labelled(world, 16_384)
    chosen, rejected = (ANSWERS[x] for x in places)
    prompts = PROMPT.expand(len(chosen), -1)
    pairs = Pairs(prompts, prompts > 0, chosen, chosen >= 0, rejected, rejected >= 0)
    optim = OptimConfig(150, 128, 5e-3, final_lr=0.0, weight_decay=0.0)
    config = DPOConfig(optim, beta=BETA)
    train_dpo(policy, reference, pairs, config, Run(tmp_path), 0, 10_000)
    assert kl(law(policy), best) < 0.2


def offline(folder, world, weight_limit):
    policy, reference, critic, scores, best = world
    prompts = PROMPT.expand(8192, -1)
    config = ppo_config(
        iterations=48,
        batch_size=512,
        minibatch_size=256,
        policy_lr=5e-3,
        value_lr=1e-2,
        final_lr=0.0,
        lam=1.0,
        value_clip=10.0,
        missing_eos_penalty=0.0,
    )
    log = log_answers(
        reference,
        table(scores),
        prompts,
        prompts > 0,
        config=config,
        generator=seeded(7),
        **ENDS,
    )
    train_offline(
        policy,
        reference,
        critic,
        log,
        OfflineConfig(config, weight_limit=weight_limit, least_ess=0.0),
        Run(folder),
        seed=0,
        kl_coef=BETA,
        checkpoint_every=10_000,
    )
    return kl(law(policy), best)


def test_offline_ppo_reaches_it_by_weights(tmp_path, world):
    """From answers of the reference alone, and the log tells how old it has become."""
    assert offline(tmp_path, world, weight_limit=100.0) < 0.02
    age = read_metrics(tmp_path)
    assert age[0]["ess"] == pytest.approx(1, abs=1e-5)
    assert age[0]["staleness"] == pytest.approx(0, abs=1e-5)
    assert age[-1]["ess"] < 0.5 and age[-1]["staleness"] > 0.3


# --- GRPO, to where it goes -----------------------------------------------------------


def stationary(ref_law, scores, beta):
    """log π of the 64 answers at which GRPO's expected gradient is 0.

    At each place, with Q the expected score after a token and V before it, the gradient
    is that of E_π[Q − V] plus β E_π[π_ref/π − 1] per token (k3's). It is 0 for
    π = π_ref / (1 + (V − Q)/β), with V such that π adds up to 1. From the last place to
    the first.
    """
    joint = ref_law.exp().view(V, V, V)
    Q = scores.double().view(V, V, V)
    laws = []
    for place in (2, 1, 0):
        ref = joint.flatten(place + 1).sum(-1) if place < 2 else joint
        ref = ref / ref.sum(-1, keepdim=True)
        low, high = Q.amax(-1) - beta + 1e-12, Q.amax(-1)
        for _ in range(200):  # Σ π falls in V
            middle = (low + high) / 2
            total = (ref / (1 + (middle[..., None] - Q) / beta)).sum(-1)
            low, high = (
                torch.where(total > 1, middle, low),
                torch.where(total > 1, high, middle),
            )
        laws.append(ref / (1 + (middle[..., None] - Q) / beta))
        Q = middle
    third, second, first = laws
    return (first[:, None, None] * second[:, :, None] * third).log().flatten()


def scaled_stationary(ref_law, scores, beta):
    """The same where scores are divided by their own spread under the policy."""
    found = ref_law
    for _ in range(100):
        p = found.exp()
        mean = (p * scores).sum()
        std = (p * (scores - mean) ** 2).sum().sqrt()
        found = stationary(ref_law, scores / std, beta)
    return found


@pytest.mark.parametrize("divide_by_std", [False, True])
def test_grpo_reaches_its_own_stationary_point_and_not_the_best_policy(
    tmp_path, world, divide_by_std
):
    _, reference, _, scores, _ = world
    scores *= 2 if divide_by_std else 1  # so that the division is seen
    best = (law(reference) + scores / BETA).log_softmax(0)
    solve = scaled_stationary if divide_by_std else stationary
    wanted = solve(law(reference), scores, BETA)
    assert wanted.exp().sum().item() == pytest.approx(1)
    assert kl(wanted, best) > 0.05
    found = groups(
        tmp_path,
        world,
        method="grpo",
        group_size=256,
        minibatch_size=256,
        epochs=1,
        iterations=150,
        lr=5e-3,
        divide_by_std=divide_by_std,
    )
    off = kl(found, wanted)
    assert off < 0.03 and 3 * off < kl(found, best)


# --- best of n ------------------------------------------------------------------------


def test_best_of_n_has_the_law_and_the_distance_that_it_should(world):
    """P(best = i) = F(i)^n − F(i − 1)^n, with F the distribution of the scores."""
    _, reference, _, scores, _ = world
    n, ref = 8, law(reference)
    order = scores.argsort()
    up = ref.exp()[order].cumsum(0)
    below = torch.cat([up.new_zeros(1), up[:-1]])
    exact = torch.empty_like(ref)
    exact[order] = (up**n - below**n).clamp(min=1e-300).log()
    assert 0 < kl(exact, ref) < best_of_n_kl(n)

    prompts = PROMPT.expand(2000, -1)
    best = best_of_n(
        reference,
        table(scores),
        prompts,
        prompts > 0,
        n,
        generator=seeded(9),
        **ENDS,
    )
    places = best.responses @ torch.tensor([V * V, V, 1])
    counts = places.bincount(minlength=64) / 2000
    assert (counts - exact.exp()).abs().max() < 0.03
    mean = (exact.exp() * scores).sum().item()
    assert best.scores.mean().item() == pytest.approx(mean, abs=0.06)
