"""What must hold in every run of RLHF, checked while it runs.

The first four look at tensors and networks; `collect` asks them about every rollout,
`collect_groups` about its answers. They cost next to nothing and are on by default. The
last two take a function and try it on a small case: tests, for a suite. Each raises
InvariantError, which says what is wrong and where to look first; where all is well they
return None.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm.model.palm import PaLM
from minipalm.model.place import is_sharded, machine_of
from minipalm.rlhf.logprobs import response_logits, token_logprobs


class InvariantError(AssertionError):
    """Something that every right run keeps does not hold."""


_switch = {"on": True}


def switched_on() -> bool:
    return _switch["on"]


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Let a run go on that breaks its invariants: to see what comes of it."""
    before = _switch["on"]
    _switch["on"] = False
    try:
        yield
    finally:
        _switch["on"] = before


def check_same_law(
    logprobs: Float[Tensor, "B T"],
    other_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    tolerance: float = 1e-3,
) -> None:
    """Refuse two log-probabilities of the same tokens that do not agree.

    Before the first step of an update the policy is the one that has sampled, so every
    ratio is 1; before the first update it is the reference, so every k1 is 0.

    Args:
        logprobs, other_logprobs: of the same tokens, nats: by the sampler and by the
            training pass, or by the policy and by the reference.
        mask: True at the tokens that count; anything, NaN too, may stand elsewhere.
            No token at all is fine.
        tolerance: nats. In float32 two passes differ by some 1e-6; a bug by 1e-2 and
            more.

    Raises:
        AssertionError: at one token or more they differ by more than tolerance, in
            either direction, or their difference is no finite number.

    Example: (−1, −2) against (−1, −2.5) with a mask of (True, False) is fine; with
    (True, True) it is refused, and so it is the other way round.
    """
    apart = torch.where(mask, logprobs - other_logprobs, 0.0).abs()
    agree = apart <= tolerance  # a NaN does not agree
    if not agree.all():
        raise InvariantError(
            f"{int((~agree).sum())} of {int(mask.sum())} tokens have another "
            f"log-probability than before, by up to {apart[~agree].max():.3g} nats, "
            "though no weight has changed. Look first at what the two passes do not "
            "share: temperature or filters, padding and positions, which logits belong "
            "to which token."
        )


