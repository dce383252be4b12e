"""The gold reward: plays the human who knows what a good tale is.

In real RLHF nobody can compute this number; people only compare two answers. Here
a program stands in for them, so that a figure can show both what the reward model
believes and what is true. No learner of the pipeline sees it: they get the labels
of `label_pair`, as noisy as people are.

It must cope with whatever a policy emits, from the empty string to "it it it".
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from minipalm.data.lexicon import (
    MOOD_WORDS,
    NEUTRAL,
    PLACES,
    PRONOUNS,
    SIDE_CHARACTERS,
    THINGS,
    parse_prompt,
)

LABEL_TEMPERATURE = 0.8  # points of gold; larger: the labeller errs more often


@dataclass(frozen=True)
class GoldParts:
    """The five parts of the gold reward, each in [0, 1], and their weighted sum."""

    topic: float  # is it about the subject that was asked for, and no other
    mood: float  # four different words of the mood that was asked for
    grammar: float  # share of sentences without an error
    fresh: float  # no word said twice
    length: float  # neither too short nor too long

    @property
    def total(self) -> float:
        """From 0 to 10."""
        return (
            2.5 * self.topic
            + 3.5 * self.mood
            + 2.0 * self.grammar
            + 1.0 * self.fresh
            + 1.0 * self.length
        )


def gold_parts(prompt: str, response: str, finished: bool = True) -> GoldParts:
    """Judge a response, which may be any words at all, or none.

    finished: whether the response ended with <eos>; if not, that is one bad sentence.
    Raises ValueError if the prompt is not one of the 144 of TinyTales.
    """
    mood, subject = parse_prompt(prompt)
    words = response.split()
    return GoldParts(
        topic=topic_part(words, subject),
        mood=mood_part(words, mood),
        grammar=grammar_part(words, subject, finished),
        fresh=fresh_part(words),
        length=length_part(words),
    )


def gold_reward(prompt: str, response: str, finished: bool = True) -> float:
    """The total of `gold_parts`, from 0 to 10."""
    return gold_parts(prompt, response, finished).total


# --- the five parts -----------------------------------------------------------------


def topic_part(words: Sequence[str], subject: str) -> float:
    """1 if the subject is named, less a half for each other one; else 0."""
    named = {word for word in words if word in PRONOUNS}
    if subject not in named:
        return 0.0
    return max(0.0, 1.0 - 0.5 * (len(named) - 1))


MOOD_OF = {
    word: mood
    for mood, kinds in MOOD_WORDS.items()
    for word in (*kinds.adjectives, *kinds.verbs, *kinds.nouns)
}


def mood_part(words: Sequence[str], mood: str) -> float:
    """A quarter for each different word of the mood, up to four of them.

    Every word of another mood, repeated or not, takes a half away.
    """
    right = {word for word in words if MOOD_OF.get(word) == mood}
    wrong = sum(MOOD_OF.get(word, mood) != mood for word in words)
    return min(1.0, max(0.0, min(len(right), 4) / 4 - 0.5 * wrong))


CONTENT_WORDS = {
    *MOOD_OF,
    *NEUTRAL.adjectives,
    *NEUTRAL.verbs,
    *NEUTRAL.nouns,
    *PLACES,
    *SIDE_CHARACTERS,
    *THINGS,
}


def fresh_part(words: Sequence[str]) -> float:
    """Each content word said again, and each subject after the third, costs a third."""
    content = [word for word in words if word in CONTENT_WORDS]
    repeated = len(content) - len(set(content))
    subjects = sum(word in PRONOUNS for word in words)
    return max(0.0, 1.0 - (repeated + max(0, subjects - 3)) / 3)


def length_part(words: Sequence[str]) -> float:
    """1 from 10 to 18 words (full stops count), down to 0 at 3 and at 25."""
    return max(0.0, min(1.0, (len(words) - 3) / 7, (25 - len(words)) / 7))


# --- grammar: a regular expression over parts of speech ------------------------------


def _tags() -> dict[str, str]:
    """Word -> part of speech, with a V in front if the word starts with a vowel.

    Function words are not listed: each stands for itself.
    """
    tags = {place: f"{preposition}place" for place, preposition in PLACES.items()}
    for kinds in (*MOOD_WORDS.values(), NEUTRAL):
        tags |= dict.fromkeys(kinds.adjectives, "adj")
        tags |= dict.fromkeys(kinds.verbs, "verb")
        tags |= dict.fromkeys(kinds.nouns, "mass")
    tags |= dict.fromkeys((*PRONOUNS, *SIDE_CHARACTERS, *THINGS), "noun")
    return {word: "V" * (word[0] in "aeiou") + tag for word, tag in tags.items()}


TAGS = _tags()

_ADJECTIVE = r"(?:very )?V?adj"
_NOUN_PHRASE = rf"(?:the|a(?! V)|an(?= V))(?: {_ADJECTIVE}){{0,2}} V?noun"
_WHO = rf"(?:pronoun|{_NOUN_PHRASE})"
_WHERE = r"(?:in the V?inplace|at the V?atplace|on the V?onplace)"
_MANNER = rf"(?:and verb|{_WHERE}|all (?:day|night)|with V?mass|with {_NOUN_PHRASE})"
SENTENCE = re.compile(
    rf"once there was {_NOUN_PHRASE}(?: {_WHERE})?"
    rf"|one day {_WHO} went to the V?(?:in|at|on)place"
    r"|(?:then |in the end )?(?:"
    rf"{_WHO} lived {_WHERE}"
    rf"|{_WHO} verb(?: {_MANNER})?"
    rf"|{_WHO} (?:was|felt) {_ADJECTIVE}(?: and V?adj)?"
    rf"|{_WHO} (?:met|found) {_NOUN_PHRASE}"
    rf"|there was V?mass (?:everywhere|{_WHERE})"
    r")"
)


def grammar_part(words: Sequence[str], subject: str, finished: bool) -> float:
    """The share of sentences that `SENTENCE` accepts.

    A pronoun must agree with the subject named last, or else with the one asked for.
    What follows the last full stop, or a missing <eos>, counts as one bad sentence.
    """
    sentences: list[str] = []
    tags: list[str] = []
    for word in words:
        if word == ".":
            sentences.append(" ".join(tags))
            tags = []
            continue
        if word in PRONOUNS:
            subject = word
        tags.append("pronoun" if word == PRONOUNS[subject] else TAGS.get(word, word))
    bad_end = bool(tags) or not finished
    good = sum(SENTENCE.fullmatch(sentence) is not None for sentence in sentences)
    return good / max(1, len(sentences) + bad_end)


# --- the labeller -------------------------------------------------------------------


def preference(
    gold_a: float, gold_b: float, temperature: float = LABEL_TEMPERATURE
) -> float:
    """P(a is preferred to b): the sigmoid of the difference over the temperature.

    Args:
        gold_a, gold_b: gold rewards, points from 0 to 10; only their difference counts.
        temperature: points, above 0. The larger, the more often the labeller errs.

    `preference(5.0, 4.2)` is 0.7311: a lead of one temperature. Equal golds give 0.5.

    Source: Bradley and Terry 1952; as RLHF has it, Christiano et al. 2017 (arXiv
    1706.03741), section 2.2.3.
    """
    return 1.0 / (1.0 + math.exp(-(gold_a - gold_b) / temperature))


def label_pair(gold_a: float, gold_b: float, rng: Random) -> bool:
    """Whether the labeller prefers a; a better b wins now and then."""
    return rng.random() < preference(gold_a, gold_b)


def bayes_accuracy(
    golds_a: Sequence[float],
    golds_b: Sequence[float],
    temperature: float = LABEL_TEMPERATURE,
) -> float:
    """How often one who knew the gold would guess the noisy label.

    Such a one names the better answer of each pair, and is right with the probability
    that the labeller prefers it, too. On average no reward model does better on fresh
    pairs.

    Args:
        golds_a, golds_b: gold rewards of N pairs, points; N is at least 1.
        temperature: of the labeller, see `preference`.

    Returns:
        the mean over pairs, from 0.5 to 1.

    Raises:
        ValueError: golds_a and golds_b differ in length, or are empty.

    `bayes_accuracy([5.0, 4.2], [5.0, 5.0])` is (0.5 + 0.7311) / 2 = 0.6155.
    """
    if len(golds_a) != len(golds_b) or not golds_a:
        raise ValueError(
            "golds_a and golds_b must be of one length, at least 1"
            f" (got {len(golds_a)} and {len(golds_b)})"
        )
    pairs = zip(golds_a, golds_b, strict=True)
    chances = [preference(a, b, temperature) for a, b in pairs]
    return math.fsum(max(p, 1.0 - p) for p in chances) / len(chances)
