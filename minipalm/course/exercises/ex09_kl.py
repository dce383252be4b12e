"""Lesson 09: log-probabilities, the KL and its estimators, and who pays for it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipalm.config import PaLMConfig
from minipalm.course.exercise import Candidate, Case, Exercise, Trap, Twin
from minipalm.model.palm import PaLM
from minipalm.rlhf.kl import KLController, exact_kl, k3
from minipalm.rlhf.logprobs import entropy, response_logits, token_logprobs
from minipalm.rlhf.rollout import penalise_missing_eos, shape_rewards

V = 11  # tokens of the tiny network
BFLOAT = torch.bfloat16


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


# --- 9.1 token_logprobs ---------------------------------------------------------------


def logprob_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(*shape: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
        logits = spread * torch.randn(*shape, 7, generator=draw)
        return logits.requires_grad_(True), torch.randint(7, shape, generator=draw)

    known = torch.tensor([[0.0, math.log(3)]] * 2), torch.tensor([0, 1])
    rough, ids = batch(3, 4)
    columns, rows = batch(3, 5)
    turned = columns.detach().transpose(0, 1)
    return [
        Case("the example of the docstring", *known),
        Case("a batch of answers", *batch(3, 5)),
        Case("one axis", *batch(6)),
        Case("three axes", *batch(2, 3, 4)),
        Case("bfloat16", (rough.detach() + 9.0).to(BFLOAT), ids),
        Case("very unlikely tokens", *batch(2, 6, spread=120.0)),
        Case("axes turned, so not in one piece", turned.requires_grad_(True), rows.mT),
    ]


def logprob_oracle(logits: Tensor, ids: Tensor) -> Tensor:
    """Place by place: z_y − log Σ exp z, with the largest logit taken out first."""
    rows = []
    for row, token in zip(logits.float().reshape(-1, logits.shape[-1]), ids.flatten()):
        shifted = row - row.max()
        rows.append(shifted[token] - sum(one.exp() for one in shifted).log())
    return torch.stack(rows).view(ids.shape)


def logprobs_by_gather(logits, ids):
    law = torch.log_softmax(logits.float(), dim=-1)
    return law.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def logprobs_by_logsumexp(logits, ids):
    logits = logits.to(torch.float32)
    picked = (logits * F.one_hot(ids, logits.shape[-1])).sum(-1)
    return picked - logits.logsumexp(-1)


FLOAT = "logits.flatten(0, -2).float()"

LOGPROBS = Exercise(
    id="9.1",
    answer=token_logprobs,
    why="Ratio, KL, entropy: all of RLHF is made of these numbers.",
    difficulty=2,
    importance=5,
    minutes=7,
    hints=(
        "Which loss have you used in pretraining, and what is it of one token?",
        "$\\log \\pi(y) = z_y - \\log \\sum_v e^{z_v}$",
        "`logits.float()` first; then log_softmax and gather, or cross_entropy with "
        '`reduction="none"`.',
    ),
    bonus="Measure time and memory of `gather` and of `cross_entropy` for 64 answers "
    "of 128 tokens and a vocabulary of 32,000.",
    cases=logprob_cases,
    oracle=logprob_oracle,
    traps=(
        Trap(
            "Computed in the logits' own type: bfloat16 has 8 bits, and the ratio of "
            "two such numbers is off by more than a PPO step moves. First .float().",
            (FLOAT, FLOAT[:-8]),
        ),
        Trap(
            "The result is float32, but the softmax was computed in bfloat16: by then "
            "the digits are lost. Convert the logits, not the result.",
            (FLOAT, FLOAT[:-8]),
            ("-losses.view(ids.shape)", "-losses.float().view(ids.shape)"),
        ),
        Trap(
            "These are of the *next* token: logits and tokens are given place by "
            "place, so nothing is shifted here.",
            ("ids.flatten(), red", "ids.roll(-1, -1).flatten(), red"),
        ),
        Trap(
            "The sign: a log-probability is at most 0, these are losses.",
            ("return -losses", "return losses"),
        ),
        Trap(
            "Probabilities; the docstring asks for their logarithms.",
            (
                "return -losses.view(ids.shape)",
                "return (-losses).exp().view(ids.shape)",
            ),
        ),
        Trap(
            "The logits of the tokens as they stand: a constant added to all logits "
            "changes them, and no probability. Subtract the logsumexp.",
            lambda logits, ids: logits.float().gather(-1, ids[..., None])[..., 0],
        ),
        Trap(
            "softmax, then log: what is less likely than 1e-45 becomes −inf, and its "
            "gradient NaN. log_softmax takes the log first.",
            lambda logits, ids: (
                logits.float().softmax(-1).gather(-1, ids[..., None])[..., 0].log()
            ),
        ),
        Trap(
            "One number for all tokens; each token has a log-probability of its own: "
            'reduction="none".',
            ('reduction="none"', 'reduction="mean"'),
            ("-losses.view(ids.shape)", "-losses"),
        ),
        Trap(
            "The likeliest token's log-probability; what counts is the token that was "
            "drawn.",
            ("ids.flatten(), red", "logits.argmax(-1).flatten(), red"),
        ),
    ),
    twins=(Twin(logprobs_by_gather), Twin(logprobs_by_logsumexp)),
)

# --- 9.2 entropy ----------------------------------------------------------------------


def entropy_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(3, 4, 6, generator=draw)
    turned = torch.randn(6, 4, 3, generator=draw).transpose(0, 2)
    return [
        Case("the example of the docstring", torch.tensor([[0.0, math.log(3)]])),
        Case("equal logits", torch.full((2, 4), 1.7)),
        Case("a batch of answers", logits.clone().requires_grad_(True)),
        Case("one axis", torch.randn(5, 7, generator=draw).requires_grad_(True)),
        Case("bfloat16", (logits + 9.0).to(BFLOAT)),
        Case("nearly certain", (150.0 * logits).requires_grad_(True)),
        Case("axes turned, so not in one piece", turned.requires_grad_(True)),
    ]


def entropy_oracle(logits: Tensor) -> Tensor:
    """−Σ p log p, a law and a token at a time; 0 log 0 is 0."""
    found = []
    for row in logits.float().reshape(-1, logits.shape[-1]):
        logp = row - row.max()
        logp = logp - logp.exp().sum().log()
        found.append(-sum(one.exp() * one for one in logp))
    return torch.stack(found).view(logits.shape[:-1])


def entropy_by_logsumexp(logits):
    """log Z − mean logit under the law."""
    logits = logits.float()
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


ENTROPY = Exercise(
    id="9.2",
    answer=entropy,
    why="When it falls to 0, the policy gives every prompt one answer only and has "
    "stopped exploring.",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "How surprised are you by a draw, on average?",
        "$H = -\\sum_v p_v \\log p_v$ with $p = \\text{softmax}(z)$",
        "`logprobs = logits.float().log_softmax(-1)`",
    ),
    bonus="Perplexity is e to the entropy: from how many equally likely tokens does "
    "the policy choose, place by place?",
    cases=entropy_cases,
    oracle=entropy_oracle,
    traps=(
        Trap(
            "Computed in the logits' own type: in bfloat16 an entropy has two digits. "
            "First .float().",
            ("logits.float().log_softmax", "logits.log_softmax"),
        ),
        Trap(
            "The sign: Σ p log p is never positive, the entropy is minus that.",
            ("return -(", "return ("),
        ),
        Trap(
            "In bits: the logarithm is natural here, like that of every "
            "log-probability.",
            (".sum(-1)", ".sum(-1) / 0.6931472"),
        ),
        Trap(
            "A mean over the vocabulary: p weighs the tokens already, so add them up.",
            (".sum(-1)", ".mean(-1)"),
        ),
        Trap(
            "Every token of the vocabulary counts the same here; weigh each log p by "
            "p.",
            ("(logprobs.exp() * logprobs).sum(-1)", "logprobs.mean(-1)"),
        ),
        Trap(
            "softmax, then log: where p is 0 in float32, 0 · log 0 is NaN. Take "
            "log_softmax, and p as its exp.",
            lambda logits: (
                -(logits.float().softmax(-1) * logits.float().softmax(-1).log()).sum(-1)
            ),
        ),
        Trap(
            "This is the surprise of the likeliest token; the entropy is the mean over "
            "all of them.",
            ("(logprobs.exp() * logprobs).sum(-1)", "logprobs.amax(-1)"),
        ),
        Trap(
            "One number for all places; each place has a law of its own.",
            (".sum(-1)", ".sum(-1).mean()"),
        ),
        Trap(
            "The logits are no log-probabilities yet: take log_softmax first.",
            ("(logprobs.exp() * logprobs)", "(logprobs.exp() * logits.float())"),
        ),
    ),
    twins=(
        Twin(entropy_by_logsumexp),
        Twin(
            lambda logits: torch.distributions.Categorical(
                logits=logits.float()
            ).entropy()
        ),
    ),
)

# --- 9.3 response_logits --------------------------------------------------------------


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


class WholeLogits(PaLM):
    """Logits in bfloat16, but whole numbers: no order of sums rounds them otherwise."""

    def logits(self, hidden: Tensor) -> Tensor:
        return (8 * super().logits(hidden)).round().to(BFLOAT)


def logits_cases(seed: int) -> list[Case]:
    def case(name: str, lengths: list[tuple[int, int]], P: int, T: int, *how: float):
        policy = tiny_palm(seed)
        return Case(name, policy, *text_batch(lengths, seed, P, T), *how)

    rough = tiny_palm(seed).requires_grad_(False)
    rough.__class__ = WholeLogits
    batch = text_batch([(3, 2), (2, 4)], seed, 3, 4)
    return [
        case("one prompt, one answer", [(3, 4)], 3, 4),
        case("unequal lengths", [(1, 5), (4, 1), (3, 3)], 4, 5),
        case("much padding", [(2, 2), (1, 3)], 5, 4),
        case("temperature 0.5", [(2, 3), (3, 1)], 3, 3, 0.5),
        case("answers of one token", [(2, 1), (3, 1)], 3, 1, 2.0),
        Case("a policy in bfloat16", rough, *batch, temperature=0.7),
    ]


def logits_at_tokens(candidate: Candidate, *args: Any, **more: Any) -> Any:
    """The logits where the mask is True, and the shape of all of them."""
    logits, mask = candidate(*args, **more), args[4]
    if isinstance(logits, Tensor) and logits.shape[:2] == mask.shape:
        return logits[mask], list(logits.shape)
    return logits


def logits_oracle(*args: Any, **more: Any) -> Any:
    return logits_at_tokens(logits_token_by_token, *args, **more)


def logits_token_by_token(
    policy: PaLM,
    prompts: Tensor,
    prompt_mask: Tensor,
    responses: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """For each token of each answer: read what stands before it, and nothing else."""
    rows = []
    for prompt, is_prompt, response in zip(prompts, prompt_mask, responses):
        seen, laws = prompt[is_prompt].tolist(), []
        for token in response.tolist():
            logits = policy(torch.tensor([seen]))[0, -1]
            laws.append(logits.float() / temperature)
            seen.append(token)
        rows.append(torch.stack(laws))
    return torch.stack(rows)


def logits_of_all(policy, prompts, prompt_mask, responses, mask, temperature=1.0):
    """The whole text's logits, and then the slice."""
    ids = torch.cat([prompts, responses], dim=1)
    segments = torch.cat([prompt_mask, mask], dim=1).to(torch.long)
    return policy(ids, segments)[:, prompts.shape[1] - 1 : -1].float() / temperature


