"""The authors of TinyTales: a small grammar whose slots are filled at random.

A tale is one to three sentences about one subject, its hero, in one mood:

    once there was a gloomy fox in the forest . it sighed and wept .

A careful author knows only how to choose words. A sloppy one also takes a wrong
article, drops a word, drifts to another mood or tells of another hero. The
demonstrations come from the sloppy one: what it gets wrong is what a policy can
learn to do better than the people who taught it.

Left out on purpose: plot. A tale need not go anywhere to be measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from minipalm.data.lexicon import (
    HELD_OUT_PAIRS,
    MOOD_WORDS,
    MOODS,
    NEUTRAL,
    PLACES,
    PRONOUNS,
    SIDE_CHARACTERS,
    SUBJECTS,
    THINGS,
    Words,
)

T = TypeVar("T")

MAX_WORDS = 25  # with <eos> a response is at most 26 tokens
VOWELS = "aeiou"


@dataclass(frozen=True)
class Author:
    """How an author fills slots, and how often it slips (all are probabilities)."""

    mood_word: float  # a slot takes a word of the mood that was asked for
    stray_mood: float  # a slot takes a word of a mood drawn at random
    reuse: float  # a slot takes a word that the tale has used before
    wrong_hero: float  # the tale is about another subject
    slip: float  # wrong article, pronoun or preposition; a word left out
    swap: float  # two neighbouring words of a sentence change places


SLOPPY = Author(
    mood_word=0.62, stray_mood=0.05, reuse=0.08, wrong_hero=0.12, slip=0.06, swap=0.03
)
CAREFUL = Author(
    mood_word=0.95, stray_mood=0.0, reuse=0.0, wrong_hero=0.0, slip=0.0, swap=0.0
)


def tell(author: Author, mood: str, subject: str, rng: Random) -> str:
    """A tale of at most 25 words, such as `"the sad fox wept . it was lonely ."`.

    Longer tales are thrown away, never cut: a cut one would teach not to stop.
    """
    while True:
        draft = _Draft(author, mood, _hero(author, mood, subject, rng), rng)
        words = draft.sentence(first=True)
        for _ in range(count(rng, 0.2, 0.45)):  # and 0.35 for two more
            words += draft.sentence(first=False)
        if len(words) <= MAX_WORDS:
            return " ".join(words)


def pick(rng: Random, choices: Sequence[T]) -> T:
    """One of the choices. Only `rng.random` promises the same stream everywhere."""
    return choices[int(rng.random() * len(choices))]


def count(rng: Random, *probabilities: float) -> int:
    """0, 1, 2 ... with the given probabilities; what is left goes to the last + 1."""
    draw = rng.random()
    for number, probability in enumerate(probabilities):
        draw -= probability
        if draw < 0:
            return number
    return len(probabilities)


def _hero(author: Author, mood: str, subject: str, rng: Random) -> str:
    """The subject that was asked for, or, by a slip, another one.

    A slip never lands on a held-out pair, or training data would hold its tales.
    """
    if rng.random() >= author.wrong_hero:
        return subject
    others = [
        other
        for other in SUBJECTS
        if other != subject and (mood, other) not in HELD_OUT_PAIRS
    ]
    return pick(rng, others)


class _Draft:
    """A tale being written: who it is about, and which words it has used so far."""

    def __init__(self, author: Author, mood: str, hero: str, rng: Random):
        self.author, self.mood, self.hero, self.rng = author, mood, hero, rng
        self.used: dict[str, list[str]] = {}  # kind of slot -> its words, in order

    # --- words -------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def fill(self, kind: str) -> str:
        """A word for a slot of kind "adjectives", "verbs" or "nouns"."""
        used = self.used.get(kind, [])
        if used and self.chance(self.author.reuse):
            return pick(self.rng, used)
        draw = self.rng.random()
        words: Words = NEUTRAL
        if draw < self.author.mood_word:
            words = MOOD_WORDS[self.mood]
        elif draw < self.author.mood_word + self.author.stray_mood:
            words = MOOD_WORDS[pick(self.rng, MOODS)]
        return self.unused(kind, getattr(words, kind))

    def unused(self, kind: str, choices: Sequence[str]) -> str:
        """One of the choices that this tale has not used yet, while there is one."""
        used = self.used.setdefault(kind, [])
        word = pick(self.rng, [word for word in choices if word not in used] or choices)
        used.append(word)
        return word

    # --- phrases: lists of words ---------------------------------------------------

    def noun_phrase(self, noun: str, definite: bool) -> list[str]:
        """the|a|an, up to two adjectives, the noun: `an old fox`."""
        words = [noun]
        bare = 0.3 if noun == self.hero else 0.9
        for _ in range(count(self.rng, bare, 0.95 - bare)):
            very = ["very"] if self.chance(0.1) else []
            words = [*very, self.fill("adjectives"), *words]
        articles = ["an", "a"] if words[0][0] in VOWELS else ["a", "an"]
        article = articles[self.chance(self.author.slip)]
        return ["the" if definite else article, *words]

    def hero_phrase(self, first: bool) -> list[str]:
        """The hero: by name at first, later more often by its pronoun."""
        if first or self.chance(0.25):
            return self.noun_phrase(self.hero, definite=True)
        pronoun = PRONOUNS[self.hero]
        if self.chance(self.author.slip):
            pronoun = pick(self.rng, [p for p in ("it", "he", "she") if p != pronoun])
        return [pronoun]

    def place_phrase(self) -> list[str]:
        """`in the forest`, each place with the preposition that belongs to it."""
        place = self.unused("places", tuple(PLACES))
        preposition = PLACES[place]
        if self.chance(self.author.slip):
            others = [p for p in ("in", "at", "on") if p != preposition]
            preposition = pick(self.rng, others)
        return [preposition, "the", place]

    # --- sentences -----------------------------------------------------------------

    def sentence(self, first: bool) -> list[str]:
        """A whole sentence with its full stop; slips of the pen come last."""
        if first and self.chance(0.75):
            words = self.opening()
        else:
            words = self.event(first)
        if not first and self.chance(0.3):
            words = [*pick(self.rng, ("then", "in the end")).split(), *words]
        if self.chance(self.author.swap):
            at = int(self.rng.random() * (len(words) - 1))
            words[at], words[at + 1] = words[at + 1], words[at]
        if self.chance(self.author.slip):
            del words[int(self.rng.random() * len(words))]
        return [*words, "."]

    def opening(self) -> list[str]:
        kind = count(self.rng, 0.4, 0.25)
        if kind == 0:  # once there was an old fox (in the forest)
            where = self.place_phrase() if self.chance(0.4) else []
            hero = self.noun_phrase(self.hero, definite=False)
            return ["once", "there", "was", *hero, *where]
        if kind == 1:  # one day the fox went to the lake
            hero = self.noun_phrase(self.hero, definite=True)
            place = self.unused("places", tuple(PLACES))
            return ["one", "day", *hero, "went", "to", "the", place]
        hero = self.noun_phrase(self.hero, definite=self.chance(0.5))
        return [*hero, "lived", *self.place_phrase()]  # a fox lived on the hill

    def event(self, first: bool) -> list[str]:
        kind = count(self.rng, 0.5, 0.3, 0.2 if first else 0.1)
        if kind == 0:  # the fox wept and sighed
            return [*self.hero_phrase(first), self.fill("verbs"), *self.manner()]
        if kind == 1:  # it was very sad and lonely
            very = ["very"] if self.chance(0.2) else []
            feeling = [*very, self.fill("adjectives")]
            if self.chance(0.3):
                feeling += ["and", self.fill("adjectives")]
            verb = pick(self.rng, ("was", "felt"))
            return [*self.hero_phrase(first), verb, *feeling]
        if kind == 2:  # it met an odd elf
            return [*self.hero_phrase(first), *self.meeting()]
        where = ["everywhere"] if self.chance(0.5) else self.place_phrase()
        return ["there", "was", self.fill("nouns"), *where]  # there was fog everywhere

    def meeting(self) -> list[str]:
        if self.chance(0.5):
            noun = self.unused("side characters", SIDE_CHARACTERS)
            return ["met", *self.noun_phrase(noun, definite=False)]
        noun = self.unused("things", THINGS)
        return ["found", *self.noun_phrase(noun, definite=False)]

    def manner(self) -> list[str]:
        """What may follow a verb: nothing, or and wept | in the cave | all day ..."""
        kind = count(self.rng, 0.25, 0.15, 0.2, 0.15, 0.15)
        if kind == 0:
            return []
        if kind == 1:
            return ["and", self.fill("verbs")]
        if kind == 2:
            return self.place_phrase()
        if kind == 3:
            return ["all", pick(self.rng, ("day", "night"))]
        if kind == 4:
            return ["with", self.fill("nouns")]
        noun = self.unused("side characters", SIDE_CHARACTERS)
        return ["with", *self.noun_phrase(noun, definite=False)]
