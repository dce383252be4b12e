"""SFT: the loss by a loop, packing against padding, parts of a batch against it."""

import math

import pytest
import torch

from minipalm.config import OptimConfig
from minipalm.rlhf.sft import Rows, pack_examples, pad_examples, sft_loss
from minipalm.train.optim import micro_batches
from minipalm.train.run import Run
from minipalm.train.sft import train_sft
from tests.small import EOS, V, gradients, seeded, small_palm


def examples_of(*lengths, seed=0):
    """(prompt, response) of these lengths; responses end with <eos>."""
    generator = seeded(seed)

    def draw(n):
        return torch.randint(3, V, (n,), generator=generator).tolist()

    return [(draw(p), [*draw(r - 1), EOS]) for p, r in lengths]


EXAMPLES = examples_of((3, 4), (1, 6), (2, 1), (5, 3), (1, 2), (4, 5))


def loss_by_hand(model, examples):
    """Every response token, one after the other, given all before it."""
    losses = []
    for prompt, response in examples:
        seen = list(prompt)
        for token in response:
            law = model(torch.tensor([seen]))[0, -1].log_softmax(-1)
            losses.append(-law[token])
            seen.append(token)
    return torch.stack(losses).mean()


def loss_and_gradients(model, rows):
    loss = sft_loss(model, rows)
    loss.backward()
    return loss.item(), gradients(model)


def assert_same(one, other):
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("width", [None, 9, 12, 40])
def test_padded_and_packed_rows_have_the_loss_and_gradient_of_a_loop(width):
    """Properties 1, 3 and 42."""
    by_hand, model = small_palm(), small_palm()
    expected = loss_by_hand(by_hand, EXAMPLES)
    expected.backward()
    rows = pack_examples(EXAMPLES, width) if width else pad_examples(EXAMPLES)
    loss, grads = loss_and_gradients(model, rows)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert_same(grads, gradients(by_hand))


def test_what_stands_in_the_padding_changes_neither_loss_nor_gradient():
    """Property 3."""
    rows = pack_examples(EXAMPLES, 12)
    pads = rows.segments == 0
    assert pads.any()
    garbage = Rows(rows.ids.masked_fill(pads, 7), rows.segments, rows.mask)
    (one, ones), (two, twos) = (
        loss_and_gradients(small_palm(), r) for r in (rows, garbage)
    )
    assert one == two
    assert all(torch.equal(ones[name], twos[name]) for name in ones)


def test_the_mask_covers_responses_with_their_eos_and_no_prompt():
    """Property 4: the end is learnt although prompts and padding are not."""
    for rows in (pad_examples(EXAMPLES), pack_examples(EXAMPLES, 12)):
        assert rows.mask.sum() == sum(len(response) for _, response in EXAMPLES)
        found = {
            tuple(rows.ids[b][own & rows.mask[b]].tolist())
            for b in range(len(rows))
            for own in [rows.segments[b] == s for s in range(1, 7)]
            if own.any()
        }
        assert found == {tuple(response) for _, response in EXAMPLES}
        assert (rows.ids[rows.mask] == EOS).sum() == len(EXAMPLES)


@pytest.mark.parametrize("size", [1, 2, 4, 100, 0])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(size):
    """Property 42: rows of unequal length, with one count for the whole batch."""
    rows = pad_examples(EXAMPLES)
    whole, parts = small_palm(), small_palm()
    expected, grads = loss_and_gradients(whole, rows)
    loss = 0.0
    for part in micro_batches(torch.arange(6), size):
        partial = sft_loss(parts, rows[part], rows.mask.sum())
        partial.backward()
        loss += partial.item()
    assert loss == pytest.approx(expected, abs=1e-5)
    assert_same(gradients(parts), grads)
    means = [sft_loss(whole, rows[i : i + 1]).item() for i in range(6)]
    assert abs(sum(means) / 6 - expected) > 0.01  # a mean of means is another loss


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_loop_takes_the_same_steps_in_parts(tmp_path, micro_batch):
    """Properties 42 and 43."""
    rows, models = pad_examples(EXAMPLES), []
    for parts in (0, micro_batch):
        config = OptimConfig(steps=3, batch_size=5, lr=1e-2, micro_batch=parts)
        models.append(small_palm())
        run = Run(tmp_path / str(parts))
        train_sft(models[-1], rows, config, run, seed=0)
        assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    for one, other in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)
    start = small_palm()
    assert not torch.equal(start.embedding.weight, models[0].embedding.weight)


def test_a_model_that_knows_nothing_has_the_loss_log_v():
    model = small_palm(embed_std=1e-6)
    loss = sft_loss(model, pad_examples(EXAMPLES)).item()
    assert loss == pytest.approx(math.log(V), abs=1e-4)


def test_the_loss_of_a_bfloat16_model_is_computed_in_float32():
    """Property 11."""
    model = small_palm().bfloat16()
    rows = pad_examples(EXAMPLES)
    loss = sft_loss(model, rows)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sft_loss(small_palm(), rows).item(), rel=0.02)


def test_the_loss_can_be_learnt_by_heart(tmp_path):
    model = small_palm()
    config = OptimConfig(steps=60, batch_size=6, lr=2e-2)
    rows = pad_examples(EXAMPLES)
    run = Run(tmp_path / "sft")
    train_sft(model, rows, config, run, seed=0)
    assert sft_loss(model, rows).item() < 0.2 < 2 < run.metrics()[0]["loss"]


def test_packing_fills_the_first_row_with_room_and_keeps_every_example():
    """Property 44: nothing is lost or seen twice."""
    rows = pack_examples(examples_of((3, 4), (2, 4), (1, 1), (2, 1), (1, 2)), 9)
    assert rows.segments.tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 2, 2],
        [1, 1, 1, 1, 1, 1, 2, 2, 2],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
    ]


def first_row_with_room(needs, width):
    """The slow version: look at every row from the first, every time."""
    rows = []
    for i, need in enumerate(needs):
        for row in rows:
            if sum(needs[j] for j in row) + need <= width:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_packing_equals_a_search_from_the_first_row(seed):
    lengths = torch.randint(1, 7, (40, 2), generator=seeded(seed)).tolist()
    examples = examples_of(*lengths, seed=seed)
    expected = first_row_with_room([p + r for p, r in lengths], 15)
    packed = pack_examples(examples, 15)
    assert len(packed) == len(expected)
    for ids, segments, row in zip(packed.ids, packed.segments, expected):
        tokens = [token for i in row for token in sum(examples[i], [])]
        assert ids[segments > 0].tolist() == tokens
        assert segments.max() == len(row)


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="example 1 has 7 tokens and a row 6: cut it"):
        pack_examples(examples_of((2, 3), (3, 4)), 6)
