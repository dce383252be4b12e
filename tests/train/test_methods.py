"""The loops of offline PPO, DPO, RLOO and GRPO: resumed bit by bit, and their steps."""

from dataclasses import replace

import pytest
import torch

from minipalm.config import DPOConfig, GroupConfig, OfflineConfig
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.log import log_answers
from minipalm.train.dpo import train_dpo
from minipalm.train.group import train_group
from minipalm.train.offline import train_offline
from minipalm.train.run import read_metrics
from tests.train.worlds import (
    EOS,
    OPTIM,
    PPO,
    Stopped,
    begin,
    draw,
    left_by,
    network,
    pairs,
    share_of_fives,
)

OFFLINE = OfflineConfig(replace(PPO, kl_target=None))
DPO = DPOConfig(OPTIM, beta=0.2, label_smoothing=0.1)
RLOO = GroupConfig(
    method="rloo",
    iterations=6,
    batch_size=8,
    group_size=4,
    minibatch_size=4,
    epochs=2,
    lr=1e-2,
    kl_coef=0.1,
)
GRPO = replace(RLOO, method="grpo")


def asked():
    prompts = draw(9, 3)
    return prompts, torch.ones_like(prompts, dtype=torch.bool)


def a_log():
    return log_answers(
        network(0),
        share_of_fives,
        *asked(),
        config=PPO,
        max_response=5,
        eos_id=EOS,
        generator=torch.Generator().manual_seed(5),
    )


def offline(folder, stop=None, init=0, config=OFFLINE):
    policy = network(init)
    with torch.random.fork_rng():
        torch.manual_seed(init)
        critic = Critic(network(init + 1), "last")
    run = begin(folder, stop)
    train_offline(
        policy, network(0), critic, a_log(), config, run, 3, kl_coef=0.1,
        checkpoint_every=2,
    )  # fmt: skip
    return {"policy": policy, "critic": critic}


def dpo(folder, stop=None, init=0, config=DPO, reference=None):
    policy = network(init)
    train_dpo(
        policy, reference or network(0), pairs(), config, begin(folder, stop), 3, 2
    )
    return {"policy": policy}


def rloo(folder, stop=None, init=0, config=RLOO, reference=None):
    policy = network(init)
    train_group(
        policy,
        reference or network(0),
        share_of_fives,
        *asked(),
        config,
        begin(folder, stop),
        3,
        max_response=5,
        eos_id=EOS,
        checkpoint_every=2,
    )
    return {"policy": policy}


def grpo(folder, stop=None, init=0, config=GRPO, reference=None):
    return rloo(folder, stop, init, config, reference)


WORLDS = {f.__name__: f for f in (offline, dpo, rloo, grpo)}
EVERY_LOOP = pytest.mark.parametrize("world", WORLDS)


@EVERY_LOOP
def test_49_stopped_in_a_step_and_resumed_is_uninterrupted(world, tmp_path):
    WORLDS[world](tmp_path / "whole")
    whole = left_by(tmp_path / "whole")
    assert len(read_metrics(tmp_path / "whole")) == 6
    for stop in (1, 4, 6):
        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            WORLDS[world](folder, stop=stop)
        torch.manual_seed(stop)  # torch's own generator has no say
        # Other weights to begin with: all that counts must come from the checkpoint.
        WORLDS[world](folder, init=77 if stop > 2 else 0)
        assert left_by(folder) == whole


@EVERY_LOOP
def test_49_a_finished_run_is_loaded_and_nothing_is_done(world, tmp_path, monkeypatch):
    done = WORLDS[world](tmp_path)
    files = left_by(tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    again = WORLDS[world](tmp_path, init=77)
    assert left_by(tmp_path) == files
    for name, module in done.items():
        for one, other in zip(module.parameters(), again[name].parameters()):
            assert torch.equal(one, other)


@pytest.mark.parametrize("world", ["rloo", "grpo"])
def test_an_update_has_epochs_times_minibatches_steps(world, tmp_path):
    WORLDS[world](tmp_path)
    assert [line["steps"] for line in read_metrics(tmp_path)] == [4.0] * 6


@pytest.mark.parametrize("world", ["dpo", "rloo", "grpo"])
def test_the_reference_is_not_changed(world, tmp_path):
    reference = network(0)
    WORLDS[world](tmp_path, reference=reference)
    for one, other in zip(reference.parameters(), network(0).parameters()):
        assert torch.equal(one, other) and one.grad is None


@pytest.mark.parametrize("world", ["offline", "rloo", "grpo"])
def test_the_first_iteration_is_at_no_distance_from_the_reference(world, tmp_path):
    """Property 13."""
    WORLDS[world](tmp_path)
    first = read_metrics(tmp_path)[0]
    assert first["kl"] == pytest.approx(0, abs=1e-5)


def test_dpo_begins_at_log_2_and_learns_its_pairs(tmp_path):
    longer = replace(DPO, optim=replace(OPTIM, steps=40))
    dpo(tmp_path, config=longer)
    first, *_, last = read_metrics(tmp_path)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert first["margin"] == first["accuracy"] == 0
    assert last["accuracy"] == 1 and last["loss"] < 0.5
    assert last["margin"] == pytest.approx(
        0.2 * (last["chosen"] - last["rejected"]), rel=1e-4
    )


def test_dpos_micro_batches_change_nothing(tmp_path):
    weights = []
    for size in (0, 3):
        config = replace(DPO, optim=replace(OPTIM, micro_batch=size))
        weights.append(dpo(tmp_path / str(size), config=config)["policy"])
    for one, other in zip(*(w.parameters() for w in weights)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("world", ["rloo", "grpo"])
def test_a_reward_that_can_be_learnt_is_learnt(world, tmp_path):
    config = replace(
        {"rloo": RLOO, "grpo": GRPO}[world],
        iterations=40,
        batch_size=32,
        minibatch_size=32,
        kl_coef=0.01,
    )
    WORLDS[world](tmp_path, config=config)
    scores = [line["score"] for line in read_metrics(tmp_path)]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.3


def test_a_batch_that_is_too_old_is_looked_at_and_not_learnt_from(tmp_path):
    fresh = replace(OFFLINE, least_ess=0.999)
    modules = offline(tmp_path / "fresh", config=fresh)
    lines = read_metrics(tmp_path / "fresh")
    assert lines[0]["steps"] == 4 and lines[0]["ess"] > 0.999
    later = [line for line in lines[1:] if line["ess"] < 0.999]
    assert later and all(line["steps"] == 0 for line in later)
    assert modules["policy"] is not None
    offline(tmp_path / "any", config=replace(OFFLINE, least_ess=0.0))
    assert all(line["steps"] == 4 for line in read_metrics(tmp_path / "any"))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: replace(OFFLINE, weight_limit=0.5), "weight_limit must be 1 or more"),
        (lambda: replace(OFFLINE, least_ess=1.0), "least_ess is a share"),
        (lambda: replace(DPO, beta=0.0), "beta must be above 0"),
        (lambda: replace(DPO, label_smoothing=0.5), "label_smoothing is a share"),
    ],
)
def test_impossible_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
