"""Lesson 15: old answers, comparisons, groups, and the best of n."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minipalm.config import PaLMConfig
from minipalm.course.exercise import Case, Exercise, Slip, Trap, Twin, with_slips
from minipalm.model.palm import PaLM
from minipalm.rlhf.best_of_n import best_of_n_estimate, best_of_n_kl
from minipalm.rlhf.dpo import dpo_loss, sequence_logprobs
from minipalm.rlhf.group import grpo_advantages, rloo_advantages
from minipalm.rlhf.logprobs import response_logits
from minipalm.rlhf.offline import effective_sample_size, importance_weights


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


GRADIENT = ("@torch.no_grad()\n", "")
LEARNT: Slip = "nothing may learn through it: torch.no_grad()", (GRADIENT,)


def learning(*traps: Trap) -> tuple[Trap, ...]:
    """Each trap, and the same by one who has forgotten torch.no_grad(), too."""
    return with_slips(traps, LEARNT)


# --- 15.1 importance_weights --------------------------------------------------------


def importance_weights_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(lengths: list[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
        behaviour = -3 * torch.rand(len(lengths), width, generator=draw) - 1.0
        moved = 0.8 * torch.randn(len(lengths), width, generator=draw)
        return (
            (behaviour + moved).requires_grad_(True),
            behaviour,
            ragged(lengths, width),
        )

    half = torch.full((1, 2), 0.5).log()
    known = half, 2 * half, ragged([2], 2)  # each token twice as probable
    noise = batch([3, 1, 4], 5)
    with torch.no_grad():
        noise[0][0, 3] = noise[0][1, 2] = noise[1][2, 4] = torch.nan
    far = torch.tensor([[-0.1, -0.2], [-90.0, -80.0], [-1.0, -2.0]])
    near = torch.tensor([[-60.0, -70.0], [-0.1, -0.2], [-1.0, -2.0]])
    return [
        Case("the example of the docstring", *known, math.inf),
        Case("the example with limit 3", *known, 3.0),
        Case("answers of unequal lengths", *batch([4, 2, 1], 6), limit=5.0),
        Case("no limit", *batch([3, 2], 4), math.inf),
        Case("limit 1", *batch([3, 2, 4], 4), 1.0),
        Case("no number in the padding", *noise, 4.0),
        Case("an answer without tokens", *batch([0, 2], 3), 5.0),
        Case("very far from the log", far, near, ragged([2, 2, 2], 2), 5.0),
    ]


def importance_weights_oracle(
    logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, limit: float
) -> Tensor:
    """Answer by answer, the ratios of its tokens multiplied."""
    weights = []
    for now, then, kept in zip(logprobs.tolist(), behaviour_logprobs.tolist(), mask):
        weight = 1.0
        for t in range(int(kept.sum())):
            weight *= math.exp(now[t] - then[t])
        weights.append(min(weight, limit))
    return torch.tensor(weights)


@torch.no_grad()
def weights_by_products(logprobs, behaviour_logprobs, mask, limit):
    """Ratios token by token, 1 in the padding, multiplied."""
    ratio = (logprobs - behaviour_logprobs).masked_fill(~mask, 0.0).double().exp()
    return torch.minimum(ratio.prod(1), torch.tensor(limit)).float()


def weights_by_answers(logprobs, behaviour_logprobs, mask, limit):
    """The two laws of whole answers, then their ratio, limited in the exponent."""
    now, then = (
        torch.stack([row[kept].sum() for row, kept in zip(x.detach(), mask)])
        for x in (logprobs, behaviour_logprobs)
    )
    return (now - then).clamp(max=math.log(limit)).exp()


MOVED = "torch.where(mask, logprobs - behaviour_logprobs, 0.0)"

IMPORTANCE_WEIGHTS = Exercise(
    id="15.1",
    answer=importance_weights,
    why="Whatever is learnt from old answers rests on these numbers, and they show "
    "first that it rests on sand.",
    difficulty=2,
    importance=5,
    minutes=6,
    hints=(
        "How probable is a whole answer, and how do you get the ratio of two such "
        "probabilities out of differences of logarithms?",
        r"$w = \min\bigl(e^{\sum_t (\log\pi(y_t) - \log b(y_t))},\ \text{limit}\bigr)$",
        "Take the difference first, make it 0 outside the mask with `torch.where`, and "
        "add up along axis 1.",
    ),
    bonus="Draw 10,000 answers of a coin with p = 0.5 and estimate the mean of a coin "
    "with p = 0.9 over 20 tosses. How wrong are you with and without a limit of 5?",
    cases=importance_weights_cases,
    oracle=importance_weights_oracle,
    traps=(
        *learning(
            Trap(
                "Upside down: w is π now over b then. An answer that has become "
                "likelier stands for more than one.",
                ("logprobs - behaviour_logprobs", "behaviour_logprobs - logprobs"),
            ),
            Trap(
                "A mean of log-ratios is the ratio of a typical token. The answer as a "
                "whole is the product of all its tokens: add the logarithms.",
                (".sum(1)", ".sum(1) / mask.sum(1).clamp(min=1)"),
            ),
            Trap(
                "A mean of log-ratios is the ratio of a typical token, and 0/0 where "
                "an answer has none. The answer is the product of its tokens: add.",
                (".sum(1)", ".sum(1) / mask.sum(1)"),
            ),
            Trap(
                "The ratios of the tokens are added. Probabilities of tokens "
                "multiply, so it is their logarithms that add up.",
                (
                    f"{MOVED}.sum(1)",
                    "torch.where(mask, (logprobs - behaviour_logprobs).exp(), 0.0)"
                    ".sum(1).log()",
                ),
            ),
            Trap(
                "The limit is forgotten: a single answer can outweigh all the others.",
                (".clamp(max=limit)", ""),
            ),
            Trap(
                "Small weights need no floor: an answer that π no longer gives should "
                "count for nothing. Limit them from above only.",
                (".clamp(max=limit)", ".clamp(1 / limit, limit)"),
            ),
            Trap(
                "The limit is put on each token. It is meant for the answer's weight, "
                "after the tokens have been multiplied.",
                (
                    "logprobs - behaviour_logprobs,",
                    "(logprobs - behaviour_logprobs).clamp(max=math.log(limit)),",
                ),
                (".clamp(max=limit)", ""),
            ),
            Trap(
                "This is still a logarithm, a difference of nats. The weight is its "
                "exponential.",
                ("moved.exp()", "moved"),
            ),
            Trap(
                "The padding is counted, and there may stand anything. Only places "
                "where mask is True belong to the answer.",
                (MOVED, "(logprobs - behaviour_logprobs)"),
            ),
            Trap(
                "Multiplying by the mask does not silence the padding: 0 times NaN is "
                "NaN. Choose with torch.where instead.",
                (MOVED, "((logprobs - behaviour_logprobs) * mask)"),
            ),
            Trap(
                "The weights are made to sum to one. Shares are useful for a weighted "
                "mean, but asked for is how many answers each one stands for.",
                (
                    "return moved.exp()",
                    "moved = moved.log_softmax(0)\n    return moved.exp()",
                ),
            ),
        ),
        Trap(
            "The weights still carry the policy's gradient. They correct who was "
            "asked and are no objective: torch.no_grad().",
            GRADIENT,
        ),
    ),
    twins=(Twin(weights_by_products), Twin(weights_by_answers)),
)

# --- 15.2 effective_sample_size -----------------------------------------------------


def effective_sample_size_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    some = torch.rand(7, generator=draw) + 0.2
    return [
        Case("equal weights", torch.ones(4)),
        Case("one answer has all", torch.tensor([2.0, 0.0, 0.0, 0.0])),
        Case("three to one", torch.tensor([3.0, 1.0])),
        Case("weights of all sizes", (3 * torch.randn(9, generator=draw)).exp()),
        Case("some", some),
        Case("the same, in millions of answers", 1e6 * some),
        Case("very small weights", 1e-30 * some),
        Case("very large weights", 1e30 * some),
        Case("all weights 0", torch.zeros(3)),
        Case("a single answer", torch.tensor([0.3])),
    ]


def effective_sample_size_oracle(weights: Tensor) -> float:
    """Python's numbers, one after the other."""
    total = sum(weights.tolist())
    squares = sum(one * one for one in weights.tolist())
    return total * total / squares if squares else 0.0


