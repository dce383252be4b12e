"""Lesson 08: the head, the pool, the loss and the scale of a reward model."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipalm.config import PaLMConfig
from minipalm.course.exercise import (
    Candidate,
    Case,
    Exercise,
    Trap,
    Twin,
    with_slips,
)
from minipalm.evaluate.statistics import Bin, accuracy, reliability
from minipalm.model.palm import PaLM
from minipalm.rlhf.reward import (
    RewardModel,
    new_scale,
    pairwise_loss,
    pool,
    scalar_head,
)

V = 11  # tokens of the tiny networks


def tiny_palm(seed: int, dim: int = 12) -> PaLM:
    """Loud embeddings: a token more or less must show in the scores."""
    config = PaLMConfig(V, dim=dim, depth=2, heads=2, head_dim=6, embed_std=0.5)
    return PaLM(config, torch.Generator().manual_seed(seed))


def also(more: str, change: tuple[str, str], *traps: Trap) -> tuple[Trap, ...]:
    """Each trap, and the same by one who makes a second mistake, too."""
    return with_slips(traps, (more, (change,)))


# --- 8.1 pool -----------------------------------------------------------------------


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def pool_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def states(B: int, T: int, D: int) -> Tensor:
        return torch.randn(B, T, D, generator=draw).requires_grad_(True)

    known = torch.tensor([[[1.0], [3.0], [8.0]]])
    noise = states(3, 5, 2)
    with torch.no_grad():
        noise[0, 4] = noise[1, 3] = noise[2, 3, 1] = torch.nan  # nobody may read there
    return [
        Case("the example of the docstring, last", known, ragged([2], 3), "last"),
        Case("the example of the docstring, mean", known, ragged([2], 3), "mean"),
        Case("unequal lengths, last", states(4, 6, 3), ragged([3, 1, 5, 2], 6), "last"),
        Case("unequal lengths, mean", states(4, 6, 3), ragged([3, 1, 5, 2], 6), "mean"),
        Case("no number behind the answers, last", noise, ragged([4, 2, 3], 5), "last"),
        Case("no number behind the answers, mean", noise, ragged([4, 2, 3], 5), "mean"),
        Case("a full row, last", states(2, 5, 4), ragged([5, 2], 5), "last"),
        Case("a full row, mean", states(2, 5, 4), ragged([5, 2], 5), "mean"),
    ]


def pool_oracle(x: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Each answer by itself, cut to its length."""
    rows = []
    for states, kept in zip(x, mask):
        tokens = [state for state, is_token in zip(states, kept) if is_token]
        rows.append(tokens[-1] if pooling == "last" else sum(tokens) / len(tokens))
    return torch.stack(rows)


def pool_by_weights(x, mask, pooling):
    """Both as a weighted sum over the columns."""
    weights = mask.float()
    if pooling == "last":
        weights = weights - F.pad(weights[:, 1:], (0, 1))
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("bt,btd->bd", weights, x.masked_fill(~mask[..., None], 0.0))


def pool_by_gather(x, mask, pooling):
    lengths = mask.sum(dim=1)
    if pooling == "mean":
        return x.masked_fill(~mask[..., None], 0.0).sum(1) / lengths[:, None]
    index = (lengths - 1)[:, None, None].expand(-1, 1, x.shape[-1])
    return x.gather(1, index).squeeze(1)


LAST = "x[torch.arange(len(x), device=x.device), last]"
OWN = "torch.where(mask[..., None], x, 0.0)"
MEAN = "return (own * weights[..., None]).sum(1)"
TIMES = (OWN, "x * mask[..., None]")
NAN = "0 times NaN is NaN: choose with torch.where"
ALWAYS = ('if pooling == "last":', "if True:")

