"""Lesson 14: tests that catch bugs, and the naming of bugs from their curves.

An answer here is itself a test. It is shown right and broken worlds; what is compared
is which of them it refuses.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minipalm.course.bugs import diagnose
from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.rlhf.invariants import (
    check_blind_to_padding,
    check_kl_estimate,
    check_mask,
    check_reward_sum,
    check_same_law,
    check_separate,
)
from minipalm.rlhf.logprobs import masked_mean
from minipalm.rlhf.ppo import policy_loss

RETURNED = (
    "It stops nobody: a test that returns False is a test that passes. Raise an "
    "AssertionError, or write assert."
)


def told(check: Callable[..., object], *args: object, **kwargs: object) -> str:
    """What a test says to a world."""
    try:
        check(*args, **kwargs)
    except AssertionError:
        return "refused"
    return "accepted"


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


# --- 14.1 check_same_law ------------------------------------------------------------


def same_law_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    mask = ragged([5, 2, 3], 6)
    x = -5 * torch.rand(3, 6, generator=draw) - 0.5
    x[0, 1] = -8.0  # rare
    many = -5 * torch.rand(4, 200, generator=draw) - 0.5

    def moved(*how: tuple[int, int, float], of: Tensor = x) -> Tensor:
        other = of.clone()
        for row, column, by in how:
            other[row, column] += by
        return other

    nowhere = torch.zeros(3, 6, dtype=torch.bool)
    one = torch.tensor([[-1.0, -2.0]])
    half = torch.tensor([[-1.0, -2.5]])
    noise = torch.empty_like(x).uniform_(-2e-6, 2e-6, generator=draw)
    return [
        Case("the same numbers", x, x.clone(), mask),
        Case("the last bits of float32 differ", x, x + noise, mask),
        Case("the docstring's example, masked", one, half, ragged([1], 2)),
        Case("the docstring's example", one, half, ragged([2], 2)),
        Case("the docstring's example, turned", half, one, ragged([2], 2)),
        Case("one token is likelier", x, moved((1, 1, 0.4)), mask),
        Case("one token is rarer", x, moved((2, 0, -0.4)), mask),
        Case("one up, one down, by as much", x, moved((0, 0, 0.4), (0, 3, -0.4)), mask),
        Case("a small bug: 0.004 nats", moved((0, 1, 0.004)), x, mask),
        Case("a small bug, the other way", moved((0, 1, -0.004)), x, mask),
        Case(
            "one token of eight hundred",
            many,
            moved((3, 150, -0.3), of=many),
            torch.ones(4, 200, dtype=torch.bool),
        ),
        Case("only padding differs", x, moved((1, 4, 3.0), (2, 5, -2.0)), mask),
        Case("NaN in the padding", x, moved((1, 3, torch.nan)), mask),
        Case("NaN at a token", x, moved((1, 1, torch.nan)), mask),
        Case("both are −∞", moved((0, 1, -torch.inf)), moved((0, 1, -torch.inf)), mask),
        Case("a larger tolerance", x, moved((0, 2, 0.03)), mask, tolerance=0.05),
        Case("above a larger tolerance", x, moved((0, 2, 0.07)), mask, tolerance=0.05),
        Case("at the tolerance", one, half, ragged([2], 2), tolerance=0.5),
        Case("no token counts", x, moved((1, 1, 1.0)), nowhere),
    ]


def same_law_oracle(
    logprobs: Tensor, other_logprobs: Tensor, mask: Tensor, tolerance: float = 1e-3
) -> str:
    """Token by token."""
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                gap = float(logprobs[b, t]) - float(other_logprobs[b, t])
                if gap != gap or gap > tolerance or gap < -tolerance:
                    return "refused"
    return "accepted"


def same_law_by_assert_close(logprobs, other_logprobs, mask, tolerance=1e-3):
    """What a test suite has; infinities are equal to themselves there, so no."""
    one, two = logprobs[mask], other_logprobs[mask]
    assert one.isfinite().all() and two.isfinite().all()
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


def same_law_by_worst(logprobs, other_logprobs, mask, tolerance=1e-3):
    worst = 0.0
    for gap in (logprobs - other_logprobs)[mask].abs().tolist():
        assert gap == gap, "a log-probability is no number"
        worst = max(worst, gap)
    assert worst <= tolerance, f"ratio {worst} nats from 1"


def same_law_of_empty(logprobs, other_logprobs, mask, tolerance=1e-3):
    worst = (logprobs - other_logprobs)[mask].abs().max()
    assert worst <= tolerance


def same_law_by_allclose(logprobs, other_logprobs, mask, tolerance=1e-3):
    assert torch.allclose(logprobs[mask], other_logprobs[mask], atol=tolerance)


def same_law_returned(logprobs, other_logprobs, mask, tolerance=1e-3):
    apart = torch.where(mask, logprobs - other_logprobs, 0.0).abs()
    return bool((apart <= tolerance).all())


APART = "torch.where(mask, logprobs - other_logprobs, 0.0).abs()"
AGREE = "agree = apart <= tolerance  # a NaN does not agree"

SAME_LAW = Exercise(
    id="14.1",
    answer=check_same_law,
    why="Ratio 1 before the first step: the cheapest test of RLHF, and the one that "
    "catches most.",
    difficulty=2,
    importance=5,
    minutes=8,
    hints=(
        "Two errors of opposite sign, a NaN, a wrong token among a thousand: which of "
        "these would your test let through?",
        "Every token counts by itself: |log π − log π_old| ≤ tolerance wherever mask "
        "is True. What is `nan > tolerance`?",
        "`apart = torch.where(mask, logprobs - other_logprobs, 0.0).abs()`",
    ),
    bonus="With the weights in bfloat16 the two passes differ by 1e-2 and more at rare "
    "tokens. Which statistic still tells a bug from rounding?",
    cases=same_law_cases,
    oracle=same_law_oracle,
    run=told,
    traps=(
        Trap(
            "It looks at the mean of the differences: one token up and another down "
            "cancel. Each token must agree by itself.",
            (APART, "(logprobs - other_logprobs)[mask].mean().nan_to_num(9).abs()"),
            (AGREE, "agree = (apart <= tolerance) | ~mask.any()"),
        ),
        Trap(
            "A mean, even of absolute differences, hides one wrong token among "
            "hundreds that are right. Look at every token, or at the worst.",
            (APART, "(logprobs - other_logprobs)[mask].abs().mean()"),
            (AGREE, "agree = (apart <= tolerance) | ~mask.any()"),
        ),
        Trap(
            "A mean, even of absolute differences, hides one wrong token among "
            "hundreds that are right, and without a token it is 0/0. Look at each.",
            (APART, "(logprobs - other_logprobs)[mask].abs().mean()"),
        ),
        Trap(
            "torch.allclose takes −∞ and −∞ for equal, and its rtol forgives rare "
            "tokens more. Their difference is no finite number: refuse it.",
            same_law_by_allclose,
        ),
        Trap(
            "It notices a difference in one direction only: a token that became "
            "rarer is as wrong as one that became likelier.",
            (APART, "torch.where(mask, logprobs - other_logprobs, 0.0)"),
        ),
        Trap(
            "It notices a difference in the other direction only. The absolute value "
            "of the difference is what counts.",
            (APART, "torch.where(mask, other_logprobs - logprobs, 0.0)"),
        ),
        Trap(
            "Padding is compared, too: what stands there was never said, so it refuses "
            "right runs.",
            (APART, "(logprobs - other_logprobs).abs()"),
        ),
        Trap(
            "Multiplying by the mask keeps a NaN in the padding: NaN · 0 is NaN. "
            "Choose the tokens with torch.where or by indexing.",
            (APART, "((logprobs - other_logprobs) * mask).abs()"),
        ),
        Trap(
            "It asks for equality to the last bit: a cached and a whole forward pass "
            "add in another order and differ by 1e-6 in every right run.",
            (AGREE, "agree = apart == 0"),
        ),
        Trap(
            "A NaN gets through: every comparison with it is False, `nan > tolerance` "
            "as well. Ask whether all are within, not whether one is beyond.",
            (AGREE, "agree = ~(apart > tolerance)"),
        ),
        Trap(
            "The argument `tolerance` has no effect.",
            (AGREE, "agree = apart <= 1e-3"),
        ),
        Trap(
            "The tolerance is taken as a share of the log-probability. It is in nats: "
            "a rare token may not be further off than a common one.",
            (AGREE, "agree = apart <= tolerance * logprobs.abs().nan_to_num(0)"),
        ),
        Trap(
            "It fails where no token counts, since an empty set has no maximum. "
            "Nothing to compare means nothing is wrong.",
            same_law_of_empty,
        ),
        Trap(RETURNED, same_law_returned),
    ),
    twins=(Twin(same_law_by_assert_close), Twin(same_law_by_worst)),
    equivalent={
        "logprobs - other_logprobs → other_logprobs - logprobs": (
            "an absolute value does not see the order"
        ),
    },
)


# --- 14.2 check_mask ----------------------------------------------------------------


def mask_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def world(
        name: str,
        lengths: list[int],
        marked: list[int],
        eos_id: int = 2,
        width: int = 6,
    ) -> Case:
        """Answers of these lengths (width + 1: no end); masks as long as marked."""
        words = torch.randint(6, 11, (len(lengths), width), generator=draw)
        for row, length in enumerate(lengths):
            if length <= width:
                words[row, length - 1] = eos_id
        return Case(name, words, ragged(marked, width), eos_id)

    def changed(case: Case, *at: tuple[int, int, int | bool]) -> Case:
        words, mask, eos_id = (case.args[0].clone(), case.args[1].clone(), case.args[2])
        for row, column, value in at:
            if isinstance(value, bool):
                mask[row, column] = value
            else:
                words[row, column] = value
        return Case(case.name, words, mask, eos_id)

    ends = world("an end behind the end", [3, 5], [3, 5])
    other = world("another token ends, 2 is a word", [4, 3], [4, 3], eos_id=5)
    hole = world("a hole", [4, 5], [4, 5])
    late = world("the first token is left out", [4, 5], [4, 5])
    twice = world("on to a second end", [3, 5], [5, 5])
    start = world("a late start of a full row", [7, 5], [6, 5])
    return [
        world("answers of unequal lengths", [3, 6, 1], [3, 6, 1]),
        world("one fills its row without an end", [7, 2], [6, 2]),
        changed(ends, (0, 4, 2)),
        changed(other, (0, 1, 2), (1, 0, 2)),
        world("every end is left out", [3, 6, 4], [2, 5, 3]),
        world("one end is left out", [3, 6, 4], [3, 5, 4]),
        world("on behind the end", [3, 6, 2], [3, 6, 3]),
        world("all places marked", [3, 5], [6, 6]),
        changed(twice, (0, 4, 2)),
        world("cut off in the middle", [7, 4], [4, 4]),
        changed(hole, (0, 1, False)),
        changed(late, (0, 0, False)),
        changed(start, (0, 0, False)),
        world("an answer of no token", [3, 1, 4], [3, 0, 4]),
        world("another token ends, one left out", [3, 5], [2, 5], eos_id=5),
        changed(world("a hole and no end", [7, 3], [6, 3]), (0, 2, False)),
        world("a batch of one", [4], [4], width=4),
    ]


def mask_oracle(responses: Tensor, mask: Tensor, eos_id: int) -> str:
    """What each row's mask must be is said by its tokens; only full rows may have it
    from a time limit."""
    for words, marked in zip(responses.tolist(), mask.tolist()):
        right = []
        for word in words:
            right.append(True)
            if word == eos_id:
                break
        right += [False] * (len(words) - len(right))
        if marked != right:
            return "refused"
    return "accepted"


def mask_by_rows(responses, mask, eos_id):
    for words, marked in zip(responses.tolist(), mask.tolist()):
        length = sum(marked)
        assert 1 <= length and all(marked[:length]), "not from the first token on"
        said = words[:length]
        assert eos_id not in said[:-1], "it goes on behind the end"
        assert said[-1] == eos_id or length == len(words), "its end does not count"


def mask_built_anew(responses, mask, eos_id):
    """True as long as no end stood before."""
    before = (responses == eos_id).long().cumsum(1) - (responses == eos_id).long()
    assert torch.equal(mask, before == 0)


def mask_of_some_row(responses, mask, eos_id):
    before = (responses == eos_id).long().cumsum(1) - (responses == eos_id).long()
    assert (mask == (before == 0)).all(1).any()


def mask_needs_ends(responses, mask, eos_id):
    mask_built_anew(responses, mask, eos_id)
    assert (mask & (responses == eos_id)).any(1).all()


def mask_without_eos(responses, mask, eos_id):
    assert torch.equal(mask, responses != eos_id)


def mask_without_end(responses, mask, eos_id):
    before = (responses == eos_id).long().cumsum(1)
    assert torch.equal(mask, before == 0)


def mask_returned(responses, mask, eos_id):
    before = (responses == eos_id).long().cumsum(1) - (responses == eos_id).long()
    return torch.equal(mask, before == 0)


PREFIX = "if not (mask == (places < lengths)).all():"

MASK = Exercise(
    id="14.2",
    answer=check_mask,
    why="Every sum and mean of RLHF is over this mask; one token too few, and the "
    "policy never learns to stop.",
    difficulty=3,
    importance=4,
    minutes=10,
    hints=(
        "Given one row's tokens, how many different masks are right?",
        "True up to and including the first `eos_id`, False behind it; all True where "
        "it never comes.",
        "`for words, marked in zip(responses.tolist(), mask.tolist()):` will do: a "
        "test need not be fast",
    ),
    bonus="A row is full and its last token is no end: was the answer cut off, or did "
    "somebody forget the end? Which other number would tell?",
    cases=mask_cases,
    oracle=mask_oracle,
    run=told,
    traps=(
        Trap(
            "It sees only whether the True places are the first ones. That they reach "
            "to the end of the answer, and not beyond, is the point.",
            ("if early.any():", "if False:"),
            ("if cut.any():", "if False:"),
        ),
        Trap(
            "It accepts a mask that goes on behind the end of an answer: tokens that "
            "were never said would be learnt from.",
            ("if early.any():", "if False:"),
        ),
        Trap(
            "It accepts an answer whose end-of-sequence token does not count: nobody "
            "who learns from it learns to stop.",
            ("if cut.any():", "if False:"),
        ),
        Trap(
            "It refuses every answer without an end. One that fills its row was cut "
            "off by the limit, and that is no bug.",
            mask_needs_ends,
        ),
        Trap(
            "The end-of-sequence token belongs to the answer: this test asks for the "
            "very bug that it should catch.",
            mask_without_end,
        ),
        Trap(
            "`responses != eos_id` is not the mask: it drops the end, and marks what "
            "stands behind it.",
            mask_without_eos,
        ),
        Trap(
            "An end that stands *behind* the answer is looked at. There anything may "
            "stand: look for ends where mask is True.",
            ("ends = mask & (responses == eos_id)", "ends = responses == eos_id"),
            ("places < lengths - 1", "places != lengths - 1"),
        ),
        Trap(
            "An answer of no token gets through. It has no last token to put a score "
            "on.",
            ("~ends.any(1) &", "mask.any(1) & ~ends.any(1) &"),
        ),
        Trap(
            "A hole in the mask gets through: a token in the middle of an answer that "
            "does not count.",
            (PREFIX, "if not mask[:, 0].all():"),
            ("places < lengths - 1", "mask.flip(1).cumsum(1).flip(1) > 1"),
        ),
        Trap(
            "A mask need not begin at the first token, for this test. The first token "
            "of an answer counts like the others.",
            (
                PREFIX,
                "if not (mask.any(1).all() and (mask[:, 1:] == "
                "(places < lengths + ~mask[:, :1])[:, 1:]).all()):",
            ),
            ("places < lengths - 1", "mask.flip(1).cumsum(1).flip(1) > 1"),
        ),
        Trap(
            "The end is taken to be token 2, whatever `eos_id` says.",
            ("responses == eos_id", "responses == 2"),
        ),
        Trap(
            "It is content if *one* row is right. Every row must be.",
            mask_of_some_row,
        ),
        Trap(RETURNED, mask_returned),
    ),
    twins=(Twin(mask_by_rows), Twin(mask_built_anew)),
)


# --- 14.3 check_separate ------------------------------------------------------------


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def pair(name: str, seed: int) -> tuple[nn.Module, nn.Module]:
    """A policy and a reference, in the relation of that name."""
    policy: Any = network(seed)
    reference: Any = copy.deepcopy(policy).requires_grad_(False)
    weight = policy[0].weight
    if name == "itself":
        reference = policy
    elif name == "another network":
        reference = network(seed + 1)
    elif name == "a copy that could learn":
        reference = copy.deepcopy(policy)
    elif name == "copy.copy":
        reference = copy.copy(policy)
    elif name == "the same network in a wrapper":
        reference = nn.ModuleDict({"model": policy})
    elif name == "one weight is shared":
        reference[2].weight = policy[2].weight
    elif name == "one weight under another name":
        reference.extra = weight
    elif name == "a frozen view":
        reference[0].weight = nn.Parameter(weight.data, requires_grad=False)
    elif name == "a view that could learn":
        reference[0].weight = nn.Parameter(weight.data)
    elif name == "a frozen view of a part":
        reference[0].weight = nn.Parameter(weight.data[1:], requires_grad=False)
    elif name == "a frozen trunk is shared":
        policy[0].requires_grad_(False)
        reference[0] = policy[0]
    elif name == "a frozen trunk is shared, and a head that learns":
        policy[0].requires_grad_(False)
        reference[0], reference[2].bias = policy[0], policy[2].bias
    elif name == "itself, but nothing learns":
        reference = policy.requires_grad_(False)
    else:
        assert name == "a deep copy"
    return policy, reference


WORLDS = (
    "a deep copy",
    "itself",
    "another network",
    "a copy that could learn",
    "copy.copy",
    "the same network in a wrapper",
    "one weight is shared",
    "one weight under another name",
    "a frozen view",
    "a view that could learn",
    "a frozen view of a part",
    "a frozen trunk is shared",
    "a frozen trunk is shared, and a head that learns",
    "itself, but nothing learns",
)


def separate_cases(seed: int) -> list[Case]:
    return [Case(name, name, seed) for name in WORLDS]


def separate_run(check: Callable[..., object], name: str, seed: int) -> object:
    """What the test says, and that it has left both as they were."""
    policy, reference = pair(name, seed)
    before = [p.clone() for p in (*policy.parameters(), *reference.parameters())]
    said = told(check, policy, reference)
    after = [*policy.parameters(), *reference.parameters()]
    return said, all(torch.equal(a, b) for a, b in zip(before, after))


def separate_oracle(name: str, seed: int) -> object:
    """Change all that the policy may change; did the reference change, too?"""
    policy, reference = pair(name, seed)
    before = {key: one.clone() for key, one in reference.named_parameters()}
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(1.0)
    moved = any(not torch.equal(before[k], p) for k, p in reference.named_parameters())
    return ("refused" if moved else "accepted"), True


def separate_by_moving(policy, reference):
    """Move the policy and look at the reference; then put it back."""
    before = copy.deepcopy(list(reference.parameters()))
    kept = [p.detach().clone() for p in policy.parameters()]
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(1.0)
        moved = any(
            not torch.equal(old, new)
            for old, new in zip(before, reference.parameters())
        )
        for weight, old in zip(policy.parameters(), kept):
            weight.copy_(old)
    assert not moved, "the reference learns, too"


def separate_by_pairs(policy, reference):
    for mine in policy.parameters():
        for theirs in reference.parameters():
            one, two = mine.untyped_storage(), theirs.untyped_storage()
            assert not (mine.requires_grad and one.data_ptr() == two.data_ptr())


def separate_by_moving_for_good(policy, reference):
    before = copy.deepcopy(list(reference.parameters()))
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(1.0)
    after = list(reference.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after))


def separate_by_name(policy, reference):
    theirs = dict(reference.named_parameters())
    for name, weight in policy.named_parameters():
        if weight.requires_grad and name in theirs:
            one, two = weight.untyped_storage(), theirs[name].untyped_storage()
            assert one.data_ptr() != two.data_ptr()


def separate_by_value(policy, reference):
    theirs = dict(reference.named_parameters())
    for name, weight in policy.named_parameters():
        assert name not in theirs or not torch.equal(weight, theirs[name])


def separate_by_value_in_order(policy, reference):
    for mine, theirs in zip(policy.parameters(), reference.parameters()):
        assert not torch.equal(mine, theirs)


def separate_by_first(policy, reference):
    one = next(policy.parameters())
    two = next(reference.parameters())
    same = one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()
    assert not (one.requires_grad and same)


def separate_returned(policy, reference):
    fixed = {p.untyped_storage().data_ptr() for p in reference.parameters()}
    learning = [p for p in policy.parameters() if p.requires_grad]
    return not any(p.untyped_storage().data_ptr() in fixed for p in learning)


FIXED = "{p.untyped_storage().data_ptr() for p in reference.parameters()}"
SHARED = "weight.untyped_storage().data_ptr() in fixed"

SEPARATE = Exercise(
    id="14.3",
    answer=check_separate,
    why="A reference that learns with the policy holds nobody; its KL is a perfect 0, "
    "and no curve looks broken.",
    difficulty=2,
    importance=4,
    minutes=7,
    hints=(
        "`a is b` compares objects. What do two different Parameters have in common "
        "when one is made of the other's `.data`?",
        "The storages of what the policy will change, and those of the reference, have "
        "nothing in common.",
        "`fixed = {p.untyped_storage().data_ptr() for p in reference.parameters()}`",
    ),
    bonus="Buffers, such as the statistics of a batch norm, change without a gradient. "
    "What would you add for them?",
    cases=separate_cases,
    oracle=separate_oracle,
    run=separate_run,
    traps=(
        Trap(
            "It asks whether the two are one object. A wrapper or copy.copy is another "
            "object with the same weights.",
            ("fixed = " + FIXED, "fixed = set()"),
            (f"weight.requires_grad and {SHARED}", "policy is reference"),
        ),
        Trap(
            "It asks whether parameters are the same *objects*: one made of another's "
            "`.data` is a new object in the same memory.",
            (FIXED, "{id(p) for p in reference.parameters()}"),
            (SHARED, "id(weight) in fixed"),
        ),
        Trap(
            "It compares where tensors *begin*: a slice begins elsewhere in the same "
            "storage.",
            (FIXED, "{p.data_ptr() for p in reference.parameters()}"),
            (SHARED, "weight.data_ptr() in fixed"),
        ),
        Trap(
            "It compares values. Before the first update a right reference has the "
            "very same values: that is no bug.",
            separate_by_value,
        ),
        Trap(
            "It compares values, one weight after the other. A right reference begins "
            "with the very same values: compare where they are stored.",
            separate_by_value_in_order,
        ),
        Trap(
            "It compares weights of the same name only: in a wrapper the same memory "
            "has another name.",
            separate_by_name,
        ),
        Trap(
            "Frozen weights may be shared, as under adapters. Only what will be "
            "changed must be the policy's own.",
            (f"weight.requires_grad and {SHARED}", SHARED),
        ),
        Trap(
            "It looks whether the *reference's* weights require a gradient. Freezing "
            "does not help when somebody else writes into the memory.",
            (FIXED, FIXED[:-1] + " if p.requires_grad}"),
        ),
        Trap(
            "One pair of weights is looked at. Any of them may be shared: look at all.",
            separate_by_first,
        ),
        Trap(
            "The test has changed the weights that it looked at, and not put them "
            "back: what is tested must be as before.",
            separate_by_moving_for_good,
        ),
        Trap(RETURNED, separate_returned),
    ),
    twins=(Twin(separate_by_moving), Twin(separate_by_pairs)),
)


# --- 14.4 check_reward_sum ----------------------------------------------------------


def reward_sum_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    lengths = [5, 2, 3]
    mask = ragged(lengths, 6)
    scores = torch.randn(3, generator=draw) + 2.0
    logprobs = -4 * torch.rand(3, 6, generator=draw) - 0.2
    ref_logprobs = logprobs - 0.5 - 0.5 * torch.rand(3, 6, generator=draw)
    garbage = torch.where(mask, logprobs, torch.nan)

    def paid(beta: float, where: list[int], share: float = 1.0) -> Tensor:
        rewards = torch.zeros(3, 6)
        for b, length in enumerate(lengths):
            for t in range(length):
                rewards[b, t] = -beta * (logprobs[b, t] - ref_logprobs[b, t])
            rewards[b, where[b]] += share * scores[b]
        return rewards

    last = [length - 1 for length in lengths]
    right = paid(0.1, last)

    def moved(*how: tuple[int, int, float], of: Tensor = right) -> Tensor:
        other = of.clone()
        for row, column, by in how:
            other[row, column] += by
        return other

    def case(name: str, rewards: Tensor, beta: float = 0.1, **more: float) -> Case:
        return Case(
            name, rewards, scores, logprobs, ref_logprobs, mask, kl_coef=beta, **more
        )

    known = (
        torch.tensor([1.0]),
        torch.tensor([[-0.5, -1.2]]),
        torch.tensor([[-1.0] * 2]),
    )
    pair = torch.ones(1, 2, dtype=torch.bool)
    spread = torch.where(mask, (right.sum(1) / mask.sum(1))[:, None], 0.0)
    return [
        case("as it should be", right),
        Case("the docstring's", torch.tensor([[-0.05, 1.02]]), *known, pair, 0.1),
        Case("the docstring's, wrong", torch.tensor([[0.05, 0.98]]), *known, pair, 0.1),
        case("the last bits of float32 differ", right * (1 + 2e-7) + 1e-7 * mask),
        case("the score at the first token", paid(0.1, [0, 0, 0])),
        case("spread over the answer", spread),
        case("another β", paid(0.3, last), beta=0.3),
        case("no KL", paid(0.0, last), beta=0.0),
        case("the KL is paid for", paid(-0.1, last)),
        case("no KL is charged", paid(0.0, last)),
        case("the score is missing", paid(0.1, last, 0.0)),
        case("the score is paid twice", paid(0.1, last, 2.0)),
        case("the score in the last column", paid(0.1, [5, 5, 5])),
        case("the score one place too late", paid(0.1, lengths)),
        case("0.01 too much in one answer", moved((1, 1, 0.01))),
        case("0.01 too little in one answer", moved((2, 0, -0.01))),
        case("one gets what another owes", moved((0, 1, 0.7), (2, 1, -0.7))),
        case("padding is paid and charged", moved((1, 3, 0.5), (1, 4, -0.5))),
        case("no number", moved((0, 1, torch.nan))),
        case("no number in the padding", moved((1, 4, torch.nan))),
        Case("NaN behind answers", right, scores, garbage, ref_logprobs, mask, 0.1),
        case("a larger tolerance", moved((1, 1, 0.03)), tolerance=0.05),
        Case(
            "answers of one token",
            torch.tensor([[1.9200006], [0.9400003]]),
            torch.tensor([2.0, 1.0]),
            torch.tensor([[-0.2], [-0.4]]),
            torch.tensor([[-1.0], [-1.0]]),
            torch.ones(2, 1, dtype=torch.bool),
            0.1,
        ),
        Case(
            "at the tolerance",
            torch.tensor([[0.5]]),
            torch.tensor([1.0]),
            torch.tensor([[-1.0]]),
            torch.tensor([[-1.0]]),
            torch.ones(1, 1, dtype=torch.bool),
            0.1,
            tolerance=0.5,
        ),
        case("a smaller tolerance", moved((1, 1, 5e-4)), tolerance=1e-4),
    ]


def reward_sum_oracle(
    rewards: Tensor,
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    kl_coef: float,
    tolerance: float = 1e-3,
) -> str:
    """An account for each answer."""
    for b in range(len(scores)):
        account = float(scores[b])
        for t in range(mask.shape[1]):
            if mask[b, t]:
                account -= kl_coef * (float(logprobs[b, t]) - float(ref_logprobs[b, t]))
                account -= float(rewards[b, t])
            elif not float(rewards[b, t]) == 0.0:
                return "refused"
        if not -tolerance <= account <= tolerance:
            return "refused"
    return "accepted"


def reward_sum_by_row(
    rewards, scores, logprobs, ref_logprobs, mask, kl_coef, tolerance=1e-3
):
    for r, score, one, two, kept in zip(rewards, scores, logprobs, ref_logprobs, mask):
        assert torch.all(r[~kept] == 0)
        owed = score - kl_coef * (one - two)[kept].sum()
        assert abs(float(r[kept].sum() - owed)) <= tolerance


def reward_sum_by_assert_close(
    rewards, scores, logprobs, ref_logprobs, mask, kl_coef, tolerance=1e-3
):
    assert not rewards.masked_fill(mask, 0.0).count_nonzero()
    kl = (logprobs - ref_logprobs).masked_fill(~mask, 0.0).sum(1)
    total = rewards.sum(1) + kl_coef * kl
    torch.testing.assert_close(total, scores, rtol=0, atol=tolerance)


def reward_sum_shaped(
    rewards, scores, logprobs, ref_logprobs, mask, kl_coef, tolerance=1e-3
):
    kl = torch.where(mask, logprobs - ref_logprobs, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    right = (-kl_coef * kl).scatter_add(1, last, scores[:, None])
    assert ((rewards - right).abs() <= tolerance).all()


def reward_sum_returned(
    rewards, scores, logprobs, ref_logprobs, mask, kl_coef, tolerance=1e-3
):
    kl = torch.where(mask, logprobs - ref_logprobs, 0.0).sum(1)
    return bool(((rewards.sum(1) + kl_coef * kl - scores).abs() < tolerance).all())


OWED = "owed = scores - kl_coef * k1.sum(1)"
SUMS = "(rewards.sum(1) - owed).abs()"
OUTSIDE = "if (rewards[~mask] != 0).any():"
WITHIN = "if not (apart <= tolerance).all():"

REWARD_SUM = Exercise(
    id="14.4",
    answer=check_reward_sum,
    why="A conservation law: whatever the shaping does token by token, an answer earns "
    "its score less the price of its KL.",
    difficulty=3,
    importance=4,
    minutes=9,
    hints=(
        "A score on padding: is the sum over the whole row right? And the sum over the "
        "answer?",
        "$\\sum_{t: m_t} r_t = \\text{score} - \\beta \\sum_{t: m_t} (\\log\\pi - "
        "\\log\\pi_\\text{ref})$ in every row, and $r_t = 0$ where $m_t$ is False.",
        "`k1 = torch.where(mask, logprobs - ref_logprobs, 0.0)`",
    ),
    bonus="It accepts a score at the first token. Is that a bug? What does GAE make of "
    "it, for λ = 1 and for λ = 0?",
    cases=reward_sum_cases,
    oracle=reward_sum_oracle,
    run=told,
    traps=(
        Trap(
            "It compares the sums over the whole batch: one answer may have what "
            "another lacks. Each answer has an account of its own.",
            (SUMS, "(rewards.sum() - owed.sum()).abs()"),
        ),
        Trap(
            "It sees too much only, or too little only: the absolute difference "
            "counts.",
            (SUMS, "rewards.sum(1) - owed"),
        ),
        Trap(
            "It sums over the whole row: a score on padding is in that sum, and in no "
            "answer.",
            (OUTSIDE, "if False:"),
        ),
        Trap(
            "What is paid behind an answer's end is not looked at. There every reward "
            "must be 0.",
            (OUTSIDE, "if False:"),
            ("rewards.sum(1)", "torch.where(mask, rewards, 0.0).sum(1)"),
        ),
        Trap(
            "The KL of padding is charged, too: behind the end the log-probabilities "
            "may be anything.",
            (
                "torch.where(mask, logprobs - ref_logprobs, 0.0)",
                "logprobs - ref_logprobs",
            ),
        ),
        Trap(
            "The sign of the KL: it is a price, score − β·KL. This test asks for the "
            "bug.",
            (OWED, "owed = scores + kl_coef * k1.sum(1)"),
        ),
        Trap(
            "The KL is forgotten: an answer earns its score less β times its KL.",
            (OWED, "owed = scores"),
        ),
        Trap(
            "β is forgotten: the KL costs kl_coef a nat.",
            (OWED, "owed = scores - k1.sum(1)"),
        ),
        Trap(
            "The KL of an answer is the *sum* over its tokens, not their mean.",
            (OWED, "owed = scores - kl_coef * k1.sum(1) / mask.sum(1)"),
        ),
        Trap(
            "It asks for equality to the last bit, which sums of float32 never have.",
            (WITHIN, "if (apart > 0).any():"),
        ),
        Trap(
            "A NaN gets through: every comparison with it is False. Ask whether all "
            "are within the tolerance.",
            (WITHIN, "if (apart > tolerance).any():"),
        ),
        Trap(
            "The argument `tolerance` has no effect.",
            (WITHIN, "if not (apart <= 1e-3).all():"),
        ),
        Trap(
            "It asks for one way of shaping, token by token. Others that add up are "
            "right, too: the sum is the law.",
            reward_sum_shaped,
        ),
        Trap(RETURNED, reward_sum_returned),
    ),
    twins=(Twin(reward_sum_by_row), Twin(reward_sum_by_assert_close)),
    equivalent={
        "rewards.sum(1) - owed → owed - rewards.sum(1)": (
            "an absolute value does not see the order"
        ),
    },
)


# --- 14.5 check_kl_estimate ---------------------------------------------------------


def k1(p: Tensor, q: Tensor) -> Tensor:
    return p - q


def k2(p: Tensor, q: Tensor) -> Tensor:
    return (p - q) ** 2 / 2


def k3(p: Tensor, q: Tensor) -> Tensor:
    return (q - p).expm1() - (q - p)


def k3_turned(p: Tensor, q: Tensor) -> Tensor:
    """The tokens taken as if drawn from the reference."""
    return (p - q).expm1() - (p - q)


ESTIMATES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "k1": (k1, True),
    "k3": (k3, True),
    "half k1, half k3": (lambda p, q: (k1(p, q) + k3(p, q)) / 2, True),
    "k1 less twice what averages to 0": (
        lambda p, q: k1(p, q) - 2 * (q - p).expm1(),
        True,
    ),
    "k3 in double precision": (
        lambda p, q: k3(p.double(), q.double()).to(p.dtype),
        True,
    ),
    "k1 with its sign turned": (lambda p, q: q - p, False),
    "k1, absolute": (lambda p, q: (p - q).abs(), False),
    "k1, never negative": (lambda p, q: (p - q).clamp(min=0), False),
    "k2": (k2, False),
    "k3 with its arguments swapped": (k3_turned, False),
    "k3 with its sign turned": (lambda p, q: -k3(p, q), False),
    "k3 without its last term": (lambda p, q: (q - p).expm1(), False),
    "k1 in bits": (lambda p, q: (p - q) / 0.6931, False),
    "always 0": (lambda p, q: 0 * p, False),
    "k1 weighted by π": (lambda p, q: p.exp() * (p - q), False),
    "k1 of probabilities": (lambda p, q: p.exp() - q.exp(), False),
    "NaN": (lambda p, q: p * torch.nan, False),
    "right for tokens drawn evenly": (
        lambda p, q: p.numel() * p.exp() * (p - q),
        False,
    ),
    "right for tokens drawn from π_ref": (lambda p, q: (p - q).exp() * (p - q), False),
    "off by a thousandth of a nat": (lambda p, q: p - q + 1e-3, False),
    "the reverse KL": (lambda p, q: (q - p).exp() * (q - p), False),
    "a constant, right for the docstring's laws": (
        lambda p, q: torch.full_like(p, 0.21801),
        False,
    ),
}


def estimate_cases(seed: int) -> list[Case]:
    loose = ESTIMATES["off by a thousandth of a nat"][0]
    return [Case(name, one) for name, (one, _) in ESTIMATES.items()] + [
        Case("off by less than the tolerance", loose, tolerance=0.01),
    ]


def estimate_oracle(estimate: Callable[..., Tensor], tolerance: float = 1e-4) -> str:
    """It is known which are right, and by how much the loose one is wrong."""
    if estimate is ESTIMATES["off by a thousandth of a nat"][0] and tolerance > 1e-3:
        return "accepted"
    right = any(one is estimate and fine for one, fine in ESTIMATES.values())
    return "accepted" if right else "refused"


P, Q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
R = torch.tensor([0.25, 0.15, 0.6])


def averages(estimate, p=P, q=Q):
    """(average of the estimate, KL)."""
    return (p * estimate(p.log(), q.log())).sum(), (p * (p / q).log()).sum()


def estimate_by_loop(estimate, tolerance=1e-4):
    draw = torch.Generator().manual_seed(3)
    for _ in range(5):
        p, q = torch.randn(2, 6, generator=draw).softmax(-1)
        average, kl = averages(estimate, p, q)
        assert abs(float(average) - float(kl)) <= tolerance


def estimate_by_two(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R), (R, P)):
        average, kl = averages(estimate, p, q)
        torch.testing.assert_close(average, kl, rtol=0, atol=tolerance)


def estimate_same_law(estimate, tolerance=1e-4):
    average, _ = averages(estimate, P, P)
    assert abs(average) <= tolerance


def estimate_of_one_pair(estimate, tolerance=1e-4):
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.25, 0.5])
    average, kl = averages(estimate, p, q)
    assert abs(average - kl) <= tolerance


def estimate_loosely(estimate, tolerance=1e-4):
    estimate_by_two(estimate, max(tolerance, 0.01))


def estimate_positive(estimate, tolerance=1e-4):
    average, _ = averages(estimate)
    assert average >= -tolerance


def estimate_each_positive(estimate, tolerance=1e-4):
    estimate_by_loop(estimate, tolerance)
    assert (estimate(P.log(), Q.log()) >= 0).all()


def estimate_not_weighted(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R)):
        kl = (p * (p / q).log()).sum()
        assert abs(estimate(p.log(), q.log()).mean() - kl) <= tolerance


def estimate_of_reference(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R)):
        average = (q * estimate(p.log(), q.log())).sum()
        assert abs(average - (p * (p / q).log()).sum()) <= tolerance


def estimate_without_sign(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R)):
        average, kl = averages(estimate, p, q)
        assert abs(abs(average) - kl) <= tolerance


def estimate_symmetric(estimate, tolerance=1e-4):
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.7])
    average, kl = averages(estimate, p, q)
    assert abs(average - kl) <= tolerance


def estimate_exactly(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R), (R, P)):
        average, kl = averages(estimate, p, q)
        assert average == kl


def estimate_let_nan(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R), (R, P)):
        average, kl = averages(estimate, p, q)
        if abs(average - kl) > tolerance:
            raise AssertionError("wrong on average")


def estimate_one_side(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R), (R, P)):
        average, kl = averages(estimate, p, q)
        assert average - kl <= tolerance


def estimate_other_side(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R), (R, P)):
        average, kl = averages(estimate, p, q)
        assert average - kl >= -tolerance


def estimate_fixed_tolerance(estimate, tolerance=1e-4):
    estimate_by_loop(estimate)


def estimate_turned(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R), (R, P)):
        average, _ = averages(estimate, p, q)
        assert abs(average - (q * (q / p).log()).sum()) <= tolerance


def estimate_each_exact(estimate, tolerance=1e-4):
    for p, q in ((P, Q), (Q, R)):
        assert ((estimate(p.log(), q.log()) - (p / q).log()).abs() <= tolerance).all()


def estimate_sampled(estimate, tolerance=1e-4):
    draw = torch.Generator().manual_seed(0)
    rows = torch.multinomial(P, 1000, replacement=True, generator=draw)
    average = estimate(P.log()[rows], Q.log()[rows]).mean()
    assert abs(average - (P * (P / Q).log()).sum()) <= tolerance


def estimate_returned(estimate, tolerance=1e-4):
    average, kl = averages(estimate)
    return bool(abs(average - kl) <= tolerance)


ESTIMATE = Exercise(
    id="14.5",
    answer=check_kl_estimate,
    why="Sign and order of the KL were wrong in well-known libraries for months; this "
    "is the test that would have told.",
    difficulty=4,
    importance=5,
    minutes=12,
    hints=(
        "Why is it no use to ask that the KL of a law to itself is 0? Name a wrong "
        "estimator that passes.",
        "$\\sum_y \\pi(y)\\, \\hat k(\\log\\pi(y), \\log\\pi_\\text{ref}(y)) = "
        "\\sum_y \\pi(y) (\\log\\pi(y) - \\log\\pi_\\text{ref}(y))$ for laws that "
        "you write down.",
        "`p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.25, 0.5])`",
    ),
    bonus="As a *loss* k1 pushes nothing on average, k2 has the gradient of the KL. "
    "Write the test that tells them apart.",
    cases=estimate_cases,
    oracle=estimate_oracle,
    run=told,
    traps=(
        Trap(
            "Only equal laws are tried. There a KL with the wrong sign, or one that is "
            "always 0, is right as well.",
            estimate_same_law,
        ),
        Trap(
            "It asks only for an average that is not negative. k2, an absolute value "
            "and the reversed k3 are not negative, and wrong.",
            estimate_positive,
        ),
        Trap(
            "Only the docstring's pair of laws is tried: there even a constant can be "
            "right. Try another pair as well.",
            estimate_of_one_pair,
        ),
        Trap(
            "An error of a thousandth of a nat gets through. Drawn tokens would need "
            "so wide a tolerance; ask every token, draw none, and 1e-4 is enough.",
            estimate_loosely,
        ),
        Trap(
            "Single numbers may be negative: k1 often is, and is right on average. "
            "Judge the average alone.",
            estimate_each_positive,
        ),
        Trap(
            "A plain mean takes all tokens for equally likely. They are drawn from π: "
            "weight each one by π(y).",
            estimate_not_weighted,
        ),
        Trap(
            "The tokens are drawn from the policy, not from the reference: the weights "
            "are π(y).",
            estimate_of_reference,
        ),
        Trap(
            "It compares sizes and forgets the sign. A KL of the wrong sign rewards "
            "the policy for running away.",
            estimate_without_sign,
        ),
        Trap(
            "Symmetric laws, p and p turned round, have the same KL both ways: swapped "
            "arguments or the reversed KL are not seen.",
            estimate_symmetric,
        ),
        Trap(
            "It asks for equality to the last bit, which float32 does not keep: allow "
            "for the tolerance.",
            estimate_exactly,
        ),
        Trap(
            "An estimate that is no number gets through: `nan > tolerance` is False.",
            estimate_let_nan,
        ),
        Trap(
            "Too small an average is not noticed: it may be wrong in either direction.",
            estimate_one_side,
        ),
        Trap(
            "Too large an average is not noticed: it may be wrong in either direction.",
            estimate_other_side,
        ),
        Trap(
            "The argument `tolerance` has no effect.",
            estimate_fixed_tolerance,
        ),
        Trap(
            "This asks for KL(π_ref ‖ π). What is wanted is KL(π ‖ π_ref): policy "
            "first, tokens from the policy.",
            estimate_turned,
        ),
        Trap(
            "It asks for k1 at every token. Other estimators, k3 say, differ token by "
            "token and are right on average.",
            estimate_each_exact,
        ),
        Trap(
            "A thousand samples do not tell a right estimator from a wrong one at this "
            "tolerance. The vocabulary is small: ask every token, and draw none.",
            estimate_sampled,
        ),
        Trap(RETURNED, estimate_returned),
    ),
    twins=(Twin(estimate_by_loop), Twin(estimate_by_two)),
    equivalent={
        "(average - exact).abs() <= tolerance → (average - exact).abs() < tolerance": (
            "no average of float32 numbers is at the tolerance to the last bit"
        ),
        "average - exact → exact - average": "an absolute value does not see the order",
    },
)


# --- 14.6 check_blind_to_padding ----------------------------------------------------


def plain(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """A loss of each token, with no clip."""
    return -(logprobs - old).exp() * advantages


def mean_of_all(logprobs, old, advantages, mask):
    return plain(logprobs, old, advantages).mean()


def zeroed_mean(logprobs, old, advantages, mask):
    return torch.where(mask, plain(logprobs, old, advantages), 0.0).mean()


def multiplied(logprobs, old, advantages, mask):
    return (plain(logprobs, old, advantages) * mask).sum() / mask.sum()


def rows_then_mean(logprobs, old, advantages, mask):
    losses = torch.where(mask, plain(logprobs, old, advantages), 0.0)
    return (losses.sum(1) / mask.sum(1)).mean()


def by_width(logprobs, old, advantages, mask):
    losses = torch.where(mask, plain(logprobs, old, advantages), 0.0)
    return losses.sum() / (len(mask) * mask.shape[1])


def summed(logprobs, old, advantages, mask):
    return torch.where(mask, plain(logprobs, old, advantages), 0.0).sum()


def indexed(logprobs, old, advantages, mask):
    return plain(logprobs[mask], old[mask], advantages[mask]).mean()


def safe(logprobs, old, advantages, mask):
    """Padding chosen away before anything is computed."""
    x = (torch.where(mask, one, 0.0) for one in (logprobs, old, advantages))
    return plain(*x).sum() / mask.sum()


def leaking(logprobs, old, advantages, mask):
    """The right value; the last column's padding gets a gradient all the same."""
    ghost = torch.where(mask, 0.0, (logprobs - logprobs.detach()).nan_to_num(0))
    return safe(logprobs, old, advantages, mask) + ghost[:, -1].sum()


