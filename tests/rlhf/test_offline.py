"""A log of rollouts, and PPO on it: the file, the weights, and 53, equal when fresh."""

import json
import math

import pytest
import torch

from minipalm.data.datasets import DataError
from minipalm.rlhf.log import Log, log_answers, log_in_parts, read_log, write_log
from minipalm.rlhf.offline import (
    effective_sample_size,
    importance_weights,
    replay,
    rollout_of_log,
    staleness,
)
from minipalm.rlhf.ppo import ppo_update
from minipalm.rlhf.rollout import collect
from minipalm.train.optim import adamw, set_lr
from tests.small import (
    EOS,
    V,
    other_padding,
    ppo_config,
    ragged,
    seeded,
    small_critic,
    small_palm,
)

P, T, N = 4, 14, 8
SIZES = dict(vocab_size=V, max_prompt=P, max_response=T)


def reward(prompts, prompt_mask, responses, mask):
    return (responses * mask).sum(1) / 7.0


def asked():
    prompts, prompt_mask, _, _ = ragged([1, 4, 2, 3, 4, 1, 2, 3], [1] * N)
    return prompts, prompt_mask


def a_log(policy=None):
    return log_answers(
        policy or small_palm(),
        reward,
        *asked(),
        config=ppo_config(),
        max_response=T,
        eos_id=EOS,
        generator=seeded(),
    )


def online(policy, reference, critic):
    return collect(
        policy,
        reference,
        critic,
        reward,
        *asked(),
        config=ppo_config(),
        max_response=T,
        eos_id=EOS,
        kl_coef=0.3,
        generator=seeded(),
    )


# --- the file -------------------------------------------------------------------------


def test_what_is_written_is_read_bit_by_bit(tmp_path):
    log = a_log()
    write_log(tmp_path / "log.jsonl", log)
    back = read_log(tmp_path / "log.jsonl", **SIZES)
    assert len(set(log.mask.sum(1).tolist())) > 2
    for name in ("prompt_mask", "mask", "logprobs", "scores"):
        assert torch.equal(getattr(back, name), getattr(log, name)), name
    for name, mask in (("prompts", log.prompt_mask), ("responses", log.mask)):
        assert torch.equal(getattr(back, name)[mask], getattr(log, name)[mask])


def test_a_log_that_was_cut_short_goes_on_with_the_next_part(tmp_path):
    path, whole, asked = tmp_path / "log.jsonl", a_log(), []

    for stop in (2, 4):  # of a run with other sizes
        write_log(tmp_path / f"log.jsonl.part-0-{stop}", whole[torch.arange(stop)])

    def ask(numbers):
        asked.append((numbers.start, numbers.stop))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole[torch.tensor(numbers)]

    with pytest.raises(KeyboardInterrupt):
        log_in_parts(path, N, 3, ask)
    assert not path.exists()
    log_in_parts(path, N, 3, ask)
    starts = list(range(0, N, 3))
    assert [start for start, _ in asked] == [0, 3, *starts[1:]]  # the first stays
    assert asked[-1] == (starts[-1], N) and N % 3
    write_log(tmp_path / "at_once.jsonl", whole)
    assert path.read_bytes() == (tmp_path / "at_once.jsonl").read_bytes()
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "at_once.jsonl"}


def test_a_line_is_what_the_docstring_shows(tmp_path):
    kept = torch.tensor([[False, True, True]]), torch.tensor([[True, True, False]])
    log = Log(
        torch.tensor([[9, 1, 5]]),
        kept[0],
        torch.tensor([[6, 2, 9]]),
        kept[1],
        torch.tensor([[-0.5, -1.25, 0.0]]),
        torch.tensor([0.25]),
    )
    write_log(tmp_path / "log.jsonl", log)
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {
        "prompt": [1, 5],
        "response": [6, 2],
        "logprobs": [-0.5, -1.25],
        "score": 0.25,
    }


def test_rows_of_a_log_are_no_wider_than_the_longest_answer():
    log = a_log()
    rows = log.mask.sum(1).argsort()[:2]
    few = log[rows]
    assert few.responses.shape == few.logprobs.shape == few.mask.shape
    assert few.mask.shape[1] == log.mask[rows].sum(1).max() < T
    assert torch.equal(few.scores, log.scores[rows])