def check_mask(
    responses: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], eos_id: int
) -> None:
    """Refuse a mask that does not mark whole answers.

    Each row's True places are its first one or more. An answer goes on up to and
    including its first end-of-sequence token, or fills the row: so inside a row's True
    places the end stands at the last of them or nowhere, and nowhere only if all places
    of the row are True.

    Args:
        responses: tokens; behind an answer anything may stand, an end too.
        mask: True where a token counts.
        eos_id: ends an answer.

    Raises:
        AssertionError: in one row or more it is not so.

    Example: with eos_id 2 and the row (7, 2, 9), the mask (True, True, False) is fine.
    (True, False, False) leaves the end out, so that nobody learns to stop;
    (True, True, True) goes on behind it; (True, False, True) has a hole.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    lengths = mask.sum(1, keepdim=True)
    if not (mask == (places < lengths)).all():
        raise InvariantError(
            "an answer's mask must be True from its first token on, without a hole, "
            "and False behind its end"
        )
    ends = mask & (responses == eos_id)
    early = ends & (places < lengths - 1)
    if early.any():
        raise InvariantError(
            f"{int(early.any(1).sum())} of {len(mask)} masks go on behind the end of "
            "the answer: what stands there was never said"
        )
    cut = ~ends.any(1) & ~mask[:, -1]
    if cut.any():
        raise InvariantError(
            f"{int(cut.sum())} of {len(mask)} answers are empty, or stop before the "
            "end of the row without an end-of-sequence token that counts: nobody would "
            "learn to stop. Is the end taken for padding (pad id = eos id)?"
        )


def check_separate(policy: nn.Module, reference: nn.Module) -> None:
    """Refuse a reference that learns with the policy.

    Args:
        policy: its parameters with requires_grad will be changed.
        reference: must stay as it is.

    Equal values are no sin: both begin as the same network. Nor are shared weights that
    stay frozen, as under adapters: only what will be changed counts. But memory counts,
    not names: two parameters may be different objects, or look at different parts, of
    one storage. `p.untyped_storage().data_ptr()` tells the storage of a tensor p.

    Raises:
        AssertionError: a parameter of the policy that will be changed shares its
            storage with a parameter of the reference.

    Example: `reference = copy.deepcopy(policy)` is fine, `reference = policy` is
    refused, and so is `copy.copy(policy)`, which has the same tensors.
    """
    fixed = {p.untyped_storage().data_ptr() for p in reference.parameters()}
    for name, weight in policy.named_parameters():
        if weight.requires_grad and weight.untyped_storage().data_ptr() in fixed:
            raise InvariantError(
                f"{name} is the same memory in policy and reference: the reference "
                "learns with the policy, the KL is always 0 and holds nobody. Copy it "
                "with copy.deepcopy before training"
            )


def check_reward_sum(
    rewards: Float[Tensor, "B T"],
    scores: Float[Tensor, "B"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    kl_coef: float,
    tolerance: float = 1e-3,
) -> None:
    """Refuse rewards that do not add up: Σ_t r_t = score − β Σ_t k1_t in every answer.

    Whatever the rewards are token by token, nothing may be lost, paid twice, or paid
    for tokens that were never said.

    Args:
        rewards: r_t, shaped: score and price of the KL.
        scores: of the whole answers.
        logprobs, ref_logprobs: k1_t = log π(y_t) − log π_ref(y_t); may be anything
            where mask is False.
        mask: True at the tokens of the answers, one or more a row. The sums are over
            these.
        kl_coef: β, reward units a nat.
        tolerance: largest difference in one answer, reward units.

    Raises:
        AssertionError: in one answer or more the sums differ by more than tolerance,
            in either direction, or by no finite number; or a reward is not 0 where
            mask is False.

    Example: score 1, β .1, k1 (.5, −.2): rewards (−.05, 1.02) are fine, as are (.97, 0)
    and (0, .97). (.05, .98) are refused: the KL was paid for, not charged.
    """
    if (rewards[~mask] != 0).any():
        raise InvariantError(
            "a reward stands behind the end of an answer, where no token was said: is "
            "the last column taken for the last token?"
        )
    k1 = torch.where(mask, logprobs - ref_logprobs, 0.0)
    owed = scores - kl_coef * k1.sum(1)
    apart = (rewards.sum(1) - owed).abs()
    if not (apart <= tolerance).all():
        raise InvariantError(
            f"the rewards of an answer add up to {apart.max():.3g} more or less than "
            "score − β·KL: is the score paid once, at the last token, and is the KL "
            "taken off (its sign, its mask)?"
        )


# --- what every rollout goes through ------------------------------------------------

ROWS = 4  # answers that the policy reads once more, to compare


@torch.no_grad()
def check_answers(
    policy: PaLM,
    reference: PaLM,
    tokens: tuple[Tensor, Tensor, Tensor, Tensor],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    scores: Float[Tensor, "B"],
    *,
    eos_id: int,
    temperature: float,
) -> None:
    """All that must hold of fresh answers, whatever shall be learnt from them.

    The policy is still the one that has sampled, so the training pass must find the
    sampler's log-probabilities: it is asked about a few answers. If the weights are
    those of the reference, the KL is 0. Nothing is changed and nothing drawn.

    Raises:
        InvariantError: something does not hold, and the checks are not `switched_off`.
    """
    if not switched_on():
        return
    responses, mask = tokens[2:]
    check_mask(responses, mask, eos_id)
    if not is_sharded(next(policy.parameters())):  # parts have memory of their own
        check_separate(policy, reference)
    check_zero_behind("logprobs", logprobs, mask)
    check_zero_behind("ref_logprobs", ref_logprobs, mask)
    check_finite("scores", scores)
    if machine_of(policy).compile:  # for one number of rows; the sampler's gap is known
        return
    exact = next(policy.parameters()).dtype in (torch.float32, torch.float64)
    exact = exact and machine_of(policy).compute == "float32"
    nats = 1e-3 if exact else 0.5  # bfloat16 has 8 bits, a rare token is far off
    asked, seen, said, kept = (x[:ROWS] for x in tokens)
    logits = response_logits(policy, asked, seen, said, kept, temperature)
    check_same_law(token_logprobs(logits, said), logprobs[:ROWS], kept, nats)
    if same_weights(policy, reference):
        check_same_law(logprobs, ref_logprobs, mask, nats)


@torch.no_grad()
def check_rollout(
    policy: PaLM,
    reference: PaLM,
    tokens: tuple[Tensor, Tensor, Tensor, Tensor],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    scores: Float[Tensor, "B"],
    rewards: Float[Tensor, "B T"],
    *,
    eos_id: int,
    kl_coef: float,
    temperature: float,
) -> None:
    """`check_answers`, and what must hold of the values and rewards of their tokens.

    Raises:
        InvariantError: something does not hold, and the checks are not `switched_off`.
    """
    if not switched_on():
        return
    check_answers(
        policy,
        reference,
        tokens,
        logprobs,
        ref_logprobs,
        scores,
        eos_id=eos_id,
        temperature=temperature,
    )
    mask = tokens[3]
    check_zero_behind("values", values, mask)
    size = 1 + scores.abs().max().item()  # float32 rounds in proportion
    check_reward_sum(
        rewards, scores, logprobs, ref_logprobs, mask, kl_coef, 1e-3 * size
    )


def check_zero_behind(name: str, x: Tensor, mask: Tensor) -> None:
    """Refuse numbers that are not finite, or not 0 behind the end of an answer."""
    check_finite(name, x)
    if (x[~mask] != 0).any():
        raise InvariantError(
            f"{name} are not 0 behind the end of an answer: sums over a row, such as "
            "the KL that is logged, would count padding"
        )


def check_gap(gap: float, nats: float = 0.5) -> None:
    """Refuse a sampler that is not the policy that is trained.

    Args:
        gap: mean distance of their log-probabilities of the sampled tokens, nats. In
            float32 it is 1e-6, in bfloat16 some hundredths.
        nats: the largest that is rounding.

    Raises:
        InvariantError: it is larger, or no number, and the checks are not
            `switched_off`.
    """
    if switched_on() and not gap <= nats:
        raise InvariantError(
            f"the law that was sampled from is {gap:.3g} nats a token away from the "
            "policy's. Look first at stale weights of the sampler, then at what the "
            "two passes do not share: temperature, padding and positions"
        )


def check_finite(name: str, x: Tensor) -> None:
    """Refuse infinities and NaN, by the name of what has them."""
    if not x.isfinite().all():
        raise InvariantError(
            f"{int((~x.isfinite()).sum())} of {x.numel()} {name} are no finite "
            "numbers. Look first at float16, exp of a large number, a mean over nothing"
        )


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are equal; after a step the first weights tell."""
    theirs = dict(other.named_parameters())
    mine = dict(one.named_parameters())
    return mine.keys() == theirs.keys() and all(
        (weight.shape, weight.dtype) == (theirs[name].shape, theirs[name].dtype)
        and torch.equal(weight, theirs[name])
        for name, weight in mine.items()
    )