def logits_by_rows(policy, prompts, prompt_mask, responses, mask, temperature=1.0):
    """Each row without its padding on the left."""
    rows = []
    for prompt, seen, response in zip(prompts, prompt_mask, responses):
        ids = torch.cat([prompt[seen], response])[None]
        start = int(seen.sum()) - 1
        rows.append(policy(ids)[0, start:-1].to(torch.float32) * (1 / temperature))
    return torch.stack(rows)


IDS = "torch.cat([prompts, responses[:, :-1]], dim=1)"
SEGMENTS = "torch.cat([prompt_mask, mask[:, :-1]], dim=1).to(torch.long)"

LOGITS = Exercise(
    id="9.3",
    answer=response_logits,
    why="One place too far, and you train on the probabilities of other tokens; no "
    "error is raised, only the curves are odd.",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "Write down a prompt of two tokens and an answer of three. Under each token, "
        "which place predicts it?",
        "Token $t$ of the answer stands at place $P + t$; its logits are those of "
        "place $P + t - 1$, divided by $\\tau$.",
        "`ids = torch.cat([prompts, responses[:, :-1]], dim=1)`",
    ),
    bonus="The vocabulary makes (B, T, V) the largest tensor of a rollout. Compute the "
    "log-probabilities without ever holding it whole.",
    cases=logits_cases,
    oracle=logits_oracle,
    run=logits_at_tokens,
    traps=(
        Trap(
            "One place too late: the logits at a token predict the one *after* it. "
            "Those of the answer's first token come from the prompt's last.",
            (IDS, "torch.cat([prompts, responses], dim=1)"),
            (SEGMENTS, "torch.cat([prompt_mask, mask], dim=1).to(torch.long)"),
        ),
        Trap(
            "One place too early: start at the prompt's last token, place P − 1.",
            (IDS, "torch.cat([prompts, responses[:, :-1]], dim=1)[:, :-1]"),
            (
                SEGMENTS,
                "torch.cat([prompt_mask, mask[:, :-1]], dim=1)[:, :-1].to(torch.long)",
            ),
        ),
        Trap(
            "The temperature is forgotten: then policy and sampler follow different "
            "laws, and the ratio is not 1 before the first step.",
            (" / temperature", ""),
        ),
        Trap(
            "It multiplies by the temperature. Dividing makes a low temperature sharp.",
            ("/ temperature", "* temperature"),
        ),
        Trap(
            "The policy is not told what is padding: the pads left of a short prompt "
            "are read as text. Pass segments.",
            ("hidden(ids, segments, last=resp", "hidden(ids, last=resp"),
        ),
        Trap(
            "The division happens in the policy's own type; in bfloat16 that costs "
            "digits which the ratio needs. First .float(), then divide.",
            (
                "policy.logits(hidden).float() / temperature",
                "(policy.logits(hidden) / temperature).float()",
            ),
        ),
        Trap(
            "The result has the policy's own type; it should be float32 always.",
            ("policy.logits(hidden).float()", "policy.logits(hidden)"),
        ),
        Trap(
            "The prompt's logits come along: only those of the answer are asked for, "
            "one for each of its T tokens.",
            (", last=responses.shape[1])", ")"),
        ),
        Trap(
            "The answer's last token has no logits here. T tokens need T places: from "
            "P − 1 up to the last but one.",
            (", last=responses.shape[1])", ")[:, prompts.shape[1] - 1 : -1]"),
        ),
        Trap(
            "These are log-probabilities already; the docstring asks for logits, since "
            "the entropy needs them, too.",
            ("/ temperature", "/ temperature).log_softmax(-1)"),
            ("return policy", "return (policy"),
        ),
        Trap(
            "The answer is read without its prompt: what is asked for is "
            "log π(answer | prompt).",
            (IDS, "torch.cat([prompts[:, -1:], responses[:, :-1]], dim=1)"),
            (
                SEGMENTS,
                "torch.cat([prompt_mask[:, -1:], mask[:, :-1]], dim=1).to(torch.long)",
            ),
        ),
    ),
    twins=(Twin(logits_of_all), Twin(logits_by_rows)),
)