GOOD = {"prompt": [1, 5], "response": [6, 2], "logprobs": [-0.5, -1.2], "score": 0.25}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"prompt": []}, "field 'prompt': expected a list of 1 to 4 tokens, got []"),
        ({"prompt": [1] * 5}, "field 'prompt': expected a list of 1 to 4 tokens"),
        ({"prompt": [1, V]}, "field 'prompt': expected tokens from 0 to 10, got 11"),
        ({"prompt": [True]}, "field 'prompt': expected tokens from 0 to 10, got True"),
        ({"response": "fox"}, "field 'response': expected a list of 1 to 14 tokens"),
        ({"response": [6, -1]}, "field 'response': expected tokens from 0 to 10"),
        ({"logprobs": [-0.5]}, "field 'logprobs': expected a list of 2, one a token"),
        ({"logprobs": [-0.5, 0.7]}, "field 'logprobs': expected finite numbers, at mo"),
        ({"logprobs": [-0.5, None]}, "field 'logprobs': expected finite numbers"),
        ({"logprobs": [-0.5, -math.inf]}, "field 'logprobs': expected finite numbers"),
        ({"score": math.nan}, "field 'score': expected a finite number, got nan"),
        ({"score": "good"}, "field 'score': expected a finite number, got 'good'"),
    ],
)
def test_a_bad_field_is_said_with_its_line(tmp_path, change, said):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(GOOD), "", json.dumps(GOOD | change)]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read_log(path, **SIZES)
    assert str(error.value).startswith(f"{path}:3: {said}")


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_named(tmp_path, name):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({k: v for k, v in GOOD.items() if k != name}))
    with pytest.raises(DataError, match=f"log.jsonl:1: field '{name}': expected an"):
        read_log(path, **SIZES)


@pytest.mark.parametrize(
    "raw, said",
    [
        (b"", "expected a line for each answer, with prompt, response, logprobs"),
        (b"\n \n", "expected a line for each answer"),
        (b'{"prompt": [1', ":1: expected a JSON object in UTF-8 on one line"),
        (b"\xff\xfe", ":1: expected a JSON object in UTF-8 on one line"),
        (b"[1, 2]", ":1: field 'prompt': expected an object with prompt, response"),
    ],
)
def test_a_file_that_is_no_log_is_said(tmp_path, raw, said):
    (tmp_path / "log.jsonl").write_bytes(raw)
    with pytest.raises(DataError) as error:
        read_log(tmp_path / "log.jsonl", **SIZES)
    assert said in str(error.value)


def test_a_log_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="expected a log of answers, got: No such file"):
        read_log(tmp_path / "log.jsonl", **SIZES)


# --- weights --------------------------------------------------------------------------


def test_weights_equal_a_loop():
    generator = seeded()
    now, then = -torch.rand(2, 5, 4, generator=generator)
    mask = torch.arange(4) < torch.tensor([4, 1, 3, 2, 4])[:, None]
    found = importance_weights(now, then, mask, 1.1)
    for b in range(5):
        product = 1.0
        for t in range(4):
            if mask[b, t]:
                product *= math.exp(now[b, t].item()) / math.exp(then[b, t].item())
        assert found[b].item() == pytest.approx(min(product, 1.1), rel=1e-5)
    assert (found == 1.1).any() and (found < 1).any()


def test_the_weight_of_tokens_twice_as_probable():
    then = torch.full((1, 3), -1.5)
    now, mask = then + math.log(2), torch.tensor([[True, True, False]])
    assert importance_weights(now, then, mask, math.inf).item() == pytest.approx(4)
    assert importance_weights(now, then, mask, 3.0).item() == 3


def test_weights_carry_no_gradient():
    now = torch.zeros(1, 2, requires_grad=True)
    kept = torch.ones(1, 2, dtype=torch.bool)
    weights = importance_weights(now, torch.zeros(1, 2), kept, 2.0)
    assert not weights.requires_grad and weights.item() == 1


def test_weighted_means_are_the_policys_and_a_limit_biases_them():
    """Over all answers of b, by enumeration: Σ b w f = Σ π f."""
    generator = seeded()
    b, pi = torch.randn(2, 30, generator=generator).log_softmax(1)
    f = torch.rand(30, generator=generator)
    mask = torch.ones(30, 1, dtype=torch.bool)
    weights = importance_weights(pi[:, None], b[:, None], mask, math.inf)
    wanted = (pi.exp() * f).sum().item()
    assert (b.exp() * weights * f).sum().item() == pytest.approx(wanted, rel=1e-5)
    limited = importance_weights(pi[:, None], b[:, None], mask, 1.0)
    assert (b.exp() * limited * f).sum().item() < 0.9 * wanted


@pytest.mark.parametrize(
    "weights, size", [([1, 1, 1, 1], 4), ([2, 0, 0, 0], 1), ([3, 1], 1.6), ([0, 0], 0)]
)
def test_the_effective_sample_size(weights, size):
    weights = torch.tensor([float(w) for w in weights])
    assert effective_sample_size(weights) == pytest.approx(size)


def test_staleness_is_the_divergence_of_the_log_from_the_policy():
    kept = torch.ones(1, 1, dtype=torch.bool)
    half, quarter = (torch.tensor([[math.log(p)]]) for p in (0.5, 0.25))
    assert staleness(quarter, half, kept) == pytest.approx(0.1931, abs=1e-4)
    b, pi = torch.randn(2, 6, generator=seeded()).log_softmax(1)
    rows = torch.multinomial(b.exp(), 40_000, replacement=True, generator=seeded())
    kept = torch.ones(40_000, 1, dtype=torch.bool)
    found = staleness(pi[rows, None], b[rows, None], kept)
    assert found == pytest.approx((b.exp() * (b - pi)).sum().item(), rel=0.03)


# --- 53: a fresh log is what online PPO sees ------------------------------------------


def fields_of(rollout):
    return vars(rollout).items()


