"""Sampling against exact enumeration; the cache against none; filters by a loop."""

import itertools
import math

import pytest
import torch
from scipy import stats

from minipalm.model.cache import KVCache
from minipalm.model.generate import generate, sampling_law
from minipalm.model.palm import PaLM
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from tests.small import EOS, V, ragged, seeded, small_config, small_palm


def sample(model, prompts, prompt_mask, T=6, eos_id=EOS, seed=0, **law):
    return generate(
        model,
        prompts,
        prompt_mask,
        max_new_tokens=T,
        eos_id=eos_id,
        generator=seeded(seed),
        **law,
    )


def prompts_of(*lengths, seed=0, P=None):
    return ragged(lengths, [1] * len(lengths), seed, P)[:2]


# --- the law of one token ----------------------------------------------------------


def law_by_hand(logits, temperature, top_k, top_p):
    """Walk down the ranking and stop; then normalise what has been kept."""
    scaled = [x / temperature for x in logits]
    ranked = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if top_k is not None:
        ranked = ranked[:top_k]
    total = sum(math.exp(scaled[i]) for i in ranked)
    if top_p is not None:
        kept, together = [], 0.0
        for i in ranked:
            kept.append(i)
            together += math.exp(scaled[i]) / total
            if together >= top_p:
                break
        ranked = kept
    total = sum(math.exp(scaled[i]) for i in ranked)
    return [
        scaled[i] - math.log(total) if i in ranked else -math.inf
        for i in range(len(scaled))
    ]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, V, 100])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.9])
def test_the_law_equals_a_walk_down_the_ranking(temperature, top_k, top_p):
    """Property 8."""
    logits = 2 * torch.randn(40, V, generator=seeded())
    law = sampling_law(logits, temperature, top_k, top_p)
    expected = [law_by_hand(r, temperature, top_k, top_p) for r in logits.tolist()]
    torch.testing.assert_close(law, torch.tensor(expected), atol=1e-5, rtol=0)


def test_top_p_1_keeps_every_token_however_improbable():
    """Property 8."""
    logits = torch.tensor([[0.0, -5.0, -20.0, -40.0]])
    assert sampling_law(logits, top_p=1.0).isfinite().all()
    assert torch.equal(sampling_law(logits, top_p=1.0), sampling_law(logits))


def test_top_p_keeps_the_token_that_crosses_the_line_and_no_other():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    kept = {p: sampling_law(logits, top_p=p).isfinite().sum() for p in (0.4, 0.6, 0.9)}
    assert kept == {0.4: 1, 0.6: 2, 0.9: 3}
    exact = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert sampling_law(exact, top_p=0.5).isfinite().sum() == 1  # enough is enough


def test_temperature_0_takes_the_largest():
    logits = torch.randn(5, V, generator=seeded())
    law = sampling_law(logits, temperature=0)
    assert torch.equal(law.argmax(-1), logits.argmax(-1))
    assert (
        torch.equal(law.exp().sum(-1), torch.ones(5))
        and (law.exp().amax(-1) == 1).all()
    )


def test_the_law_is_float32_and_leaves_its_logits_alone():
    """Property 11."""
    logits = torch.randn(3, V, generator=seeded()).bfloat16()
    before = logits.clone()
    law = sampling_law(logits, 0.7, 5, 0.9)
    assert law.dtype == torch.float32 and torch.equal(logits, before)
    torch.testing.assert_close(law.exp().sum(-1), torch.ones(3))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(temperature=-1), "temperature must be >= 0 .*got -1"),
        (dict(top_k=0), "top_k >= 1 .*and 0"),
        (dict(top_p=0.0), "0 < top_p <= 1 .*got 0.0"),
        (dict(top_p=1.5), "0 < top_p <= 1 .*got 1.5"),
    ],
)
def test_filters_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        sampling_law(torch.zeros(1, V), **wrong)


# --- the law of an answer ----------------------------------------------------------