# --- 9.4 exact_kl ---------------------------------------------------------------------


def exact_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def two(*shape: int) -> tuple[Tensor, Tensor]:
        one, other = 1.5 * torch.randn(2, *shape, generator=draw)
        return one.requires_grad_(True), (other + 1.0).requires_grad_(True)

    laws = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.25, 0.25, 0.5]])
    rough = [(3 * one.detach() + 9).to(BFLOAT) for one in two(2, 6)]
    same = torch.randn(2, 4, generator=draw)
    return [
        Case("the example of the docstring", *(law.log() for law in laws)),
        Case("a batch of answers", *two(3, 4, 6)),
        Case("one axis", *two(2, 5)),
        Case("bfloat16", *rough),
        Case("the same law", same, same + 3.0),
    ]


def exact_oracle(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """One law after the other, one token after the other."""
    V = logits.shape[-1]
    found = []
    pairs = zip(logits.float().reshape(-1, V), ref_logits.float().reshape(-1, V))
    for one, other in pairs:
        weights, others = one.exp(), other.exp()
        total = torch.zeros(())
        for v in range(V):
            p, q = weights[v] / weights.sum(), others[v] / others.sum()
            total = total + p * (p / q).log()
        found.append(total)
    return torch.stack(found).view(logits.shape[:-1])


def kl_of_torch(logits, ref_logits):
    """PyTorch's kl_div(input, target) is KL(target ‖ input)."""
    one, other = (x.float().log_softmax(-1) for x in (logits, ref_logits))
    return F.kl_div(other, one, reduction="none", log_target=True).sum(-1)


def kl_as_cross_entropy(logits, ref_logits):
    """Cross-entropy less entropy."""
    p = logits.float().softmax(-1)
    cross = -(p * ref_logits.float().log_softmax(-1)).sum(-1)
    return cross + (p * logits.float().log_softmax(-1)).sum(-1)


EXACT = Exercise(
    id="9.4",
    answer=exact_kl,
    why="The truth against which the estimators are measured; affordable wherever you "
    "hold both laws in full.",
    difficulty=2,
    importance=4,
    minutes=6,
    hints=(
        "Whose samples would you average over: the policy's, or the reference's?",
        "$\\text{KL}(\\pi \\| \\pi_\\text{ref}) = \\sum_y \\pi(y) "
        "(\\log \\pi(y) - \\log \\pi_\\text{ref}(y))$",
        "`logprobs = logits.float().log_softmax(-1)`",
    ),
    bonus="Find two laws on three tokens for which the two directions differ by a "
    "factor of ten.",
    cases=exact_cases,
    oracle=exact_oracle,
    traps=(
        Trap(
            "This is KL(π_ref ‖ π): it punishes what the reference does and the policy "
            "does not. Here the policy's samples count: weights π.",
            (
                "(logprobs.exp() * (logprobs - ref_logprobs))",
                "(ref_logprobs.exp() * (ref_logprobs - logprobs))",
            ),
        ),
        Trap(
            "The weights are the reference's. The mean is over tokens that the "
            "*policy* draws.",
            ("(logprobs.exp() *", "(ref_logprobs.exp() *"),
        ),
        Trap(
            "The sign: log π − log π_ref. As it stands, moving away is paid for.",
            ("(logprobs - ref_logprobs)", "(ref_logprobs - logprobs)"),
        ),
        Trap(
            "No weights: a token that the policy never says counts as much as its "
            "favourite. Weigh with π(y).",
            ("logprobs.exp() * (logprobs", "(logprobs"),
        ),
        Trap(
            "A mean over the vocabulary: π weighs the tokens already, so add them up.",
            (".sum(-1)", ".mean(-1)"),
        ),
        Trap(
            "The policy's logits are taken in their own type; in bfloat16 two laws "
            "that differ a little differ by rounding alone. First .float().",
            (
                "logits.float().log_softmax(-1)\n    ref",
                "logits.log_softmax(-1).float()\n    ref",
            ),
            (
                "ref_logits.float().log_softmax(-1)",
                "ref_logits.log_softmax(-1).float()",
            ),
        ),
        Trap(
            "The reference's logits are not normalised: the KL of a law with itself "
            "must be 0, whatever is added to its logits.",
            ("ref_logits.float().log_softmax(-1)", "ref_logits.float()"),
        ),
        Trap(
            "One number for all places; each place has a KL of its own.",
            (".sum(-1)", ".sum(-1).mean()"),
        ),
        Trap(
            "The weights carry no gradient here: then the gradient of this sum is 0 in "
            "the policy's logits where the laws agree, and wrong elsewhere.",
            ("logprobs.exp() * (", "logprobs.exp().detach() * ("),
        ),
    ),
    twins=(Twin(kl_of_torch), Twin(kl_as_cross_entropy)),
)

# --- 9.5 k3 ---------------------------------------------------------------------------


def k3_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def two(*shape: int) -> tuple[Tensor, Tensor]:
        one, other = -3.0 * torch.rand(2, *shape, generator=draw)
        return one.requires_grad_(True), other.requires_grad_(True)

    half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    near = torch.linspace(2e-3, 4e-3, 5)
    far, near_by = torch.tensor([[-30.0], [-45.0]]), torch.tensor([[-0.5], [-0.7]])
    return [
        Case("the example of the docstring", half, quarter),
        Case("the other way round", quarter, half),
        Case("a batch of answers", *two(3, 5)),
        Case("one axis", *two(7)),
        Case("the same law", half, half),
        Case("nearly the same law, in units of 1e-6", near, -near, unit=1e-6),
        Case(
            "much less likely than in the reference", far.requires_grad_(True), near_by
        ),
        Case("much likelier than in the reference", near_by, far.detach()),
    ]


def run_k3(
    candidate: Candidate, logprobs: Tensor, ref_logprobs: Tensor, unit: float = 1.0
) -> Tensor:
    return candidate(logprobs, ref_logprobs) / unit


def k3_oracle(logprobs: Tensor, ref_logprobs: Tensor, unit: float = 1.0) -> Tensor:
    """In float64, where r − 1 has digits enough."""
    log_ratio = ref_logprobs.double() - logprobs.double()
    r = torch.stack([one.exp() for one in log_ratio.flatten()]).view(log_ratio.shape)
    return ((r - 1 - log_ratio) / unit).float()


def k3_of_k1(logprobs, ref_logprobs):
    """k1 and a term of mean 0 that takes the noise away."""
    k1 = logprobs - ref_logprobs
    return k1 + torch.expm1(-k1)


K3 = Exercise(
    id="9.5",
    answer=k3,
    why="The KL from the tokens that were drawn, without the noise of the plain "
    "estimate; GRPO's penalty is this number.",
    difficulty=3,
    importance=4,
    minutes=8,
    hints=(
        "What is the mean of r − 1, if tokens are drawn from π and r = π_ref / π?",
        "$k_3 = r - 1 - \\log r$ with $r = \\pi_\\text{ref}(y) / \\pi(y)$",
        "`log_ratio = ref_logprobs - logprobs`",
    ),
    bonus="k1 + c (r − 1) is unbiased for every c. Which c has the least variance for "
    "the two laws of the docstring?",
    cases=k3_cases,
    oracle=k3_oracle,
    run=run_k3,
    traps=(
        Trap(
            "r is upside down: for tokens drawn from the policy r = π_ref / π. This "
            "one's mean is not the KL: far from the reference it explodes.",
            ("ref_logprobs - logprobs", "logprobs - ref_logprobs"),
        ),
        Trap(
            "e^x − 1 by subtraction: in float32 it has no digits left where the laws "
            "nearly agree, which is where training begins. Use expm1.",
            ("log_ratio.expm1()", "(log_ratio.exp() - 1)"),
        ),
        Trap(
            "The −1 is missing: a policy that has not moved would pay for it.",
            ("log_ratio.expm1() - log_ratio", "log_ratio.exp() - log_ratio"),
        ),
        Trap(
            "Only r − 1: its mean is 0, whatever the policy does. The KL is in −log r.",
            ("log_ratio.expm1() - log_ratio", "log_ratio.expm1()"),
        ),
        Trap(
            "This is k1: right on average, but often negative. r − 1 is what takes the "
            "noise away.",
            ("log_ratio.expm1() - log_ratio", "-log_ratio"),
        ),
        Trap(
            "This is k2, half the square: never negative, too, but its mean is not the "
            "KL.",
            ("log_ratio.expm1() - log_ratio", "log_ratio**2 / 2"),
        ),
        Trap(
            "log r is added; it is taken off: r − 1 − log r, which is never negative.",
            (".expm1() - log_ratio", ".expm1() + log_ratio"),
        ),
        Trap(
            "The sign is turned round: r − 1 − log r is never negative.",
            ("log_ratio.expm1() - log_ratio", "log_ratio - log_ratio.expm1()"),
        ),
        Trap(
            "The absolute value of k1: never negative, but far too large, for what "
            "cancels on average no longer does.",
            ("log_ratio.expm1() - log_ratio", "log_ratio.abs()"),
        ),
        Trap(
            "log r is clamped. Some libraries do that to keep r small, but what is "
            "clamped has no gradient, just where the policy is farthest off.",
            (
                "ref_logprobs - logprobs",
                "(ref_logprobs - logprobs).clamp(-20.0, 20.0)",
            ),
        ),
    ),
    twins=(
        Twin(k3_of_k1),
        Twin(
            lambda logprobs, ref_logprobs: (
                (ref_logprobs.double() - logprobs.double()).exp()
                - 1
                + (logprobs.double() - ref_logprobs.double())
            ).float()
        ),
    ),
)

# --- 9.6 penalise_missing_eos ---------------------------------------------------------


def eos_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, generator=draw).requires_grad_(True)
    tokens = torch.randint(3, 9, (5, 6), generator=draw)
    tokens[0, 3] = tokens[2, 5] = 2  # two end by themselves, one of them at the edge
    tokens[0, 5] = tokens[1, 4] = tokens[3, 2] = tokens[4, 5] = 2  # only padding
    mask = ragged([4, 6, 6, 2, 5], 6)
    tokens[1, 4] = 7
    known = torch.tensor([0.5, 0.5]), torch.tensor([[7, 2], [7, 8]])
    zeros = torch.where(mask, tokens, 0)
    zeros[0, 3] = zeros[2, 5] = 0
    return [
        Case("the example of the docstring", *known, ragged([2, 2], 2), 2, 1.0),
        Case("ends in the padding", scores, tokens, mask, 2, 1.5),
        Case("the pad is the end, too", scores, zeros, mask, 0, 0.7),
        Case("no penalty", scores, tokens, mask, 2, 0.0),
        Case("nobody ends", scores, tokens + 10, mask, 2, 2.0),
    ]


