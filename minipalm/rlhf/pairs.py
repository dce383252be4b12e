"""Comparisons: two answers to one prompt, the better one first."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minipalm.data.batches import pad_left, pad_right, prompt_ids, response_ids
from minipalm.data.datasets import Preference
from minipalm.data.tokenizer import Tokenizer
from minipalm.rlhf.answers import Answers


@dataclass(frozen=True)
class Pairs:
    """Comparisons as tensors; index them by rows.

    Attributes:
        prompts, prompt_mask: left-padded.
        chosen, chosen_mask: the better answers, right-padded, with their <eos>.
        rejected, rejected_mask: the others, of the same width.
    """

    prompts: Int[Tensor, "N P"]
    prompt_mask: Bool[Tensor, "N P"]
    chosen: Int[Tensor, "N T"]
    chosen_mask: Bool[Tensor, "N T"]
    rejected: Int[Tensor, "N T"]
    rejected_mask: Bool[Tensor, "N T"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Int[Tensor, "R"] | slice) -> "Pairs":
        some = (getattr(self, field.name)[rows] for field in fields(self))
        # on a disk tokens may be 16-bit
        return Pairs(*(x if x.dtype == torch.bool else x.long() for x in some))

    def to(self, device: torch.device) -> "Pairs":
        return Pairs(*(getattr(self, field.name).to(device) for field in fields(self)))


def pairs_of(first: Answers, second: Answers, first_is_better: Sequence[bool]) -> Pairs:
    """Comparisons of two answers to each prompt, as the labels say.

    Args:
        first, second: answers to the same prompts.
        first_is_better: which of the two won, for each prompt.
    """
    prompts, prompt_mask, one, one_mask = first.tokens
    _, _, two, two_mask = second.tokens
    won = torch.tensor(first_is_better, device=one.device)[:, None]
    return Pairs(
        prompts,
        prompt_mask,
        torch.where(won, one, two),
        torch.where(won, one_mask, two_mask),
        torch.where(won, two, one),
        torch.where(won, two_mask, one_mask),
    )


def encode_pairs(
    preferences: Sequence[Preference],
    tokenizer: Tokenizer,
    max_prompt: int,
    max_response: int,
) -> Pairs:
    """Tensors of comparisons; both answers end with <eos>.

    Raises:
        ValueError: a prompt or an answer does not fit (see `check_window`).
    """
    prompts = [prompt_ids(tokenizer, one.prompt) for one in preferences]
    chosen = [response_ids(tokenizer, one.chosen) for one in preferences]
    rejected = [response_ids(tokenizer, one.rejected) for one in preferences]
    return Pairs(
        *pad_left(prompts, max_prompt),
        *pad_right(chosen, max_response),
        *pad_right(rejected, max_response),
    )