def exact_law(model, prompt, T, eos_id):
    """{answer: probability}, by asking the whole network about every prefix."""
    law = {}

    def go_on(answer, probability):
        ended = bool(answer) and answer[-1] == eos_id
        if ended or len(answer) == T:
            law[answer] = probability
            return
        ids = torch.tensor([[*prompt, *answer]])
        for token, p in enumerate(model(ids)[0, -1].double().softmax(-1).tolist()):
            go_on((*answer, token), probability * p)

    with torch.no_grad():
        go_on((), 1.0)
    return law


@pytest.mark.parametrize("eos_id, answers", [(-1, 27), (2, 1 + 2 + 4 * 3)])
def test_frequencies_follow_the_exact_law_of_all_answers(eos_id, answers):
    """Property 2."""
    model = PaLM(small_config(vocab_size=3), seeded())
    law = exact_law(model, [1, 0], 3, eos_id)
    assert len(law) == answers and sum(law.values()) == pytest.approx(1, abs=1e-6)
    n = 20_000
    prompts = torch.tensor([[1, 0]]).expand(n, 2)
    sampled = sample(model, prompts, torch.ones(n, 2).bool(), T=3, eos_id=eos_id)
    rows = [
        tuple(row[kept].tolist()) for row, kept in zip(sampled.responses, sampled.mask)
    ]
    counts = [rows.count(answer) for answer in law]
    assert sum(counts) == n
    assert stats.chisquare(counts, [n * p for p in law.values()]).pvalue > 0.01
    for answer, logprob in zip(rows[:200], sampled.logprobs.sum(1)):
        assert logprob.item() == pytest.approx(math.log(law[answer]), abs=1e-5)


def test_all_27_probabilities_add_up_when_scored_in_one_batch():
    """Property 2."""
    model = PaLM(small_config(vocab_size=3), seeded())
    answers = torch.tensor(list(itertools.product(range(3), repeat=3)))
    prompts = torch.tensor([[1, 0]]).expand(27, 2)
    tokens = (prompts, prompts >= 0, answers, answers >= 0)
    logprobs = token_logprobs(response_logits(model, *tokens), answers).sum(1)
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-6)
    law = exact_law(model, [1, 0], 3, -1)
    for answer, logprob in zip(answers.tolist(), logprobs):
        assert logprob.item() == pytest.approx(math.log(law[tuple(answer)]), abs=1e-5)


# --- cache, padding, stopping ------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_step_with_the_cache_has_the_logits_of_a_full_forward(kv_heads):
    """Property 6, also after rows have ended and been dropped."""
    model = small_palm(kv_heads=kv_heads)
    prompts, prompt_mask = prompts_of(*[1, 7, 3, 5, 2, 4] * 4, P=9)
    steps = []
    head = model.logits
    model.logits = lambda hidden: steps.append(head(hidden)) or steps[-1]
    sampled = sample(model, prompts, prompt_mask, T=8, temperature=2.0)
    del model.logits
    going = sampled.mask.sum(0)
    assert 24 == going[0] > going[2] > going[-1] > 0  # rows end at several steps
    assert len(steps) == (going > 0).sum()
    for t, logits in enumerate(steps):
        alive = sampled.mask[:, t]
        ids = torch.cat([prompts, sampled.responses[:, :t]], dim=1)[alive]
        segments = torch.cat([prompt_mask, sampled.mask[:, :t]], dim=1)[alive].long()
        with torch.no_grad():
            expected = model(ids, segments)[:, -1]
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_a_cache_takes_several_tokens_at_a_time():
    """Property 6."""
    model = small_palm()
    ids = torch.randint(V, (3, 7), generator=seeded(1))
    segments = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 1]])
    cache = KVCache(model.config, 3, 7, model.embedding.weight)
    with torch.no_grad():
        parts = [
            model(i, s, cache=cache)
            for i, s in zip(ids.split([4, 1, 2], 1), segments.split([4, 1, 2], 1))
        ]
        whole = model(ids, segments)
    assert cache.length == 7
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pads", [0, 1, 7])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_left_padding_changes_no_answer(pads, temperature):
    """Property 5."""
    model = small_palm()
    prompts, prompt_mask = prompts_of(4, 2, 3)
    plain = sample(model, prompts, prompt_mask, temperature=temperature)
    garbage = torch.randint(V, (3, pads), generator=seeded(5))
    wider = torch.cat([garbage, prompts], dim=1)
    mask = torch.cat([torch.zeros(3, pads).bool(), prompt_mask], dim=1)
    padded = sample(model, wider, mask, temperature=temperature)
    assert torch.equal(padded.responses, plain.responses)
    torch.testing.assert_close(padded.logprobs, plain.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "law", [{}, dict(temperature=0.5), dict(top_k=3), dict(top_p=0.6)]
)
def test_the_logprobs_are_those_of_the_law_that_was_sampled(law):
    """Properties 7 and 8."""
    model = small_palm()
    prompts, prompt_mask = prompts_of(4, 1, 3, 6)
    sampled = sample(model, prompts, prompt_mask, **law)
    tokens = (prompts, prompt_mask, sampled.responses, sampled.mask)
    with torch.no_grad():
        logits = response_logits(model, *tokens)
    for b, t in sampled.mask.nonzero().tolist():
        told = sampling_law(logits[b, t][None], **law)[0, sampled.responses[b, t]]
        assert sampled.logprobs[b, t].item() == pytest.approx(told.item(), abs=1e-5)
    assert (sampled.logprobs[~sampled.mask] == 0).all()