def size_of_shares(weights):
    """One over the probability that two draws give the same answer."""
    total = weights.double().sum()
    if total == 0:
        return 0.0
    return float(1 / ((weights / total) ** 2).double().sum())


def size_of_largest(weights):
    """In units of the largest weight, so that nothing overflows."""
    most = float(weights.max()) or 1.0
    scaled = [one / most for one in weights.tolist()]
    return math.fsum(scaled) ** 2 / max(math.fsum(x * x for x in scaled), 1e-30)


RATIO = "(total**2 / weights.double().square().sum().clamp(min=1e-300))"

EFFECTIVE_SAMPLE_SIZE = Exercise(
    id="15.2",
    answer=effective_sample_size,
    why="The loss does not say that a log is too old. This does.",
    difficulty=1,
    importance=4,
    minutes=4,
    hints=(
        "Four answers, one of which has all the weight: from how many have you learnt?",
        r"$\left(\sum w\right)^2 / \sum w^2$",
        "`total = weights.double().sum()`: squares of small numbers leave float32.",
    ),
    bonus="With w = e^x and x normal with variance s², the share ESS/B tends to "
    "e^(−s²). Which s, in nats, leaves a tenth?",
    cases=effective_sample_size_cases,
    oracle=effective_sample_size_oracle,
    traps=(
        Trap(
            "Upside down: the squares of the weights belong below. As it is, fewer "
            "answers look like more.",
            (RATIO, "(weights.double().square().sum() / (total**2).clamp(min=1e-300))"),
        ),
        Trap(
            "The sum must be squared, too. Without it the size depends on the unit of "
            "the weights.",
            ("(total**2 /", "(total /"),
        ),
        Trap(
            "1/Σw² is right for weights that sum to one. These do not: square their "
            "sum and put it on top.",
            ("(total**2 /", "(torch.sign(total) /"),
        ),
        Trap(
            "That is the share, from 1/B to 1. Asked for is the number of answers, "
            "from 1 to B.",
            (RATIO, f"({RATIO} / len(weights))"),
        ),
        Trap(
            "Counting the weights above 0 says nothing of how unequal they are.",
            (RATIO, "(weights > 0).double().sum()"),
        ),
        Trap(
            "Total over the largest weight looks at one answer only. All of them "
            "count, by their squares.",
            (RATIO, "(total / weights.double().max().clamp(min=1e-300))"),
        ),
        Trap(
            "In float32 the squares of very small or very large weights are 0 or "
            "infinite. Convert to double first.",
            ("total = weights.double()", "total = weights"),
            ("/ weights.double()", "/ weights"),
        ),
        Trap(
            "In float32 the squares of very small or very large weights are 0 or "
            "infinite, and what comes out is no number. Convert to double first.",
            (
                "total = weights.double().sum()",
                "total = weights.sum()\n    if total == 0:\n        return 0.0",
            ),
            ("/ weights.double()", "/ weights"),
        ),
        Trap(
            "With no weight at all this is 0/0. Keep the denominator above 0: the "
            "size is then 0.",
            (".clamp(min=1e-300)", ""),
        ),
        Trap(
            "The numbers are right, but a plain Python number is asked for: `.item()`.",
            (".item()", ""),
        ),
    ),
    twins=(Twin(size_of_shares), Twin(size_of_largest)),
)

# --- 15.3 sequence_logprobs ---------------------------------------------------------

V = 11  # tokens of the tiny network


def tiny_palm(seed: int) -> PaLM:
    """Loud embeddings: a wrong context must show in the logits."""
    config = PaLMConfig(V, dim=12, depth=2, heads=2, head_dim=6, embed_std=0.5)
    return PaLM(config, torch.Generator().manual_seed(seed))


