"""From texts to rows: sides of the padding, ends of answers, who won."""

import pytest
import torch

from minipalm.data.batches import pad_left, pad_right, text_stream
from minipalm.data.datasets import Preference
from minipalm.data.tokenizer import WordTokenizer
from minipalm.rlhf.answers import answers_of
from minipalm.rlhf.pairs import encode_pairs, pairs_of
from tests.small import ragged

WORDS = WordTokenizer("a the fox wolf ran sat cried .".split())
BOS, EOS = WORDS.bos_id, WORDS.eos_id


def test_prompts_stand_right_and_answers_left_in_their_rows():
    """Properties 4 and 5."""
    rows = [[3, 4, 5], [6], [7, 8]]
    ids, mask = pad_left(rows, 4)
    assert ids.tolist() == [[0, 3, 4, 5], [0, 0, 0, 6], [0, 0, 7, 8]]
    assert mask.int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
    ids, mask = pad_right(rows, 4)
    assert ids.tolist() == [[3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 0, 0]]
    assert mask.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]


def test_a_pad_id_inside_a_text_is_a_token():
    """Property 4: the mask comes from the length."""
    for pad in (pad_left, pad_right):
        assert pad([[5, 0, 0]], 3)[1].all()


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_a_row_longer_than_its_room_is_refused(pad):
    with pytest.raises(ValueError, match="row 1 has 3 tokens, and room is for 2"):
        pad([[5], [5, 6, 7]], 2)


def test_texts_of_a_stream_begin_and_end():
    """Property 4."""
    stream = text_stream(WORDS, ["fox ran", "a"]).tolist()
    fox, ran, a = WORDS.encode("fox ran a")
    assert stream == [BOS, fox, ran, EOS, BOS, a, EOS]


def test_both_answers_of_an_encoded_pair_end_with_eos():
    """Property 27."""
    preferences = [
        Preference("the fox", "ran .", "the fox sat .", "file:1"),
        Preference("wolf", "cried a fox", "ran", "file:2"),
    ]
    pairs = encode_pairs(preferences, WORDS, max_prompt=5, max_response=6)
    assert pairs.prompts.shape == (2, 5) and pairs.chosen.shape == (2, 6)
    for n, one in enumerate(preferences):
        prompt = pairs.prompts[n][pairs.prompt_mask[n]].tolist()
        assert prompt == [BOS, *WORDS.encode(one.prompt)]
        chosen = pairs.chosen[n][pairs.chosen_mask[n]].tolist()
        assert chosen == [*WORDS.encode(one.chosen), EOS]
        rejected = pairs.rejected[n][pairs.rejected_mask[n]].tolist()
        assert rejected == [*WORDS.encode(one.rejected), EOS]


def test_labels_say_which_of_two_answers_is_the_chosen_one():
    """Property 27."""
    first = answers_of(ragged([2, 3, 1], [4, 1, 3], seed=0), WORDS)
    tokens = (*first.tokens[:2], *ragged([1] * 3, [2, 4, 4], seed=1)[2:])
    second = answers_of(tokens, WORDS)
    labels = [True, False, True]
    pairs = pairs_of(first, second, labels)
    assert torch.equal(pairs.prompts, first.tokens[0])
    for n, won in enumerate(labels):
        better, worse = (first, second) if won else (second, first)
        for at, ids, mask in [
            (better, pairs.chosen, pairs.chosen_mask),
            (worse, pairs.rejected, pairs.rejected_mask),
        ]:
            assert torch.equal(ids[n], at.tokens[2][n])
            assert torch.equal(mask[n], at.tokens[3][n])
    assert len(pairs[1:]) == 2 and torch.equal(pairs[1:].chosen, pairs.chosen[1:])
