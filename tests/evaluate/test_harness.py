"""An Examinee against plain loops: one row at a time, no padding, no cache."""

import math

import pytest
import torch

from minipalm.data.batches import prompt_ids
from minipalm.data.tokenizer import BytePairTokenizer, WordTokenizer
from minipalm.evaluate.harness import (
    Examinee,
    Sampling,
    before_stop,
    split_pair,
    windows,
)
from tests.small import seeded, small_palm

TEXTS = [
    "the fox and the bear",
    "a bear, a fox; then (nobody) knew: who was the fox?\n",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n",
    "grüße, und ein lächeln; 日本",
]
TOKENIZER = BytePairTokenizer.train(TEXTS * 3, merges=30)
PAIRS = [
    ("the fox", " and the bear"),
    ("the fox", " knew"),
    ("the fox and", " a"),
    ("the fox and", " b"),  # the same is read for both
    ("the fox and ", "c"),  # the space goes to the continuation
    ("", "a bear"),
    ("  ", "a bear"),
    ("def", "\n    return a"),
    ("grü", "ße"),
    ("who was", ""),
    (TEXTS[2], " " + TEXTS[1]),
    (TEXTS[2] * 3, " the fox"),
]


def examinee(window=200, batch_size=4, **changes):
    model = small_palm(vocab_size=TOKENIZER.vocab_size, dim=16, **changes)
    return Examinee(
        model, TOKENIZER, window=window, batch_size=batch_size, generator=seeded()
    )


def plain(one, ids, scored):
    """log p of the last ids, each from a row of its own, and whether all are greedy."""
    total, greedy = 0.0, True
    for at in range(len(ids) - scored, len(ids)):
        law = one.model(torch.tensor([ids[:at]]))[0, -1].double().log_softmax(-1)
        total += law[ids[at]].item()
        greedy &= law.argmax().item() == ids[at]
    return total, greedy


# --- how likely? ----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_loglikelihoods_equal_a_plain_loop(batch_size, kv_heads):
    one = examinee(batch_size=batch_size, kv_heads=kv_heads)
    answers = one.loglikelihood(PAIRS)
    for pair, (logprob, greedy) in zip(PAIRS, answers, strict=True):
        expected = plain(one, *split_pair(TOKENIZER, *pair))
        assert logprob == pytest.approx(expected[0], abs=1e-4), pair
        assert greedy is expected[1], pair


def test_loglikelihoods_are_no_trivial_numbers():
    logprobs = [logprob for logprob, _ in examinee().loglikelihood(PAIRS)]
    assert min(logprobs) < -20 and len({round(x, 3) for x in logprobs}) >= 10


def test_a_pair_is_scored_as_the_text_that_it_is():
    """log p(context) + log p(continuation | context) = log p(both)."""
    one = examinee()
    (rest, _), (whole, _), (head, _) = one.loglikelihood(
        [("the fox", " and the bear"), ("", "the fox and the bear"), ("", "the fox")]
    )
    assert head + rest == pytest.approx(whole, abs=1e-4)


def test_greedy_means_each_token_is_the_most_probable_one():
    one = examinee()
    ids = prompt_ids(TOKENIZER, "the fox")
    context = len(ids)
    for _ in range(5):
        ids.append(one.model(torch.tensor([ids]))[0, -1].argmax().item())
    almost = [*ids[:-1], (ids[-1] + 1) % TOKENIZER.vocab_size]
    first_wrong = [*ids]
    first_wrong[context] = (ids[context] + 1) % TOKENIZER.vocab_size
    asked = [(ids, 5), (almost, 5), (almost[:-1], 4), (first_wrong, 5), (ids, 1)]
    assert [flag for _, flag in one.score(asked)] == [True, False, True, False, True]


def test_long_contexts_are_cut_from_the_left():
    one = examinee(window=12)
    context, continuation = TEXTS[2], " the fox"
    ids, n = split_pair(TOKENIZER, context, continuation)
    assert len(ids) > 2 * 12
    expected = plain(one, ids[-13:], n)
    (answer,) = one.loglikelihood([(context, continuation)])
    assert answer[0] == pytest.approx(expected[0], abs=1e-4)
    changed = "nobody knew" + context
    assert one.loglikelihood([(changed, continuation)]) == [answer]


def test_a_continuation_longer_than_the_window_is_scored_whole():
    one = examinee(window=8)
    ids, n = split_pair(TOKENIZER, "who?", TEXTS[2])
    pieces = list(windows(ids, n, 8))
    assert len(pieces) > 3 and sum(scored for _, scored in pieces) == n
    expected = sum(plain(one, row, scored)[0] for row, scored in pieces)
    ((logprob, _),) = one.loglikelihood([("who?", TEXTS[2])])
    assert logprob == pytest.approx(expected, abs=1e-4)


