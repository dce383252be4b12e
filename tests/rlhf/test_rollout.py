"""Rollouts: what is written down is what was sampled, and the score comes once."""

import copy
import math

import pytest
import torch

from minipalm.data.tokenizer import BytePairTokenizer, WordTokenizer
from minipalm.model.generate import generate
from minipalm.rlhf.answers import answer, answers_of
from minipalm.rlhf.gae import gae, whiten
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import collect, shape_rewards, text_reward
from minipalm.train.ppo import rollout_metrics
from tests.small import EOS, V, ppo_config, ragged, seeded, small_critic, small_palm

PROMPTS = [3, 1, 5, 2, 4, 1, 5, 3] * 2


def no_reward(prompts, prompt_mask, responses, mask):
    return torch.zeros(len(prompts))


def lengths_reward(prompts, prompt_mask, responses, mask):
    return mask.sum(1).float()


def rollout_of(
    policy=None, reference=None, critic=None, reward=no_reward, beta=0.1, T=7, **config
):
    policy = policy or small_palm()
    prompts, prompt_mask, *_ = ragged(PROMPTS, [1] * len(PROMPTS))
    return collect(
        policy,
        reference or small_palm(),
        critic or small_critic(),
        reward,
        prompts,
        prompt_mask,
        config=ppo_config(**config),
        max_response=T,
        eos_id=EOS,
        kl_coef=beta,
        generator=seeded(),
    )


# --- the policy meets its own copy -------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_a_policy_that_is_its_reference_has_kl_0(temperature):
    """Properties 7 and 13; sampler and scorer differ by float32 rounding only.

    The largest difference measured is 2e-6 nats: cached and whole forward passes add
    the same numbers in another order.
    """
    rollout = rollout_of(temperature=temperature)
    difference = (rollout.logprobs - rollout.ref_logprobs).abs()
    assert difference.max() < 1e-5
    assert (difference[~rollout.mask] == 0).all()
    kl = rollout_metrics(rollout, EOS)["kl"]
    assert abs(kl) < 1e-5
    rewards = shape_rewards(
        torch.zeros(16), rollout.logprobs, rollout.ref_logprobs, rollout.mask, 1.0
    )
    assert rewards.abs().max() < 1e-5  # 13: nothing but the score is paid


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_policy_and_reference_are_scored_at_the_temperature_of_sampling(temperature):
    """Property 7."""
    policy, reference = small_palm(), small_palm(1)
    rollout = rollout_of(policy, reference, temperature=temperature)
    for model, logprobs in [
        (policy, rollout.logprobs),
        (reference, rollout.ref_logprobs),
    ]:
        with torch.no_grad():
            logits = response_logits(model, *rollout.tokens) / temperature
        expected = token_logprobs(logits, rollout.responses)[rollout.mask]
        torch.testing.assert_close(logprobs[rollout.mask], expected, atol=1e-5, rtol=0)


def test_kl_is_counted_on_the_tokens_of_the_answer_only():
    """Property 17: by a loop over single answers."""
    policy, reference = small_palm(), small_palm(1)
    rollout = rollout_of(policy, reference)
    total = 0.0
    for prompt, prompt_mask, response, mask in zip(*rollout.tokens):
        seen = prompt[prompt_mask].tolist()
        for token in response[mask].tolist():
            with torch.no_grad():
                ids = torch.tensor([seen])
                laws = [m(ids)[0, -1].log_softmax(0) for m in (policy, reference)]
            total += (laws[0][token] - laws[1][token]).item()
            seen.append(token)
    kl = rollout_metrics(rollout, EOS)["kl"]
    assert kl == pytest.approx(total / 16, abs=1e-4) and abs(kl) > 0.1


# --- what is written down ----------------------------------------------------------


def test_a_row_of_a_rollout_is_an_answer_and_ends_with_its_first_eos():
    """Property 3."""
    rollout = rollout_of()
    for response, mask in zip(rollout.responses.tolist(), rollout.mask.tolist()):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert EOS not in response[: length - 1]
        assert response[length - 1] == EOS or length == 7
    assert rollout.mask[:, -1].any()  # no column that nobody reaches