def text_batch(
    lengths: list[tuple[int, int]], seed: int, P: int, T: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random tokens everywhere, in the padding, too."""
    draw = torch.Generator().manual_seed(seed)
    before, after = torch.tensor(lengths).T[..., None]
    prompts = torch.randint(V, (len(lengths), P), generator=draw)
    responses = torch.randint(V, (len(lengths), T), generator=draw)
    return prompts, torch.arange(P) >= P - before, responses, torch.arange(T) < after


def sequence_logprobs_cases(seed: int) -> list[Case]:
    policy = tiny_palm(seed)
    return [
        Case("one answer", policy, *text_batch([(3, 4)], seed, 3, 4)),
        Case("unequal", policy, *text_batch([(2, 1), (4, 5), (1, 3)], seed, 4, 6)),
        Case("answers of one token", policy, *text_batch([(2, 1), (1, 1)], seed, 2, 3)),
    ]


def sequence_logprobs_oracle(
    policy: PaLM,
    prompts: Tensor,
    prompt_mask: Tensor,
    responses: Tensor,
    mask: Tensor,
) -> Tensor:
    """Read what stands before each token of an answer, and add up its logprobs."""
    totals = []
    for prompt, is_prompt, response, kept in zip(prompts, prompt_mask, responses, mask):
        seen, total = prompt[is_prompt].tolist(), torch.zeros(())
        for token in response[kept].tolist():
            logits = policy(torch.tensor([seen]))[0, -1]
            total = total + logits[token] - logits.exp().sum().log()
            seen.append(token)
        totals.append(total)
    return torch.stack(totals)


def sequence_by_loss(policy, prompts, prompt_mask, responses, mask):
    """Cross-entropy knows how to leave places out."""
    logits = response_logits(policy, prompts, prompt_mask, responses, mask)
    targets = responses.masked_fill(~mask, -100)
    return -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)


def sequence_by_row(policy, prompts, prompt_mask, responses, mask):
    """Row by row, without padding."""
    rows = []
    for prompt, seen, response, kept in zip(prompts, prompt_mask, responses, mask):
        ids = torch.cat([prompt[seen], response[kept]])
        laws = policy(ids[None, :-1])[0].log_softmax(-1)
        rows.append(laws.gather(1, ids[1:, None])[int(seen.sum()) - 1 :].sum())
    return torch.stack(rows)


TAKEN = "torch.where(mask, token_logprobs(logits, responses), 0.0).sum(1)"

SEQUENCE_LOGPROBS = Exercise(
    id="15.3",
    answer=sequence_logprobs,
    why="DPO's derivation is about the probability of whole answers. This is it.",
    difficulty=2,
    importance=4,
    minutes=5,
    hints=(
        "Two functions of lesson 09 do most of it. Which places may be added up?",
        r"$\log\pi(y \mid x) = \sum_{t < |y|} \log\pi(y_t \mid x, y_{<t})$",
        "`logits = response_logits(policy, prompts, prompt_mask, responses, mask)`",
    ),
    bonus="SimPO takes the mean over tokens, and no reference. Which answers does the "
    "sum favour, which the mean?",
    cases=sequence_logprobs_cases,
    oracle=sequence_logprobs_oracle,
    traps=(
        Trap(
            "A mean over the tokens is another law. The probability of an answer is "
            "the product of its tokens': the sum of their logarithms.",
            (".sum(1)", ".sum(1) / mask.sum(1)"),
        ),
        Trap(
            "The padding is added up, too. Only places where mask is True are the "
            "answer.",
            (TAKEN, "token_logprobs(logits, responses).sum(1)"),
        ),
        Trap(
            "The end-of-sequence token is left out. Ending here was a choice, and the "
            "mask includes it.",
            (
                "return torch.where(mask,",
                "mask = mask & mask.roll(-1, 1)\n    mask[:, -1]"
                " = False\n    return torch.where(mask,",
            ),
        ),
        Trap(
            "The answer's first token is left out. `response_logits` has already "
            "aligned the logits: place t belongs to token t.",
            (
                TAKEN,
                "torch.where(mask, token_logprobs(logits, responses), 0.0)"
                "[:, 1:].sum(1)",
            ),
        ),
        Trap(
            "The logits are shifted once more. `response_logits` has already done it: "
            "place t belongs to token t.",
            (
                "token_logprobs(logits, responses)",
                "token_logprobs(logits, responses.roll(-1, 1))",
            ),
        ),
        Trap(
            "These are raw logits. Only after log-softmax over the vocabulary are they "
            "log-probabilities.",
            (
                "token_logprobs(logits, responses)",
                "logits.gather(-1, responses[..., None])[..., 0]",
            ),
        ),
        Trap(
            "The likeliest token's log-probability is taken. Asked for is that of the "
            "token that stands there.",
            ("token_logprobs(logits, responses)", "logits.log_softmax(-1).amax(-1)"),
        ),
        Trap(
            "The sign is turned round: log-probabilities are at most 0.",
            ("return torch.where", "return -torch.where"),
        ),
        Trap(
            "All answers are added into one number. A pair compares two of them, so "
            "each needs its own.",
            (".sum(1)", ".sum()"),
        ),
        Trap(
            "The policy gets no gradient, so DPO would learn nothing. Only the "
            "reference is a constant, and that is not decided here.",
            (
                "logits = response_logits(",
                "with torch.no_grad():\n        logits = response_logits(",
            ),
        ),
    ),
    twins=(Twin(sequence_by_loss), Twin(sequence_by_row)),
)

# --- 15.4 dpo_loss ------------------------------------------------------------------


def dpo_loss_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def pairs(N: int, moved: float = 3.0) -> list[Tensor]:
        refs = [-5 - 20 * torch.rand(N, generator=draw) for _ in range(2)]
        now = [one + moved * torch.randn(N, generator=draw) for one in refs]
        return [one.requires_grad_(True) for one in (*now, *refs)]

    same = pairs(4)
    known = [torch.tensor([x]) for x in (-8.0, -12.0, -10.0, -10.0)]
    far = [torch.tensor(x) for x in ([-900.0, -1.0], [-1.0, -900.0])]
    refs = [torch.full((2,), -10.0) for _ in range(2)]
    return [
        Case("policy = reference", same[0], same[1], same[0].detach(), same[1], 0.3),
        Case("the example of the docstring", *known, 0.5),
        Case("the example with ε = 0.1", *known, 0.5, label_smoothing=0.1),
        Case("pairs", *pairs(5), beta=0.1),
        Case("a larger β", *pairs(6), 1.5),
        Case("some labels wrong", *pairs(4), 0.4, label_smoothing=0.2),
        Case("one pair", *pairs(1), 0.2),
        Case("answers far apart", *[x.requires_grad_(True) for x in far], *refs, 1.0),
    ]


def dpo_loss_oracle(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Pair by pair: −log σ(x) is log(e⁰ + e^(−x))."""
    zero, losses = torch.zeros(()), []
    for n in range(len(chosen)):
        good = beta * (chosen[n] - float(ref_chosen[n]))
        bad = beta * (rejected[n] - float(ref_rejected[n]))
        right = torch.logaddexp(zero, bad - good)
        wrong = torch.logaddexp(zero, good - bad)
        losses.append((1 - label_smoothing) * right + label_smoothing * wrong)
    return sum(losses, zero) / len(losses)


def dpo_as_classifier(
    chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0
):
    """A logistic classifier of pairs, with the label 1 − ε."""
    logits = beta * ((chosen - rejected) - (ref_chosen - ref_rejected).detach())
    labels = torch.full_like(logits, 1 - label_smoothing)
    return F.binary_cross_entropy_with_logits(logits, labels)


def dpo_by_softmax(
    chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0
):
    """A softmax over the two implicit rewards."""
    with torch.no_grad():
        refs = torch.stack([ref_chosen, ref_rejected], 1)
    law = (beta * (torch.stack([chosen, rejected], 1) - refs)).log_softmax(1)
    return (
        -(1 - label_smoothing) * law[:, 0].mean() - label_smoothing * law[:, 1].mean()
    )


DELTA = (
    "implicit_rewards(chosen, ref_chosen.detach(), beta) - implicit_rewards(\n"
    "        rejected, ref_rejected.detach(), beta\n    )"
)
SIGMOIDS = "F.logsigmoid(delta), F.logsigmoid(-delta)"
SMOOTHED = "((1 - label_smoothing) * right + label_smoothing * wrong)"
UNSMOOTHED: Slip = "label_smoothing is not used", ((SMOOTHED, "right"),)
UNDETACHED: Slip = (
    "the reference is a constant: detach it",
    (
        ("ref_chosen.detach()", "ref_chosen"),
        ("ref_rejected.detach()", "ref_rejected"),
    ),
)


def unsmoothed(*traps: Trap) -> tuple[Trap, ...]:
    """Each trap, and the same without label_smoothing."""
    return with_slips(traps, UNSMOOTHED)


def undetached(*traps: Trap) -> tuple[Trap, ...]:
    """Each trap, and the same with a gradient into the reference."""
    return with_slips(traps, UNDETACHED)


def equation_7(*traps: Trap) -> tuple[Trap, ...]:
    """Each trap, and the same by one who has written down equation 7 and no more."""
    return with_slips(traps, UNSMOOTHED, UNDETACHED)


def undetached_here(*traps: Trap) -> tuple[Trap, ...]:
    """`equation_7` for traps in which one reference is left, or both at once."""
    return with_slips(traps, UNSMOOTHED, (UNDETACHED[0], ((".detach()", ""),)))


DPO_LOSS = Exercise(
    id="15.4",
    answer=dpo_loss,
    why="One line of classification that stands for a reward model and a run of PPO.",
    difficulty=3,
    importance=5,
    minutes=8,
    hints=(
        "The loss is the reward model's, of lesson 08. What stands in the place of "
        "the two scores, and which of the four numbers may move?",
        r"$-\log\sigma(\Delta)$ with $\Delta = \beta\log\frac{\pi(y_w)}{"
        r"\pi_\text{ref}(y_w)} - \beta\log\frac{\pi(y_l)}{\pi_\text{ref}(y_l)}$; "
        "with ε also the other order of the pair, ε times.",
        "`delta = implicit_rewards(chosen, ref_chosen.detach(), beta) - ...`, and "
        "`F.logsigmoid`, which does not overflow.",
    ),
    bonus="Derive the gradient. Each pair pushes with β σ(−Δ): which pairs push "
    "hardest, and how hard does a pair push that was labelled the wrong way round?",
    cases=dpo_loss_cases,
    oracle=dpo_loss_oracle,
    traps=(
        *equation_7(
            Trap(
                "Chosen and rejected are exchanged: this teaches the worse answers. Δ "
                "is the chosen one's implicit reward less the other's.",
                (SIGMOIDS, "F.logsigmoid(-delta), F.logsigmoid(delta)"),
            ),
        ),
        *unsmoothed(
            Trap(
                "The reference is forgotten. Then an answer is preferred for being "
                "probable, and nothing says where the policy began.",
                (DELTA, "beta * (chosen - rejected)"),
            ),
        ),
        *equation_7(
            Trap(
                "The two reference numbers are exchanged: each answer is compared with "
                "the reference's log-probability of *itself*.",
                ("ref_chosen.detach()", "REF"),
                ("ref_rejected.detach()", "ref_chosen.detach()"),
                ("REF", "ref_rejected.detach()"),
            ),
            Trap(
                "β stands outside of the sigmoid, where it is only a step size. Inside "
                "it says how many nats a difference of rewards is worth.",
                ("ref_chosen.detach(), beta)", "ref_chosen.detach(), 1.0)"),
                ("ref_rejected.detach(), beta\n", "ref_rejected.detach(), 1.0\n"),
                ("return -(", "return -beta * ("),
            ),
            Trap(
                "β is forgotten: an implicit reward is β times the log-ratio to the "
                "reference.",
                ("ref_chosen.detach(), beta)", "ref_chosen.detach(), 1.0)"),
                ("ref_rejected.detach(), beta\n", "ref_rejected.detach(), 1.0\n"),
            ),
        ),
        *undetached_here(
            Trap(
                "β multiplies the policy's log-probabilities only. It belongs around "
                "the whole difference to the reference.",
                (
                    DELTA,
                    "beta * (chosen - rejected) - (ref_chosen - ref_rejected).detach()",
                ),
            ),
        ),
        *equation_7(
            Trap(
                "The minus sign is missing: this is what should become large, and a "
                "loss becomes small.",
                ("return -(", "return ("),
            ),
            Trap(
                "The logarithm is missing: σ(Δ) alone hardly pushes the pairs that are "
                "most wrong.",
                (SIGMOIDS, "torch.sigmoid(delta), torch.sigmoid(-delta)"),
            ),
            Trap(
                "log(sigmoid(Δ)) is −∞ where Δ is far below 0: the sigmoid is 0 in "
                "float32. F.logsigmoid computes both at once.",
                (SIGMOIDS, "torch.sigmoid(delta).log(), torch.sigmoid(-delta).log()"),
            ),
            Trap(
                "The pairs' losses are added up. Asked for is the mean, so that the "
                "step does not depend on the batch.",
                (".mean()", ".sum()"),
            ),
            Trap(
                "The pairs are averaged before the sigmoid. Each pair has a loss of "
                "its own; one clear pair must not hide another that is wrong.",
                ("right, wrong =", "delta = delta.mean()\n    right, wrong ="),
            ),
        ),
        *undetached_here(
            Trap(
                "Only the chosen answer counts here, and that is fine-tuning on it. "
                "The rejected one is half of the comparison.",
                (
                    DELTA,
                    "implicit_rewards(chosen, ref_chosen.detach(), beta)"
                    " + 0 * rejected",
                ),
            ),
        ),
        *undetached(
            Trap(
                "label_smoothing is not used: with share ε of the labels believed "
                "wrong, −ε log σ(−Δ) belongs to the loss, and 1 − ε to the rest.",
                (SMOOTHED, "right"),
            ),
        ),
        Trap(
            "A gradient flows into the reference. It is a constant: if it could move, "
            "the loss would lower it instead of learning.",
            ("ref_chosen.detach()", "ref_chosen"),
            ("ref_rejected.detach()", "ref_rejected"),
        ),
        Trap(
            "Only one of the two references is cut off from the gradient. Both are "
            "constants.",
            ("ref_rejected.detach()", "ref_rejected"),
        ),
        Trap(
            "ε is on the wrong one of the two: 1 − ε goes with the order as labelled, "
            "σ(Δ).",
            (
                SMOOTHED,
                "(label_smoothing * right + (1 - label_smoothing) * wrong)"
                " if label_smoothing else -(-right)",
            ),
        ),
    ),
    twins=(Twin(dpo_as_classifier), Twin(dpo_by_softmax)),
)

# --- 15.5 rloo_advantages -----------------------------------------------------------


def groups_of(seed: int) -> list[Case]:
    """For both kinds of advantages."""
    draw = torch.Generator().manual_seed(seed)

    def rewards(N: int, G: int) -> Tensor:
        shift = 5 * torch.randn(N, 1, generator=draw)
        return shift + 2 * torch.randn(N, G, generator=draw)

    return [
        Case("the example of the docstring", torch.tensor([[1.0, 2.0, 6.0]])),
        Case("two prompts, four answers", rewards(2, 4).requires_grad_(True)),
        Case("pairs", rewards(5, 2)),
        Case("a large group", rewards(3, 9)),
        Case(
            "equal rewards", torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 1.5]])
        ),
        Case("a group of one", rewards(3, 1)),
    ]