POOL = Exercise(
    id="8.1",
    answer=pool,
    why="A network gives a state for every token, and a comparison is about whole "
    "answers.",
    difficulty=2,
    importance=5,
    minutes=8,
    hints=(
        "In which column does an answer of 3 tokens end, if the batch is 6 wide?",
        "last: column $\\sum_t m_t - 1$ of each row. mean: "
        "$\\sum_t m_t x_t / \\sum_t m_t$.",
        "`last = mask.sum(1) - 1`",
    ),
    bonus="Write a third way: weights that a softmax over the answer's tokens gives. "
    "What would its head learn?",
    cases=pool_cases,
    oracle=pool_oracle,
    traps=(
        *also(
            NAN,
            TIMES,
            Trap(
                "The last column is padding in short answers. Read the last column in "
                "which the mask is True.",
                (LAST, "x[:, -1]"),
            ),
            Trap(
                "x[:, last] takes all of those columns for every row. Row 0 wants "
                "column last[0]: index the rows, too.",
                (LAST, "x[:, last]"),
            ),
        ),
        Trap(
            "The last column is padding in short answers, and so is part of what the "
            "mean runs over. Only columns in which the mask is True count.",
            (LAST, "x[:, -1]"),
            (MEAN, "return x.mean(1)"),
        ),
        Trap(
            "x[:, last] takes all of those columns for every row: index the rows, too. "
            "And the mean runs over padding.",
            (LAST, "x[:, last]"),
            (MEAN, "return x.mean(1)"),
        ),
        Trap(
            "The last column is padding in short answers: read the last one in which "
            'the mask is True. And "mean" is another pooling.',
            (LAST, "x[:, -1]"),
            ALWAYS,
        ),
        Trap(
            "x[:, last] takes all of those columns for every row: index the rows, too. "
            'And "mean" is another pooling.',
            (LAST, "x[:, last]"),
            ALWAYS,
        ),
        Trap(
            'It is the last token\'s state whatever the pooling: with "mean" all of an '
            "answer's tokens count alike.",
            ALWAYS,
        ),
        Trap(
            "Multiplying by the mask does not silence the padding: 0 times NaN is NaN. "
            "Choose with torch.where instead.",
            TIMES,
        ),
        Trap(
            "One column too far left: a row with n tokens ends in column n − 1, "
            "counted from 0.",
            ("last = mask.sum(1) - 1", "last = mask.sum(1) - 2"),
        ),
        Trap(
            "One column too far right: that is the first pad. A row with n tokens ends "
            "in column n − 1.",
            ("last = mask.sum(1) - 1", "last = mask.sum(1).clamp(max=x.shape[1] - 1)"),
        ),
        Trap(
            "It reads the first token of the answer; the last one has seen all of it.",
            ("last = mask.sum(1) - 1", "last = mask.sum(1) * 0"),
        ),
        Trap(
            "It counts the answer's tokens from the right, as if the padding stood on "
            "the left. Answers are right-padded; it is prompts that are left-padded.",
            ("last = mask.sum(1) - 1", "last = x.shape[1] - mask.sum(1)"),
        ),
        Trap(
            "The mean runs over all columns, padding too: an answer's score then "
            "depends on how long its neighbours are.",
            (MEAN, "return x.mean(1)"),
        ),
        *also(
            NAN,
            TIMES,
            Trap(
                "The padding is left out of the sum, but the divisor still counts it: "
                "divide by the number of the answer's own tokens.",
                ("mask / mask.sum(1, keepdim=True)", "mask / mask.shape[1]"),
            ),
            Trap(
                "A sum, not a mean: long answers get large scores for their length "
                "alone.",
                ("mask / mask.sum(1, keepdim=True)", "mask.float()"),
            ),
        ),
        Trap(
            "It divides by the number of tokens in the whole batch. Each answer has a "
            "mean of its own.",
            ("mask.sum(1, keepdim=True)", "mask.sum()"),
        ),
        Trap(
            'Both poolings are the mean here: with "last" only the last token\'s state '
            "counts.",
            ('if pooling == "last":', "if False:"),
        ),
    ),
    twins=(Twin(pool_by_weights), Twin(pool_by_gather)),
    equivalent={
        "torch.where(mask[..., None], x, 0.0) → torch.where(mask[..., None], x, 0.5)": (
            "padding has a weight of 0: any number will do"
        ),
    },
)

# --- 8.2 scalar_head ----------------------------------------------------------------


