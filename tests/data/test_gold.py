"""The gold reward against hand-worked cases and a second, slower statement of it."""

import math
import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipalm.data import lexicon
from minipalm.data.gold import (
    bayes_accuracy,
    gold_parts,
    gold_reward,
    label_pair,
    preference,
)
from minipalm.data.lexicon import PROMPTS, VOCABULARY
from minipalm.data.tinytales import CAREFUL, SLOPPY, pick, tell

SAD_FOX = "sad story about the fox :"

# --- the oracle: a parser that walks over words, with sets and loops ---------------

NEUTRAL = lexicon.NEUTRAL
KINDS = [*lexicon.MOOD_WORDS.values(), NEUTRAL]
ADJECTIVES = {word for kinds in KINDS for word in kinds.adjectives}
VERBS = {word for kinds in KINDS for word in kinds.verbs}
MASS = {word for kinds in KINDS for word in kinds.nouns}
NOUNS = {*lexicon.SUBJECTS, *lexicon.SIDE_CHARACTERS, *lexicon.THINGS}


def adjective(s, i):
    """Each parser gives all positions where it can end, from position i of s."""
    if s[i : i + 1] == ["very"]:
        i += 1
    return {i + 1} if i < len(s) and s[i] in ADJECTIVES else set()


def noun_phrase(s, i):
    if i + 1 >= len(s) or s[i] not in ("the", "a", "an"):
        return set()
    if s[i] == "an" and s[i + 1][0] not in "aeiou":
        return set()
    if s[i] == "a" and s[i + 1][0] in "aeiou":
        return set()
    one = adjective(s, i + 1)
    two = {k for j in one for k in adjective(s, j)}
    return {j + 1 for j in {i + 1} | one | two if j < len(s) and s[j] in NOUNS}


def who(s, i, pronoun):
    return {i + 1} if s[i : i + 1] == [pronoun] else noun_phrase(s, i)


def where(s, i):
    if len(s) >= i + 3 and s[i + 1] == "the":
        return {i + 3} if lexicon.PLACES.get(s[i + 2]) == s[i] else set()
    return set()


def after_verb(s, i):
    ends = {i} | where(s, i)
    if len(s) >= i + 2:
        if s[i] == "and" and s[i + 1] in VERBS:
            ends.add(i + 2)
        if s[i] == "all" and s[i + 1] in ("day", "night"):
            ends.add(i + 2)
        if s[i] == "with" and s[i + 1] in MASS:
            ends.add(i + 2)
        if s[i] == "with":
            ends |= noun_phrase(s, i + 1)
    return ends


def is_sentence(s, pronoun):
    n = len(s)
    if s[:3] == ["once", "there", "was"]:
        ends = noun_phrase(s, 3)
        return n in ends | {k for j in ends for k in where(s, j)}
    if s[:2] == ["one", "day"]:
        return any(
            s[j:-1] == ["went", "to", "the"] and s[-1] in lexicon.PLACES
            for j in who(s, 2, pronoun)
        )
    if s[:1] == ["then"]:
        s = s[1:]
    elif s[:3] == ["in", "the", "end"]:
        s = s[3:]
    n = len(s)
    if s[:2] == ["there", "was"]:
        if n < 3 or s[2] not in MASS:
            return False
        return s[3:] == ["everywhere"] or n in where(s, 3)
    for j in who(s, 0, pronoun):
        if j == n:
            continue
        if s[j] == "lived" and n in where(s, j + 1):
            return True
        if s[j] in VERBS and n in after_verb(s, j + 1):
            return True
        if s[j] in ("met", "found") and n in noun_phrase(s, j + 1):
            return True
        if s[j] in ("was", "felt"):
            for k in adjective(s, j + 1):
                if k == n or (k + 2 == n and s[k] == "and" and s[k + 1] in ADJECTIVES):
                    return True
    return False