def eos_oracle(
    scores: Tensor, responses: Tensor, mask: Tensor, eos_id: int, penalty: float
) -> Tensor:
    """Answer by answer: is its last token the end?"""
    found = []
    for score, tokens, kept in zip(scores, responses, mask):
        told = [int(token) for token, is_token in zip(tokens, kept) if is_token]
        found.append(score if told[-1] == eos_id else score - penalty)
    return torch.stack(found)


def eos_by_last(scores, responses, mask, eos_id, penalty):
    last = responses.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
    return torch.where(last == eos_id, scores, scores - penalty)


def eos_by_counting(scores, responses, mask, eos_id, penalty):
    ends = (responses.masked_fill(~mask, -1) == eos_id).sum(1)
    return scores - penalty * (1 - ends.clamp(max=1))


UNFINISHED = "scores - penalty * ~finished"

MISSING_EOS = Exercise(
    id="9.6",
    answer=penalise_missing_eos,
    why="Without a penalty, a policy that talks until it is cut off loses nothing; "
    "this is what makes it learn to stop.",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "How can you tell an answer that has ended from one that ran out of room?",
        "$s' = s - p \\cdot \\mathbb{1}[\\text{no eos among the answer's tokens}]$",
        "`finished = (mask & (responses == eos_id)).any(1)`",
    ),
    bonus="Some systems give such answers one fixed low score instead. What "
    "does that teach about the rest of the answer?",
    cases=eos_cases,
    oracle=eos_oracle,
    traps=(
        Trap(
            "It finds ends in the padding, too: only tokens where the mask is True "
            "were ever said.",
            ("(mask & (responses == eos_id))", "(responses == eos_id)"),
        ),
        Trap(
            "It looks at the last column; a short answer ends before it. Look wherever "
            "the mask is True.",
            (
                "(mask & (responses == eos_id)).any(1)",
                "mask[:, -1] & (responses[:, -1] == eos_id)",
            ),
        ),
        Trap(
            "Turned round: those that have ended are punished.",
            ("* ~finished", "* finished"),
        ),
        Trap(
            "The penalty is added: it rewards answers that never end.",
            (UNFINISHED, "scores + penalty * ~finished"),
        ),
        Trap(
            "The score is replaced; take the penalty from it, so that a good answer "
            "still beats a bad one.",
            (UNFINISHED, "torch.where(finished, scores, -penalty)"),
        ),
        Trap(
            "All answers pay as soon as one has not ended: look along each row, "
            "any(1).",
            (").any(1)", ").any(1).all()"),
        ),
        Trap(
            "A row that stops before the last column counts as ended. It may have been "
            "cut: what counts is that the token was said.",
            ("(mask & (responses == eos_id)).any(1)", "~mask[:, -1]"),
        ),
        Trap(
            "The scores lose their gradient or are rebuilt: take the penalty off and "
            "leave the rest alone.",
            (UNFINISHED, "scores.detach() - penalty * ~finished"),
        ),
    ),
    twins=(Twin(eos_by_last), Twin(eos_by_counting)),
)