def rloo_oracle(rewards: Tensor) -> Tensor:
    """For each answer, a list of the others."""
    N, G = rewards.shape
    if G < 2:
        raise ValueError("a group of one")
    result = torch.zeros(N, G)
    for n in range(N):
        for i in range(G):
            others = [float(rewards[n, j]) for j in range(G) if j != i]
            result[n, i] = float(rewards[n, i]) - sum(others) / len(others)
    return result


@torch.no_grad()
def rloo_by_distance(rewards):
    """G/(G − 1) times the distance from the mean of all."""
    G = rewards.shape[1]
    if G == 1:
        raise ValueError("one answer has no others")
    return (rewards - rewards.mean(1, keepdim=True)) * G / (G - 1)


def rloo_by_matrix(rewards):
    """A matrix that gives each answer the mean of the others."""
    G = rewards.shape[1]
    if G == 1:
        raise ValueError("one answer has no others")
    others = (1 - torch.eye(G)) / (G - 1)
    return rewards.detach() @ (torch.eye(G) - others)


OTHERS = "(rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)"

RLOO_ADVANTAGES = Exercise(
    id="15.5",
    answer=rloo_advantages,
    why="A baseline for the price of asking twice, and no second network.",
    difficulty=2,
    importance=4,
    minutes=4,
    hints=(
        "What would you have expected of answer i if you had seen only the others?",
        r"$A_i = r_i - \frac{1}{G-1}\sum_{j \ne i} r_j$",
        "The others' sum is the group's sum less r_i. A group of one has no others: "
        "`check_group(rewards)` raises for you.",
    ),
    bonus="Prove that the mean over all G, r_i's own included, only scales the "
    "expected gradient by (G − 1)/G. What does that do to β?",
    cases=groups_of,
    oracle=rloo_oracle,
    traps=(
        *learning(
            Trap(
                "The mean includes the answer itself, so it is compared with a part of "
                "itself: leave it out, and divide by G − 1.",
                (OTHERS, "rewards.mean(1, keepdim=True)"),
            ),
            Trap(
                "The others are G − 1 answers, so their sum is divided by G − 1.",
                ("(rewards.shape[1] - 1)", "rewards.shape[1]"),
            ),
            Trap(
                "The sum still has the answer itself in it: take r_i off before you "
                "divide by G − 1.",
                (
                    "(rewards.sum(1, keepdim=True) - rewards)",
                    "rewards.sum(1, keepdim=True)",
                ),
            ),
            Trap(
                "The sum of the others is no expectation. Divide by how many they are.",
                (" / (rewards.shape[1] - 1)", ""),
            ),
            Trap(
                "That is the other axis: a row is a prompt, and answers to different "
                "prompts are no baseline for each other.",
                (
                    OTHERS,
                    "(rewards.sum(0, keepdim=True) - rewards) / max(len(rewards) - 1, "
                    "1)",
                ),
            ),
            Trap(
                "All prompts are thrown together. An easy prompt's answers would then "
                "look good whatever they say: stay within the row.",
                (OTHERS, "(rewards.sum() - rewards) / (rewards.numel() - 1)"),
            ),
            Trap(
                "The best of the others is too high a bar, and depends on their "
                "number. Their mean is asked for.",
                (
                    OTHERS,
                    "torch.stack([torch.cat([rewards[:, :i], rewards[:, i + 1:]], 1)"
                    ".amax(1) for i in range(rewards.shape[1])], 1)",
                ),
            ),
            Trap(
                "Divided by the standard deviation, this is GRPO's scale. RLOO leaves "
                "rewards in their unit, so that β keeps its meaning.",
                (
                    "return rewards - others",
                    "return (rewards - others) / (rewards.std(1, keepdim=True) + 1e-4)",
                ),
            ),
            Trap(
                "The sign is turned round: better than the others is an advantage "
                "above 0.",
                ("return rewards - others", "return others - rewards"),
            ),
            Trap(
                "A group of one has no others. Raise ValueError (`check_group` does), "
                "or 0/0 goes on quietly.",
                ("    check_group(rewards)\n", ""),
            ),
        ),
        Trap(
            "Advantages are measurements: no gradient may go through them. Use "
            "torch.no_grad().",
            GRADIENT,
        ),
    ),
    twins=(Twin(rloo_by_distance), Twin(rloo_by_matrix)),
)