# --- tests of functions -------------------------------------------------------------


def check_kl_estimate(
    estimate: Callable[[Tensor, Tensor], Tensor], tolerance: float = 1e-4
) -> None:
    """Refuse an estimator of KL(π ‖ π_ref) that is wrong on average.

    An estimator gives a number for each token, of which the tokens are drawn from π. So
    its average is Σ_y π(y) estimate(log π(y), log π_ref(y)): with a small vocabulary
    every token can be asked, and nothing has to be drawn. It must be
    Σ_y π(y) (log π(y) − log π_ref(y)).

    Args:
        estimate: (logprobs, ref_logprobs), two tensors of one shape, to one of that
            shape, such as `minipalm.rlhf.kl.k1` and `k3`. Single numbers may be
            negative.
        tolerance: largest difference of the averages, nats; float32.

    Raises:
        AssertionError: for some pair of laws (choose them: not equal, not symmetric,
            more than one pair) the averages differ by more than tolerance, in either
            direction, or by no number.

    Example: π = (.5, .3, .2), π_ref = (.25, .25, .5): KL .2180. k1 and k3 have this
    average; k2 has .2091; k1 with its arguments swapped −.2180.
    """
    pairs = (
        ((0.5, 0.3, 0.2), (0.25, 0.25, 0.5)),
        ((0.9, 0.05, 0.05), (0.1, 0.45, 0.45)),
        ((0.1, 0.2, 0.7), (0.15, 0.25, 0.6)),
    )
    for law, ref_law in pairs:
        p, q = torch.tensor(law), torch.tensor(ref_law)
        exact = (p * (p.log() - q.log())).sum()
        average = (p * estimate(p.log(), q.log())).sum()
        if not (average - exact).abs() <= tolerance:
            raise InvariantError(
                f"for π = {law} and π_ref = {ref_law} the KL is {exact:.4f}, and the "
                f"estimate's average {average:.4f}. Look at sign, order of arguments, "
                "and which law the tokens are drawn from"
            )


