"""The world: its words, its prompts, and what the two authors write."""

from random import Random
from statistics import fmean, pstdev

import pytest

from minipalm.data.gold import gold_parts
from minipalm.data.lexicon import (
    HELD_OUT_PAIRS,
    MOOD_WORDS,
    MOODS,
    NEUTRAL,
    PAIRS,
    PLACES,
    PROMPTS,
    SUBJECTS,
    TRAINING_PAIRS,
    VOCABULARY,
    is_tinytales_prompt,
    parse_prompt,
)
from minipalm.data.tinytales import CAREFUL, MAX_WORDS, SLOPPY, count, pick, tell


def tales(author, number, seed):
    rng = Random(seed)
    prompts = list(PROMPTS.items())
    drawn = [pick(rng, prompts) for _ in range(number)]
    return [(prompt, tell(author, *pair, rng)) for prompt, pair in drawn]


def test_the_world_has_the_stated_counts():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 141
    assert len(SUBJECTS) == 16 and len(PLACES) == 8 and len(PROMPTS) == 144
    kinds = [*MOOD_WORDS.values(), NEUTRAL]
    sizes = [(len(k.adjectives), len(k.verbs), len(k.nouns)) for k in kinds]
    assert sizes == [(6, 6, 4)] * 3 + [(8, 6, 4)]


def test_no_word_belongs_to_two_kinds():
    words = [
        word
        for kinds in (*MOOD_WORDS.values(), NEUTRAL)
        for word in (*kinds.adjectives, *kinds.verbs, *kinds.nouns)
    ]
    words += [*SUBJECTS, *PLACES]
    assert len(words) == len(set(words))


def test_each_mood_names_itself():
    assert all(mood in MOOD_WORDS[mood].adjectives for mood in MOODS)


def test_held_out_pairs_are_balanced():
    moods = [mood for mood, _ in HELD_OUT_PAIRS]
    subjects = {subject for _, subject in HELD_OUT_PAIRS}
    assert sorted(moods) == sorted(MOODS * 2) and len(subjects) == 6
    assert set(TRAINING_PAIRS) | set(HELD_OUT_PAIRS) == set(PAIRS)
    assert not set(TRAINING_PAIRS) & set(HELD_OUT_PAIRS)
    assert {subject for _, subject in TRAINING_PAIRS} == set(SUBJECTS)


def test_a_prompt_is_read_back_as_the_pair_that_made_it():
    for prompt, pair in PROMPTS.items():
        assert parse_prompt(prompt) == pair
        assert all(word in VOCABULARY for word in prompt.split())
        assert len(prompt.split()) <= 8  # 9 tokens with <bos>
    assert parse_prompt("  sad   story about the fox : ") == ("sad", "fox")


@pytest.mark.parametrize(
    "prompt", ["", "sad story about the fox", "angry story about the fox :", "hello"]
)
def test_a_foreign_prompt_is_named_and_the_right_form_shown(prompt):
    assert not is_tinytales_prompt(prompt)
    with pytest.raises(ValueError, match="not a TinyTales prompt") as caught:
        parse_prompt(prompt)
    assert repr(prompt) in str(caught.value)
    assert "write a sad story about the fox :" in str(caught.value)


@pytest.mark.parametrize("author", [SLOPPY, CAREFUL])
@pytest.mark.parametrize("seed", range(3))
def test_tales_fit_the_window_and_the_vocabulary(author, seed):
    for _, tale in tales(author, 2_000, seed):
        words = tale.split()
        assert 0 < len(words) <= MAX_WORDS and words[-1] == "."
        assert set(words) <= set(VOCABULARY)
        assert tale == " ".join(words)


def test_the_same_seed_tells_the_same_tales():
    assert tales(SLOPPY, 50, 7) == tales(SLOPPY, 50, 7) != tales(SLOPPY, 50, 8)


@pytest.mark.parametrize("seed", range(3))
def test_the_careful_author_makes_no_error(seed):
    told = tales(CAREFUL, 2_000, seed)
    judged = [gold_parts(prompt, tale) for prompt, tale in told]
    for (_, tale), parts in zip(told, judged, strict=True):
        assert parts.grammar == 1 and parts.topic == 1, tale
    # a word comes again only when all of its kind are used up
    assert sum(parts.fresh < 1 for parts in judged) < 20


@pytest.mark.parametrize("seed", range(3))
def test_the_sloppy_author_leaves_room_above(seed):
    judged = [gold_parts(*pair) for pair in tales(SLOPPY, 4_000, seed)]
    golds = [parts.total for parts in judged]
    assert 6.85 < fmean(golds) < 7.1
    assert 1.35 < pstdev(golds) < 1.5
    assert 0.83 < fmean(parts.grammar for parts in judged) < 0.90
    careful = [gold_parts(*pair).total for pair in tales(CAREFUL, 4_000, seed)]
    assert 8.2 < fmean(careful) < 8.5


def test_a_wrong_hero_is_never_a_held_out_pair():
    rng = Random(0)
    astray = 0
    for _ in range(200):
        for mood, subject in TRAINING_PAIRS:
            named = set(tell(SLOPPY, mood, subject, rng).split()) & set(SUBJECTS)
            assert not named & {s for m, s in HELD_OUT_PAIRS if m == mood}
            astray += bool(named - {subject})
    assert 0.1 < astray / (200 * len(TRAINING_PAIRS)) < 0.14


def test_count_and_pick_follow_their_probabilities():
    rng = Random(0)
    numbers = [count(rng, 0.2, 0.5) for _ in range(20_000)]
    shares = [numbers.count(number) / len(numbers) for number in range(3)]
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.02)
    picked = [pick(rng, "abcd") for _ in range(20_000)]
    assert all(abs(picked.count(c) / 20_000 - 0.25) < 0.02 for c in "abcd")