# --- 15.6 grpo_advantages -----------------------------------------------------------


def grpo_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    close = 0.3 + 2e-3 * torch.randn(2, 4, generator=draw)
    wide = 3 * torch.randn(4, 3, generator=draw)
    return [
        *groups_of(seed),
        Case("nearly equal rewards", close),
        Case("not divided", wide.requires_grad_(True), divide_by_std=False),
        Case("not divided, equal", torch.ones(2, 3), divide_by_std=False),
        Case("one, not divided", torch.ones(2, 1), divide_by_std=False),
    ]


def grpo_oracle(rewards: Tensor, divide_by_std: bool = True) -> Tensor:
    """Mean and standard deviation of each group, by hand."""
    N, G = rewards.shape
    if G < 2:
        raise ValueError("a group of one")
    result = torch.zeros(N, G)
    for n in range(N):
        group = rewards[n].tolist()
        mean = sum(group) / G
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (G - 1))
        for i in range(G):
            away = group[i] - mean
            result[n, i] = away / (std + 1e-4) if divide_by_std else away
    return result


@torch.no_grad()
def grpo_by_moments(rewards, divide_by_std=True):
    """The deviation from the sum of squares."""
    G = rewards.shape[1]
    if G == 1:
        raise ValueError("one answer alone")
    away = rewards - rewards.sum(1, keepdim=True) / G
    std = (away.square().sum(1, keepdim=True) / (G - 1)).sqrt()
    return away / (std + 1e-4 if divide_by_std else torch.ones_like(std))