def slow_gold(prompt, response, finished):
    words = response.split()
    mood = next(mood for mood in lexicon.MOODS if mood in prompt.split())
    asked = next(word for word in prompt.split() if word in lexicon.SUBJECTS)

    subjects = [word for word in words if word in lexicon.SUBJECTS]
    topic = 0.0
    if asked in subjects:
        topic = max(0.0, 1 - 0.5 * len(set(subjects) - {asked}))

    by_mood = {
        name: [*kinds.adjectives, *kinds.verbs, *kinds.nouns]
        for name, kinds in lexicon.MOOD_WORDS.items()
    }
    right = sum(word in words for word in by_mood[mood])
    wrong = sum(
        words.count(word) for name in by_mood if name != mood for word in by_mood[name]
    )
    mood_part = max(0.0, min(right, 4) / 4 - wrong / 2)

    bad, sentences, sentence, hero = 0, 0, [], asked
    for word in words:
        if word == ".":
            sentences += 1
            # the pronoun of whoever was last named before it, inside the sentence too
            plain, last = [], hero
            for token in sentence:
                if token in lexicon.SUBJECTS:
                    last = token
                right_one = lexicon.PRONOUNS[last]
                if token in ("it", "he", "she"):
                    token = "PRONOUN" if token == right_one else "WRONG"
                plain.append(token)
            bad += not is_sentence(plain, "PRONOUN")
            hero, sentence = last, []
        else:
            sentence.append(word)
    if sentence or not finished:
        sentences, bad = sentences + 1, bad + 1
    grammar = (sentences - bad) / sentences if sentences else 0.0

    content = ADJECTIVES | VERBS | MASS | {*lexicon.PLACES}
    content |= {*lexicon.SIDE_CHARACTERS, *lexicon.THINGS}
    again = sum(max(0, words.count(word) - 1) for word in content)
    fresh = max(0.0, 1 - (again + max(0, len(subjects) - 3)) / 3)

    n = len(words)
    length = 1.0 if 10 <= n <= 18 else (n - 3) / 7 if n < 10 else (25 - n) / 7
    return topic, mood_part, grammar, fresh, min(1.0, max(0.0, length))


def assert_equal_to_oracle(prompt, response, finished):
    parts = gold_parts(prompt, response, finished)
    got = (parts.topic, parts.mood, parts.grammar, parts.fresh, parts.length)
    want = slow_gold(prompt, response, finished)
    assert got == pytest.approx(want, abs=1e-12), (prompt, response)
    weights = (2.5, 3.5, 2, 1, 1)
    total = sum(w * part for w, part in zip(weights, want, strict=True))
    assert parts.total == pytest.approx(total, abs=1e-12)


def mutated(words, rng):
    """A tale with one or two words taken out, put in or exchanged."""
    words = list(words)
    for _ in range(1 + int(rng.random() * 2)):
        at = int(rng.random() * len(words))
        edit = pick(rng, ("out", "in", "exchange"))
        if edit != "in" and words:
            del words[at]
        if edit != "out":
            words.insert(at, pick(rng, pick(rng, (VOCABULARY, words or VOCABULARY))))
    return words


@pytest.mark.parametrize("seed", range(4))
def test_gold_equals_a_slow_second_statement_of_it(seed):
    rng = Random(seed)
    prompts = list(PROMPTS.items())
    accepted = 0
    for _ in range(1_000):
        prompt, pair = pick(rng, prompts)
        author = pick(rng, (SLOPPY, CAREFUL))
        words = tell(author, *pair, rng).split()
        noise = [pick(rng, VOCABULARY) for _ in range(int(rng.random() * 27))]
        for response in (words, mutated(words, rng), noise):
            assert_equal_to_oracle(prompt, " ".join(response), rng.random() < 0.9)
        accepted += gold_parts(prompt, " ".join(mutated(words, rng))).grammar == 1
    assert 20 < accepted < 500  # the edits probe both sides of the grammar


ANY_WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=40).map(" ".join)


@given(st.sampled_from(list(PROMPTS)), ANY_WORDS, st.booleans())
def test_gold_copes_with_any_words(prompt, response, finished):
    assert_equal_to_oracle(prompt, response, finished)
    parts = gold_parts(prompt, response, finished)
    assert all(0 <= part <= 1 for part in vars(parts).values())
    assert gold_parts(prompt, response, False).total <= parts.total


@given(st.text())
def test_gold_copes_with_any_text(response):
    assert 0 <= gold_reward(SAD_FOX, response) <= 10


PERFECT = "the lonely fox wept and sighed . it was sad ."

