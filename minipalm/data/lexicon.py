"""The words of TinyTales, and the prompts that can be made of them.

A world of 141 words is small enough to read in full and large enough to be wrong
in. It holds a local rule (a/an: owl, eerie, apple start with a vowel), a lexical
rule (at the lake, but on the hill) and a long-range rule (the queen ... she).
"""

from dataclasses import dataclass

MOODS = ("happy", "sad", "scary")

PRONOUNS = {  # the 16 subjects a tale can be about, each with its pronoun
    **dict.fromkeys("dog cat fox bear frog owl otter dragon".split(), "it"),
    **dict.fromkeys("king boy wizard uncle".split(), "he"),
    **dict.fromkeys("queen girl witch aunt".split(), "she"),
}
SUBJECTS = tuple(PRONOUNS)


@dataclass(frozen=True)
class Words:
    """The words that can fill the three kinds of slot in a sentence."""

    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]  # intransitive, past tense
    nouns: tuple[str, ...]  # mass nouns: they take no article


MOOD_WORDS = {
    "happy": Words(
        adjectives=("happy", "merry", "cheerful", "excited", "glad", "jolly"),
        verbs=("laughed", "sang", "danced", "giggled", "smiled", "cheered"),
        nouns=("joy", "laughter", "music", "sunshine"),
    ),
    "sad": Words(
        adjectives=("sad", "unhappy", "gloomy", "lonely", "heartbroken", "tearful"),
        verbs=("cried", "wept", "sighed", "mourned", "frowned", "sobbed"),
        nouns=("sorrow", "grief", "misery", "rain"),
    ),
    "scary": Words(
        adjectives=("scary", "eerie", "dark", "creepy", "ghostly", "spooky"),
        verbs=("screamed", "shivered", "howled", "trembled", "growled", "shook"),
        nouns=("fear", "fog", "thunder", "darkness"),
    ),
}
NEUTRAL = Words(
    adjectives=("old", "odd", "young", "big", "small", "tall", "brown", "quiet"),
    verbs=("walked", "waited", "slept", "worked", "rested", "ran"),
    nouns=("bread", "honey", "snow", "wind"),
)

PLACES = {  # each place with its preposition
    **dict.fromkeys(("forest", "cave", "garden"), "in"),
    **dict.fromkeys(("lake", "castle", "market"), "at"),
    **dict.fromkeys(("hill", "island"), "on"),
}
SIDE_CHARACTERS = ("duck", "mouse", "farmer", "knight", "giant", "elf")
THINGS = tuple("apple egg umbrella lamp key book cake drum ring hat".split())

FUNCTION_WORDS = tuple(
    "a an the it he she in at on to with and once there was one day went lived"
    " found met felt very all night everywhere then end .".split()
)
PROMPT_WORDS = tuple("write tell story tale about :".split())

VOCABULARY = tuple(
    sorted(
        {
            *SUBJECTS,
            *PLACES,
            *SIDE_CHARACTERS,
            *THINGS,
            *FUNCTION_WORDS,
            *PROMPT_WORDS,
        }.union(
            *(
                (*words.adjectives, *words.verbs, *words.nouns)
                for words in (*MOOD_WORDS.values(), NEUTRAL)
            )
        )
    )
)

# --- prompts ---------------------------------------------------------------------

TEMPLATES = (
    "write a {mood} story about the {subject} :",
    "tell a {mood} tale about the {subject} :",
    "{mood} story about the {subject} :",
)

PAIRS = tuple((mood, subject) for mood in MOODS for subject in SUBJECTS)
HELD_OUT_PAIRS = (  # each mood twice, six subjects; no tale in data/ is about one
    ("happy", "owl"),
    ("happy", "king"),
    ("sad", "fox"),
    ("sad", "witch"),
    ("scary", "dog"),
    ("scary", "aunt"),
)
TRAINING_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)


def prompts_about(pairs: tuple[tuple[str, str], ...]) -> dict[str, tuple[str, str]]:
    """Every template filled with every (mood, subject) pair: {prompt: pair}."""
    return {
        template.format(mood=mood, subject=subject): (mood, subject)
        for mood, subject in pairs
        for template in TEMPLATES
    }


PROMPTS = prompts_about(PAIRS)  # 144 of them


def is_tinytales_prompt(prompt: str) -> bool:
    """Whether the prompt is one of the 144 (spaces around words do not matter)."""
    return " ".join(prompt.split()) in PROMPTS


def parse_prompt(prompt: str) -> tuple[str, str]:
    """What a prompt asks for: `"sad story about the fox :"` -> `("sad", "fox")`.

    Raises ValueError if it is not one of the 144 prompts of TinyTales.
    """
    pair = PROMPTS.get(" ".join(prompt.split()))
    if pair is None:
        raise ValueError(
            f"{prompt!r} is not a TinyTales prompt; expected one like"
            f" 'write a sad story about the fox :' with a mood of {', '.join(MOODS)}"
            f" and a subject of {', '.join(SUBJECTS)}"
        )
    return pair