def test_an_ambiguous_answer_is_kept_as_sampled_and_never_encoded_again():
    """Property 9."""
    tokenizer = BytePairTokenizer.train(["aa", "aa"], merges=1)
    (pair,) = tokenizer.encode("aa")
    single = tokenizer.encode("a")
    sampled = [*single, *single, EOS]  # decodes to "aa", which encodes to one token
    assert tokenizer.encode(tokenizer.decode(sampled)) == [pair] != sampled[:2]
    prompts = torch.tensor([[1, pair]])
    tokens = (prompts, prompts > 0, torch.tensor([sampled]), torch.ones(1, 3).bool())
    answers = answers_of(tokens, tokenizer)
    assert answers.texts == ["aa"] and answers.finished == [True]
    assert all(one is other for one, other in zip(answers.tokens, tokens))

    seen = []

    def reward(prompt, response, finished):
        seen.append((prompt, response, finished))
        return 1.0

    policy = small_palm(vocab_size=tokenizer.vocab_size)
    critic = small_critic(vocab_size=tokenizer.vocab_size)
    rollout = collect(
        policy,
        copy.deepcopy(policy),
        critic,
        text_reward(reward, tokenizer),
        prompts.expand(60, 2),
        (prompts > 0).expand(60, 2),
        config=ppo_config(),
        max_response=5,
        eos_id=EOS,
        kl_coef=0.1,
        generator=seeded(),
    )
    drawn = generate(
        policy,
        prompts.expand(60, 2),
        (prompts > 0).expand(60, 2),
        max_new_tokens=5,
        eos_id=EOS,
        generator=seeded(),
    )
    assert torch.equal(rollout.responses, drawn.responses)
    rows = [row[m].tolist() for row, m in zip(rollout.responses, rollout.mask)]
    assert [text for _, text, _ in seen] == [tokenizer.decode(row) for row in rows]
    plain = [[token for token in row if token > EOS] for row in rows]
    again = [tokenizer.encode(text) for _, text, _ in seen]
    assert again != plain  # some would have come back as other tokens


def test_no_field_of_a_rollout_carries_a_gradient_and_no_model_gets_one():
    """Property 37."""
    policy, reference, critic = small_palm(), small_palm(1), small_critic()
    reward = RewardModel(small_palm(2), "last", seeded())
    rollout = rollout_of(policy, reference, critic, reward)
    for name, value in vars(rollout).items():
        assert not value.requires_grad, name
    for model in (policy, reference, critic, reward):
        assert all(weight.grad is None for weight in model.parameters())


def test_advantages_and_returns_are_gae_of_the_shaped_rewards():
    """Properties 13, 18, 30, 33 and 35."""
    policy, reference, critic = small_palm(), small_palm(1), small_critic()
    rollout = rollout_of(
        policy, reference, critic, lengths_reward, beta=0.3, gamma=0.9, lam=0.8
    )
    mask = rollout.mask
    with torch.no_grad():
        values = critic(*rollout.tokens)
    torch.testing.assert_close(rollout.values[mask], values[mask], atol=1e-5, rtol=0)
    rewards = shape_rewards(
        rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, 0.3
    )
    advantages, returns = gae(rewards, rollout.values, mask, 0.9, 0.8)
    assert torch.equal(rollout.returns, returns)
    assert torch.equal(rollout.advantages, whiten(advantages, mask))
    unwhitened = advantages + rollout.values
    torch.testing.assert_close(rollout.returns[mask], unwhitened[mask])
    assert (rollout.values[~mask] == 0).all()
    assert rollout.advantages[mask].mean().abs() < 1e-6
    assert rollout.advantages[mask].std(correction=0).item() == pytest.approx(1)


def test_rows_of_a_rollout_keep_all_fields_together():
    """Property 44."""
    rollout = rollout_of(reward=lengths_reward)
    rows = torch.tensor([3, 0, 9])
    part = rollout[rows]
    assert len(part) == 3
    for name, value in vars(rollout).items():
        assert torch.equal(getattr(part, name), value[rows])


# --- scores ------------------------------------------------------------------------


def test_the_rewards_of_an_answer_add_up_to_its_score_minus_beta_kl():
    """Property 18."""
    *_, mask = ragged([1] * 4, [6, 1, 3, 4])
    generator = seeded()
    scores = torch.randn(4, generator=generator)
    logprobs, ref = -torch.rand(2, 4, 6, generator=generator)
    rewards = shape_rewards(scores, logprobs, ref, mask, 0.25)
    for b, length in enumerate([6, 1, 3, 4]):
        kls = (logprobs[b] - ref[b])[:length].tolist()
        expected = [-0.25 * kl for kl in kls]
        expected[-1] += scores[b].item()  # at the last token, not after it
        assert rewards[b, :length].tolist() == pytest.approx(expected, abs=1e-6)
        assert (rewards[b, length:] == 0).all()
        total = scores[b].item() - 0.25 * sum(kls)
        assert rewards[b].sum().item() == pytest.approx(total, abs=1e-5)
    unchanged = shape_rewards(scores, logprobs.where(mask, -9.0), ref, mask, 0.25)
    assert torch.equal(unchanged, rewards)