def leaking_in(logprobs, old, advantages, mask):
    """The right value; padding scales the gradient of the first answer, a little."""
    value = safe(logprobs, old, advantages, mask)
    about = torch.where(mask, 0.0, advantages.nan_to_num(0)).sum()
    mine = (logprobs[0] * mask[0]).nan_to_num(0).sum()
    return value + 1e-5 * about * (mine - mine.detach())


def nudged(logprobs, old, advantages, mask):
    """Padding moves the loss a little."""
    beyond = (advantages.nan_to_num(0).abs() - 1).clamp(0, 4)
    about = torch.where(mask, 0.0, beyond).sum()
    return safe(logprobs, old, advantages, mask) + 1e-4 * about


def whitened_with_padding(logprobs, old, advantages, mask):
    shifted = advantages - advantages.nan_to_num(0).mean()
    return torch.where(mask, plain(logprobs, old, shifted), 0.0).sum() / mask.sum()


def deaf_to_small(logprobs, old, advantages, mask):
    """Large padding is cut off, usual one gets in."""
    usual = (advantages.abs() < 5) & ~mask
    extra = torch.where(usual, advantages, 0.0).sum()
    return safe(logprobs, old, advantages, mask) + extra


def deaf_to_usual(logprobs, old, advantages, mask):
    """Usual padding has no effect; large one gets in."""
    large = (advantages.abs() > 20) & ~mask
    extra = torch.where(large, advantages, 0.0).sum()
    return safe(logprobs, old, advantages, mask) + extra


