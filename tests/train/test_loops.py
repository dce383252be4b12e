"""The four loops: they learn, log every step, and nothing that is shown sways them."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from minipalm.course import ROOT
from minipalm.rlhf import ppo as ppo_module
from minipalm.rlhf.reward import score_pairs
from minipalm.rlhf.sft import sft_loss
from minipalm.train import run as run_module
from minipalm.train.language_model import next_token_loss, train_language_model
from minipalm.train.optim import batch_rows, lr_scale
from minipalm.train.run import Run, TrainingError, read_metrics
from tests.train import worlds
from tests.train.worlds import OPTIM, PPO, WORLDS, left_by

EVERY_LOOP = pytest.mark.parametrize("world", WORLDS)
SUPERVISED = pytest.mark.parametrize("world", ["language_model", "sft", "reward_model"])
LONG = replace(OPTIM, steps=60, batch_size=8, lr=3e-2, weight_decay=0.0)


@pytest.fixture
def updates(monkeypatch):
    """A list that gets the optimizer at each of its steps."""
    step, done = torch.optim.AdamW.step, []

    def counted(self):
        done.append(self)
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    return done


# --- what every loop does -----------------------------------------------------------


@EVERY_LOOP
def test_a_line_of_metrics_for_every_step(world, tmp_path):
    WORLDS[world](tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert len({tuple(line) for line in lines}) == 1  # the same names in each
    wanted = {
        "language_model": {"loss", "grad_norm"},
        "sft": {"loss", "grad_norm"},
        "reward_model": {"loss", "grad_norm", "accuracy"},
        "ppo": {"score", "kl", "kl_coef", "length", "unfinished", "entropy"},
    }
    assert lines[0].keys() >= wanted[world]


@EVERY_LOOP
@pytest.mark.parametrize(("every", "at"), [(1, [1, 2, 3, 4, 5, 6]), (4, [4, 6])])
@pytest.mark.parametrize("large", [False, True])
def test_checkpoints_come_when_they_are_due_and_at_the_end(
    world, every, at, large, tmp_path, monkeypatch
):
    if large:
        every, at = 100, [6]
    saved, save = [], Run.save
    monkeypatch.setattr(
        Run,
        "save",
        lambda self, step, *rest, **state: (
            saved.append(step),
            save(self, step, *rest, **state),
        ),
    )
    WORLDS[world](tmp_path, every=every)
    assert saved == at


@EVERY_LOOP
def test_the_bar_has_no_say(world, tmp_path, monkeypatch):
    WORLDS[world](tmp_path / "with")
    real = run_module.tqdm
    monkeypatch.setattr(
        run_module, "tqdm", lambda **more: real(**more | {"disable": True})
    )
    WORLDS[world](tmp_path / "without")
    assert left_by(tmp_path / "with") == left_by(tmp_path / "without")


def test_a_bar_that_is_switched_off_from_outside_has_no_say(tmp_path):
    """TQDM_DISABLE=1, in a process of its own: a loop over the bar never ended here."""
    code = (
        "import sys; from pathlib import Path; from tests.train import worlds\n"
        "[run(Path(sys.argv[1]) / name) for name, run in worlds.WORLDS.items()]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "off")],
        cwd=ROOT,
        env={**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == ""
    for name, world in WORLDS.items():
        world(tmp_path / "on" / name)
    assert left_by(tmp_path / "off") == left_by(tmp_path / "on")


@SUPERVISED
def test_43_one_update_a_step(world, tmp_path, updates):
    WORLDS[world](tmp_path, config=replace(OPTIM, micro_batch=1))
    assert len(updates) == OPTIM.steps


@SUPERVISED
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_42_micro_batches_change_no_gradient(world, micro_batch, tmp_path):
    """Rows of unequal length, too: the mean is over the whole batch."""
    once = replace(OPTIM, steps=1, batch_size=5)
    WORLDS[world](tmp_path / "whole", config=once)
    WORLDS[world](tmp_path / "parts", config=replace(once, micro_batch=micro_batch))
    (whole,), (parts,) = (read_metrics(tmp_path / n) for n in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=2e-5)
    # Adam's memory after one step is the gradient: compare it, as the step is its sign
    before, after = (
        load(tmp_path / name / "step-000001") for name in ("whole", "parts")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.endswith("exp_avg"):
            assert torch.allclose(tensor, after[name], atol=1e-7), name


def load(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "tensors.safetensors")


def poison(monkeypatch, world, at, value):
    """Let the loss of step `at`, and of no other, be multiplied by a value."""
    names = {
        "language_model": "minipalm.train.language_model.next_token_loss",
        "sft": "minipalm.train.sft.sft_loss",
        "reward_model": "minipalm.train.reward_model.pairwise_loss",
        "ppo": "minipalm.rlhf.ppo.value_loss",
    }
    module, _, function = names[world].rpartition(".")
    real, calls = getattr(sys.modules[module], function), 0

    def loss(*arguments):
        nonlocal calls
        calls += 1
        a_step = 4 if world == "ppo" else 1  # 2 epochs of 2 minibatches
        # in PPO the last minibatch of the update
        return real(*arguments) * (value if calls == at * a_step else 1)

    monkeypatch.setattr(names[world], loss)


@EVERY_LOOP
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("at", "kept"), [(5, "step-000004"), (1, "no checkpoint")])
def test_a_loss_that_is_no_number_stops_the_run_at_once(
    world, value, at, kept, tmp_path, monkeypatch, updates
):
    with monkeypatch.context() as poisoned:
        poison(poisoned, world, at, value)
        with pytest.raises(TrainingError) as error:
            WORLDS[world](tmp_path / "run")
    text = str(error.value)
    assert f" at step {at}; {kept} is kept." in text and text.startswith(
        f"{tmp_path.name}/run: "
    )
    assert len(text.splitlines()) == 1
    assert len(updates) <= at * (8 if world == "ppo" else 1)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, at))
    names = [path.name for path in (tmp_path / "run").glob("*step*")]
    assert names == ([kept] if at > 1 else [])
    # what is kept is good: from there the run comes to the end of an unpoisoned one
    WORLDS[world](tmp_path / "run", init=77 if at > 1 else 0)
    WORLDS[world](tmp_path / "whole")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


@SUPERVISED
def test_a_step_that_poisons_the_weights_is_not_kept(world, tmp_path):
    """The loss of the step is good, what an absurd rate makes of the weights is not."""
    absurd = replace(OPTIM, steps=2, lr=math.inf)
    with pytest.raises(
        TrainingError, match="is no longer finite after step 1; no chec"
    ):
        WORLDS[world](tmp_path, every=1, config=absurd)
    assert not list(tmp_path.glob("*step*"))


# --- learning -----------------------------------------------------------------------


def test_the_language_model_learns_a_stream_that_repeats_itself(tmp_path):
    model = worlds.network(0)
    stream = torch.arange(3, 9).repeat(40)
    train_language_model(model, stream, 12, LONG, Run(tmp_path), 0)
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    assert losses[0] > 2 and losses[-1] < 0.1
    assert next_token_loss(model, stream[None, :12]).item() < 0.1
    assert model(torch.tensor([[3, 4, 5]])).argmax(-1).tolist() == [[4, 5, 6]]


def test_the_language_model_leaves_the_end_of_the_stream_out(tmp_path):
    """90 tokens and 7 more are nine windows of 10 and no tenth."""
    whole = worlds.draw(90)
    for name, stream in {"a": whole, "b": torch.cat([whole, whole[:7]])}.items():
        model = worlds.network(0)
        train_language_model(model, stream, 10, OPTIM, Run(tmp_path / name), 3)
    assert left_by(tmp_path / "a") == left_by(tmp_path / "b")


def test_a_stream_shorter_than_a_window_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="the text has 9 tokens and a training row 10"):
        train_language_model(
            worlds.network(0), worlds.draw(9), 10, OPTIM, Run(tmp_path), 0
        )


def test_sft_logs_the_mean_over_the_response_tokens_of_the_batch(tmp_path, monkeypatch):
    seen = []
    real = worlds.train_sft
    monkeypatch.setattr(worlds, "train_sft", lambda *a: (seen.append(a[1]), real(*a)))
    worlds.sft(tmp_path, config=replace(OPTIM, micro_batch=3))
    (rows,) = seen
    batch = rows[batch_rows(len(rows), OPTIM.batch_size, 1, 3)]
    loss = sft_loss(worlds.network(0), batch)
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_sft_learns_its_demonstrations(tmp_path):
    worlds.sft(tmp_path, config=LONG)
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    assert losses[0] > 2 and losses[-1] < 0.6 * losses[0]


def test_the_reward_model_learns_a_trivial_preference(tmp_path):
    (model,) = worlds.reward_model(tmp_path, config=LONG).values()
    lines = read_metrics(tmp_path)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert lines[-1]["accuracy"] == 1 and lines[-1]["loss"] < 0.1
    with torch.no_grad():
        chosen, rejected = score_pairs(model, worlds.pairs())
    assert (chosen > rejected).all()
    assert model.mean == 0 and model.std == 1  # training leaves the scale alone


FREE = replace(
    PPO, iterations=24, batch_size=32, minibatch_size=16, missing_eos_penalty=0.0
)


@pytest.mark.parametrize("sign", [1, -1])
def test_52_ppo_learns_to_say_what_is_rewarded_and_not_what_is_punished(sign, tmp_path):
    worlds.ppo(
        tmp_path,
        config=replace(FREE, policy_lr=3e-2, kl_target=None),
        reward=lambda *answers: sign * worlds.share_of_fives(*answers),
        kl_coef=0.0,
    )
    scores = [line["score"] for line in read_metrics(tmp_path)]
    if sign == 1:
        assert scores[0] < 0.3 and scores[-1] > 0.9
    else:
        assert scores[0] < -0.05 and scores[-1] > -0.02


def test_52_what_is_always_the_same_teaches_nothing(tmp_path):
    worlds.ppo(
        tmp_path,
        config=replace(FREE, policy_lr=1e-2, kl_target=None),
        reward=lambda prompts, *answers: torch.ones(len(prompts)),
    )
    assert abs(read_metrics(tmp_path)[-1]["kl"]) < 0.3


# --- PPO's loop ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "batch", "minibatch", "each"), [(2, 8, 4, 4), (3, 8, 8, 3), (1, 7, 3, 3)]
)
def test_43_updates_are_epochs_times_minibatches(
    epochs, batch, minibatch, each, tmp_path, updates
):
    config = replace(
        PPO, iterations=3, epochs=epochs, batch_size=batch, minibatch_size=minibatch
    )
    worlds.ppo(tmp_path, config=replace(config, micro_batch=2))
    assert Counter(updates).values() == {3 * each} or sorted(
        Counter(map(id, updates)).values()
    ) == [3 * each, 3 * each]
    assert [line["steps"] for line in read_metrics(tmp_path)] == [each] * 3


def test_43_the_log_counts_the_updates_that_were_made(tmp_path, updates):
    """46: with an early stop there are fewer of them, and that is what is logged."""
    config = replace(PPO, stop_kl=1e-3, policy_lr=0.1)
    worlds.ppo(tmp_path, config=config)
    steps = [line["steps"] for line in read_metrics(tmp_path)]
    assert 2 * sum(steps) == len(updates)
    assert min(steps) >= 1 and max(steps) < 4


def test_44_every_answer_is_used_once_an_epoch_in_a_new_order(tmp_path, monkeypatch):
    orders, minibatches = [], ppo_module.minibatches

    def watched(rollout, config, generator):
        numbered = replace(rollout, scores=torch.arange(float(len(rollout))))
        order = []
        for batch in minibatches(numbered, config, generator):
            order += batch.scores.int().tolist()  # the update does not read scores
            yield batch
        orders.extend([order[:8], order[8:]])

    monkeypatch.setattr(ppo_module, "minibatches", watched)
    worlds.ppo(tmp_path)
    assert len(orders) == 12
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 12


def test_12_and_13_the_first_answers_are_the_references(tmp_path):
    worlds.ppo(tmp_path, config=replace(PPO, epochs=1, minibatch_size=8))
    first = read_metrics(tmp_path)[0]
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["ratio"] == pytest.approx(1, abs=1e-5)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert first["clip_fraction"] == 0


def test_12_without_a_rate_nothing_moves(tmp_path):
    worlds.ppo(tmp_path, config=replace(PPO, policy_lr=0.0, value_lr=0.0))
    for line in read_metrics(tmp_path):
        assert line["ratio"] == pytest.approx(1, abs=1e-5)
        assert line["kl"] == pytest.approx(0, abs=1e-5)


def test_20_beta_is_steered_by_what_the_log_says(tmp_path):
    worlds.ppo(tmp_path)
    lines = read_metrics(tmp_path)
    assert lines[0]["kl_coef"] == 0.1
    for line, following in zip(lines, lines[1:]):
        error = min(max(line["kl"] / PPO.kl_target - 1, -0.2), 0.2)
        beta = line["kl_coef"] * (1 + error * PPO.batch_size / PPO.kl_horizon)
        assert following["kl_coef"] == pytest.approx(beta)


def test_47_both_rates_follow_the_schedule_and_epsilon_is_the_configs(
    tmp_path, monkeypatch
):
    seen, step = [], torch.optim.AdamW.step

    def watched(self):
        seen.append([(group["lr"], group["eps"]) for group in self.param_groups])
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    config = replace(PPO, epochs=1, minibatch_size=8, value_lr=3e-2, warmup=0.5)
    worlds.ppo(tmp_path, config=config)
    assert len(seen) == 12
    for iteration in range(6):
        share = lr_scale(iteration + 1, 6, 0.5, PPO.final_lr)
        policy, critic = seen[2 * iteration : 2 * iteration + 2]
        assert policy == [(pytest.approx(1e-2 * share), 1e-5)] * 2
        assert critic == [(pytest.approx(3e-2 * share), 1e-5)] * 2


def test_more_can_be_measured_and_measuring_has_no_say(tmp_path):
    worlds.ppo(tmp_path / "plain")
    worlds.ppo(
        tmp_path / "more", measure=lambda rollout: {"gold": float(len(rollout.scores))}
    )
    plain, more = left_by(tmp_path / "plain"), left_by(tmp_path / "more")
    lines = [json.loads(line) for line in more.pop("metrics.jsonl").splitlines()]
    assert all(line["gold"] == 8 for line in lines)
    plain.pop("metrics.jsonl")
    assert more == plain


def test_another_seed_gives_another_run(tmp_path, monkeypatch):
    """Of prompts, answers and minibatches."""
    worlds.ppo(tmp_path / "one")
    real = worlds.train_ppo
    monkeypatch.setattr(
        worlds, "train_ppo", lambda *a, **more: real(*a[:8], a[8] + 1, *a[9:], **more)
    )
    worlds.ppo(tmp_path / "two")
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    keys = ("score", "kl", "policy_loss")  # in a tiny world one may agree by chance
    assert all(any(a[key] != b[key] for key in keys) for a, b in zip(one, two))


def test_the_reference_is_never_changed(tmp_path, monkeypatch):
    made, network = [], worlds.network
    monkeypatch.setattr(
        worlds, "network", lambda init: made.append(network(init)) or made[-1]
    )
    worlds.ppo(tmp_path)
    policy, reference, _ = made
    for key, tensor in network(0).state_dict().items():
        assert torch.equal(reference.state_dict()[key], tensor)
    assert not torch.equal(policy.embedding.weight, reference.embedding.weight)