def test_greedy_means_so_in_every_window():
    one = examinee(window=4)
    ids = prompt_ids(TOKENIZER, "the fox")
    context = len(ids)
    for at in range(8):  # two windows, each from the token before it
        seen = torch.tensor([ids[context - 1 + at // 4 * 4 :]])
        ids.append(one.model(seen)[0, -1].argmax().item())
    assert one.score([(ids, 8)])[0][1] is True
    ids[context] = (ids[context] + 1) % TOKENIZER.vocab_size
    assert [plain(one, *piece)[1] for piece in windows(ids, 8, 4)] == [False, True]
    assert one.score([(ids, 8)])[0][1] is False


def test_rolling_loglikelihoods_equal_a_plain_loop_over_windows():
    one = examinee(window=10, batch_size=3)
    for text, logprob in zip(TEXTS, one.loglikelihood_rolling(TEXTS), strict=True):
        ids = prompt_ids(TOKENIZER, text)
        expected, at = 0.0, 1
        while at < len(ids):
            end = min(at + 10, len(ids))
            expected += plain(one, ids[max(0, end - 11) : end], end - at)[0]
            at = end
        assert logprob == pytest.approx(expected, abs=1e-4)
    assert one.loglikelihood_rolling([""]) == [0.0]


def test_windows_ask_about_each_token_once_with_all_the_context_that_fits():
    ids = [99, *range(10)]  # the example in the harness's own documentation
    assert list(windows(ids, 10, 4)) == [
        ([99, 0, 1, 2, 3], 4),
        ([3, 4, 5, 6, 7], 4),
        ([5, 6, 7, 8, 9], 2),
    ]
    assert list(windows([1, 2, 3], 1, 9)) == [([1, 2, 3], 1)]
    assert list(windows([1, 2, 3], 0, 9)) == []


def test_rows_that_read_the_same_are_read_once():
    one = examinee()
    seen = []
    forward = one.model.hidden
    one.model.hidden = lambda ids, *a, **k: (
        seen.append(len(ids)) or forward(ids, *a, **k)
    )
    one.loglikelihood([("the fox and", sign) for sign in ",;:?"])
    assert sum(seen) == 1


def test_the_model_gets_no_gradient_and_keeps_its_weights():
    one = examinee()
    before = [weight.clone() for weight in one.model.parameters()]
    one.loglikelihood(PAIRS)
    one.generate_until([("the", {"max_gen_toks": 3})])
    for weight, old in zip(one.model.parameters(), before, strict=True):
        assert weight.grad is None and torch.equal(weight, old)


# --- context and continuation ---------------------------------------------------------


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    assert split_pair(TOKENIZER, "the fox ", "and") == split_pair(
        TOKENIZER, "the fox", " and"
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_context_and_continuation_are_all_of_the_text_and_no_more(pair):
    context, continuation = pair
    ids, n = split_pair(TOKENIZER, context, continuation)
    cut = len(ids) - n
    assert ids[0] == TOKENIZER.bos_id
    assert TOKENIZER.decode(ids) == context + continuation
    assert TOKENIZER.decode(ids[:cut]) == context.rstrip()


def test_a_token_across_the_seam_is_taken_apart():
    tokenizer = BytePairTokenizer.train(["abab"] * 9, merges=1)  # knows "ab"
    assert len(tokenizer.encode("ab")) == 1
    ids, n = split_pair(tokenizer, "a", "b")
    assert n == 1 and ids == [1, *tokenizer.encode("a"), *tokenizer.encode("b")]


def test_words_have_no_seam():
    tokenizer = WordTokenizer(["a", "fox"])
    assert split_pair(tokenizer, "a", " fox") == ([1, 3, 4], 1)


# --- what next? -----------------------------------------------------------------------


def hand_loop(one, context, stops, new):
    """Greedy, one token at a time, the whole row again for each."""
    ids = prompt_ids(TOKENIZER, context)[-(one.window - new) :]
    written = []
    for _ in range(new):
        token = one.model(torch.tensor([ids + written]))[0, -1].argmax().item()
        if token == TOKENIZER.eos_id:
            break
        written.append(token)
        text = TOKENIZER.decode(written)
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)]
    return TOKENIZER.decode(written)


CONTEXTS = ["the fox", "a", TEXTS[1], TEXTS[2], "", "def add(a, b):\n", "the bear, a"]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("window", [200, 30])
def test_generation_equals_a_hand_loop(batch_size, window):
    one = examinee(window=window, batch_size=batch_size)
    free = [hand_loop(one, context, [], 14) for context in CONTEXTS]
    # stops that do occur: pieces from the middle of what is written without any
    stops = [free[0][4:6], free[2][7:9], "no such text"]
    asked = {"until": stops, "max_gen_toks": 14, "do_sample": False}
    written = one.generate_until([(context, asked) for context in CONTEXTS])
    assert written == [hand_loop(one, context, stops, 14) for context in CONTEXTS]
    stopped = [len(a) < len(b) for a, b in zip(written, free)]
    assert any(stopped) and not all(stopped)
    assert not any(stop in text for stop in stops for text in written)


def scripted(tokens, tokenizer=TOKENIZER):
    """One that writes these tokens, whatever it is asked."""
    one = examinee()
    one.tokenizer = tokenizer
    left = iter(tokens)

    def logits(hidden):
        return torch.eye(one.model.config.vocab_size)[[next(left)] * len(hidden)]

    one.model.logits = logits
    return one


def test_generation_ends_with_the_end_of_sequence_token():
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    one = scripted([a, TOKENIZER.bos_id, b, TOKENIZER.eos_id, a])
    assert one.generate_until([("the fox", {})]) == ["ab"]
    assert scripted([TOKENIZER.eos_id]).generate_until([("the", {})]) == [""]


def test_a_stop_is_seen_however_many_tokens_it_is_written_in():
    tokenizer = BytePairTokenizer([])  # a token a byte
    ids = tokenizer.encode("one ¿two? three")
    with_others = [x for one in ids for x in (one, tokenizer.bos_id, tokenizer.pad_id)]
    for tokens in (ids, with_others):
        for stop in ("¿two?", " ", "e ¿", "¿", "one"):
            reached = [at for at, x in enumerate(tokens) if x >= 3]
            end = len(("one ¿two? three".split(stop)[0] + stop).encode())
            one = scripted(tokens[: reached[end - 1] + 1], tokenizer)  # and no more
            (text,) = one.generate_until([("the", {"until": [stop]})])
            assert text == "one ¿two? three".split(stop)[0]


def test_each_row_is_asked_in_its_own_way():
    one = examinee()
    rows = [("the", {"max_gen_toks": n, "until": "qqq"}) for n in (5, 1, 5, 2)]
    texts = one.generate_until(rows)
    assert texts[0] == texts[2] and texts[0].startswith(texts[3])
    assert len(texts[1]) < len(texts[3]) < len(texts[0])


def test_an_answer_has_at_most_half_of_the_window():
    one = examinee(window=20)
    long = one.generate_until([(TEXTS[2], {"max_gen_toks": 1024})])
    assert long == [hand_loop(one, TEXTS[2], [], 10)]


def test_sampling_draws_from_the_models_own_law():
    one = examinee(batch_size=500)
    asked = {"do_sample": True, "temperature": 0.7, "max_gen_toks": 1}
    drawn = one.generate_until([("the fox", asked)] * 4000)
    logits = one.model(torch.tensor([prompt_ids(TOKENIZER, "the fox")]))[0, -1]
    law = (logits / 0.7).softmax(-1)
    for token in law.topk(5).indices.tolist():
        text, p = TOKENIZER.decode([token]), law[token].item()
        if TOKENIZER.decode(TOKENIZER.encode(text)) == text and "\ufffd" not in text:
            share = drawn.count(text) / 4000
            assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 4000)
    assert len(set(drawn)) > 20


def test_what_a_task_asks_for_is_read():
    asked = {"until": ["\n", ""], "do_sample": False, "temperature": 0.9, "top_p": 0.5}
    assert Sampling.read(asked) == Sampling(("\n",), 256, 0.0, None, 0.5)
    sampled = {"until": "x", "do_sample": True, "top_k": 3, "max_gen_toks": 9}
    assert Sampling.read(sampled) == Sampling(("x",), 9, 1.0, 3, None)
    assert Sampling.read({}) == Sampling(())


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="num_beams"):
        examinee().generate_until([("the", {"num_beams": 2})])
    with pytest.raises(ValueError, match="window"):
        examinee(window=1)


def test_the_first_stop_ends_a_text():
    assert before_stop("one two three", ["three", "two"]) == "one "
    assert before_stop("one", ["two"]) == before_stop("one", []) == "one"
    assert before_stop("one", ["one"]) == ""


def test_other_tokenizers_do_as_well():
    tokenizer = WordTokenizer("the fox and a bear".split())
    model = small_palm(vocab_size=tokenizer.vocab_size)
    one = Examinee(model, tokenizer, window=16, generator=seeded())
    ((logprob, _),) = one.loglikelihood([("the fox", " and a bear")])
    ids = prompt_ids(tokenizer, "the fox and a bear")
    assert logprob == pytest.approx(plain(one, ids, 3)[0], abs=1e-4)
    (text,) = one.generate_until([("the fox", {"max_gen_toks": 4})])
    assert set(text.split()) <= {"the", "fox", "and", "a", "bear"}
    with pytest.raises(ValueError, match="the word 'whale' is not among"):
        one.loglikelihood([("the", " whale")])