def test_the_mask_ends_with_the_first_eos():
    """Property 3."""
    model = small_palm()
    prompts, prompt_mask = prompts_of(*[3] * 40)
    prompts[:, 1] = EOS  # in a prompt it ends nothing
    sampled = sample(model, prompts, prompt_mask, T=9)
    lengths = []
    for response, mask in zip(sampled.responses.tolist(), sampled.mask.tolist()):
        length = response.index(EOS) + 1 if EOS in response else 9
        assert mask == [True] * length + [False] * (9 - length)
        lengths.append(length)
    assert min(lengths) == 1 and max(lengths) == 9  # at once, and never


def passes_of(model):
    """A list that grows by the number of rows of each pass through the network."""
    hidden, passes = model.hidden, []
    model.hidden = lambda *a, **kw: passes.append(len(a[0])) or hidden(*a, **kw)
    return passes


def test_without_an_eos_every_answer_has_full_length():
    model = small_palm()
    prompts, prompt_mask = prompts_of(3, 1)
    passes = passes_of(model)
    sampled = sample(model, prompts, prompt_mask, T=5, eos_id=-1)
    assert sampled.mask.all() and sampled.mask.shape == (2, 5)
    assert passes == [2] * 5  # none after the last token


def test_all_rows_may_end_before_the_last_step():
    model = small_palm()
    prompts, prompt_mask = prompts_of(3, 1)
    (first,) = {*sample(model, prompts[:1], prompt_mask[:1], T=1).responses[0].tolist()}
    passes = passes_of(model)
    sampled = sample(model, prompts[:1], prompt_mask[:1], T=4, eos_id=first)
    assert sampled.mask.tolist() == [[True, False, False, False]]
    assert sampled.responses.shape == sampled.logprobs.shape == (1, 4)
    assert passes == [1]  # the prompt's; nothing is computed for nobody


def test_a_generator_fixes_the_answers_and_nothing_else_is_touched():
    model = small_palm()
    prompts, prompt_mask = prompts_of(3, 1, 5)
    before, ambient = prompts.clone(), torch.get_rng_state()
    one, same = (sample(model, prompts, prompt_mask, seed=4) for _ in range(2))
    other = sample(model, prompts, prompt_mask, seed=5)
    assert torch.equal(one.responses, same.responses)
    assert not torch.equal(one.responses, other.responses)
    assert torch.equal(prompts, before) and torch.equal(torch.get_rng_state(), ambient)
    assert not one.logprobs.requires_grad


@pytest.mark.parametrize("row", [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]], ids=str)
def test_prompts_that_are_not_left_padded_or_empty_are_refused(row):
    prompt_mask = torch.tensor([[1, 1, 1], row]).bool()
    with pytest.raises(ValueError, match="must be left-padded and not empty"):
        sample(small_palm(), torch.ones(2, 3, dtype=torch.long), prompt_mask)