# --- 9.7 shape_rewards ----------------------------------------------------------------


def shape_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(lengths: list[int], T: int) -> tuple[Tensor, ...]:
        scores = torch.randn(len(lengths), generator=draw).requires_grad_(True)
        logprobs, ref = -2.0 * torch.rand(2, len(lengths), T, generator=draw)
        mask = ragged(lengths, T)
        return scores, logprobs.requires_grad_(True), ref.requires_grad_(True), mask

    known = torch.tensor([[-1.0, -1.5, -9.0]]), torch.tensor([[-1.5, -1.3, -2.0]])
    return [
        Case(
            "the example of the docstring",
            torch.tensor([1.0]),
            *known,
            ragged([2], 3),
            0.1,
        ),
        Case("unequal lengths", *batch([4, 1, 3, 5], 6), 0.3),
        Case("full rows", *batch([3, 3], 3), kl_coef=0.7),
        Case("β = 0", *batch([2, 4, 1], 4), 0.0),
        Case("one token each", *batch([1, 1, 1], 2), 1.5),
        Case("other answers, as many and as long", *batch([2, 6, 1, 4], 6), 0.3),
    ]


def shape_oracle(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """Token by token."""
    B, T = mask.shape
    rewards = torch.zeros(B, T)
    for b in range(B):
        length = int(mask[b].sum())
        for t in range(length):
            moved = float(logprobs[b, t]) - float(ref_logprobs[b, t])
            rewards[b, t] = -kl_coef * moved
            if t == length - 1:
                rewards[b, t] += float(scores[b])
    return rewards


def shape_by_columns(scores, logprobs, ref_logprobs, mask, kl_coef):
    """The last token is one that has no token after it."""
    after = F.pad(mask[:, 1:], (0, 1))
    is_last = mask & ~after
    price = kl_coef * (ref_logprobs - logprobs)
    return torch.where(mask, price + scores[:, None] * is_last, 0.0).detach()


def shape_in_place(scores, logprobs, ref_logprobs, mask, kl_coef):
    rewards = ((ref_logprobs - logprobs).detach() * kl_coef).masked_fill(~mask, 0.0)
    rows = torch.arange(len(rewards))
    rewards[rows, mask.sum(1) - 1] += scores.detach()
    return rewards


PRICE = "torch.where(mask, -kl_coef * k1(logprobs, ref_logprobs), 0.0)"
SCATTER = "rewards.scatter_add(1, last, scores[:, None])"

SHAPE = Exercise(
    id="9.7",
    answer=shape_rewards,
    why="Here the price of moving is paid, token by token, and here the score lands: "
    "the most copied and most broken lines of RLHF.",
    difficulty=4,
    importance=5,
    minutes=12,
    hints=(
        "An answer has 5 tokens, the batch 9 columns. In which column is it paid?",
        "$r_t = -\\beta\\,(\\log\\pi(y_t) - \\log\\pi_\\text{ref}(y_t)) + "
        "\\mathbb{1}[t = \\text{last}]\\,\\text{score}$, and 0 after the end.",
        "`last = mask.sum(1, keepdim=True) - 1`",
    ),
    bonus="Pay the whole KL at the last token instead. Σ r_t is the same; what does "
    "the critic have to learn then?",
    cases=shape_cases,
    oracle=shape_oracle,
    traps=(
        Trap(
            "The score lands in the last column, which is padding for all answers but "
            "the longest. It belongs to the last token where the mask is True.",
            (
                "mask.sum(1, keepdim=True) - 1",
                "mask.sum(1, keepdim=True) * 0 - 1 + mask.shape[1]",
            ),
        ),
        Trap(
            "Every token gets the score: long answers are then paid many times over. "
            "It is paid once, at the last token.",
            (SCATTER, "rewards + scores[:, None] * mask"),
        ),
        Trap(
            "β's sign is turned round, or policy and reference are: moving away would "
            "be paid for. r_t = −β (log π − log π_ref).",
            ("-kl_coef * k1", "kl_coef * k1"),
        ),
        Trap(
            "The rewards carry a gradient through the KL. A reward is a number, and "
            "the policy learns from it by its advantage only: torch.no_grad() or "
            "detach.",
            ("@torch.no_grad()\n", ""),
        ),
        Trap(
            "The padding pays for a KL, too: after the end nothing is said, so nothing "
            "is moved. 0 where the mask is False.",
            (PRICE, "-kl_coef * k1(logprobs, ref_logprobs)"),
        ),
        Trap(
            "The score lands one place after the end: there is no token to learn from "
            "it. Count from 0.",
            (
                "mask.sum(1, keepdim=True) - 1",
                "mask.sum(1, keepdim=True).clamp(max=mask.shape[1] - 1)",
            ),
        ),
        Trap(
            "The score replaces the last token's KL: add it, so that Σ r_t is score − "
            "β Σ k1.",
            ("scatter_add(", "scatter("),
        ),
        Trap(
            "The whole KL is paid at the last token; each token should pay for what it "
            "has moved itself.",
            (
                SCATTER,
                "(0 * rewards).scatter_add(1, last, "
                "scores[:, None] + rewards.sum(1, keepdim=True))",
            ),
        ),
        Trap(
            "A mean over the answer: then a long answer may move as far as it likes. "
            "Each token pays β k1 in full.",
            (
                "-kl_coef * k1(logprobs, ref_logprobs)",
                "-kl_coef * k1(logprobs, ref_logprobs) / mask.sum(1, keepdim=True)",
            ),
        ),
        Trap(
            "The size of k1 is charged, not k1: its negative values must stay, or the "
            "sum is no estimate of the KL.",
            ("k1(logprobs, ref_logprobs)", "k1(logprobs, ref_logprobs).abs()"),
        ),
        Trap(
            "The score is multiplied by β, too. Only the KL has a price.",
            ("scores[:, None]", "kl_coef * scores[:, None]"),
        ),
        Trap(
            "The score is missing: the policy would only be told to stay where it is.",
            (SCATTER, "rewards"),
        ),
    ),
    twins=(Twin(shape_by_columns), Twin(shape_in_place)),
)

# --- 9.8 KLController -----------------------------------------------------------------

Updates = list[tuple[float, int]]  # KL and episodes, one pair an update


def run_controller(
    make: Candidate, updates: Updates, *settings: Any, **more: Any
) -> Any:
    """β after each update, and what the update gave back."""
    controller = make(*settings, **more)
    found: list[Any] = []
    for kl, episodes in updates:
        found += [controller.update(kl, episodes), controller.coef]
    return found + [controller.target, controller.horizon]


def controller_oracle(
    updates: Updates, coef: float, target: float | None = None, horizon: int = 10_000
) -> Any:
    """The steps written out, without a class."""
    found: list[Any] = []
    for kl, episodes in updates:
        if target is not None:
            too_far = (kl - target) / target
            if too_far > 0.2:
                too_far = 0.2
            if too_far < -0.2:
                too_far = -0.2
            coef = coef + coef * too_far * (episodes / horizon)
        found += [None, coef]
    return found + [target, horizon]


def controller_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    near = (6.0 * (1 + 0.3 * (torch.rand(4, generator=draw) - 0.5))).tolist()
    return [
        Case("too far, by much", [(12.0, 64)], 0.15, 6.0, 100),
        Case("too near, by much", [(0.0, 64)], 0.15, 6.0, 100),
        Case("near the target", [(kl, 50) for kl in near], 0.3, 6.0, 80),
        Case("a target below 1", [(0.55, 32), (0.4, 16)], 0.2, target=0.5, horizon=64),
        Case("the docstring's horizon", [(12.0, 640)] * 3, 0.15, 6.0),
        Case("no target", [(12.0, 64), (0.0, 64)], 0.15),
    ]


ERROR = "min(max(kl / self.target - 1, -0.2), 0.2)"
STEP = "self.coef *= 1 + error * episodes / self.horizon"

CONTROLLER = Exercise(
    id="9.8",
    answer=KLController,
    hole="update",
    why="Nobody knows the right β beforehand; a KL that one wants to hold is easier to "
    "name.",
    difficulty=2,
    importance=3,
    minutes=7,
    at_home=True,
    hints=(
        "The policy has moved twice as far as it should. Must moving cost more or "
        "less?",
        "$e = \\text{clip}(\\text{KL}/\\text{target} - 1, \\pm 0.2)$, "
        "$\\beta \\leftarrow \\beta (1 + e \\cdot \\text{episodes} / \\text{horizon})$",
        "`if self.target is not None:`",
    ),
    bonus="Feed it the KL per token instead of per answer, with the same target. Where "
    "does β end?",
    cases=controller_cases,
    oracle=controller_oracle,
    run=run_controller,
    changes_inputs=True,
    traps=(
        Trap(
            "The clip is missing: one odd batch could throw β far off. Hold the error "
            "within ±0.2.",
            (ERROR, "kl / self.target - 1"),
        ),
        Trap(
            "Clipped above, not below: a batch with KL 0 would let go of the policy at "
            "once. Hold the error within ±0.2 on both sides.",
            (ERROR, "min(kl / self.target - 1, 0.2)"),
        ),
        Trap(
            "Turned round: too far must make moving dearer, so the error is "
            "KL/target − 1.",
            (ERROR, "min(max(1 - kl / self.target, -0.2), 0.2)"),
        ),
        Trap(
            "The error is a share of the target, KL/target − 1. Here it is a "
            "difference in nats, which means something else for every target.",
            (ERROR, "min(max(kl - self.target, -0.2), 0.2)"),
        ),
        Trap(
            "The −1 is missing: at the target, β should not move.",
            ("kl / self.target - 1", "kl / self.target"),
        ),
        Trap(
            "The step is added to β; it should be a share of β, so that one horizon "
            "suits large and small ones.",
            (STEP, "self.coef += error * episodes / self.horizon"),
        ),
        Trap(
            "The number of episodes is forgotten: a batch twice as large should move β "
            "twice as far.",
            ("error * episodes / self.horizon", "error / self.horizon"),
        ),
        Trap(
            "The horizon is forgotten: β would jump by a fifth of a batch's size.",
            ("error * episodes / self.horizon", "error * episodes"),
        ),
        Trap(
            "Without a target β is fixed: nothing may happen, and nothing fail.",
            ("if self.target is not None:", "if True:"),
        ),
        Trap(
            "Nothing changes: the new β must be kept in self.coef.",
            ("self.coef *=", "coef = self.coef *"),
        ),
        Trap(
            "The whole step is clipped, not the error: clip first, then multiply by "
            "episodes and divide by horizon.",
            (ERROR, "kl / self.target - 1"),
            (
                STEP,
                "self.coef *= 1 + min(max(error * episodes / self.horizon, -0.2), 0.2)",
            ),
        ),
    ),
    twins=(
        Twin(
            (
                ERROR,
                "sorted((-0.2, (kl - self.target) / self.target, 0.2))[1]",
            ),
            (
                STEP,
                "self.coef = self.coef + self.coef * error * (episodes / self.horizon)",
            ),
        ),
        Twin(
            (
                ERROR,
                "0.2 if kl > 1.2 * self.target else -0.2 if kl < 0.8 * self.target "
                "else kl / self.target - 1",
            ),
            (
                STEP,
                "self.coef *= (self.horizon + error * episodes) / self.horizon",
            ),
        ),
    ),
    equivalent=dict.fromkeys(
        [
            "min(max(kl / self.target - 1, -0.2), 0.2) → "
            "min(0.2, max(kl / self.target - 1, -0.2))",
            "max(kl / self.target - 1, -0.2) → max(-0.2, kl / self.target - 1)",
        ],
        "min and max do not care which number comes first",
    ),
)

EXERCISES = (
    LOGPROBS,
    ENTROPY,
    LOGITS,
    EXACT,
    K3,
    MISSING_EOS,
    SHAPE,
    CONTROLLER,
)
