"""From texts to tensors: prompts end, and answers begin, in the same column."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minipalm.data.tokenizer import Tokenizer

Padded = tuple[Int[Tensor, "N T"], Bool[Tensor, "N T"]]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """<bos> and the prompt."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def response_ids(tokenizer: Tokenizer, response: str) -> list[int]:
    """The answer and <eos>."""
    return [*tokenizer.encode(response), tokenizer.eos_id]


def text_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> Int[Tensor, "N"]:
    """All texts end to end, each between <bos> and <eos>."""
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    return torch.tensor(ids, dtype=torch.long)


def hold_out_stream(
    stream: Int[Tensor, "N"], window: int, source: str
) -> tuple[Int[Tensor, "A"], Int[Tensor, "B"]]:
    """Cut a stream in two: the text to train on, and a fiftieth of it to test on.

    Raises:
        ValueError: there is not a row of `window` tokens for each.
    """
    cut = max(len(stream) // 50, window)
    if len(stream) < 2 * window:
        raise ValueError(
            f"{source}: expected at least {2 * window} tokens, a row of {window} to "
            f"train on and one to test on, got {len(stream)}; add text"
        )
    return stream[cut:], stream[:cut]


def pad_left(rows: Sequence[Sequence[int]], width: int) -> Padded:
    """Ids at the right end of rows of `width`, and True where they stand.

    Raises:
        ValueError: a row is longer than width.
    """
    ids, mask = pad_right([row[::-1] for row in rows], width)
    return ids.flip(1), mask.flip(1)


def pad_right(rows: Sequence[Sequence[int]], width: int) -> Padded:
    """Ids at the left end of rows of `width`, and True where they stand.

    Raises:
        ValueError: a row is longer than width.
    """
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(f"row {n} has {len(row)} tokens, and room is for {width}")
        ids[n, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[n, : len(row)] = True
    return ids, mask
