"""The decoder against a plain forward pass and the inverse of its law, row by row."""

import pytest
import torch

from minipalm.model.decoder import LOOK_EVERY, Decoder
from minipalm.model.draw import next_token
from minipalm.model.lora import adapter_parameters, merged, with_adapters
from tests.small import EOS, ragged, seeded, small_palm

P, R = 6, 30
LENGTHS = [3, 6, 1, 4, 2]


def inputs(B=5, T=R, seed=0):
    lengths = (LENGTHS * B)[:B]
    prompts, prompt_mask, _, _ = ragged(lengths, [1] * B, seed, P)
    return prompts, prompt_mask, torch.rand(B, T, generator=seeded(seed + 1))


def answer_by_hand(model, prompt, uniforms, temperature):
    """One row, no cache: walk up the law until it exceeds the number."""
    ids, logprobs = prompt.tolist(), []
    for u in uniforms.tolist():
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1] / temperature
        law = logits.softmax(-1).tolist()
        total, token = 0.0, -1
        while total <= u:
            token += 1
            total += law[token]
        ids.append(token)
        logprobs.append(torch.tensor(law[token]).log())
        if token == EOS:
            break
    return torch.tensor(ids[len(prompt) :]), torch.stack(logprobs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [5, 8])  # with places to spare, and without
def test_answers_are_those_of_a_forward_pass_row_by_row(rows, temperature):
    model = small_palm()
    prompts, prompt_mask, uniforms = inputs()
    decoder = Decoder(model, rows, P, R)
    got = decoder.sample(
        prompts, prompt_mask, uniforms, eos_id=EOS, temperature=temperature
    )
    assert got.responses.shape == got.mask.shape == got.logprobs.shape == (5, R)
    ended = 0
    for b in range(5):
        prompt = prompts[b][prompt_mask[b]]
        ids, logprobs = answer_by_hand(model, prompt, uniforms[b], temperature)
        n = len(ids)
        assert got.mask[b].tolist() == [True] * n + [False] * (R - n)
        assert torch.equal(got.responses[b, :n], ids)
        torch.testing.assert_close(got.logprobs[b, :n], logprobs, atol=2e-5, rtol=0)
        assert not got.logprobs[b, n:].any()
        ended += n < R
    assert 0 < ended  # the case is not empty


def test_a_row_does_not_depend_on_its_batch(monkeypatch):
    """Rows that end early make the others move up; fewer rows, fewer places."""
    monkeypatch.setattr("minipalm.model.decoder.SMALLEST", 1)
    model = small_palm()
    prompts, prompt_mask, uniforms = inputs(8)
    for b in (0, 2, 5):  # these end soon: small numbers draw small tokens
        uniforms[b, 3 + b] = 0.0
    decoder = Decoder(model, 8, P, R)
    assert decoder.sizes == [8, 4, 2, 1]
    together = decoder.sample(prompts, prompt_mask, uniforms, eos_id=0)
    widths = []
    decoder.step, step = lambda n: (widths.append(n), step(n)), decoder.step
    again = decoder.sample(prompts, prompt_mask, uniforms, eos_id=0)
    assert len(set(widths)) > 1 and widths == sorted(widths, reverse=True)
    alone = Decoder(model, 1, P, R)
    for b in range(8):
        row = slice(b, b + 1)
        one = alone.sample(prompts[row], prompt_mask[row], uniforms[row], eos_id=0)
        mask = one.mask[0]
        for other in (together, again):
            assert torch.equal(other.mask[b], mask)
            assert torch.equal(other.responses[b, mask], one.responses[0, mask])
            torch.testing.assert_close(other.logprobs[b], one.logprobs[0])


def test_it_stops_when_all_have_ended():
    decoder = Decoder(small_palm(), 5, P, R)
    steps = []
    decoder.step, step = lambda n: (steps.append(n), step(n)), decoder.step
    prompts, prompt_mask, uniforms = inputs()
    uniforms[:, 2:] = 0.0
    got = decoder.sample(prompts, prompt_mask, uniforms, eos_id=0)
    assert got.mask.sum(1).max() <= 3
    assert len(steps) <= LOOK_EVERY