def check_blind_to_padding(loss: Callable[..., Tensor]) -> None:
    """Refuse a loss that padding can change.

    Three things hold for a loss of ragged answers, on any batch. Other numbers where
    mask is False, NaN too, change neither the loss nor its gradient where mask is True.
    Where mask is False the gradient is 0 (unless a NaN stands there). And a further
    column of padding does not change the loss.

    Args:
        loss: (logprobs, old_logprobs, advantages, mask), all of shape (B, T), to a
            scalar that carries a gradient to logprobs, such as
            `minipalm.rlhf.ppo.policy_loss`.

    Raises:
        AssertionError: one of these does not hold, within 1e-5. The padding to try:
            random numbers, large ones such as 50, and NaN.

    Example: `masked_mean(x, mask)` is blind to it. `x.mean()` is not, nor is
    `(x * mask).mean()`, which becomes smaller with each column of padding, nor
    `(x * mask).sum() / mask.sum()`, since NaN · 0 is NaN.
    """
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[4], [1], [3]])
    x = torch.randn(3, 3, 5, generator=draw)
    mask = torch.arange(5) < lengths
    value, gradient = value_and_gradient(loss, x, mask)
    for padding in (torch.randn(3, 3, 5, generator=draw), 50.0, torch.nan):
        other, slope = value_and_gradient(loss, torch.where(mask, x, padding), mask)
        if not torch.isclose(other, value, 1e-5, 1e-5):
            raise InvariantError(
                f"the loss is {value:.4f}, and {other:.4f} with other padding: choose "
                "with torch.where(mask, ..., 0.0) before anything is summed"
            )
        if not torch.isclose(slope, gradient, 1e-5, 1e-5)[mask].all():
            raise InvariantError("padding changes the gradient of the loss")
    if (gradient[~mask] != 0).any():
        raise InvariantError("tokens that were never said get a gradient")
    wider = torch.cat([x, torch.ones(3, 3, 1)], dim=2)
    other, _ = value_and_gradient(loss, wider, torch.arange(6) < lengths)
    if not torch.isclose(other, value, 1e-5, 1e-5):
        raise InvariantError(
            f"the loss is {value:.4f}, and {other:.4f} with one more column of "
            "padding: divide by the tokens that count, not by all places"
        )


def value_and_gradient(
    loss: Callable[..., Tensor], x: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Of logprobs x[0], old_logprobs x[1], advantages x[2]."""
    logprobs = x[0].clone().requires_grad_(True)
    value = loss(logprobs, x[1], x[2], mask)
    [gradient] = torch.autograd.grad(value, logprobs)
    return value.detach(), gradient