def build_head(
    make: Candidate, dim: int, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """A head on a tiny trunk: its tensors; of another type, what it makes of states."""
    torch.manual_seed(seed)
    trunk = tiny_palm(seed, dim).to(dtype)
    head = make(trunk, torch.Generator().manual_seed(seed + 1))
    if dtype != torch.float32:  # the same seed draws other numbers there
        return {"a state of zeros": head(torch.zeros(3, dim, dtype=dtype))}
    return {"weight": head.weight, "bias": head.bias, "of": head(torch.ones(3, dim))}


def without_generator(make: Candidate, seed: int) -> bool:
    """Whether the spread is about right when torch's global generator draws."""
    torch.manual_seed(seed)
    std = make(tiny_palm(seed, 240)).weight.std().item()
    return abs(std * 241**0.5 - 1) < 0.25


def run_head(make: Candidate, *how: Any, **more: Any) -> Any:
    return (
        build_head(make, *how, **more)
        if len(how) > 1
        else without_generator(make, *how)
    )


def head_oracle(*how: Any, **more: Any) -> Any:
    return run_head(head_by_hand, *how, **more)


def head_by_hand(trunk: PaLM, generator: torch.Generator | None = None) -> nn.Linear:
    """Draw, stretch, and put the numbers in."""
    D, like = trunk.config.dim, trunk.embedding.weight
    head = nn.Linear(D, 1).to(like.dtype)
    weights = torch.empty(1, D, dtype=like.dtype)
    nn.init.normal_(weights, 0.0, (1 / (D + 1)) ** 0.5, generator)
    state = {"weight": weights, "bias": torch.zeros(1, dtype=like.dtype)}
    head.load_state_dict(state)
    return head


def head_of_parameters(trunk, generator=None):
    head = nn.Linear(trunk.config.dim, 1)
    draw = torch.randn(1, trunk.config.dim, generator=generator)
    head.weight = nn.Parameter(draw / math.sqrt(1 + trunk.config.dim))
    head.bias = nn.Parameter(torch.zeros(1))
    return head.to(trunk.embedding.weight)


def head_in_place(trunk, generator=None):
    weight = trunk.embedding.weight
    head = nn.Linear(weight.shape[1], 1, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        head.weight.normal_(0, (weight.shape[1] + 1) ** -0.5, generator=generator)
        head.bias.fill_(0)
    return head


HEAD = Exercise(
    id="8.2",
    answer=scalar_head,
    why="The trunk can read already; all that is new is a row of D weights, and its "
    "first scores should have a size that you can rely on.",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "How large is a sum of D products, each of a number of size 1 and a weight of "
        "size s?",
        "$w \\sim N(0, 1/(D+1))$: standard deviation $1/\\sqrt{D+1}$; and $b = 0$.",
        "`head = nn.Linear(trunk.config.dim, 1, device=..., dtype=...)`",
    ),
    bonus="Start from a head of zeros: which gradients are 0 in the first step, and in "
    "the second?",
    cases=lambda seed: [
        Case("width 24", 24, seed),
        Case("width 6", 6, seed),
        Case("a trunk in bfloat16", 18, seed, dtype=torch.bfloat16),
        Case("no generator", seed),
    ],
    oracle=head_oracle,
    run=run_head,
    traps=(
        Trap(
            "1/(D+1) is the variance; `std` is its square root.",
            ("1 / math.sqrt(trunk.config.dim + 1)", "1 / (trunk.config.dim + 1)"),
        ),
        Trap(
            "Nearly: the variance is 1/(D + 1), here it is 1/D. One input more is the "
            "bias.",
            ("math.sqrt(trunk.config.dim + 1)", "math.sqrt(trunk.config.dim)"),
        ),
        Trap(
            "The weights have standard deviation 1, so the first scores are of size "
            "√D, not 1.",
            ("std=std, ", ""),
        ),
        Trap(
            "The bias keeps the random start that nn.Linear gives it. It should be 0.",
            ("nn.init.zeros_(head.bias)", "pass"),
        ),
        Trap(
            "The generator is not used: then the seed of the lesson does not decide "
            "what you get, and no run can be repeated.",
            (", generator=generator)", ")"),
        ),
        Trap(
            "The weights are still those that nn.Linear starts with: uniform, not "
            "normal, and from torch's global generator.",
            (
                "nn.init.normal_(head.weight, std=std, generator=generator)",
                "pass",
            ),
        ),
        Trap(
            "With weights of 0 all scores are equal, and in the first step no gradient "
            "reaches the trunk. Draw them from N(0, 1/(D+1)).",
            (
                "nn.init.normal_(head.weight, std=std, generator=generator)",
                "nn.init.zeros_(head.weight)",
            ),
        ),
        Trap(
            "The head is float32 whatever the trunk is: give it the type and device of "
            "the trunk's weights.",
            (", device=like.device, dtype=like.dtype", ""),
        ),
        Trap(
            "Xavier's rule, variance 2/(D+1), is twice the one asked for: N(0, "
            "1/(D+1)).",
            (
                "nn.init.normal_(head.weight, std=std, generator=generator)",
                "nn.init.xavier_normal_(head.weight, generator=generator)",
            ),
        ),
    ),
    twins=(Twin(head_of_parameters), Twin(head_in_place)),
)

# --- 8.3 RewardModel ----------------------------------------------------------------

Lengths = list[tuple[int, int]]  # of prompt and answer, one pair a row


def text_batch(lengths: Lengths, seed: int, P: int, T: int) -> tuple[Tensor, ...]:
    """Random tokens everywhere, in the padding, too."""
    draw = torch.Generator().manual_seed(seed)
    before, after = torch.tensor(lengths).T[..., None]
    prompts = torch.randint(V, (len(lengths), P), generator=draw)
    responses = torch.randint(V, (len(lengths), T), generator=draw)
    mask = torch.arange(T) < after
    return prompts, torch.arange(P) >= P - before, responses, mask


def build_reward_model(make: Candidate, seed: int, pooling: str, scale: Any) -> Any:
    model = make(tiny_palm(seed), pooling, torch.Generator().manual_seed(seed))
    mean, std = scale
    model.head.bias.data.fill_(0.4)
    model.mean.fill_(mean)
    model.std.fill_(std)
    return model


def with_gradients(model: Any, scores: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The scores, and the gradients of an uneven sum of them."""
    if scores.requires_grad:
        (
            scores * torch.linspace(1, 2, scores.numel()).view(scores.shape)
        ).sum().backward()
    zero = torch.zeros(())
    return scores, {
        name: zero if weight.grad is None else weight.grad
        for name, weight in model.named_parameters()
        if name.startswith("head") or name == "trunk.embedding.weight"
    }


def run_reward_model(
    make: Candidate,
    seed: int,
    pooling: str,
    scale: Any,
    lengths: Lengths,
    P: int,
    T: int,
) -> Any:
    model = build_reward_model(make, seed, pooling, scale)
    scores = model(*text_batch(lengths, seed, P, T))
    return with_gradients(model, scores)


def reward_model_oracle(
    seed: int, pooling: str, scale: Any, lengths: Lengths, P: int, T: int
) -> Any:
    """Each answer alone, without a pad, token by token."""
    model = build_reward_model(RewardModel, seed, pooling, scale)
    mean, std = scale
    scores = []
    for prompt, prompt_mask, response, mask in zip(*text_batch(lengths, seed, P, T)):
        before = [int(i) for i, seen in zip(prompt, prompt_mask) if seen]
        after = [int(i) for i, seen in zip(response, mask) if seen]
        states = model.trunk.hidden(torch.tensor([before + after]))[0]
        told = [model.head(state)[0] for state in states][len(before) :]
        raw = told[-1] if pooling == "last" else sum(told) / len(told)
        scores.append((raw - mean) / std)
    return with_gradients(model, torch.stack(scores))


RAW = "self.head(pool(hidden, mask, self.pooling))[:, 0]"
POOLED = RAW + " - self.mean"

REWARD_MODEL = Exercise(
    id="8.3",
    answer=RewardModel,
    hole="forward",
    why="This number is all that PPO will ever know about what people want.",
    difficulty=4,
    importance=5,
    minutes=12,
    hints=(
        "Which columns of the text hold the answer, and which of them hold tokens?",
        "$\\text{score} = (w \\cdot \\text{pool}(h) + b - \\text{mean}) / "
        "\\text{std}$, with $h$ the states of the answer's columns.",
        "`ids = torch.cat([prompts, responses], dim=1)`",
    ),
    bonus="Pool the token scores instead of the states. Why is it the same number, and "
    "when would it not be?",
    cases=lambda seed: [
        Case(
            "the last token", seed, "last", (0.0, 1.0), [(3, 4), (5, 2), (1, 6)], 5, 6
        ),
        Case("the mean", seed, "mean", (0.0, 1.0), [(3, 4), (5, 2), (1, 6)], 5, 6),
        Case("a scale", seed, "last", (0.7, 2.5), [(2, 3), (4, 1)], 4, 3),
        Case("a scale, mean", seed, "mean", (-1.2, 0.4), [(2, 3), (4, 1)], 4, 3),
        Case("much padding, last", seed, "last", (0.3, 3.0), [(2, 2), (3, 4)], 7, 6),
        Case("much padding, mean", seed, "mean", (0.3, 3.0), [(2, 2), (3, 4)], 7, 6),
        Case("one answer", seed, "mean", (0.1, 1.5), [(2, 3)], 2, 3),
    ],
    oracle=reward_model_oracle,
    run=run_reward_model,
    traps=(
        Trap(
            'The prompt\'s tokens are pooled, too, and for "last" it is the last '
            "column, a pad. Pool the answer's states, with the answer's mask.",
            (", last=responses.shape[1])", ")"),
            (
                "pool(hidden, mask, self.pooling)",
                "hidden[:, -1 if self.pooling == 'last' else slice(None)]"
                "if self.pooling == 'last' else "
                "(hidden * segments[..., None]).sum(1) / segments.sum(1, keepdim=True)",
            ),
        ),
        Trap(
            "Prompt tokens are pooled, too. The prompt is the same for both answers of "
            "a pair, so it only blurs what tells them apart.",
            (", last=responses.shape[1])", ")"),
            (
                "pool(hidden, mask, self.pooling)",
                'pool(hidden[:, prompts.shape[1] :], mask, "last")'
                'if self.pooling == "last" else '
                "(hidden * segments[..., None]).sum(1) / segments.sum(1, keepdim=True)",
            ),
        ),
        Trap(
            "Prompt tokens are pooled, too; and as padding stands on the left, `pool` "
            "misses the last token. Pool the answer's states, with its mask.",
            (", last=responses.shape[1])", ")"),
            (
                "pool(hidden, mask, self.pooling)",
                "pool(hidden, segments > 0, self.pooling)",
            ),
        ),
        Trap(
            "The states are those of the whole text, the mask is the answer's: so it "
            "pools columns of the prompt. Ask for the last L columns.",
            (", last=responses.shape[1])", ")"),
            (
                "pool(hidden, mask, self.pooling)",
                "pool(hidden[:, :mask.shape[1]], mask, self.pooling)",
            ),
        ),
        Trap(
            "The trunk is not told what is padding: the pads left of a short prompt "
            "are read as text. Pass segments.",
            ("self.trunk.hidden(ids, segments, last", "self.trunk.hidden(ids, last"),
        ),
        Trap(
            "The answer's tokens have not seen the prompt: it is missing or stands "
            "behind them, and the trunk reads from left to right.",
            ("[prompts, responses], dim=1", "[responses, prompts], dim=1"),
            ("[prompt_mask, mask], dim=1", "[mask, prompt_mask], dim=1"),
            (", last=responses.shape[1])", ")[:, :responses.shape[1]]"),
        ),
        Trap(
            "It reads one place too early, as a critic does: a score is for the whole "
            "answer, its last token included.",
            (", last=responses.shape[1])", ")[:, -1 - responses.shape[1] : -1]"),
        ),
        Trap(
            "The scale is forgotten: the score is (raw − mean) / std.",
            (POOLED, "self.head(pool(hidden, mask, self.pooling))[:, 0]"),
            ("        ) / self.std", "        )"),
        ),
        Trap(
            "The mean is not taken off: the score is (raw − mean) / std.",
            (POOLED, "self.head(pool(hidden, mask, self.pooling))[:, 0]"),
        ),
        Trap(
            "It multiplies by std. Dividing is what makes the spread 1.",
            (") / self.std", ") * self.std"),
        ),
        Trap(
            "The mean is of raw scores, so it goes off before the division: "
            "(raw − mean) / std, not raw / std − mean.",
            (POOLED, RAW + " / self.std - self.mean"),
            ("        ) / self.std", "        )"),
        ),
        Trap(
            "self.pooling is not looked at: here it is always the last token.",
            ("pool(hidden, mask, self.pooling)", 'pool(hidden, mask, "last")'),
        ),
        Trap(
            "One number an answer, so the shape is (B,). Take the head's only column: "
            "[:, 0].",
            ("[:, 0] - self.mean", " - self.mean"),
        ),
        Trap(
            "The trunk gets no gradient: only the head would learn. Leave the states "
            "as they are.",
            ("pool(hidden, mask", "pool(hidden.detach(), mask"),
        ),
    ),
    twins=(
        Twin(  # the pads to the right are seen by nobody who counts
            (
                "[prompt_mask, mask], dim=1",
                "[prompt_mask, torch.ones_like(mask)], dim=1",
            ),
        ),
        Twin(  # token scores are pooled instead of states
            (
                "self.head(pool(hidden, mask, self.pooling))[:, 0]",
                "pool(self.head(hidden), mask, self.pooling).squeeze(1)",
            ),
            (
                "hidden = self.trunk.hidden(ids, segments, last=responses.shape[1])",
                "hidden = self.trunk.hidden(ids, segments)[:, prompts.shape[1]:]",
            ),
        ),
    ),
    equivalent={
        "self.head(pool(hidden, mask, self.pooling))[:, 0] → "
        "self.head(pool(hidden, mask, self.pooling))[:, -1]": (
            "the head has one column, the first and the last"
        ),
    },
)

# --- 8.4 pairwise_loss --------------------------------------------------------------


def pairwise_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def pairs(n: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
        one, two = spread * torch.randn(2, n, generator=draw)
        return (one + 0.3).requires_grad_(True), two.requires_grad_(True)

    one, zero = torch.tensor([1.0]), torch.tensor([0.0])
    return [
        Case("a difference of 1", one, zero),
        Case("a difference of 1, margin 0.5", one, zero, 0.5),
        Case("seven pairs", *pairs(7)),
        Case("a margin", *pairs(5), margin=0.8),
        Case("scores that are far apart", *pairs(6, 300.0)),
        Case("a tie", one, one),
    ]


def pairwise_oracle(chosen: Tensor, rejected: Tensor, margin: float = 0.0) -> Tensor:
    """−log P(chosen wins), pair by pair, with the larger exponent taken out."""
    total = torch.zeros(())
    for better, worse in zip(chosen, rejected):
        x = worse + margin - better  # −log σ(−x) = log(1 + e^x)
        tail = (-x.abs()).exp().log1p()
        total = total + (x + tail if x > 0 else tail)
    return total / len(chosen)


def pairwise_by_classes(chosen, rejected, margin=0.0):
    """A choice between two classes of which the first is right."""
    logits = torch.stack([chosen - margin, rejected], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(chosen), dtype=torch.long))


SIGMOID = "torch.sigmoid(chosen - rejected - margin)"
LOSS = "-F.logsigmoid(chosen - rejected - margin).mean()"

PAIRWISE = Exercise(
    id="8.4",
    answer=pairwise_loss,
    why="People cannot say how good an answer is, but which of two is better; this "
    "loss turns the one into the other.",
    difficulty=3,
    importance=5,
    minutes=8,
    hints=(
        "How likely is the label that you have seen, if the scores are right?",
        "$L = -\\frac{1}{N}\\sum_n \\log\\sigma(c_n - r_n - m)$",
        "`F.logsigmoid` is log σ without overflow.",
    ),
    bonus="Add Llama 2's margin that depends on how sure the labeller was. What would "
    "TinyTales' labeller have to tell you?",
    cases=pairwise_cases,
    oracle=pairwise_oracle,
    traps=(
        Trap(
            "In float32 σ(−200) is 0, its log −∞, and exp(200) is ∞: one confident "
            "mistake ruins the run. F.logsigmoid works with the exponent itself.",
            (LOSS, "-torch.sigmoid(chosen - rejected - margin).log().mean()"),
        ),
        *(
            Trap(
                f"An ε of {size:g} caps the loss, and where it does the gradient dies: "
                "the worst mistakes teach nothing. Use F.logsigmoid.",
                (LOSS, f"-({SIGMOID} + {size}).log().mean()"),
            )
            for size in (1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12)
        ),
        Trap(
            "The margin has the wrong sign: it makes winning harder, so it is taken "
            "off the difference.",
            ("- rejected - margin", "- rejected + margin"),
        ),
        Trap(
            "The margin has no effect here: the chosen answer must win by more than "
            "it.",
            ("- rejected - margin", "- rejected"),
        ),
        Trap(
            "Chosen and rejected are swapped: this loss teaches the opposite of what "
            "people said.",
            ("chosen - rejected - margin", "rejected - chosen - margin"),
        ),
        Trap(
            "A sum: the step would grow with the batch. Take the mean over the pairs.",
            (").mean()", ").sum()"),
        ),
        Trap(
            "The sign: log σ is never positive, and a loss that goes down must mean "
            "that the labels become likelier. It is −log σ.",
            (LOSS, LOSS[1:]),
        ),
        Trap(
            "The log is missing: 1 − σ hardly has a slope where the model is most "
            "wrong.",
            (LOSS, "(1 - torch.sigmoid(chosen - rejected - margin)).mean()"),
        ),
        Trap(
            "A hinge: pairs that are won by 1 teach nothing any more. Bradley and "
            "Terry's loss is −log σ.",
            (LOSS, "torch.relu(1 + margin - chosen + rejected).mean()"),
        ),
        Trap(
            "The mean comes before log σ, so a pair that is won clearly hides one that "
            "is lost. Take log σ of each pair, then the mean.",
            (LOSS, "-F.logsigmoid((chosen - rejected - margin).mean())"),
        ),
        Trap(
            "The rejected answers' scores get no gradient: both sides of a comparison "
            "teach, one up and one down.",
            ("chosen - rejected - margin", "chosen - rejected.detach() - margin"),
        ),
        Trap(
            "It gives one loss a pair; the docstring asks for their mean, a scalar.",
            (").mean()", ")"),
        ),
    ),
    twins=(
        Twin((LOSS, "F.softplus(rejected + margin - chosen).mean()")),
        Twin(pairwise_by_classes),
    ),
)

# --- 8.5 accuracy -------------------------------------------------------------------


def accuracy_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    chosen, rejected = torch.randint(-3, 4, (2, 40), generator=draw).float()
    lengths = torch.randint(2, 6, (2, 25), generator=draw)
    three = torch.tensor([2.0, 0.5, -1.0, -4.0]), torch.tensor([1.0, 2.0, -3.0, -4.0])
    known = torch.tensor([3.0, 1, 2, 0]), torch.tensor([1.0, 1, 5, -1])
    return [
        Case("the example of the docstring", *known),
        Case("negative scores", *three),
        Case("many ties", chosen, rejected),
        Case("all right", chosen + 10, rejected),
        Case("whole numbers, such as lengths", *lengths),
    ]


def accuracy_oracle(chosen: Tensor, rejected: Tensor) -> float:
    """Pair by pair."""
    points = 0.0
    for better, worse in zip(chosen.tolist(), rejected.tolist()):
        points += 1.0 if better > worse else 0.5 if better == worse else 0.0
    return points / len(chosen)


RIGHT = "(chosen > rejected).double() + 0.5 * (chosen == rejected).double()"

ACCURACY = Exercise(
    id="8.5",
    answer=accuracy,
    why="The first number that anyone asks of a reward model, and the easiest to "
    "flatter.",
    difficulty=1,
    importance=4,
    minutes=5,
    hints=(
        "A model that gives every answer the same score: how often is it right?",
        "$\\frac{1}{N}\\sum_n \\mathbb{1}[c_n > r_n] + "
        "\\tfrac{1}{2}\\mathbb{1}[c_n = r_n]$",
        "`right = (chosen > rejected).double()` is one half of it.",
    ),
    bonus="How many pairs do you need to tell 69 % from 70 %? `wilson(successes, n)` "
    "in `minipalm.evaluate.statistics` gives rate, low and high.",
    cases=accuracy_cases,
    oracle=accuracy_oracle,
    traps=(
        Trap(
            "Ties count as right: then a model that scores everything 0 is perfect. A "
            "tie is half right.",
            (RIGHT, "(chosen >= rejected).double()"),
        ),
        Trap(
            "Ties count as wrong: then a model that scores everything 0 is worse than "
            "a coin. A tie is half right.",
            (RIGHT, "(chosen > rejected).double()"),
        ),
        Trap(
            "Turned round: it counts the pairs in which the rejected answer wins.",
            ("chosen > rejected", "chosen < rejected"),
        ),
        Trap(
            "It looks at the sign of the chosen answer's score. A score has no zero: "
            "only two scores together say anything.",
            (RIGHT, "(chosen > 0).double() + 0.5 * (chosen == 0).double()"),
        ),
        Trap(
            "Ties are left out of the pairs that it divides by. They count, as halves.",
            (
                "right.mean().item()",
                "right[chosen != rejected].floor().mean().item()",
            ),
        ),
        Trap(
            "A number of pairs, not a share: divide by how many there are.",
            ("right.mean().item()", "right.sum().item()"),
        ),
        Trap(
            "In percent; the docstring asks for a share from 0 to 1.",
            ("right.mean().item()", "100 * right.mean().item()"),
        ),
        Trap(
            "This is how sure the model is on average, not how often it is right: "
            "count the pairs.",
            (RIGHT, "torch.sigmoid((chosen - rejected).double())"),
        ),
        Trap(
            "A tensor with one number; the docstring asks for a Python float: .item().",
            ("right.mean().item()", "right.mean()"),
        ),
        Trap(
            "A tensor with one number, of type float32. A metric is a Python float: "
            ".item().",
            ("right.mean().item()", "right.float().mean()"),
        ),
        Trap(
            "A tensor; the docstring asks for a Python float: .item(). And ties count "
            "as wrong here; a tie is half right.",
            (RIGHT, "(chosen > rejected).float()"),
            ("right.mean().item()", "right.mean()"),
        ),
        Trap(
            "A tensor; the docstring asks for a Python float: .item(). And ties count "
            "as right here; a tie is half right.",
            (RIGHT, "(chosen >= rejected).float()"),
            ("right.mean().item()", "right.mean()"),
        ),
    ),
    twins=(
        Twin((RIGHT, "((chosen - rejected).sign().double() + 1) / 2")),
        Twin(
            lambda chosen, rejected: (
                sum(
                    (a > b) + (a == b) / 2
                    for a, b in zip(chosen.tolist(), rejected.tolist())
                )
                / len(chosen)
            )
        ),
    ),
)

# --- 8.6 reliability ----------------------------------------------------------------


def reliability_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    gaps = 2.5 * torch.randn(60, generator=draw) + 0.5
    other = torch.randn(60, generator=draw)
    known = torch.tensor([0.2, -0.2, 3.0]), torch.zeros(3)
    sure = torch.tensor([0.3, 90.0, -90.0, 90.0]), torch.tensor([0.1, 0.0, 0.0, 0.0])
    equal = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])
    return [
        Case("the example of the docstring", *known, bins=2),
        Case("ten bins", gaps + other, other),
        Case("three bins", gaps + other, other, 3),
        Case("bins that stay empty, and certainty", *sure),
        Case("ties", *equal, bins=4),
    ]


def reliability_oracle(chosen: Tensor, rejected: Tensor, bins: int = 10) -> list[Bin]:
    """Each pair into its bin, by hand."""
    found: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for better, worse in zip(chosen.tolist(), rejected.tolist()):
        p = 1 / (1 + math.exp(worse - better))
        said = p if p > 0.5 else 1 - p
        true = 1.0 if p > 0.5 else 0.0 if p < 0.5 else 0.5
        place = min(int((said - 0.5) / (0.5 / bins)), bins - 1)
        found[place].append((said, true))
    return [
        Bin(
            sum(s for s, _ in one) / len(one),
            sum(t for _, t in one) / len(one),
            len(one),
        )
        for one in found
        if one
    ]


def reliability_by_edges(chosen, rejected, bins=10):
    p = torch.sigmoid((chosen - rejected).double())
    said = torch.maximum(p, 1 - p)
    true = ((p > 0.5) + 0.5 * (p == 0.5)).double()
    edges = torch.linspace(0.5, 1, bins + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(said, edges, right=True)
    rows = []
    for b in place.unique().tolist():
        here = place == b
        rows.append(
            (said[here].mean().item(), true[here].mean().item(), int(here.sum()))
        )
    return rows


def reliability_by_counts(chosen, rejected, bins=10):
    gap = (chosen - rejected).double()
    said, true = torch.sigmoid(gap.abs()), (gap.sign() + 1) / 2
    place = ((2 * said - 1) * bins).floor().clamp(max=bins - 1).long()
    count = place.bincount(minlength=bins)
    sums = [place.bincount(x, bins) / count for x in (said, true)]
    return [Bin(float(s), float(t), int(n)) for s, t, n in zip(*sums, count) if n]


FROM_CHOSEN = ("(chosen - rejected).double().abs()", "(chosen - rejected).double()")
INDEX = "((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)"
NONE_LEFT_OUT = ("        if here.any()\n", "")
ZEROS = (
    "int(here.sum()))\n        for here in found\n        if here.any()\n",
    "int(here.sum())) if here.any() else Bin(0.0, 0.0, 0)\n        for here in found\n",
)

RELIABILITY = Exercise(
    id="8.6",
    answer=reliability,
    why="A model that is sure where it is wrong is the one that PPO will exploit.",
    difficulty=4,
    importance=3,
    minutes=12,
    at_home=True,
    hints=(
        "If you swap the two answers of a pair, what should stay the same?",
        "confidence $\\max(p, 1-p)$ with $p = \\sigma(c - r)$; it is right where "
        "$p > 1/2$, and belongs to bin "
        "$\\lfloor (\\text{confidence} - 1/2) \\cdot 2 \\cdot \\text{bins} \\rfloor$.",
        "`confidence = torch.sigmoid((chosen - rejected).double().abs())`",
    ),
    bonus="Divide all differences by one number so that the calibration error becomes "
    "as small as it can (temperature scaling, Guo et al., section 4.2).",
    cases=reliability_cases,
    oracle=reliability_oracle,
    traps=(
        Trap(
            "It looks from the side of the chosen answer, and p is then below 1/2 "
            "where the model errs. Its confidence is max(p, 1 − p).",
            FROM_CHOSEN,
            (".clamp(max=bins - 1)", ".clamp(0, bins - 1)"),
        ),
        Trap(
            "A confidence is never below one half: look from the side that the model "
            "prefers, max(p, 1 − p). Here p of the chosen answer is taken for it.",
            FROM_CHOSEN,
        ),
        Trap(
            "A confidence is never below one half. This is p of the chosen answer, and "
            "pairs with p < 1/2 are lost: look from the preferred side.",
            FROM_CHOSEN,
            (INDEX, "((confidence - 0.5) * 2 * bins).floor().long()"),
        ),
        Trap(
            "A confidence is never below one half: look from the side that the model "
            "prefers. p of the chosen answer loses all pairs that it gets wrong.",
            FROM_CHOSEN,
            (INDEX, INDEX.replace(".long()", ".floor().long()")),
        ),
        Trap(
            "A confidence is never below one half: look from the preferred side. And "
            "a confidence of 1 belongs to the last part.",
            FROM_CHOSEN,
            (".clamp(max=bins - 1)", ".clamp(0, bins)"),
        ),
        Trap(
            "p of the chosen answer, in parts of [0, 1]: a confidence is never below "
            "one half. Look from the preferred side, and divide [0.5, 1].",
            FROM_CHOSEN,
            ("((confidence - 0.5) * 2 * bins)", "(confidence * bins)"),
        ),
        Trap(
            "The parts divide [0, 1]. A confidence is at least 1/2, so half of them "
            "can never be used: divide [0.5, 1].",
            ("((confidence - 0.5) * 2 * bins)", "(confidence * bins)"),
        ),
        Trap(
            "A confidence of 1 falls out: its bin would be one past the last. It "
            "belongs to the last.",
            (".clamp(max=bins - 1)", ""),
        ),
        Trap(
            "A confidence of 1/2 falls out: a part has its lower end, not its upper "
            "one (but for the last, which has both).",
            (INDEX, "((confidence - 0.5) * 2 * bins).ceil().long() - 1"),
        ),
        Trap(
            "A tie counts as wrong; a model that is 50 % sure is half right.",
            (RIGHT, "(chosen > rejected).double()"),
        ),
        Trap(
            "A tie counts as right; a model that is 50 % sure is half right.",
            (RIGHT, "(chosen >= rejected).double()"),
        ),
        Trap(
            "The confidence of a bin is the mean of what was said in it, not the "
            "middle of the bin.",
            (
                "Bin(confidence[here].mean().item(),",
                "Bin(0.5 + 0.5 * (index[here][0].item() + 0.5) / bins,",
            ),
        ),
        Trap(
            "Empty parts must be left out: a mean of nothing is NaN, and one NaN "
            "spoils the calibration error.",
            NONE_LEFT_OUT,
        ),
        Trap(
            "Empty parts must be left out. Zeros for them look like parts in which the "
            "model is never right.",
            ZEROS,
        ),
        Trap(
            "A confidence of 1 belongs to the last part: here it falls out. And empty "
            "parts, whose means are NaN, must be left out.",
            (".clamp(max=bins - 1)", ""),
            NONE_LEFT_OUT,
        ),
        Trap(
            "A confidence of 1 belongs to the last part: here it falls out. And empty "
            "parts must be left out, not be filled with zeros.",
            (".clamp(max=bins - 1)", ""),
            ZEROS,
        ),
        Trap(
            "The number of pairs is missing: each bin must say how many fell into it, "
            "not which share of all.",
            ("int(here.sum())", "here.double().mean().item()"),
        ),
        Trap(
            "Confidence and share have changed places: first what was said, then what "
            "came true.",
            (
                "confidence[here].mean().item(), right[here].mean().item()",
                "right[here].mean().item(), confidence[here].mean().item()",
            ),
        ),
        Trap(
            "The confidence is the difference of the scores as it stands: σ makes a "
            "probability of it.",
            (
                "torch.sigmoid((chosen - rejected).double().abs())",
                "(chosen - rejected).double().abs()",
            ),
        ),
    ),
    twins=(Twin(reliability_by_edges), Twin(reliability_by_counts)),
    equivalent={
        "chosen - rejected → rejected - chosen": (
            "only the size of the difference goes on"
        ),
    },
)

# --- 8.7 new_scale ------------------------------------------------------------------


def scale_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    scores = 3.0 * torch.randn(9, generator=draw) + 1.5
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    mean, std = torch.tensor(0.7), torch.tensor(2.5)
    learnt = scores.clone().requires_grad_(True)
    return [
        Case(
            "the example of the docstring", torch.tensor([1.0, 2, 3]), 10 * one, 5 * one
        ),
        Case("the first time", scores, zero, one),
        Case("the second time", scores, mean, std),
        Case("scores that carry a gradient", learnt, mean, std),
        Case("two scores", scores[:2], mean, std),
        Case("one score", scores[:1], zero, one),
        Case("equal scores", torch.full((4,), 1.5), zero, one),
        Case(
            "a score that is no number", torch.tensor([1.0, torch.nan, 2.0]), zero, one
        ),
    ]


def scale_oracle(scores: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Back to raw scores, then mean and sd as sums."""
    raw = [float(score) * float(std) + float(mean) for score in scores]
    centre = sum(raw) / len(raw)
    squares = sum((one - centre) ** 2 for one in raw)
    if len(raw) < 2 or not squares > 0:
        raise ValueError("no spread")
    return torch.tensor(centre), torch.tensor((squares / (len(raw) - 1)) ** 0.5)


def scale_of_raw(scores, mean, std):
    raw = scores.detach() * std + mean
    if len(raw) < 2 or not raw.std() > 1e-12:
        raise ValueError("scores that differ, please")
    return raw.mean(), raw.std()


def scale_by_sums(scores, mean, std):
    scores = scores.detach()
    n, centre = len(scores), scores.sum() / len(scores)
    squares = ((scores - centre) ** 2).sum()
    if n == 1 or squares == 0 or squares.isnan():
        raise ValueError("scores that differ, please")
    return centre * std + mean, (squares / (n - 1)).sqrt() * std


BOTH = "return mean + scores.mean() * std, std * spread"

SCALE = Exercise(
    id="8.7",
    answer=new_scale,
    why="β, the price of a nat, is in units of the score: without a unit it means "
    "something else for every reward model.",
    difficulty=3,
    importance=4,
    minutes=8,
    hints=(
        "Which raw score was shown as 0, and which as 1?",
        "raw = mean + std · s; so the new mean is mean + std · (mean of s), and the "
        "new std is std · (sd of s).",
        "`spread = scores.std() if len(scores) > 1 else scores.new_zeros(())`",
    ),
    bonus="Which answers should set the scale: demonstrations, or samples of the SFT "
    "policy? Try both and compare the means.",
    cases=scale_cases,
    oracle=scale_oracle,
    traps=(
        *also(
            "nothing may learn through it: torch.no_grad()",
            ("@torch.no_grad()\n", ""),
            Trap(
                "It forgets the old scale: right the first time only. The scores that "
                "come in are normalised ones; go back to raw scores.",
                (BOTH, "return scores.mean(), spread"),
            ),
            Trap(
                "Scores are in units of the old std: their mean and their spread must "
                "both be multiplied by it.",
                (BOTH, "return mean + scores.mean(), spread"),
            ),
            Trap(
                "The new mean is of raw scores, and scores are in units of the old "
                "std: stretch their mean by it before the old mean is added.",
                ("mean + scores.mean() * std", "mean + scores.mean()"),
            ),
            Trap(
                "Scores are in units of the old std: the new one is the old one times "
                "the spread. Here the old one is forgotten.",
                ("std * spread", "spread"),
            ),
        ),
        Trap(
            "It divides by the spread. std is what raw scores are divided by later, so "
            "it grows with the spread.",
            ("std * spread", "std / spread"),
        ),
        Trap(
            "The old mean is forgotten: the new one is measured from there.",
            ("return mean + scores.mean() * std", "return scores.mean() * std"),
        ),
        Trap(
            "It stretches the mean by the *new* std; the scores that came in were made "
            "with the old one.",
            ("scores.mean() * std, std", "scores.mean() * std * spread, std"),
        ),
        Trap(
            "The standard deviation divides by N here; a sample's divides by N − 1.",
            ("scores.std()", "scores.std(correction=0)"),
        ),
        Trap(
            "Scores without a spread pass: std becomes 0 or NaN, and every score after "
            "it, too. Raise ValueError.",
            ("if not spread > 0:", "if False:"),
        ),
        Trap(
            "NaN gets through: a comparison with NaN is never true, so `spread <= 0` "
            "does not see it. Ask `not spread > 0`.",
            ("if not spread > 0:", "if spread <= 0:"),
        ),
        Trap(
            "The scale carries the gradient of the scores: it is a measurement, and "
            "nothing should learn through it. Use torch.no_grad().",
            ("@torch.no_grad()\n", ""),
        ),
    ),
    twins=(Twin(scale_of_raw), Twin(scale_by_sums)),
    equivalent=dict.fromkeys(
        [f"len(scores) > 1 → len(scores) {other}" for other in (">= 1", "> 0")],
        "the sd of one score is NaN, which is refused as well",
    ),
)

EXERCISES = (POOL, HEAD, REWARD_MODEL, PAIRWISE, ACCURACY, RELIABILITY, SCALE)