def test_shorter_prompts_and_answers_than_there_is_room_for():
    model = small_palm()
    prompts, prompt_mask, uniforms = inputs(3, T=4)
    prompt_mask[:, 0] = False  # the first column is not needed
    small = Decoder(model, 3, P - 1, 4)
    large = Decoder(model, 4, P + 2, 9)
    cut = prompts[:, 1:], prompt_mask[:, 1:], uniforms
    one = small.sample(*cut, eos_id=EOS)
    for inputs_of in (cut, (prompts, prompt_mask, uniforms)):
        other = large.sample(*inputs_of, eos_id=EOS)
        assert torch.equal(one.responses * one.mask, other.responses * other.mask)
        torch.testing.assert_close(one.logprobs, other.logprobs)


def test_new_weights_are_used_in_place():
    model, other = small_palm(0), small_palm(1)
    decoder = Decoder(model, 5, P, R)
    before = [weight.data_ptr() for weight in model.parameters()]
    first = decoder.sample(*inputs(), eos_id=EOS)
    decoder.refresh(other)
    assert before == [weight.data_ptr() for weight in model.parameters()]
    got = decoder.sample(*inputs(), eos_id=EOS)
    expected = Decoder(other, 5, P, R).sample(*inputs(), eos_id=EOS)
    assert torch.equal(got.responses, expected.responses)
    assert not torch.equal(got.responses, first.responses)


def test_adapters_are_sampled_from_merged_or_not():
    reference = small_palm()
    policy = with_adapters(reference, 2)
    for weight in adapter_parameters(policy):
        torch.nn.init.normal_(weight, generator=seeded(7))
    prompts, prompt_mask, uniforms = inputs()
    ids, logprobs = answer_by_hand(policy, prompts[1], uniforms[1], 1.0)

    def check(decoder):
        got = decoder.sample(prompts, prompt_mask, uniforms, eos_id=EOS)
        assert torch.equal(got.responses[1, : len(ids)], ids)
        torch.testing.assert_close(
            got.logprobs[1, : len(ids)], logprobs, atol=2e-5, rtol=0
        )
        return got

    unmerged = Decoder(policy, 5, P, R)
    got = check(unmerged)
    plain = Decoder(reference, 5, P, R)
    other = plain.sample(prompts, prompt_mask, uniforms, eos_id=EOS)
    assert not torch.equal(got.responses, other.responses)
    with merged(policy):
        check(plain)  # the weights are the same objects
        check(Decoder(policy, 5, P, R))
        with pytest.raises(ValueError, match="merged"):
            check(unmerged)
    check(unmerged)


def test_tokens_follow_the_law():
    """A grid of numbers meets each token as often as its probability says."""
    hidden = torch.eye(3)[:1]
    head = torch.tensor([[0.5, 9, 9], [0.3, 9, 9], [0.0, 9, 9], [0.2, 9, 9]]).log()
    head = head.nan_to_num(neginf=-1e9)
    grid = (torch.arange(1000) + 0.5) / 1000
    tokens, logprobs = next_token(
        hidden.expand(1000, 3), head * torch.tensor([1, 0, 0]), torch.ones(1), grid
    )
    assert tokens.bincount(minlength=4).tolist() == [500, 300, 0, 200]
    law = torch.tensor([0.5, 0.3, 0.0, 0.2])
    torch.testing.assert_close(logprobs, law[tokens].log())


def test_a_token_of_any_group_is_found():
    """As many tokens as three groups and a half: each by a number in its middle."""
    V = 3 * 128 + 64
    law = torch.rand(V, generator=seeded()).softmax(-1)
    until = law.cumsum(-1)
    middle = until - law / 2
    tokens, logprobs = next_token(
        torch.ones(V, 1), law.log()[:, None], torch.ones(1), middle
    )
    assert torch.equal(tokens, torch.arange(V))
    torch.testing.assert_close(logprobs, law.log())
    last, _ = next_token(
        torch.ones(1, 1), law.log()[:, None], torch.ones(1), torch.tensor([1 - 2**-24])
    )
    assert last.item() >= V - 2


def test_bad_input_is_told():
    decoder = Decoder(small_palm(), 2, P, 4)
    prompts, prompt_mask, uniforms = inputs(2, T=4)
    with pytest.raises(ValueError, match="left-padded"):
        decoder.sample(prompts, prompt_mask.flip(1), uniforms, eos_id=EOS)
    with pytest.raises(ValueError, match="room for 2 rows of 6 \\+ 4 tokens"):
        decoder.sample(*inputs(3, T=4), eos_id=EOS)
    with pytest.raises(ValueError, match="room for"):
        decoder.sample(*inputs(2, T=5), eos_id=EOS)
