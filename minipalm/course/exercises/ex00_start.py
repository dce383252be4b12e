"""Lesson 00: a mean of the places that count, to learn how checks speak."""

import torch
from torch import Tensor

from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.rlhf.logprobs import masked_mean

# --- 0.1 masked_mean ------------------------------------------------------------------


def masked_mean_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return (3.0 * torch.randn(*shape, generator=draw) + 5.0).requires_grad_(True)

    known = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
    ragged = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    some = torch.rand(2, 3, 4, generator=draw) < 0.5
    some[0, 0, 0], some[1, 2, 3] = True, False
    one = torch.tensor([[False, False, True], [False, False, False]])
    broken = numbers(2, 3).detach()
    broken[0, 2], broken[1, 1] = float("inf"), float("nan")
    sound = torch.tensor([[True, True, False], [True, False, True]])
    turned = numbers(5, 3).detach().mT
    return [
        Case("the example of the docstring", *known),
        Case("rows of unequal lengths", numbers(3, 5), ragged),
        Case("another total", numbers(3, 5), ragged, 11),
        Case("a total that is a tensor", numbers(3, 5), ragged, torch.tensor(20)),
        Case("three axes", numbers(2, 3, 4), some),
        Case("one place counts", numbers(2, 3), one),
        Case("all places count", numbers(4, 2), torch.ones(4, 2, dtype=torch.bool)),
        Case("no place counts", numbers(2, 3), torch.zeros(2, 3, dtype=torch.bool)),
        Case("no number at a place that does not count", broken, sound),
        Case("axes turned, so not in one piece", turned.requires_grad_(True), ragged),
    ]


def masked_mean_oracle(
    x: Tensor, mask: Tensor, total: Tensor | int | None = None
) -> Tensor:
    """One place after the other."""
    added, count = 0.0 * x.flatten()[:1].sum(), 0
    for value, counts in zip(x.flatten(), mask.flatten()):
        if counts:
            added, count = added + value, count + 1
    return added / (max(count, 1) if total is None else total)


def mean_of_chosen(x, mask, total=None):
    """Only the chosen places, in a row of their own."""
    chosen = x[mask]
    if total is not None:
        return chosen.sum() / total
    return chosen.mean() if len(chosen) else 0.0 * chosen.sum()


def mean_by_filling(x, mask, total=None):
    added = x.masked_fill(~mask, 0.0).sum()
    return added / (max(1, int(mask.sum())) if total is None else total)


def row_by_row(x, mask, total=None):
    """Wrong: the mean of each row's mean."""
    rows, masks = x.reshape(-1, x.shape[-1]), mask.reshape(-1, x.shape[-1])
    counts = masks.sum(1).clamp(min=1)
    means = torch.where(masks, rows, 0.0).sum(1) / counts
    return means.mean() if total is None else torch.where(mask, x, 0.0).sum() / total


MASKED_MEAN = Exercise(
    id="0.1",
    answer=masked_mean,
    why="Every loss of this course is a mean over some tokens of a batch and not over "
    "its padding.",
    difficulty=1,
    importance=5,
    minutes=8,
    hints=(
        "How many numbers are you averaging: all of the tensor, or those that count?",
        "$\\sum_i m_i x_i \\,/\\, \\sum_i m_i$ over all places of all axes, and 0 "
        "where no place counts.",
        "`added = torch.where(mask, x, 0.0).sum()`",
    ),
    bonus="Two micro-batches hold 3 and 30 tokens. Average each by itself, and then "
    "the two means: by how much does a token of the first outweigh one of the second?",
    cases=masked_mean_cases,
    oracle=masked_mean_oracle,
    traps=(
        Trap(
            "Padding is counted: this is the mean of all places. Count only those "
            "where mask is True.",
            lambda x, mask, total=None: x.mean(),
        ),
        Trap(
            "With a `total` this is right, without one padding is counted: what is "
            "added and what is divided by must both leave it out.",
            lambda x, mask, total=None: (
                x.mean() if total is None else torch.where(mask, x, 0.0).sum() / total
            ),
        ),
        Trap(
            "Right for finite numbers and a mask with something in it. But `total` has "
            "no effect, 0 · ∞ in the padding is NaN, and so is 0/0 where no place "
            "counts.",
            lambda x, mask, total=None: (x * mask).sum() / mask.sum(),
        ),
        Trap(
            "The right places are chosen, but `total` has no effect, and the mean of "
            "no number at all is NaN; here it should be 0.",
            lambda x, mask, total=None: x[mask].mean(),
        ),
        Trap(
            "What is added is right, but it is divided by the number of all places. "
            "Divide by the number of True in mask.",
            ("mask.sum().clamp(min=1)", "mask.numel()"),
        ),
        Trap(
            "Padding is added in: the sum may hold only the places where mask is True.",
            ("torch.where(mask, x, 0.0).sum()", "x.sum()"),
        ),
        Trap(
            "Each row is averaged by itself, then the rows: a token of a short row "
            "then weighs more. Add up all places first, divide once.",
            row_by_row,
        ),
        Trap(
            "Where no place counts, 0/0 is NaN, and one NaN ends a training run. The "
            "mean of nothing is 0 here: divide by at least 1.",
            ("mask.sum().clamp(min=1)", "mask.sum()"),
        ),
        Trap(
            "`total` has no effect. Where it is given, the sum is divided by it, not "
            "by the number of True in mask.",
            ("    if total is None:\n        total", "    if True:\n        total"),
        ),
        Trap(
            "x * mask turns an infinity or a NaN in the padding into NaN, since 0 · ∞ "
            "is NaN. Choose places, do not multiply.",
            ("torch.where(mask, x, 0.0).sum()", "(x * mask).sum()"),
        ),
        Trap(
            "This is the sum; a mean is divided by how many there are.",
            (
                "torch.where(mask, x, 0.0).sum() / total",
                "torch.where(mask, x, 0.0).sum()",
            ),
        ),
        Trap(
            "The mean has lost its gradient: nothing can be learnt from such a loss. "
            "Stay with tensors; no .item(), .detach() or float().",
            (".sum() / total", ".sum().detach() / total"),
        ),
    ),
    twins=(Twin(mean_of_chosen), Twin(mean_by_filling)),
)

EXERCISES = (MASKED_MEAN,)
