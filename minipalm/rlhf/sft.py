"""Supervised fine-tuning: imitate the demonstrations, on the response only."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.model.palm import PaLM


@dataclass(frozen=True)
class Rows:
    """Demonstrations as tensors; index them by rows.

    Attributes:
        ids: tokens, prompt and response one after the other.
        segments: 1, 2, ... for the demonstrations of a row, 0 for padding.
        mask: True at response tokens, the only ones that the loss counts.
    """

    ids: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Int[Tensor, "R"] | slice) -> "Rows":
        ids, segments = self.ids[rows].long(), self.segments[rows].long()
        return Rows(ids, segments, self.mask[rows])  # on a disk they may be 16-bit

    def to(self, device: torch.device) -> "Rows":
        return Rows(self.ids.to(device), self.segments.to(device), self.mask.to(device))


Example = tuple[list[int], list[int]]  # the tokens of prompt and of response


def fill_rows(rows: Sequence[Sequence[Example]], width: int) -> Rows:
    """Lay examples side by side in rows of `width` tokens, the rest padding.

    A prompt has at least one token, <bos>: the first token of a response must have one
    before it, of its own example, that predicts it.

    Args:
        rows: the examples of each row, in order; together they fit into `width`.
        width: T, tokens of a row.

    Returns:
        ids and segments int64, 0 at padding; mask is True at a response's own tokens,
        its <eos> included, and not where they are predicted.

    Example: the row [([1, 5], [6, 2]), ([1], [7, 2])] at width 8 has
    ids       1 5 6 2 1 7 2 0
    segments  1 1 1 1 2 2 2 0
    mask      0 0 1 1 0 1 1 0
    """
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.zeros_like(ids)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, examples in enumerate(rows):
        start = 0
        for segment, (prompt, response) in enumerate(examples, 1):
            end = start + len(prompt) + len(response)
            ids[b, start:end] = torch.tensor(prompt + response)
            segments[b, start:end] = segment
            mask[b, start + len(prompt) : end] = True
            start = end
    return Rows(ids, segments, mask)


def pad_examples(examples: Sequence[Example]) -> Rows:
    """One example a row, right-padded to the longest."""
    width = max(len(prompt) + len(response) for prompt, response in examples)
    return fill_rows([[example] for example in examples], width)


def pack_examples(examples: Sequence[Example], width: int) -> Rows:
    """As many examples a row as fit: each goes to the first row with room for it.

    Packing changes no number: attention stays within an example (see `attention_mask`)
    and positions start again with each. It only leaves less padding to compute.

    Args:
        examples: taken in their order, into the first row with room; longest first
            would give the fullest rows, and is left to the caller.
        width: tokens of a row.

    Returns:
        the rows as `fill_rows` lays them out; none at all if there are no examples.

    Example: lengths 7, 6, 2, 3 and width 9 give two rows, 7 + 2 and 6 + 3.

    Raises:
        ValueError: an example is longer than a row.
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    first = 0  # rows before this one are full
    shortest = min((len(p) + len(r) for p, r in examples), default=0)
    for i, example in enumerate(examples):
        need = len(example[0]) + len(example[1])
        if need > width:
            raise ValueError(
                f"example {i} has {need} tokens and a row {width}: cut it, or widen "
                "the row"
            )
        while first < len(rows) and room[first] < shortest:
            first += 1
        for b in range(first, len(rows)):
            if room[b] >= need:
                break
        else:
            b = len(rows)
            rows.append([])
            room.append(width)
        rows[b].append(example)
        room[b] -= need
    return fill_rows(rows, width)


def sft_loss(
    model: PaLM, rows: Rows, total: Int[Tensor, ""] | int | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the response tokens, given all before them, in nats.

    A token at t + 1 with mask True is predicted from the state at t, which has seen its
    own example only: `model.hidden` takes the segments. Prompt and padding neither
    count nor need logits: their states need not reach the head, `model.logits`.

    Args:
        model: the policy to be trained; the gradient goes to all of it.
        rows: padded or packed demonstrations.
        total: number of response tokens to average over; by default those of `rows`.
            Under gradient accumulation, those of the whole batch.

    Returns:
        the sum over response tokens divided by `total`, float32: one mean over tokens,
        not a mean of the rows' means.

    Example: a model that knows nothing has a loss near log V.

    Source: Ouyang et al. 2022, InstructGPT (arXiv 2203.02155), section 3.5, "SFT".
    """
    targets = rows.mask[:, 1:]
    hidden = model.hidden(rows.ids[:, :-1], rows.segments[:, :-1])
    logits = model.logits(hidden[targets]).float()
    losses = F.cross_entropy(logits, rows.ids[:, 1:][targets], reduction="sum")
    return losses / (targets.sum() if total is None else total)
