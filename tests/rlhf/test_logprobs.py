"""Log-probabilities of answers, against a loop over tokens without any batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical

from minipalm.rlhf.logprobs import (
    entropy,
    masked_mean,
    response_logits,
    token_logprobs,
)
from tests.small import EOS, V, gradients, other_padding, ragged, seeded, small_palm

LENGTHS = dict(prompt_lengths=[1, 6, 3, 4], lengths=[5, 1, 3, 4])


def score(model, tokens, temperature=1.0):
    logits = response_logits(model, *tokens, temperature)
    return token_logprobs(logits, tokens[2])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_equal_a_loop_over_tokens_without_padding(temperature):
    """Properties 1 and 7."""
    model = small_palm()
    tokens = ragged(**LENGTHS)
    logprobs = score(model, tokens, temperature)
    for b, (prompt, prompt_mask, response, mask) in enumerate(zip(*tokens)):
        seen = prompt[prompt_mask].tolist()
        for t, token in enumerate(response[mask].tolist()):
            with torch.no_grad():
                logits = model(torch.tensor([seen]))[0, -1] / temperature
            expected = logits[token] - logits.logsumexp(0)
            assert logprobs[b, t].item() == pytest.approx(expected.item(), abs=1e-5)
            seen.append(token)


def test_logprobs_are_minus_the_cross_entropy_of_logits_one_place_earlier():
    """Property 1: with prompts of P tokens, the slice is P−1 to −1."""
    model = small_palm()
    prompts, prompt_mask, responses, mask = ragged([4, 4], [5, 5])
    ids = torch.cat([prompts, responses], dim=1)
    logits = model(ids)[:, 3:-1]
    expected = -F.cross_entropy(logits.mT, responses, reduction="none")
    logprobs = score(model, (prompts, prompt_mask, responses, mask))
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)


def test_what_stands_after_the_eos_changes_neither_logprob_nor_gradient():
    """Property 3."""
    tokens = ragged(**LENGTHS)
    results = []
    for batch in (tokens, other_padding(tokens)):
        model = small_palm()
        logprobs = score(model, batch)
        masked_mean(logprobs, batch[3]).backward()
        results.append((logprobs[batch[3]], gradients(model)))
    (one, ones), (two, twos) = results
    assert not torch.equal(tokens[2], other_padding(tokens)[2])
    assert torch.equal(one, two)
    assert all(torch.equal(ones[name], twos[name]) for name in ones)


def test_the_pad_id_inside_an_answer_counts_like_any_other_token():
    """Property 4: masks come from lengths, never from the ids."""
    model = small_palm()
    prompts, prompt_mask, responses, mask = ragged([3, 2], [4, 3])
    for token in (0, EOS):
        responses[:, 1] = token
        logprobs = score(model, (prompts, prompt_mask, responses, mask))
        for b in range(2):
            ids = torch.cat([prompts[b][prompt_mask[b]], responses[b, :1]])[None]
            law = model(ids)[0, -1].log_softmax(-1)
            torch.testing.assert_close(logprobs[b, 1], law[token], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pads", [0, 1, 7])
def test_logprobs_do_not_depend_on_padding_or_company(pads):
    """Property 5."""
    model = small_palm()
    plain = ragged(**LENGTHS)
    prompts, prompt_mask, responses, mask = plain
    left = torch.zeros(4, pads, dtype=torch.long)
    wider = (
        torch.cat([left + 5, prompts], 1),
        torch.cat([left.bool(), prompt_mask], 1),
        torch.cat([responses, left + 3], 1),
        torch.cat([mask, left.bool()], 1),
    )
    expected, padded = score(model, plain), score(model, wider)[:, :5]
    torch.testing.assert_close(padded[mask], expected[mask], atol=1e-5, rtol=0)
    alone = score(model, tuple(x[2:3] for x in plain))
    torch.testing.assert_close(alone[mask[2:3]], expected[2][mask[2]])


def test_logprobs_and_entropy_are_computed_in_float32():
    """Property 11."""
    logits = 3 * torch.randn(4, 5, V, generator=seeded())
    ids = torch.randint(V, (4, 5), generator=seeded(1))
    short = logits.bfloat16()
    logprobs = token_logprobs(short, ids)
    assert logprobs.dtype == torch.float32
    expected = Categorical(logits=short.double())
    torch.testing.assert_close(
        logprobs.double(), expected.log_prob(ids), atol=1e-5, rtol=0
    )
    assert entropy(short).dtype == torch.float32
    torch.testing.assert_close(
        entropy(short).double(), expected.entropy(), atol=1e-5, rtol=0
    )
    rough = short.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert (rough - logprobs).abs().max() > 1e-3  # what bfloat16 would cost


def test_a_bfloat16_policy_is_divided_by_the_temperature_in_float32():
    """Properties 7 and 11."""
    model, tokens = small_palm().bfloat16(), ragged(**LENGTHS)
    logits = response_logits(model, *tokens, temperature=0.7)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits * 0.7, response_logits(model, *tokens))


def test_logprobs_have_the_gradient_of_torch_distributions():
    logits = torch.randn(3, 4, V, generator=seeded(), requires_grad=True)
    ids = torch.randint(V, (3, 4), generator=seeded(1))
    g = torch.randn(3, 4, generator=seeded(2))
    for ours, theirs in [
        (token_logprobs(logits, ids), Categorical(logits=logits).log_prob(ids)),
        (entropy(logits), Categorical(logits=logits).entropy()),
    ]:
        (one,) = torch.autograd.grad(ours, logits, g)
        (two,) = torch.autograd.grad(theirs, logits, g)
        torch.testing.assert_close(one, two)


def test_entropy_runs_from_0_to_log_v():
    assert entropy(torch.zeros(2, V)).tolist() == pytest.approx([math.log(V)] * 2)
    certain = torch.tensor([100.0] + [0.0] * (V - 1))
    assert entropy(certain[None]).item() == pytest.approx(0, abs=1e-6)


def test_the_masked_mean_equals_a_loop_and_ignores_what_is_masked():
    """Property 41: padding is not divided by."""
    x = torch.randn(3, 4, generator=seeded())
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    chosen = [x[b, t].item() for b in range(3) for t in range(4) if mask[b, t]]
    assert masked_mean(x, mask).item() == pytest.approx(sum(chosen) / 6)
    for total in (10, torch.tensor(10)):
        assert masked_mean(x, mask, total).item() == pytest.approx(sum(chosen) / 10)
    x[~mask] = torch.nan
    assert masked_mean(x, mask).item() == pytest.approx(sum(chosen) / 6)
    assert masked_mean(x, mask & False) == 0