def test_the_reported_objective_is_the_score_minus_beta_times_the_reported_kl():
    """Property 19."""
    rollout = rollout_of(small_palm(), small_palm(1), reward=lengths_reward)
    metrics = rollout_metrics(rollout, EOS)
    rewards = shape_rewards(
        rollout.scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, 0.1
    )
    paid = rewards.sum(1).mean().item()
    assert metrics["score"] - 0.1 * metrics["kl"] == pytest.approx(paid, abs=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_an_answer_without_eos_loses_the_penalty_and_is_not_changed(penalty):
    """Property 28."""
    rollout = rollout_of(reward=lengths_reward, missing_eos_penalty=penalty, T=3)
    finished = [
        EOS in row[kept].tolist() for row, kept in zip(rollout.responses, rollout.mask)
    ]
    assert 0 < sum(finished) < 16
    for score, mask, done in zip(rollout.scores, rollout.mask, finished):
        assert score.item() == mask.sum() - (0 if done else penalty)
    unfinished = rollout_metrics(rollout, EOS)["unfinished"]
    assert unfinished == pytest.approx(1 - sum(finished) / 16)


def test_a_clipped_reward_is_clipped_before_the_kl_is_taken_off():
    """Property 29: the reward function clips; the KL term never is."""

    def clipped(*tokens):
        return lengths_reward(*tokens).clamp(max=0.5)

    policy, reference = small_palm(), small_palm(1)
    rollout = rollout_of(policy, reference, reward=clipped, beta=3.0, lam=1.0)
    assert rollout.scores.max() == 0.5
    kls = (rollout.logprobs - rollout.ref_logprobs).sum(1)
    objective = rollout.scores - 3.0 * kls
    torch.testing.assert_close(rollout.returns[:, 0], objective)
    assert objective.max() > 0.5  # a clip after the KL would show


def test_metrics_are_those_of_a_loop_over_answers():
    """Property 38: explained variance among them."""
    rollout = rollout_of(small_palm(), small_palm(1), reward=lengths_reward)
    metrics = rollout_metrics(rollout, EOS)
    rows = range(16)
    lengths = [int(rollout.mask[b].sum()) for b in rows]
    assert metrics["length"] == pytest.approx(sum(lengths) / 16)
    told = [rollout.logprobs[b, t].item() for b in rows for t in range(lengths[b])]
    assert metrics["entropy"] == pytest.approx(-sum(told) / len(told), abs=1e-5)
    returns = rollout.returns[rollout.mask]
    errors = returns - rollout.values[rollout.mask]
    expected = 1 - errors.var() / returns.var()
    assert metrics["explained_variance"] == pytest.approx(expected.item(), abs=1e-4)


def test_a_reward_that_gives_another_number_of_scores_is_refused():
    def per_token(prompts, prompt_mask, responses, mask):
        return mask.float()

    with pytest.raises(ValueError, match=r"expected \(16,\) numbers, got \(16, 7\)"):
        rollout_of(reward=per_token)


# --- texts -------------------------------------------------------------------------

WORDS = WordTokenizer("a the fox wolf ran sat cried .".split())  # 11 tokens
assert WORDS.vocab_size == V


def test_any_python_function_of_texts_is_a_reward():
    """Property 52."""
    seen = []

    def reward(prompt, response, finished):
        seen.append((prompt, response, finished))
        return len(response.split())  # an int will do

    rollout = rollout_of(reward=text_reward(reward, WORDS), missing_eos_penalty=0.0)
    assert len(seen) == 16
    for n, (prompt, response, finished) in enumerate(seen):
        ids = rollout.prompts[n][rollout.prompt_mask[n]].tolist()
        answer_ids = rollout.responses[n][rollout.mask[n]].tolist()
        assert prompt == WORDS.decode(ids) and response == WORDS.decode(answer_ids)
        assert finished == (answer_ids[-1] == EOS)
        assert rollout.scores[n] == len(response.split())
    assert rollout.scores.dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_answers_belong_to_their_prompts_however_they_are_batched(batch_size):
    """Property 5."""
    prompts = ["the fox", "a wolf ran .", "fox", "the wolf sat", "a"]
    policy = small_palm()
    answers = answer(
        policy,
        WORDS,
        prompts,
        max_prompt=6,
        max_response=5,
        generator=seeded(),
        temperature=0.0,
        batch_size=batch_size,
    )
    assert answers.prompts == prompts and len(answers) == 5
    assert answers.tokens[2].shape == (5, 5)
    for prompt, text in zip(prompts, answers.texts):
        ids = [WORDS.bos_id, *WORDS.encode(prompt)]
        told = []
        while len(told) < 5 and EOS not in told:
            with torch.no_grad():
                told.append(int(policy(torch.tensor([ids + told]))[0, -1].argmax()))
        assert text == WORDS.decode(told)
    batches = list(answers.token_batches(2))
    assert [len(prompts) for prompts, *_ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([b[2] for b in batches]), answers.tokens[2])


def test_entropy_of_the_log_is_near_the_entropy_of_the_law():
    """Property 14: −log π of sampled tokens is an unbiased estimate."""
    policy = small_palm(embed_std=1e-6)
    metrics = rollout_metrics(rollout_of(policy), EOS)
    assert metrics["entropy"] == pytest.approx(math.log(V), abs=1e-4)