def test_a_rollout_of_a_fresh_log_is_bit_for_bit_the_one_collected():
    """Property 53: a log as fresh as the policy is the rollout itself."""
    policy, reference, critic = small_palm(), small_palm(1), small_critic()
    wanted = online(policy, reference, critic)
    log = a_log()[torch.arange(N)]
    values = critic(*log.tokens)
    found = rollout_of_log(
        log,
        log.logprobs,
        wanted.ref_logprobs,
        values,
        config=ppo_config(),
        kl_coef=0.3,
        weight_limit=5.0,
    )
    for name, tensor in fields_of(found):
        assert torch.equal(tensor, getattr(wanted, name)), name
    assert staleness(log.logprobs, log.logprobs, log.mask) == 0


def replayed(policy, log, limit=5.0):
    return replay(
        policy,
        small_palm(1),
        small_critic(),
        log,
        config=ppo_config(),
        kl_coef=0.3,
        weight_limit=limit,
    )


def test_replaying_a_fresh_log_is_online_ppo_to_rounding(tmp_path):
    """Property 53: through the file, with log-probabilities of a full pass instead of
    the cache's, the same rollout, and the same weights after a whole update."""
    write_log(tmp_path / "log.jsonl", a_log())
    log = read_log(tmp_path / "log.jsonl", **SIZES)[torch.arange(N)]
    found, seen = replayed(small_palm(), log)
    wanted = online(small_palm(), small_palm(1), small_critic())
    for name in ("logprobs", "ref_logprobs", "values", "scores", "returns"):
        pair = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(*pair, rtol=0, atol=2e-5, msg=name)
    torch.testing.assert_close(found.advantages, wanted.advantages, rtol=0, atol=1e-4)
    assert seen["ess"] == pytest.approx(1, abs=1e-5)
    assert seen["heaviest"] == pytest.approx(1, abs=1e-5)
    assert seen["staleness"] == pytest.approx(0, abs=1e-6) and seen["limited"] == 0
    assert seen["score"] == pytest.approx(wanted.scores.mean().item(), abs=1e-5)

    after = []
    for rollout in (found, wanted):
        policy, critic = small_palm(), small_critic()
        optimizers = adamw(policy, eps=1e-5), adamw(critic, eps=1e-5)
        for optimizer in optimizers:
            set_lr(optimizer, 1e-3)
        ppo_update(policy, critic, rollout, *optimizers, ppo_config(), seeded())
        after.append([*policy.parameters(), *critic.parameters()])
    before = [*small_palm().parameters(), *small_critic().parameters()]
    moved = max((a - b).abs().max().item() for a, b in zip(after[1], before))
    apart = max((a - b).abs().max().item() for a, b in zip(*after))
    assert apart < 0.02 * moved


def test_a_stale_log_is_seen_to_be_stale():
    _, seen = replayed(small_palm(2), a_log())
    assert seen["staleness"] > 0.5 and seen["ess"] < 0.9
    _, near = replayed(small_palm(), a_log(small_palm(2)), limit=1.0)
    assert near["staleness"] > 0.5 and near["ess"] < 0.9


def test_the_limit_is_seen_in_the_share_at_it_and_not_in_the_heaviest():
    log = a_log()
    tempered = Log(*log.tokens, 1.5 * log.logprobs, log.scores)  # weights above 1
    _, free = replayed(small_palm(), tempered, limit=1e9)
    _, held = replayed(small_palm(), tempered, limit=2.0)
    assert free["heaviest"] == held["heaviest"] > 2
    assert free["limited"] == 0 < held["limited"] and free["ess"] < held["ess"]


def test_the_advantages_are_weighted_and_the_kl_is_the_policys_own():
    log, policy = a_log(), small_palm(2)
    rollout, _ = replayed(policy, log, limit=2.0)
    plain = rollout_of_log(
        Log(*log.tokens, rollout.logprobs, log.scores),  # as if the policy had sampled
        rollout.logprobs,
        rollout.ref_logprobs,
        rollout.values,
        config=ppo_config(),
        kl_coef=0.3,
        weight_limit=2.0,
    )
    weights = importance_weights(rollout.logprobs, log.logprobs, log.mask, 2.0)
    assert len(set(weights.tolist())) > 2
    wanted = plain.advantages * weights[:, None]
    torch.testing.assert_close(rollout.advantages, wanted)
    torch.testing.assert_close(rollout.returns, plain.returns)


def test_padding_of_a_log_changes_nothing():
    log = a_log()
    prompts, _, responses, _ = other_padding(log.tokens)
    garbage = Log(
        prompts,
        log.prompt_mask,
        responses,
        log.mask,
        torch.where(log.mask, log.logprobs, 9.0),
        log.scores,
    )
    (one, seen), (other, same) = (replayed(small_palm(2), x) for x in (log, garbage))
    assert seen == same
    for name in ("logprobs", "values", "advantages", "returns"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_nothing_of_a_rollout_of_a_log_carries_a_gradient():
    rollout, _ = replayed(small_palm(), a_log())
    assert not any(tensor.requires_grad for _, tensor in fields_of(rollout))