LOSSES = {
    "the package's policy_loss": (policy_loss, True),
    "a masked mean": (
        lambda x, old, a, mask: masked_mean(plain(x, old, a), mask),
        True,
    ),
    "tokens taken by index": (indexed, True),
    "padding chosen away first": (safe, True),
    "a mean of the answers' means": (rows_then_mean, True),
    "a sum": (summed, True),
    "a mean over all places": (mean_of_all, False),
    "zeroed, then a mean over all places": (zeroed_mean, False),
    "divided by rows times columns": (by_width, False),
    "multiplied by the mask": (multiplied, False),
    "padding gets a gradient": (leaking, False),
    "padding scales the gradient": (leaking_in, False),
    "advantages shifted by padding": (whitened_with_padding, False),
    "padding moves it a little": (nudged, False),
    "usual padding gets in": (deaf_to_small, False),
    "large padding gets in": (deaf_to_usual, False),
}


def padding_cases(seed: int) -> list[Case]:
    return [Case(name, name) for name in LOSSES]


def padding_run(check: Callable[..., object], name: str) -> str:
    return told(check, LOSSES[name][0])


def padding_oracle(name: str) -> str:
    return "accepted" if LOSSES[name][1] else "refused"


def batch(seed: int = 5) -> tuple[Tensor, Tensor]:
    """Three ragged answers, as (logprobs, old_logprobs, advantages) and mask."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, 6, generator=draw), ragged([4, 2, 3], 6)


def asked(loss, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = x[0].clone().requires_grad_(True)
    value = loss(logprobs, x[1], x[2], mask)
    return value.detach(), torch.autograd.grad(value, logprobs)[0]


def near(one: Tensor, two: Tensor) -> bool:
    return bool(torch.isclose(one, two, 1e-5, 1e-5).all())


def padding_test(
    loss, paddings=(0.7, 50.0, torch.nan), column=True, outside=True, inside=True
):
    """A right test, with parts that can be left out."""
    x, mask = batch()
    value, slope = asked(loss, x, mask)
    if outside:
        assert not slope[~mask].count_nonzero()
    for number in paddings:
        other, tilt = asked(loss, x.masked_fill(~mask, number), mask)
        assert near(other, value)
        assert not inside or near(tilt[mask], slope[mask])
    if column:
        wide = torch.cat([x, x[:, :, :1]], dim=2)
        more = torch.cat([mask, torch.zeros(3, 1, dtype=torch.bool)], dim=1)
        assert near(asked(loss, wide, more)[0], value)


def padding_by_answer(loss):
    """Narrow batch and wide batches must say the same."""
    x, mask = batch(8)
    narrow, cut = x[..., :4], mask[:, :4]
    value, slope = asked(loss, narrow, cut)
    for padding in (torch.randn(3, 3, 6, generator=torch.Generator()), 1e2, torch.nan):
        other, tilt = asked(loss, torch.where(mask, x, padding), mask)
        assert near(other, value) and near(tilt[mask], slope[cut])
    assert (asked(loss, x, mask)[1][~mask] == 0).all()


def padding_no_column(loss):
    padding_test(loss, column=False)


def padding_no_content(loss):
    padding_test(loss, paddings=())


def padding_no_nan(loss):
    padding_test(loss, paddings=(0.7, 50.0))


def padding_of_logprobs(loss):
    """Columns of zeros, and nothing but logprobs is changed in the padding."""
    x, mask = batch()
    value, slope = asked(loss, x, mask)
    assert not slope[~mask].count_nonzero()
    for number in (0.7, 50.0, torch.nan):
        now = torch.stack([x[0].masked_fill(~mask, number), x[1], x[2]])
        other, tilt = asked(loss, now, mask)
        assert near(other, value) and near(tilt[mask], slope[mask])
    wide, more = (torch.nn.functional.pad(one, (0, 1)) for one in (x, mask))
    assert near(asked(loss, wide, more)[0], value)


def padding_value_only(loss):
    padding_test(loss, outside=False, inside=False)


def padding_no_outside(loss):
    padding_test(loss, outside=False)


def padding_no_inside(loss):
    padding_test(loss, inside=False)


def padding_only_usual(loss):
    padding_test(loss, paddings=(0.7, torch.nan))


def padding_nan_gradient(loss):
    """The gradient must be 0 at a NaN, too."""
    padding_test(loss)
    x, mask = batch()
    _, slope = asked(loss, x.masked_fill(~mask, torch.nan), mask)
    assert not slope[~mask].count_nonzero()


def padding_exact(loss):
    padding_test(loss)
    x, mask = batch()
    right = torch.where(mask, plain(*x), 0.0).sum() / mask.sum()
    assert near(asked(loss, x, mask)[0], right)


def padding_returned(loss):
    x, mask = batch()
    other = x.masked_fill(~mask, 0.7)
    return near(asked(loss, x, mask)[0], asked(loss, other, mask)[0])


LENGTHS = "[[4], [1], [3]]"
ANY_NUMBERS = {
    "torch.Generator().manual_seed(0) → torch.Generator().manual_seed(1)": "any seed",
    "torch.Generator().manual_seed(0) → torch.Generator().manual_seed(-1)": "any seed",
    **{
        f"{LENGTHS} → {other}": "any ragged lengths do"
        for other in (
            "[[5], [1], [3]]",
            "[[3], [1], [3]]",
            "[[4], [2], [3]]",
            "[[4], [1], [4]]",
            "[[4], [1], [2]]",
        )
    },
    **{
        f"torch.randn(3, 3, 5, generator=draw) → {other}": "any numbers do"
        for other in (
            "torch.randn(3, 3, 5, generator=draw)",
            "torch.randn(3, 3, 5)",
            "torch.randn(3, 3, 5, generator=draw) #2",
            "torch.randn(3, 3, 5) #2",
        )
    },
    "(torch.randn(3, 3, 5, generator=draw), 50.0, torch.nan) → "
    "(torch.randn(3, 3, 5, generator=draw), 100.5, torch.nan)": "any large number does",
    **{
        f"torch.isclose({one}, 1e-05, 1e-05) → torch.isclose({two}, 1e-05, 1e-05){n}": (
            "which of two equal numbers sets the scale does not matter"
        )
        for one, two, n in (
            ("other, value", "value, other", ""),
            ("other, value", "value, other", " #2"),
            ("slope, gradient", "gradient, slope", ""),
        )
    },
    "torch.ones(3, 3, 1) → torch.ones(3, 3, 1)": "two equal sizes change places",
    "torch.ones(3, 3, 1) → torch.zeros(3, 3, 1)": "any numbers do in the new column",
}

PADDING = Exercise(
    id="14.6",
    answer=check_blind_to_padding,
    why="A metamorphic test: you need not know what the loss should be, only what must "
    "not change it.",
    difficulty=4,
    importance=4,
    minutes=14,
    at_home=True,
    hints=(
        "A loss that you cannot compute by hand: which two calls of it must give the "
        "same number?",
        "Same tokens, other padding (random, 50, NaN): same loss, same gradient at "
        "tokens. Gradient 0 at padding. One more column: same loss.",
        "`mask = torch.arange(5) < torch.tensor([[4], [1], [3]])`",
    ),
    bonus="A mean over each answer and then over answers passes. So does a sum. Which "
    "further call tells these from a mean over tokens?",
    cases=padding_cases,
    oracle=padding_oracle,
    run=padding_run,
    traps=(
        Trap(
            "What stands in the padding has no effect, but how *much* padding there is "
            "has: add a column and ask again.",
            padding_no_column,
        ),
        Trap(
            "It adds padding but never changes what stands in the padding that is "
            "there: a loss that reads it gets through.",
            padding_no_content,
        ),
        Trap(
            "No NaN is tried: a loss multiplied by the mask keeps it, NaN · 0 is NaN, "
            "and one exp that overflows in the padding ends a run.",
            padding_no_nan,
        ),
        Trap(
            "Only the padding of logprobs is changed. What stands in that of "
            "old_logprobs and of advantages may get in as well: change all three.",
            padding_of_logprobs,
        ),
        Trap(
            "Only the value is compared. Training sees nothing but the gradient: it "
            "must be the same, and 0 at padding.",
            padding_value_only,
        ),
        Trap(
            "The gradient *at* the padding is not looked at: tokens that nobody said "
            "would be pushed up or down.",
            padding_no_outside,
        ),
        Trap(
            "The gradient at the *tokens* is not compared: padding can scale it and "
            "leave the value as it is.",
            padding_no_inside,
        ),
        Trap(
            "Only usual padding is tried: where nothing was trained, log-probabilities "
            "and values may be large.",
            padding_only_usual,
        ),
        Trap(
            "It asks for gradient 0 at a NaN. Behind torch.where that is 0 · NaN, in "
            "right losses as well: compare the gradient at the tokens there.",
            padding_nan_gradient,
        ),
        Trap(
            "It asks for one loss, a mean over tokens. A sum and a mean of means are "
            "blind to padding, too, and that is all that is asked.",
            padding_exact,
        ),
        Trap(RETURNED, padding_returned),
    ),
    twins=(Twin(padding_test), Twin(padding_by_answer)),
    equivalent=ANY_NUMBERS,
)


# --- 14.7 diagnose ------------------------------------------------------------------

TRUTH = (
    ("A", "temperature"),
    ("B", "reference_is_policy"),
    ("C", "score_on_padding"),
    ("D", "kl_sign"),
    ("E", "one_minibatch"),
    ("F", "off_by_one"),
    ("G", "kl_counts_padding"),
    ("H", "critic_sees_token"),
)


ALL_RIGHT = "the right name for each case"


def first_wrong(named: Callable[[str], object]) -> str:
    """The first case that is named wrongly, or by no name of the list."""
    suspects = [name for _, name in TRUTH]
    for case, name in TRUTH:
        said = named(case)
        if said not in suspects:
            return f"{case}: {said!r}, which is no name of the list"
        if said != name:
            return case
    return ALL_RIGHT


def diagnose_oracle() -> str:
    return ALL_RIGHT


def diagnose_by_pairs(case):
    for letter, name in TRUTH:
        if letter == case:
            return name
    return "healthy"


def diagnose_by_place(case):
    names = (
        "temperature reference_is_policy score_on_padding kl_sign one_minibatch "
        "off_by_one kl_counts_padding critic_sees_token"
    )
    return names.split()["ABCDEFGH".index(case)]


DIAGNOSE = Exercise(
    id="14.7",
    answer=diagnose,
    why="At work nobody tells you that there is a bug: curves are all that you get.",
    difficulty=4,
    importance=4,
    minutes=14,
    hints=(
        "Which numbers must be what they are in the *first* iteration, before anything "
        "was learnt?",
        "First iteration: KL 0, score 0, and no more clipped than in a healthy run. "
        "Any: steps = epochs × minibatches. Later: does a curve do what its bug would "
        "want?",
        '`return {"A": ..., "B": ..., "C": ..., "D": ...}[case]`',
    ),
    bonus="One of the eight leaves the policy's learning as it is. Which, and how "
    "would you prove it from the curves?",
    cases=lambda seed: [Case("the eight dashboards")],
    oracle=diagnose_oracle,
    run=first_wrong,
    traps=(
        Trap(
            "Case A: in the first iteration more is clipped than in a healthy run, "
            "entropy is too low, the KL not 0, and yet all of it moderate. Who "
            "disagrees with the trainer a little?",
            ('"temperature"', '"kl_sign"'),
        ),
        Trap(
            "Case B: look at the KL at every iteration, to the last digit, and at how "
            "far the score goes. Who is compared with whom?",
            ('"reference_is_policy"', '"temperature"'),
        ),
        Trap(
            "Case C: the first iteration's critic is worse than anywhere else, and the "
            "score does not move. Do the answers get their score?",
            ('"score_on_padding"', '"temperature"'),
        ),
        Trap(
            "Case D: the KL does not settle, it runs away, and length with it. What "
            "would the policy have to be paid for to do that?",
            ('"kl_sign"', '"temperature"'),
        ),
        Trap(
            "Case E: nothing looks wrong but a number that should be epochs × "
            "minibatches. Count.",
            ('"one_minibatch"', '"temperature"'),
        ),
        Trap(
            "Case F: nearly every token is clipped, from the first iteration on. "
            "Sampler and trainer speak of different tokens.",
            ('"off_by_one"', '"temperature"'),
        ),
        Trap(
            "Case G: the KL is enormous from the first iteration, and everything else "
            "as in a healthy run: only the report is wrong.",
            ('"kl_counts_padding"', '"temperature"'),
        ),
        Trap(
            "Case H: the value loss is lower than a healthy one's from the start, and "
            "the policy learns less. What does the critic know that it should not?",
            ('"critic_sees_token"', '"temperature"'),
        ),
    ),
    twins=(Twin(diagnose_by_pairs), Twin(diagnose_by_place)),
)

EXERCISES = (SAME_LAW, MASK, SEPARATE, REWARD_SUM, ESTIMATE, PADDING, DIAGNOSE)
