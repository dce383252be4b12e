"""What is measured: one network, and the same tokens for everybody."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

DIM, DEPTH, HEADS, HEAD_DIM, VOCAB = 256, 6, 8, 32, 256
PARAMETERS = 5_670_656  # of the policy: tied head, one key/value head, ff_mult 4
FIRST_WORD = 3  # 0, 1 and 2 are padding, begin and end of a text

TRAIN_ROWS, TRAIN_TOKENS = 8, 256
SAMPLE_ROWS, SAMPLE_TOKENS = 16, 128
ROLLOUTS, PROMPT, RESPONSE = 32, 32, 64
EPOCHS, MINIBATCHES = 4, 4  # 16 optimizer steps an update, of 8 rollouts each
DEMONSTRATIONS, PAIRS = 16, 8  # a step

Example = tuple[list[int], list[int]]  # prompt and response, which ends with <eos>


def token_rows(rows: int, tokens: int) -> Tensor:
    """Rows of words drawn evenly; the same ones on every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(FIRST_WORD, VOCAB, (rows, tokens), generator=generator)


def _words(n: int, rng: random.Random) -> list[int]:
    return [rng.randrange(FIRST_WORD, VOCAB) for _ in range(n)]


def _response(rng: random.Random) -> list[int]:
    """As long as answers are: many short, a few long. Median 64, cut to 8..224."""
    length = round(64 * rng.lognormvariate(0, 0.6))
    return [*_words(min(max(length, 8), 224) - 1, rng), 2]


def demonstrations(n: int) -> list[Example]:
    """Prompts of 16 to 32 tokens with one response each."""
    rng = random.Random(0)
    return [
        ([1, *_words(rng.randrange(15, 32), rng)], _response(rng)) for _ in range(n)
    ]


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, of lengths of their own."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pairs(n: int) -> list[Pair]:
    """Prompts as for the demonstrations, with two responses each."""
    rng = random.Random(1)
    return [
        Pair([1, *_words(rng.randrange(15, 32), rng)], _response(rng), _response(rng))
        for _ in range(n)
    ]
