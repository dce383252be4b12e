"""The loops of offline PPO, DPO, RLOO and GRPO: resumed bit by bit, and their steps."""

from dataclasses import replace

import pytest
import torch

from minipalm.config import MachineConfig
from minipalm.model.generate import generate
from minipalm.model.place import fine_tuned, place
from minipalm.rlhf import rollout
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.dpo import pairs_of_log, reference_logprobs
from minipalm.rlhf.invariants import InvariantError
from minipalm.rlhf.log import log_answers
from minipalm.rlhf.offline import replay
from minipalm.rlhf.sampling import Sampler
from minipalm.train.run import TrainingError, read_metrics
from tests.train.worlds import (
    DPO,
    EOS,
    GRPO,
    METHODS,
    OFFLINE,
    OPTIM,
    RLOO,
    Stopped,
    a_log,
    asked,
    dpo,
    left_by,
    network,
    offline,
    pairs,
    share_of_fives,
)

EVERY_LOOP = pytest.mark.parametrize("world", METHODS)


@EVERY_LOOP
def test_49_stopped_in_a_step_and_resumed_is_uninterrupted(world, tmp_path):
    METHODS[world](tmp_path / "whole")
    whole = left_by(tmp_path / "whole")
    assert len(read_metrics(tmp_path / "whole")) == 6
    for stop in (1, 4, 6):
        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            METHODS[world](folder, stop=stop)
        torch.manual_seed(stop)  # torch's own generator has no say
        # Other weights to begin with: all that counts must come from the checkpoint.
        METHODS[world](folder, init=77 if stop > 2 else 0)
        assert left_by(folder) == whole