def grpo_by_group(rewards, divide_by_std=True):
    """Prompt by prompt."""
    rows = []
    for group in rewards.detach().unbind(0):
        if len(group) < 2:
            raise ValueError("one answer alone")
        std, mean = torch.std_mean(group)
        rows.append((group - mean) / (std + 1e-4) if divide_by_std else group - mean)
    return torch.stack(rows)


STD = "(rewards.std(1, keepdim=True) + 1e-4)"
READ = "    if not divide_by_std:\n        return centred\n"
UNREAD: Slip = "divide_by_std is not read", ((READ, ""),)


def unread(*traps: Trap) -> tuple[Trap, ...]:
    """Each trap, and the same without the flag, torch.no_grad(), or both."""
    return with_slips(traps, UNREAD, LEARNT)


GRPO_ADVANTAGES = Exercise(
    id="15.6",
    answer=grpo_advantages,
    why="The most used baseline of reasoning models, with a division that is not as "
    "harmless as it looks.",
    difficulty=2,
    importance=4,
    minutes=4,
    hints=(
        "What is the standard deviation of a group whose answers are all right, and "
        "what happens when you divide by it?",
        r"$A_i = (r_i - \bar r) / (s + 10^{-4})$, $s$ with $G - 1$ below",
        "`centred = rewards - rewards.mean(1, keepdim=True)`",
    ),
    bonus="Rewards are 0 or 1. Write A of a right answer against the share of right "
    "ones in the group: which prompts push hardest, and is that what you want?",
    cases=grpo_cases,
    oracle=grpo_oracle,
    traps=(
        *unread(
            Trap(
                "Nothing keeps the division away from 0: equal rewards give 0/0. Add "
                "1e-4 to the standard deviation.",
                (STD, "rewards.std(1, keepdim=True)"),
            ),
            Trap(
                "The standard deviation divides by G − 1 here, PyTorch's default; this "
                "one divides by G.",
                (STD, "(rewards.std(1, keepdim=True, unbiased=False) + 1e-4)"),
            ),
            Trap(
                "The standard deviation divides by G − 1 here, this one by G; and 1e-4 "
                "is added to it, or equal rewards give 0/0.",
                (STD, "rewards.std(1, keepdim=True, unbiased=False)"),
            ),
            Trap(
                "That is the variance. Its root has the unit of a reward, and that is "
                "what is divided by.",
                (STD, "(rewards.var(1, keepdim=True) + 1e-4)"),
            ),
            Trap(
                "1e-4 is added to the variance, under the root, where it counts as "
                "1e-2. It belongs to the standard deviation.",
                (STD, "(rewards.var(1, keepdim=True) + 1e-4).sqrt()"),
            ),
            Trap(
                "A floor is not a sum: 1e-4 is added to every standard deviation, not "
                "only to the smallest.",
                (STD, "rewards.std(1, keepdim=True).clamp(min=1e-4)"),
            ),
            Trap(
                "The deviation is that of the whole batch. Each group has its own.",
                (STD, "(rewards.std() + 1e-4)"),
            ),
            Trap(
                "The mean is that of the whole batch: an easy prompt's answers then "
                "all look good. Each group has its own.",
                ("rewards.mean(1, keepdim=True)", "rewards.mean()"),
            ),
            Trap(
                "That is the other axis: a row is a prompt, and the group is its "
                "answers.",
                ("rewards.mean(1, keepdim=True)", "rewards.mean(0, keepdim=True)"),
                (
                    STD,
                    "(rewards.std(0, keepdim=True, unbiased=len(rewards) > 1) + 1e-4)",
                ),
            ),
            Trap(
                "That is RLOO's baseline, the mean of the others. GRPO takes the mean "
                "of the whole group.",
                (
                    "rewards - rewards.mean(1, keepdim=True)",
                    "(rewards - rewards.mean(1, keepdim=True)) * rewards.shape[1]"
                    " / (rewards.shape[1] - 1)",
                ),
            ),
        ),
        *learning(
            Trap(
                "divide_by_std is not read: False leaves rewards − mean, as Dr. GRPO "
                "has it.",
                (READ, ""),
            ),
            Trap(
                "divide_by_std is the wrong way round: it is True unless said "
                "otherwise.",
                ("if not divide_by_std", "if divide_by_std"),
            ),
            Trap(
                "A group of one has no standard deviation. Raise ValueError "
                "(`check_group` does), or NaN goes on quietly.",
                ("    check_group(rewards)\n", ""),
            ),
        ),
        Trap(
            "Advantages are measurements: no gradient may go through them. Use "
            "torch.no_grad().",
            GRADIENT,
        ),
    ),
    twins=(Twin(grpo_by_moments), Twin(grpo_by_group)),
)

