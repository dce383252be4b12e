"""From texts to tensors: prompts end, and answers begin, in the same column."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minipalm.data.tokenizer import Tokenizer

HELD_OUT = 1 << 20

Padded = tuple[Int[Tensor, "N T"], Bool[Tensor, "N T"]]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """<bos> and the prompt."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def response_ids(tokenizer: Tokenizer, response: str) -> list[int]:
    """The answer and <eos>."""
    return [*tokenizer.encode(response), tokenizer.eos_id]


def text_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> Int[Tensor, "N"]:
    """All texts end to end in one row of int64, each between <bos> and <eos>.

    Args:
        tokenizer: `encode(text)` gives a text's ids without special ones; `bos_id` and
            `eos_id` are those of <bos> and <eos>.
        texts: in the order in which they shall stand.

    With a = 3 and fox = 4, ["fox", "a fox"] becomes [1, 4, 2, 1, 3, 4, 2]; no text at
    all becomes an empty row.
    """
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    return torch.tensor(ids, dtype=torch.long)


def hold_out_stream(
    stream: Int[Tensor, "N"], window: int, source: str
) -> tuple[Int[Tensor, "A"], Int[Tensor, "B"]]:
    """Cut a stream in two: the text to train on, and a fiftieth of it to test on.

    Not more than `HELD_OUT` tokens are tested on, however long the stream.

    Raises:
        ValueError: there is not a row of `window` tokens for each.
    """
    cut = max(min(len(stream) // 50, HELD_OUT), window)
    if len(stream) < 2 * window:
        raise ValueError(
            f"{source}: expected at least {2 * window} tokens, a row of {window} to "
            f"train on and one to test on, got {len(stream)}; add text"
        )
    return stream[cut:], stream[:cut].long()  # a stream on a disk may be 16-bit


def pad_left(rows: Sequence[Sequence[int]], width: int) -> Padded:
    """Ids at the right end of rows of `width`, and True where they stand.

    Args:
        rows: N lists of ids, none longer than width; a list may be empty.
        width: T, columns of the result.

    Returns:
        ids, int64, with 0 where nothing stands, and the mask. The mask comes from the
        lengths: an id of 0 inside a row is an id like any other.

    Raises:
        ValueError: a row is longer than width; none is cut.

    `pad_left([[7, 8], [9]], 3)` is `[[0, 7, 8], [0, 0, 9]]` and
    `[[False, True, True], [False, False, True]]`.
    """
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(f"row {n} has {len(row)} tokens, and room is for {width}")
        start = width - len(row)  # not -len(row): an empty row starts at the end
        ids[n, start:] = torch.tensor(row, dtype=torch.long)
        mask[n, start:] = True
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]], width: int) -> Padded:
    """Ids at the left end of rows of `width`, and True where they stand.

    Raises:
        ValueError: a row is longer than width.
    """
    ids, mask = pad_left([row[::-1] for row in rows], width)
    return ids.flip(1), mask.flip(1)