@EVERY_LOOP
def test_49_a_finished_run_is_loaded_and_nothing_is_done(world, tmp_path, monkeypatch):
    done = METHODS[world](tmp_path)
    files = left_by(tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    again = METHODS[world](tmp_path, init=77)
    assert left_by(tmp_path) == files
    for name, module in done.items():
        for one, other in zip(module.parameters(), again[name].parameters()):
            assert torch.equal(one, other)


@pytest.mark.parametrize("world", ["rloo", "grpo"])
def test_an_update_has_epochs_times_minibatches_steps(world, tmp_path):
    METHODS[world](tmp_path)
    assert [line["steps"] for line in read_metrics(tmp_path)] == [4.0] * 6


@pytest.mark.parametrize("world", ["dpo", "rloo", "grpo"])
def test_the_reference_is_not_changed(world, tmp_path):
    reference = network(0)
    METHODS[world](tmp_path, reference=reference)
    for one, other in zip(reference.parameters(), network(0).parameters()):
        assert torch.equal(one, other) and one.grad is None


@pytest.mark.parametrize("world", ["offline", "rloo", "grpo"])
def test_the_first_iteration_is_at_no_distance_from_the_reference(world, tmp_path):
    """Property 13."""
    METHODS[world](tmp_path)
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


# --- cut into parts, placed -----------------------------------------------------------


def cut(world, size):
    """The world's settings, with so many rows a backward pass."""
    if world == "dpo":
        return replace(DPO, optim=replace(OPTIM, micro_batch=size))
    if world == "offline":
        return replace(OFFLINE, ppo=replace(OFFLINE.ppo, micro_batch=size))
    return replace({"rloo": RLOO, "grpo": GRPO}[world], micro_batch=size)


@EVERY_LOOP
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(world, size, tmp_path):
    """Also where the last part is smaller, and answers are of unequal lengths."""
    told = []
    for rows in (0, size):
        folder = tmp_path / str(rows)
        modules = METHODS[world](folder, config=cut(world, rows))
        told.append(([*modules["policy"].parameters()], read_metrics(folder)))
    (whole, metrics), (parts, same) = told
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(metrics, same):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


FULL = MachineConfig(compute="bfloat16", lora_rank=2, decoder=True)
PHASES = {
    "offline": {"logprobs", "reference", "values", "update"},
    "dpo": {"update"},
    "rloo": {"rollout", "logprobs", "reference", "reward", "update"},
}
PHASES["grpo"] = PHASES["rloo"]


@EVERY_LOOP
def test_adapters_in_bfloat16_learn_and_the_clock_runs(world, tmp_path):
    """On one process's CPU: what a full shape asks for, but for its size."""
    config = cut(world, 2)
    if world in ("rloo", "grpo"):
        config = replace(config, reuse_logprobs=False)
    modules = METHODS[world](tmp_path, config=config, placed=FULL)
    lines = read_metrics(tmp_path)
    assert len(lines) == 6
    learnt = dict(modules["policy"].named_parameters())
    assert any(x.any() for name, x in learnt.items() if name.endswith("lora_qkv.b"))
    assert all(x.dtype == torch.float32 for k, x in learnt.items() if ".lora_" in k)
    assert learnt["embedding.weight"].dtype == torch.bfloat16
    for line in lines:
        each = [line[f"seconds/{phase}"] for phase in PHASES[world]]
        assert 0 < sum(each) < line["seconds"] and line["tokens_per_second"] > 0
        assert line.get("sampler_gap", 0) < 0.1
    assert ("sampler_gap" in lines[0]) == (world in ("rloo", "grpo"))


@EVERY_LOOP
def test_adapters_are_resumed_bit_for_bit(world, tmp_path):
    whole = METHODS[world](tmp_path / "whole", placed=FULL)
    with pytest.raises(Stopped):
        METHODS[world](tmp_path / "cut", stop=3, placed=FULL)
    again = METHODS[world](tmp_path / "cut", placed=FULL)
    for name, module in whole.items():
        other = again[name].state_dict()
        assert all(torch.equal(x, other[k]) for k, x in module.state_dict().items())


def test_what_is_compiled_sees_one_width_and_whole_batches(tmp_path, monkeypatch):
    """A shape that differs would be compiled anew, which takes longer than a step."""
    machine, seen = replace(FULL, compile=True), set()
    plain = type(network(0)).hidden

    def hidden(self, ids, *args, **options):
        if options.get("cache") is None and ids.shape[1] > 3:
            seen.add((tuple(ids.shape), options.get("last")))
        return plain(self, ids, *args, **options)

    monkeypatch.setattr(type(network(0)), "hidden", hidden)
    for world in METHODS:
        config = cut(world, 1 if world == "dpo" else 2)
        if world in ("rloo", "grpo"):
            config = replace(config, reuse_logprobs=False)
        METHODS[world](tmp_path / world, config=config, placed=machine)
    widths = {shape[1] for shape, _ in seen}
    assert {shape[0] for shape, _ in seen} == {2}
    assert widths == {3 + 5 - 1, 3 + 4 - 1}  # the log's answers; the pairs of `worlds`


@pytest.mark.parametrize("world", ["rloo", "grpo"])
def test_a_sampler_that_is_not_the_policy_stops_the_run(world, tmp_path, monkeypatch):
    def refuse(gap):
        raise InvariantError(f"the law is {gap} nats away")

    monkeypatch.setattr(rollout, "check_gap", refuse)
    METHODS[world](tmp_path / "reused")  # nobody looks
    config = replace(cut(world, 0), reuse_logprobs=False)
    with pytest.raises(TrainingError, match="step 1: the law is .* nats away"):
        METHODS[world](tmp_path / "looked", config=config)


@pytest.mark.parametrize("compile", [False, True])
def test_the_reference_is_asked_about_all_pairs_in_whole_batches(compile):
    """Ten pairs, four at a time."""
    reference = place(network(0), MachineConfig(compile=compile), trained=False)
    found = reference_logprobs(reference, pairs(), 4)
    for one, other in zip(found, reference_logprobs(network(0), pairs())):
        torch.testing.assert_close(one, other)


def noted_by(writer, config, **how):
    """A log of nine answers."""
    return log_answers(
        writer,
        share_of_fives,
        *asked(),
        config=config,
        max_response=5,
        eos_id=EOS,
        generator=torch.Generator().manual_seed(5),
        sample=Sampler(writer),
        **how,
    )


def test_a_fresh_log_is_not_stale_in_bfloat16():
    """What the log notes is what the policy says when it reads its answers again."""
    machine = MachineConfig(compute="bfloat16", decoder=True)
    policy = place(network(0), machine, trained=False)
    seen = {}
    for reuse in (False, True):
        config = replace(OFFLINE.ppo, reuse_logprobs=reuse, micro_batch=3)
        log = noted_by(policy, config, batch_size=3)
        assert log.mask.shape == (9, 5)
        how = {"config": config, "kl_coef": 0.1, "weight_limit": 5.0}
        critic = Critic(network(1), "last")
        _, seen[reuse] = replay(policy, policy, critic, log, **how)
    assert seen[False]["staleness"] == 0 and seen[False]["heaviest"] == 1
    assert seen[False]["ess"] == 1 and seen[True]["heaviest"] > 1


def test_a_log_is_fresh_for_those_who_lie_as_its_writer_did():
    """In bfloat16 a frozen network and one with float32 weights round differently."""
    machine = MachineConfig(compute="bfloat16", decoder=True)
    config = replace(OFFLINE.ppo, reuse_logprobs=False)
    how = {"config": config, "kl_coef": 0.1, "weight_limit": 5.0}
    reference = place(network(0), machine, trained=False)
    learner = fine_tuned(network(0), machine, reference)
    stale = []
    for writer in (fine_tuned(network(0), machine, reference), reference):
        log = noted_by(writer, config)
        critic = Critic(network(1), "last")
        _, seen = replay(learner, reference, critic, log, **how)
        stale.append((seen["staleness"], seen["heaviest"]))
    assert stale[0] == (0, 1) and stale[1][0] > 0


def test_a_log_drawn_in_parts_is_the_same_log():
    """By a decoder: each row has random numbers of its own."""
    logs = []
    for size in (0, 4):
        policy = place(network(0), MachineConfig(decoder=True), trained=False)
        logs.append(a_log(policy, sample=Sampler(policy), batch_size=size))
    for one, other in zip(*(x.tokens for x in logs)):
        assert torch.equal(one, other)


def test_a_log_is_as_wide_as_an_answer_can_be():
    """Whatever its answers are: parts of it must fit together."""

    def ends_at_once(*args, **options):
        told = generate(*args, **options)
        first = torch.zeros_like(told.mask).index_fill(1, torch.tensor([0]), True)
        return replace(told, responses=torch.full_like(told.responses, EOS), mask=first)

    log = a_log(sample=ends_at_once, batch_size=4)
    assert log.mask.sum(1).tolist() == [1] * 9 and log.mask.shape == (9, 5)


def test_an_answer_without_another_makes_no_pair():
    with pytest.raises(ValueError, match="the log has 9 answers"):
        pairs_of_log(a_log())
    log = a_log()[torch.arange(8)]
    with pytest.raises(ValueError, match="8 answers make no pair"):
        pairs_of_log(replace(log, scores=torch.zeros(8)))


def test_two_answers_make_a_pair_by_their_scores():
    log = a_log()
    some = pairs_of_log(log[torch.arange(8)])
    first, second = log.scores[:8].view(-1, 2).unbind(1)
    assert len(some) == (first != second).sum()
    assert some.chosen.shape == some.rejected.shape


# --- what is learnt -------------------------------------------------------------------


@pytest.mark.parametrize("world", ["rloo", "grpo"])
def test_a_reward_that_can_be_learnt_is_learnt(world, tmp_path):
    config = replace(
        {"rloo": RLOO, "grpo": GRPO}[world],
        iterations=40,
        batch_size=32,
        minibatch_size=32,
        kl_coef=0.01,
    )
    METHODS[world](tmp_path, config=config)
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