# --- 15.7 best_of_n_kl --------------------------------------------------------------


def best_of_n_kl_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    some = torch.randint(20, 300, (2,), generator=draw).tolist()
    sizes = [1, 2, 3, 4, 16, 64, *some, 0, -2]
    return [Case(f"n = {n}", n) for n in sizes]


def best_of_n_kl_oracle(n: int) -> float:
    """Rank all answers from 0 to 1. The best of n has the density n uⁿ⁻¹ there.

    Its KL from the even law, ∫ p log p, by adding up narrow stripes.
    """
    if n < 1:
        raise ValueError("n must be 1 or more")
    stripes = 200_000
    u = (torch.arange(stripes, dtype=torch.float64) + 0.5) / stripes
    density = n * u ** (n - 1)
    return (density * (math.log(n) + (n - 1) * u.log())).mean().item()


def kl_by_steps(n):
    """From k − 1 answers to k, step by step."""
    if n <= 0:
        raise ValueError("at least one answer")
    steps = (math.log(k / (k - 1)) - 1 / (k - 1) + 1 / k for k in range(2, n + 1))
    return math.fsum(steps)


def kl_by_tensor(n):
    """log n + 1/n − 1."""
    if not n > 0:
        raise ValueError("at least one answer")
    one = torch.tensor(n, dtype=torch.float64)
    return (one.log() + one.reciprocal() - 1).item()


FORMULA = "math.log(n) - (n - 1) / n"

BEST_OF_N_KL = Exercise(
    id="15.7",
    answer=best_of_n_kl,
    why="Choosing is a policy, too. How far is it from the one that answered?",
    difficulty=2,
    importance=3,
    minutes=4,
    hints=(
        "Rank all answers by score, evenly from 0 to 1. Where in the ranking is the "
        "best of n likely to be?",
        r"Its density at rank $u$ is $n u^{n-1}$, so the KL is "
        r"$\int_0^1 n u^{n-1} \log(n u^{n-1})\, du$.",
        "The integral is log n less something that goes from 0 towards 1: for "
        "n = 1 nothing is chosen, and it is 0 − 0.",
    ),
    bonus="Best of n spends n answers, PPO spends them once. For which n would you "
    "rather train, if you will be asked a million times?",
    cases=best_of_n_kl_cases,
    oracle=best_of_n_kl_oracle,
    traps=(
        Trap(
            "log n is only an upper bound: it says how likely the best can become, and "
            "most answers gain less. Take (n − 1)/n off.",
            (FORMULA, "math.log(n)"),
        ),
        Trap(
            "log n − 1 is below 0 for n = 1, where nothing is chosen. What is taken "
            "off is (n − 1)/n.",
            (FORMULA, "math.log(n) - 1"),
        ),
        Trap(
            "1/n is taken off, but it should be 1 − 1/n: n = 1 must give 0.",
            (FORMULA, "math.log(n) - 1 / n"),
        ),
        Trap(
            "The second part must be taken off, not added.",
            (FORMULA, "math.log(n) + (n - 1) / n"),
        ),
        Trap(
            "That is in bits. The course counts in nats: the natural logarithm.",
            (FORMULA, "math.log2(n) - (n - 1) / n"),
        ),
        Trap(
            "This is the KL the other way round, of the policy from the best of n. "
            "Answers come from the best of n.",
            (FORMULA, "n - 1 - math.log(n)"),
        ),
        Trap(
            "The harmonic sum is near to log n only for large n. Take the "
            "logarithm, less (n − 1)/n.",
            (FORMULA, "sum(1 / k for k in range(2, n + 1))"),
        ),
        Trap(
            "n = 0 asks for the best of nothing. Raise ValueError yourself, with a "
            "sentence that says what is wrong.",
            (
                '    if n < 1:\n        raise ValueError(f"n must be 1 or more'
                ' (got {n})")\n',
                "    n = max(n, 1)\n",
            ),
        ),
    ),
    twins=(Twin(kl_by_steps), Twin(kl_by_tensor)),
    equivalent={"n < 1 → n < 0": "math.log(0) raises ValueError, too"},
)

# --- 15.8 best_of_n_estimate --------------------------------------------------------


def best_of_n_estimate_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def answers(N: int) -> tuple[Tensor, Tensor]:
        proxy, luck = torch.randn(2, N, generator=draw)
        values = 3 + 2 * (0.5 * proxy + luck)
        return proxy, values.requires_grad_(True)

    known = torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([0.3, 0.9, 0.1, 0.5])
    tied = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0, 1.0])
    return [
        Case("the example of the docstring", *known, 2),
        Case("n = 1, the mean", *answers(5), 1),
        Case("n = N, the best", *answers(5), n=5),
        Case("three of seven", *answers(7), 3),
        Case("equal proxies", tied, answers(6)[1], 2),
        Case("equal proxies, four of six", tied.flip(0), answers(6)[1], 4),
        Case("eight of thirty", *answers(30), 8),
        Case("numbers that overflow", *answers(1500), 700),
        Case("n = 0", *answers(4), 0),
        Case("more than there are", *answers(4), 5),
    ]


def best_of_n_estimate_oracle(proxy: Tensor, values: Tensor, n: int) -> Tensor:
    """All ways to choose n of N; where they are too many, they are counted."""
    N, scores = len(proxy), proxy.tolist()
    if not 1 <= n <= N:
        raise ValueError("n must be from 1 to N")
    values = values.double()
    if N <= 8:
        kept = []
        for choice in itertools.combinations(range(N), n):
            best = max(scores[i] for i in choice)
            winners = [values[i] for i in choice if scores[i] == best]
            kept.append(torch.stack(winners).mean())
        return torch.stack(kept).mean()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(N):  # no two are equal
        worse = sum(one < scores[i] for one in scores)
        total = total + math.comb(worse, n - 1) / math.comb(N, n) * values[i]
    return total