CASES = {  # response -> topic, mood, grammar, fresh, length
    "": (0, 0, 0, 1, 0),
    ".": (0, 0, 0, 1, 0),
    PERFECT: (1, 1, 1, 1, 1),
    "once there was a fox .": (1, 0, 1, 1, 3 / 7),
    "once there was an fox .": (1, 0, 0, 1, 3 / 7),
    "once there was an odd fox .": (1, 0, 1, 1, 4 / 7),
    "once there was a very odd fox .": (1, 0, 1, 1, 5 / 7),
    "once there was an very odd fox .": (1, 0, 0, 1, 5 / 7),
    "the fox lived at the lake .": (1, 0, 1, 1, 4 / 7),
    "the fox lived in the lake .": (1, 0, 0, 1, 4 / 7),
    "it wept .": (0, 0.25, 1, 1, 0),  # it: the fox that was asked for
    "she wept .": (0, 0.25, 0, 1, 0),
    "the queen met the fox . it wept .": (0.5, 0.25, 1, 1, 6 / 7),
    "the fox met the queen . she wept .": (0.5, 0.25, 1, 1, 6 / 7),
    "the fox met the queen . it wept .": (0.5, 0.25, 0.5, 1, 6 / 7),
    "the fox met the queen . the king wept .": (0, 0.25, 1, 1, 1),
    "the fox laughed and wept .": (1, 0, 1, 1, 3 / 7),  # 1/4 - 1/2
    "the fox wept . the fox wept .": (1, 0.25, 1, 2 / 3, 5 / 7),
    "the fox wept . it slept": (1, 0.25, 0.5, 1, 3 / 7),
    "it it it it": (0, 0, 0, 1, 1 / 7),
    "fox fox fox fox fox": (1, 0, 0, 1 / 3, 2 / 7),
    "then in the end it wept .": (0, 0.25, 0, 1, 4 / 7),
    "in the end the fox walked in the cave .": (1, 0, 1, 1, 1),
}


@pytest.mark.parametrize("response", CASES)
def test_gold_of_cases_worked_by_hand(response):
    parts = gold_parts(SAD_FOX, response)
    got = (parts.topic, parts.mood, parts.grammar, parts.fresh, parts.length)
    assert got == pytest.approx(CASES[response])


def test_a_perfect_tale_gets_ten():
    assert gold_reward(SAD_FOX, PERFECT) == 10


def test_a_missing_end_is_one_bad_sentence():
    assert gold_parts(SAD_FOX, PERFECT, finished=False).grammar == pytest.approx(2 / 3)
    tail = PERFECT.removesuffix(" .")
    assert gold_parts(SAD_FOX, tail, finished=False).grammar == 0.5  # once, not twice


def test_a_foreign_prompt_is_refused():
    with pytest.raises(ValueError, match="not a TinyTales prompt"):
        gold_reward("write a poem", PERFECT)


def test_gold_judges_thousands_a_second():
    rng = Random(0)
    rows = [
        (prompt, tell(SLOPPY, *pair, rng))
        for _ in range(20)
        for prompt, pair in PROMPTS.items()
    ]
    start = time.process_time()
    for row in rows:
        gold_reward(*row)
    assert len(rows) / (time.process_time() - start) > 5_000  # about 100,000 here


# --- the labeller ----------------------------------------------------------------


def test_preference_is_bradley_terry_with_temperature_eight_tenths():
    assert preference(5.0, 5.0) == 0.5
    assert preference(5.8, 5.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert preference(3.0, 7.0) == pytest.approx(1 - preference(7.0, 3.0))
    assert 0 < preference(0.0, 10.0) < preference(10.0, 0.0) < 1


def test_labels_follow_the_preference():
    rng = Random(0)
    share = sum(label_pair(6.0, 5.5, rng) for _ in range(20_000)) / 20_000
    assert share == pytest.approx(preference(6.0, 5.5), abs=0.01)


def test_bayes_accuracy_is_what_the_best_guesser_scores():
    rng = Random(1)
    golds_a = [10 * rng.random() for _ in range(20_000)]
    golds_b = [10 * rng.random() for _ in range(20_000)]
    hits = sum(
        label_pair(a, b, rng) == (a > b) for a, b in zip(golds_a, golds_b, strict=True)
    )
    expected = bayes_accuracy(golds_a, golds_b)
    assert hits / 20_000 == pytest.approx(expected, abs=0.01)
    assert bayes_accuracy([5.0], [5.0]) == 0.5


@pytest.mark.parametrize("golds", [([], []), ([1.0], [1.0, 2.0])])
def test_bayes_accuracy_refuses_unequal_lengths(golds):
    with pytest.raises(ValueError, match="one length, at least 1"):
        bayes_accuracy(*golds)