def estimate_by_ranks(proxy, values, n):
    """P(best is at most this) is C(worse or equal, n) / C(N, n); their differences."""
    N = len(proxy)
    if n < 1 or n > N:
        raise ValueError("n must be from 1 to N")
    below, total = 0.0, torch.zeros((), dtype=torch.float64)
    for level in proxy.unique().tolist():
        upto = math.comb(int((proxy <= level).sum()), n) / math.comb(N, n)
        total = total + (upto - below) * values[proxy == level].double().mean()
        below = upto
    return total


def estimate_by_products(proxy, values, n):
    """From the best down: it is kept if it is drawn, else the next one's turn."""
    N = len(proxy)
    if n not in range(1, N + 1):
        raise ValueError("n must be from 1 to N")
    order = proxy.argsort(descending=True)
    reached, weights = 1.0, torch.zeros(N, dtype=torch.float64)
    for rank, i in enumerate(order.tolist()):
        drawn = min(n / (N - rank), 1.0)
        weights[i] = reached * drawn
        reached *= 1 - drawn
    shared = torch.stack([weights[proxy == one].mean() for one in proxy])
    return (shared * values.double()).sum()


ESTIMATED = "return (weights * shared[order]).sum()"
WEIGHTS = "torch.where(before >= n - 1, log_ways.exp(), 0.0)"

BEST_OF_N_ESTIMATE = Exercise(
    id="15.8",
    answer=best_of_n_estimate,
    why="One batch of answers tells the whole curve, and every answer helps at every "
    "n.",
    difficulty=4,
    importance=3,
    minutes=10,
    hints=(
        "Sort by proxy. In how many of the choices of n answers is the i-th one the "
        "best?",
        r"$\sum_i \binom{i-1}{n-1} / \binom{N}{n} \cdot v_{(i)}$: it is chosen, and so "
        "are n − 1 of the i − 1 below it. Equal proxies share their mean.",
        "The weights in logarithms: `log_choose(before, n - 1)` less "
        "`log_choose(before.new_tensor(float(N)), n)`, `before` from 0 in float64.",
    ),
    bonus="Estimate the spread of this estimate by drawing new batches of 64. How "
    "much better is it than the best of the first n, at n = 4?",
    cases=best_of_n_estimate_cases,
    oracle=best_of_n_estimate_oracle,
    traps=(
        Trap(
            "The best of all N is best of N, not of n. Average over all choices of n.",
            (WEIGHTS, "(before == N - 1).double()"),
        ),
        Trap(
            "Only the first n answers are asked. That is right on average but throws "
            "the others away: average over all choices of n.",
            (ESTIMATED, "return values[proxy[:n].argmax()].double()"),
        ),
        Trap(
            "A mean over the n best of all N is another thing: one of n is kept, the "
            "best of those that were drawn.",
            (WEIGHTS, "(before >= N - n).double() / n"),
        ),
        Trap(
            "This draws with replacement, (i/N)ⁿ, and so the same answer twice. Count "
            "choices of n different ones.",
            (WEIGHTS, "((before + 1) / N) ** n - (before / N) ** n"),
        ),
        Trap(
            "This is the worst of n: sort from the smallest proxy to the largest, so "
            "that answer i is better than the i − 1 before it.",
            ("order = proxy.argsort()", "order = proxy.argsort(descending=True)"),
        ),
        Trap(
            "The values choose here. The proxy chooses, and what it gets by that is "
            "the question.",
            (
                "order = proxy.argsort()",
                "proxy = values.detach()\n    order = proxy.argsort()",
            ),
        ),
        Trap(
            "The proxy of the winner comes back. The proxy only chooses: give the "
            "winner's value.",
            (
                "order = proxy.argsort()",
                "values = proxy.clone().requires_grad_(values."
                "requires_grad)\n    order = proxy.argsort()",
            ),
        ),
        Trap(
            "Of equal proxies the sort's order decides. Each of them is the best "
            "equally often: let them share their mean.",
            (
                "shared = (sums.index_add(0, group, values.double()) / size)[group]",
                "shared = values.double()",
            ),
        ),
        Trap(
            "Off by one: the i-th from below has i − 1 worse ones to take n − 1 from.",
            ("before = torch.arange(N,", "before = 1 + torch.arange(N,"),
        ),
        Trap(
            "The n − 1 others go with the answer itself: C(i − 1, n − 1) ways, not "
            "C(i − 1, n).",
            ("log_choose(before, n - 1)", "log_choose(before, n)"),
            ("before >= n - 1", "before >= n"),
        ),
        Trap(
            "Where fewer than n − 1 are worse there is no way at all, and log-gamma "
            "does not know it: the weight is 0 there.",
            (WEIGHTS, "log_ways.exp()"),
        ),
        Trap(
            "The numbers of ways overflow. Subtract their logarithms first, then take "
            "the exponential once.",
            (
                "log_ways = log_choose(before, n - 1) - log_choose("
                "before.new_tensor(float(N)), n)",
                "log_ways = (log_choose(before, n - 1).exp() / log_choose("
                "before.new_tensor(float(N)), n).exp()).log()",
            ),
        ),
        Trap(
            "An n that is not from 1 to N has no answer: raise ValueError.",
            ("if not 1 <= n <= N:", "n = min(max(n, 1), N)\n    if not 1 <= n <= N:"),
        ),
        Trap(
            "n below 1 is refused, but n above N is not: there are not that many "
            "answers to choose from.",
            ("if not 1 <= n <= N:", "n = min(n, N)\n    if not 1 <= n <= N:"),
        ),
        Trap(
            "The estimate should pass a gradient on to values: it is a weighted mean "
            "of them.",
            ("values.double())", "values.detach().double())"),
        ),
    ),
    twins=(Twin(estimate_by_ranks), Twin(estimate_by_products)),
    equivalent={
        "sums.index_add(0, group, values.double()) → "
        "sums.index_add(-1, group, values.double())": "sums has one axis only",
        "not 1 <= n <= N → not 0 <= n <= N": (
            "with n = 0, log-gamma of 0 raises ValueError, too"
        ),
    },
)

EXERCISES = (
    IMPORTANCE_WEIGHTS,
    EFFECTIVE_SAMPLE_SIZE,
    SEQUENCE_LOGPROBS,
    DPO_LOSS,
    RLOO_ADVANTAGES,
    GRPO_ADVANTAGES,
    BEST_OF_N_KL,
    BEST_OF_N_ESTIMATE,
)
