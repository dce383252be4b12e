"""Lesson 06: a whole PaLM, its size, its loss, its optimizer, and sampling from it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipalm.config import PaLMConfig
from minipalm.course.exercise import Candidate, Case, Exercise, Trap, Twin
from minipalm.model.cache import KVCache
from minipalm.model.generate import Sampled, generate, sampling_law
from minipalm.model.palm import PaLM, count_parameters
from minipalm.model.rope import rotations
from minipalm.train.language_model import next_token_loss
from minipalm.train.optim import adamw, lr_scale

EOS = 2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(seed: int, model: Any = PaLM, **changes: Any) -> Any:
    """A small network whose norms are not all ones."""
    sizes = dict(vocab_size=7, dim=12, depth=2, heads=2, head_dim=4, embed_std=0.4)
    made = model(PaLMConfig(**{**sizes, **changes}), seeded(seed))
    with torch.no_grad():
        for n, weight in enumerate(made.parameters()):
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=seeded(seed + n))
    return made


# --- 6.1 PaLM.hidden ------------------------------------------------------------------


def palm_cases(seed: int) -> list[Case]:
    draw = seeded(seed)
    ids = torch.randint(7, (3, 5), generator=draw)
    packed = torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0], [1, 2, 2, 3, 0]])
    left = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    places = torch.tensor([[3, 4, 6, 7, 11]]).expand(3, 5)
    return [
        Case("a text a row", seed, ids),
        Case("texts packed into rows", seed, ids, packed),
        Case("left padding", seed, ids, left),
        Case("positions of your own", seed, ids, positions=places),
        Case("the last two tokens", seed, ids, left, last=2),
        Case("all of the tokens asked for", seed, ids, last=5),
        Case("two parts with a cache", seed, ids, left, cut=3),
        Case("the last of two parts", seed, ids, left, last=1, cut=2),
        Case("no token asked for", seed, ids, last=0),
        Case("more tokens than there are", seed, ids, last=6),
    ]


def run_palm(
    candidate: Candidate,
    seed: int,
    ids: Tensor,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
    last: int | None = None,
    cut: int = 0,
) -> dict[str, Any]:
    """The states of a small network, and what a sum of them teaches its embedding."""
    model = tiny(seed, candidate)
    cache, parts = None, segments
    if cut:  # the first tokens in a call of their own, kept in a cache
        assert segments is not None
        cache = KVCache(model.config, len(ids), ids.shape[1], model.embedding.weight)
        with torch.no_grad():
            model.hidden(ids[:, :cut], segments[:, :cut], cache=cache)
        ids, parts = ids[:, cut:], segments[:, cut:]
        with torch.no_grad():
            states = model.hidden(ids, parts, cache=cache, last=last)
        return {"hidden": states, "tokens in the cache": cache.length}
    states = model.hidden(ids, parts, positions, last=last)
    weights = torch.linspace(1.0, 2.0, states.numel()).view(states.shape)
    (states * weights).sum().backward()
    return {"hidden": states.detach(), "gradient": model.embedding.weight.grad}


def palm_oracle(
    seed: int,
    ids: Tensor,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
    last: int | None = None,
    cut: int = 0,
) -> dict[str, Any]:
    """Each token by itself: its own text so far, alone in a row, through all blocks."""
    model = tiny(seed)
    B, T = ids.shape
    if last is not None and (last < 1 or last > T):
        raise ValueError
    states = torch.zeros(B, T, model.config.dim)
    for b in range(B):
        for t in range(T):
            own = [s for s in range(t + 1)]
            if segments is not None:
                own = [s for s in own if segments[b, s] == segments[b, t]]
            at = list(range(len(own)))
            if positions is not None:
                at = [int(positions[b, s]) for s in own]
            rope = rotations(torch.tensor([at]), model.config.head_dim)
            x = model.embedding.weight[ids[b, own]][None]
            for block in model.blocks:
                x = block(x, rope)
            one = x[0, -1] - x[0, -1].mean()
            size = (one.square().mean() + 1e-5).sqrt()
            states[b, t] = one / size * model.norm.weight
    states = states[:, cut:] if last is None else states[:, T - last :]
    if cut:
        return {"hidden": states.detach(), "tokens in the cache": T}
    weights = torch.linspace(1.0, 2.0, states.numel()).view(states.shape)
    (states * weights).sum().backward()
    return {"hidden": states.detach(), "gradient": model.embedding.weight.grad}


class PaLMByIndex(PaLM):
    """The first blocks, then the last one; the embedding by its rows."""

    def hidden(self, ids, segments=None, positions=None, cache=None, last=None):
        if last is not None and last not in range(1, ids.shape[1] + 1):
            raise ValueError(f"last is {last}")
        mask, rope = self.places(ids, segments, positions, cache)
        *early, final = self.blocks
        x = self.embedding.weight[ids]
        for layer, block in enumerate(early):
            x = block(x, rope, mask, cache=cache, layer=layer)
        x = final(x, rope, mask, cache, len(early), last)
        if cache is not None:
            cache.length += ids.shape[1]
        return self.norm(x)


class PaLMCutLate(PaLM):
    """All tokens to the end, and the ones not asked for cut off there."""

    def hidden(self, ids, segments=None, positions=None, cache=None, last=None):
        T = ids.shape[1]
        if last is not None and (last < 1 or last > T):
            raise ValueError(f"last is {last}")
        mask, rope = self.places(ids, segments, positions, cache)
        x = F.embedding(ids, self.embedding.weight)
        for layer in range(len(self.blocks)):
            x = self.blocks[layer](x, rope, mask, cache, layer)
        if cache is not None:
            cache.advance(T)
        x = x[:, T - (last or T) :]
        return F.layer_norm(x, x.shape[-1:], self.norm.weight)


PALM = Exercise(
    id="6.1",
    answer=PaLM,
    hole="hidden",
    why="Embedding, blocks, norm: the parts of five lessons become one network, and "
    "every model of the course goes through these lines.",
    difficulty=2,
    importance=5,
    minutes=12,
    hints=(
        "Which parts does `__init__` make, and in which order does a token meet them?",
        "$h_0 = E[x]$, $h_{l+1} = \\text{block}_l(h_l)$, and then "
        "$\\bar h = \\text{norm}(h_L)$.",
        "`mask, rope = self.places(ids, segments, positions, cache)`",
    ),
    bonus="The first transformer multiplies the embedding by √D on its way in (Vaswani "
    "et al. 2017, section 3.4). What would that do here to the first state?",
    cases=palm_cases,
    oracle=palm_oracle,
    run=run_palm,
    traps=(
        Trap(
            "The last norm is missing: the head would read states whose size grows "
            "with the depth. Normalise after the last block.",
            ("return self.norm(x)", "return x"),
        ),
        Trap(
            "The norm comes before the blocks here. Each block has a norm of its own; "
            "this one stands between the last block and the head.",
            ("x = self.embedding(ids)", "x = self.norm(self.embedding(ids))"),
            ("return self.norm(x)", "return x"),
        ),
        Trap(
            "The mask never reaches the blocks, so texts of one row, and padding, see "
            "each other.",
            ("= block(x, rope, mask,", "= block(x, rope, None,"),
        ),
        Trap(
            "Your positions are dropped on the way: `places` needs them to find how "
            "far RoPE turns each token.",
            (
                "self.places(ids, segments, positions, cache)",
                "self.places(ids, segments, None, cache)",
            ),
        ),
        Trap(
            "`last` goes to every block. An early block that leaves tokens out takes "
            "them from the blocks after it, which still have to look at them.",
            ("last if end else None", "last"),
        ),
        Trap(
            "All states come back although `last` asks for the end of the rows only.",
            ("last if end else None", "None"),
        ),
        Trap(
            "All blocks write to layer 0 of the cache, each over the one before. A "
            "block's number goes with it.",
            ("mask, cache, layer, last if", "mask, cache, 0, last if"),
        ),
        Trap(
            "The cache does not move on: the next tokens overwrite these. One call of "
            "`advance` after all blocks.",
            ("cache.advance(ids.shape[1])", "pass"),
        ),
        Trap(
            "The cache moves on by one token whatever came in. It is T tokens, "
            "ids.shape[1].",
            ("cache.advance(ids.shape[1])", "cache.advance(1)"),
        ),
        Trap(
            "Each block is given the embedding again: what the blocks before it have "
            "added is lost. A block takes the result of the one before.",
            ("x = self.embedding(ids)", "start = x = self.embedding(ids)"),
            ("= block(x, rope,", "= block(start, rope,"),
        ),
        Trap(
            "No ValueError for a `last` out of range: 0, or more tokens than there "
            "are, would give another part of the row without a word.",
            (
                "if last is not None and not 1 <= last <= ids.shape[1]:",
                "if False:",
            ),
        ),
    ),
    twins=(Twin(PaLMByIndex), Twin(PaLMCutLate)),
    equivalent={
        "1 <= last <= ids.shape[1] → 0 <= last <= ids.shape[1]": (
            "the last block raises ValueError, too, where no token is left"
        ),
    },
)

# --- 6.2 count_parameters -------------------------------------------------------------


def count_cases(seed: int) -> list[Case]:
    draw = seeded(seed)
    G, V, L = (int(torch.randint(2, 9, (), generator=draw)) for _ in range(3))
    large = PaLMConfig(256, dim=4096, depth=32, heads=16, head_dim=64)
    return [
        Case("the example of the docstring", large),
        Case("multi-query", PaLMConfig(100 * V, dim=24, depth=L, heads=6, head_dim=10)),
        Case(
            "grouped queries",
            PaLMConfig(97, 32, depth=L, heads=3 * G, head_dim=6, kv_heads=G),
        ),
        Case("a narrow feed-forward", PaLMConfig(50, 40, 3, 4, 8, ff_mult=2)),
    ]


def count_oracle(config: PaLMConfig) -> int:
    """Build it without memory, and count."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in PaLM(config).parameters())


def count_by_matrices(config):
    """Rows times columns, for a list of matrices and vectors."""
    D, K, M = config.dim, config.head_dim, config.ff_mult * config.dim
    block = [(D, config.heads * K), (config.heads * K, D), (D, 1)]
    block += [(D, config.kv_heads * K)] * 2 + [(D, M), (D, M), (M, D)]
    shapes = block * config.depth + [(config.vocab_size, D), (1, D)]
    return sum(rows * columns for rows, columns in shapes)


def count_by_columns(config):
    """A layer as one matrix in and one out."""
    width_in = config.qkv_dim + 2 * config.ff_dim
    width_out = config.heads * config.head_dim + config.ff_dim
    layer = config.dim * (width_in + width_out + 1)
    return config.depth * layer + config.dim * (config.vocab_size + 1)


COUNT = Exercise(
    id="6.2",
    answer=count_parameters,
    why="How large a model is decides what it costs; you can say it from the sizes "
    "alone, before a single weight exists.",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "How many rows and columns does each matrix of a block have?",
        "A layer: $D(H + 2G)K + HKD + 3DM + D$. The model: $L$ layers, $VD$ and $D$.",
        "`D, K, M = config.dim, config.head_dim, config.ff_dim`",
    ),
    bonus="Which part of the large model of the docstring is attention, which "
    "feed-forward? At which vocabulary would the embedding be a tenth?",
    cases=count_cases,
    oracle=count_oracle,
    traps=(
        Trap(
            "Keys and values are counted for every query head. They have G heads each, "
            "one in multi-query attention.",
            ("D * config.qkv_dim", "D * 3 * config.heads * K"),
        ),
        Trap(
            "Embedding and head are one matrix (tied), so V·D counts once.",
            ("config.vocab_size * D", "2 * config.vocab_size * D"),
        ),
        Trap(
            "SwiGLU has three matrices: gate and up lead in, one leads out. The gate "
            "is missing.",
            ("D * 2 * M", "D * M"),
        ),
        Trap(
            "The way out of attention is missing: H·K·D, from the heads back to the "
            "stream.",
            (" + config.heads * K * D", ""),
        ),
        Trap(
            "The way out of attention is taken as D·D. The heads together are H·K "
            "wide, which need not be D.",
            ("config.heads * K * D", "D * D"),
        ),
        Trap(
            "Each layer has a norm with D weights; here the layers have none.",
            ("(attention + feedforward + D)", "(attention + feedforward)"),
        ),
        Trap(
            "After the last block there is one more norm, with D weights.",
            ("config.vocab_size * D + D", "config.vocab_size * D"),
        ),
        Trap(
            "A layer has two norms here, as a serial block has. The parallel block has "
            "one, read by attention and feed-forward alike.",
            ("(attention + feedforward + D)", "(attention + feedforward + 2 * D)"),
        ),
        Trap(
            "Only one of the layers is counted.",
            ("config.depth * (attention", "(attention"),
        ),
    ),
    twins=(Twin(count_by_matrices), Twin(count_by_columns)),
)

# --- 6.3 next_token_loss --------------------------------------------------------------


class Bigrams(PaLM):
    """A bfloat16 model whose logits depend on the newest token alone."""

    table: Tensor

    def __init__(self, seed: int) -> None:
        nn.Module.__init__(self)
        table = 2 * torch.randn(9, 9, generator=seeded(seed))
        self.register_buffer("table", table.bfloat16())

    def hidden(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.one_hot(ids, 9).bfloat16()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.logits(self.hidden(ids))


def loss_cases(seed: int) -> list[Case]:
    draw = seeded(seed)
    ids = torch.randint(7, (3, 5), generator=draw)
    flat = tiny(seed)
    nn.init.zeros_(flat.embedding.weight)
    return [
        Case("rows of five tokens", tiny(seed), ids),
        Case("token 0 counts", tiny(seed), torch.tensor([[0, 3, 0, 5], [0, 0, 1, 0]])),
        Case("a part of a batch", tiny(seed), ids[:2, :4], total=11),
        Case("the shortest row", tiny(seed), ids[:1, :2]),
        Case("the same logit for every token", flat, ids),
        Case(
            "a bfloat16 model", Bigrams(seed), torch.randint(9, (2, 4), generator=draw)
        ),
    ]


def loss_oracle(model: Any, ids: Tensor, total: int | None = None) -> Tensor:
    """Each question by itself: read the row up to here, ask for the next token."""
    B, T = ids.shape
    losses = []
    for b in range(B):
        for t in range(T - 1):
            logits = model(ids[b : b + 1, : t + 1])[0, -1].float()
            share = logits.exp()[ids[b, t + 1]] / logits.exp().sum()
            losses.append(-share.log())
    return torch.stack(losses).sum() / (len(losses) if total is None else total)


def loss_by_gathering(model, ids, total=None):
    """The whole row through the model; the last state has nothing to predict."""
    logprobs = model(ids).float().log_softmax(-1)[:, :-1]
    told = logprobs.gather(-1, ids[:, 1:, None])
    return -told.sum() / (told.numel() if total is None else total)


def loss_by_rows(model, ids, total=None):
    parts = []
    for row in ids:
        logits = model(row[None, :-1])[0].float()
        parts.append(logits.logsumexp(-1) - logits[range(len(row) - 1), row[1:]])
    losses = torch.cat(parts)
    return losses.mean() if total is None else losses.sum() / total


LOSS = Exercise(
    id="6.3",
    answer=next_token_loss,
    why="One number says how surprised the model is by real text; all that it knows "
    "of language it learns by making this number smaller.",
    difficulty=2,
    importance=5,
    minutes=10,
    hints=(
        "Which token stands where the model at position t should have guessed it?",
        "$L = -\\frac{1}{B(T-1)} \\sum_b \\sum_{t<T} "
        "\\log p(x_{b,t+1} \\mid x_{b,\\le t})$",
        "`logits = model(ids[:, :-1])`",
    ),
    bonus="How many bits a character does your trained model need? Compare with what "
    "`gzip` makes of the same text.",
    cases=loss_cases,
    oracle=loss_oracle,
    traps=(
        Trap(
            "Each position is asked for the token that it has just read. The target of "
            "position t is token t + 1: shift by one, or the model learns to copy.",
            ("targets = ids[:, 1:].flatten()", "targets = ids[:, :-1].flatten()"),
        ),
        Trap(
            "The shift goes the wrong way: states of tokens 1, 2, ... are asked for "
            "the tokens before them, which they have seen.",
            ("model(ids[:, :-1]).flatten", "model(ids)[:, 1:].flatten"),
            ("targets = ids[:, 1:].flatten()", "targets = ids[:, :-1].flatten()"),
        ),
        Trap(
            "The shift is one too far: position t is asked for token t + 2.",
            ("model(ids[:, :-1]).flatten", "model(ids[:, :-2]).flatten"),
            ("targets = ids[:, 1:].flatten()", "targets = ids[:, 2:].flatten()"),
        ),
        Trap(
            "Token 0 is left out of the loss. There is no padding in these rows: every "
            "token is a question.",
            ('reduction="sum"', 'reduction="sum", ignore_index=0'),
        ),
        Trap(
            "It is a sum; the loss is the mean a question, so that batches of any size "
            "can be compared.",
            ("losses / (total or targets.numel())", "losses"),
        ),
        Trap(
            "It divides by B · T. A row of T tokens asks T − 1 questions: nobody "
            "guesses its first token.",
            ("targets.numel()", "ids.numel()"),
        ),
        Trap(
            "`total` has no effect. With it the parts of a batch add up to the mean of "
            "the whole batch.",
            ("total or targets.numel()", "targets.numel()"),
        ),
        Trap(
            "It divides by the number of rows: a mean a row, not a mean a question.",
            ("total or targets.numel()", "total or len(ids)"),
        ),
        Trap(
            "The sign is turned round: a log-probability is below 0, the loss is minus "
            "that.",
            ("return losses", "return -losses"),
        ),
        Trap(
            "The logits stay in bfloat16. A log-sum-exp over the vocabulary needs "
            "float32: call .float() first.",
            (".flatten(0, 1).float()", ".flatten(0, 1)"),
        ),
    ),
    twins=(Twin(loss_by_gathering), Twin(loss_by_rows)),
)

# --- 6.4 adamw ------------------------------------------------------------------------


class Small(nn.Module):
    """A matrix, a vector, a norm, an axis more, and what is not to be trained."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 2, generator=seeded(seed)))
        self.norm = nn.LayerNorm(4)
        self.cube = nn.Parameter(1 + torch.rand(2, 1, 3, generator=seeded(seed)))
        self.scale = nn.Parameter(torch.tensor(1.7))
        frozen = torch.ones(2, 2)
        self.frozen = nn.Parameter(frozen, requires_grad=False)


def adamw_cases(seed: int) -> list[Case]:
    return [
        Case("the defaults", seed),
        Case("a strong decay", seed, weight_decay=0.4),
        Case("other betas", seed, 0.2, (0.5, 0.7)),
        Case("a large ε", seed, weight_decay=0.1, eps=0.05),
    ]


def gradients_of(model: nn.Module, step: int, seed: int) -> list[Tensor]:
    draw = seeded(100 * seed + step)
    return [torch.randn(w.shape, generator=draw) for w in model.parameters()]


def run_adamw(candidate: Candidate, seed: int, *args: Any, **kwargs: Any) -> Any:
    """What the optimizer holds, and the weights after each of three steps."""
    model = Small(seed)
    optimizer = candidate(model, *args, **kwargs)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError("expected an optimizer")
    groups = optimizer.param_groups
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen: dict[str, Any] = {
        "rate at the start": sorted({float(group["lr"]) for group in groups}),
        "weights in its groups": [
            sorted(names[id(w)] for w in group["params"]) for group in groups
        ],
    }
    for step in (1, 2, 3):
        for group in groups:
            group["lr"] = 0.1 * step
        for weight, grad in zip(model.parameters(), gradients_of(model, step, seed)):
            weight.grad = grad if weight.requires_grad else None
        optimizer.step()
        for name, weight in model.named_parameters():
            seen[f"{name} after step {step}"] = weight.detach().clone()
    return seen


def adamw_oracle(
    seed: int,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> Any:
    """Algorithm 2 of Loshchilov and Hutter, weight by weight."""
    model = Small(seed)
    seen: dict[str, Any] = {
        "rate at the start": [0.0],
        "weights in its groups": [
            ["cube", "matrix"],
            ["norm.bias", "norm.weight", "scale"],
        ],
    }
    now = {name: w.detach().double() for name, w in model.named_parameters()}
    first = {name: torch.zeros_like(w) for name, w in now.items()}
    second = {name: torch.zeros_like(w) for name, w in now.items()}
    for step in (1, 2, 3):
        gradients = dict(zip(now, gradients_of(model, step, seed)))
        for name, w in now.items():
            if name != "frozen":
                rate, g = 0.1 * step, gradients[name].double()
                decay = weight_decay if name in ("matrix", "cube") else 0.0
                first[name] = betas[0] * first[name] + (1 - betas[0]) * g
                second[name] = betas[1] * second[name] + (1 - betas[1]) * g * g
                mean = first[name] / (1 - betas[0] ** step)
                root = (second[name] / (1 - betas[1] ** step)).sqrt()
                now[name] = w - rate * decay * w - rate * mean / (root + eps)
        seen |= {f"{name} after step {step}": w.float() for name, w in now.items()}
    return seen


def adamw_in_a_loop(model, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8):
    decayed, spared = [], []
    for weight in model.parameters():
        if weight.requires_grad:
            (decayed if weight.dim() > 1 else spared).append(weight)
    return torch.optim.AdamW(
        [{"params": decayed}, {"params": spared, "weight_decay": 0.0}],
        lr=0.0,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
    )


def adamw_added_later(model, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8):
    kinds = {True: [], False: []}
    for weight in filter(lambda w: w.requires_grad, model.parameters()):
        kinds[weight.ndim in (0, 1)].append(weight)
    settings = {"lr": 0.0, "betas": betas, "eps": eps, "foreach": False}
    made = torch.optim.AdamW(kinds[False], weight_decay=weight_decay, **settings)
    made.add_param_group({"params": kinds[True], "weight_decay": 0})
    return made


ADAMW = Exercise(
    id="6.4",
    answer=adamw,
    why="Weight decay holds matrices small; on a norm's scale it would slowly turn the "
    "layer off.",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "What would pulling every weight towards 0 do to a LayerNorm's scale?",
        "Matrices: $w \\leftarrow w - \\eta\\lambda w - \\eta\\, \\hat m / "
        "(\\sqrt{\\hat v} + \\epsilon)$. Vectors: the same with $\\lambda = 0$.",
        "`weights = [w for w in model.parameters() if w.requires_grad]`",
    ),
    bonus="Should the embedding decay? Each of its rows gets a gradient from the head "
    "at every step, but is read only when its token occurs.",
    cases=adamw_cases,
    oracle=adamw_oracle,
    run=run_adamw,
    traps=(
        Trap(
            "All weights decay. Vectors, such as a norm's scale and biases, must not: "
            "give them a group of their own.",
            ('if w.dim() < 2], "weight_decay": 0.0', "if w.dim() < 2]"),
            ("lr=0.0,", "lr=0.0, weight_decay=weight_decay,"),
        ),
        Trap(
            "The groups are the wrong way round: matrices decay, vectors do not.",
            ("if w.dim() >= 2]", "if w.dim() < 2 ]"),
            ('if w.dim() < 2], "weight', 'if w.dim() >= 2], "weight'),
        ),
        Trap(
            "Only weights with exactly two axes decay. One with three is a matrix, "
            "too: what is spared are vectors and single numbers.",
            ("w.dim() >= 2", "w.dim() == 2"),
            ("if w.dim() < 2]", "if w.dim() != 2]"),
        ),
        Trap(
            "A frozen weight is among those to be trained. Leave out what needs no "
            "gradient.",
            ("if w.requires_grad]", "]"),
        ),
        Trap(
            "Vectors are not trained at all: no decay for them does not mean no group.",
            (
                '{"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},',
                "",
            ),
        ),
        Trap(
            "`betas` has no effect; the optimizer's own default has a longer memory.",
            ("betas=betas, ", ""),
        ),
        Trap(
            "`eps` has no effect: pass it on to the optimizer.",
            ("eps=eps, ", ""),
        ),
        Trap(
            "The learning rate starts at PyTorch's default. The schedule sets it "
            "before each step; start at 0, so that a forgotten schedule is seen at "
            "once.",
            ("lr=0.0, ", ""),
        ),
        Trap(
            "This is Adam: the decay is added to the gradient, where the root divides "
            "it away. AdamW takes it from the weight itself.",
            ("torch.optim.AdamW(", "torch.optim.Adam("),
        ),
    ),
    twins=(Twin(adamw_in_a_loop), Twin(adamw_added_later)),
    equivalent=dict.fromkeys(
        [
            "torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True) → "
            "torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps)",
            "True → False",
        ],
        "fused is another way through memory to the same numbers",
    ),
)

# --- 6.5 lr_scale ---------------------------------------------------------------------


def scale_cases(seed: int) -> list[Case]:
    draw = seeded(seed)
    steps = int(torch.randint(40, 90, (), generator=draw))
    some = sorted(torch.randint(9, steps, (4,), generator=draw).tolist())
    points = [
        ("the first step of the docstring's example", (1, 100, 0.1, 0.1)),
        ("the last step of the rise", (10, 100, 0.1, 0.1)),
        ("the step after it", (11, 100, 0.1, 0.1)),
        ("the last step", (100, 100, 0.1, 0.1)),
        ("halfway up", (5, 100, 0.1, 0.3)),
        ("halfway down", (55, 100, 0.1, 0.2)),
        *((f"step {one}", (one, steps, 0.2, 0.25)) for one in some),
        ("down to nothing", (steps, steps, 0.05, 0.0)),
        ("a rise that is no whole number of steps", (2, 9, 0.3, 0.1)),
        ("a rise of less than a step", (1, 10, 0.01, 0.1)),
        ("no rise", (2, 10, 0.0, 0.1)),
        ("one step in all", (1, 1, 0.05, 0.1)),
        ("two steps in all", (2, 2, 0.05, 0.1)),
        ("a rise to the end", (10, 10, 1.0, 0.1)),
        ("no fall", (7, 20, 0.1, 1.0)),
    ]
    return [Case(name, *args) for name, args in points]


def scale_oracle(step: int, steps: int, warmup: float, final: float) -> float:
    """All steps in a row: up in equal parts, then half a turn of a circle's height."""
    rise = max(int(round(warmup * steps)), 1)
    heights = [n / rise for n in range(1, rise + 1)]
    fall = steps - rise
    for n in range(1, fall + 1):
        turned = complex(0, math.pi * n / fall)
        height = (1 + (math.e**turned).real) / 2  # from 1 to 0
        heights.append(height + (1 - height) * final)
    return float(heights[step - 1])


def scale_by_sine(step, steps, warmup, final):
    """(1 + cos x) / 2 is cos²(x / 2)."""
    rise = max(round(warmup * steps), 1)
    if step <= rise:
        return step / rise
    height = math.cos(math.pi / 2 * (step - rise) / (steps - rise)) ** 2
    return height * (1 - final) + final


def scale_from_the_end(step, steps, warmup, final):
    rise = round(warmup * steps) or 1
    left, fall = steps - step, steps - rise
    if left >= fall:
        return 1 - (left - fall) / rise
    return final + (1 - final) * 0.5 * (1 - math.cos(math.pi * left / fall))


SCALE = Exercise(
    id="6.5",
    answer=lr_scale,
    why="Adam's first steps are its wildest and the last should be its smallest: the "
    "schedule rises, and falls.",
    difficulty=2,
    importance=3,
    minutes=10,
    at_home=True,
    hints=(
        "At which step is the rate the peak itself: the last of the rise, or the one "
        "after it?",
        "Up: $s/r$ with $r = \\max(\\text{round}(w S), 1)$. Down: $f + (1 - f)"
        "\\frac{1 + \\cos \\pi d}{2}$ with $d = \\frac{s - r}{S - r}$.",
        "`rise = max(round(warmup * steps), 1)`",
    ),
    bonus="Write a schedule that stays at the peak and falls on a line in the last "
    "fifth only. Which one ends lower after the same number of steps?",
    cases=scale_cases,
    oracle=scale_oracle,
    traps=(
        Trap(
            "The rise is one step late: step 1 has the rate 0 and learns nothing. "
            "Steps count from 1, so the first has 1/rise.",
            ("return step / rise", "return (step - 1) / rise"),
        ),
        Trap(
            "The cosine ends at 0. It ends at `final`, a share of the peak.",
            ("final + (1 - final) * (1", "(1"),
        ),
        Trap(
            "The fall is not scaled by 1 − final: with `final` added it begins above "
            "the peak.",
            ("(1 - final) * (1 + math", "(1 + math"),
        ),
        Trap(
            "The fall is measured from step 0, so the rate drops at once from the peak "
            "to where the cosine has got to by then.",
            ("(step - rise) / max(steps - rise, 1)", "step / max(steps, 1)"),
        ),
        Trap(
            "The cosine goes through a whole turn and comes up again. From the peak "
            "down is half a turn, π.",
            ("math.pi * done", "2 * math.pi * done"),
        ),
        Trap(
            "The fall is a line. It should be half a cosine: slow at both ends.",
            ("(1 + math.cos(math.pi * done)) / 2", "(1 - done)"),
        ),
        Trap(
            "There is no rise: the first steps already have the peak rate.",
            ("if step < rise:", "if False:"),
            ("done = (step - rise) /", "done = max(step - rise, 0) /"),
        ),
        Trap(
            "`warmup` is taken as a number of steps. It is a share of all steps.",
            ("round(warmup * steps)", "round(warmup)"),
        ),
        Trap(
            "The rise is cut down to whole steps, not rounded to the nearest.",
            ("round(warmup * steps)", "int(warmup * steps)"),
        ),
        Trap(
            "The rise ends at `final` instead of the peak: the line should go up to 1.",
            ("return step / rise", "return final * step / rise"),
        ),
        Trap(
            "Without a fall, or with a rise shorter than a step, it divides by 0. A "
            "rise has at least one step, and so has the divisor of the fall.",
            ("max(round(warmup * steps), 1)", "round(warmup * steps)"),
            ("max(steps - rise, 1)", "(steps - rise)"),
        ),
    ),
    twins=(Twin(scale_by_sine), Twin(scale_from_the_end)),
    equivalent={
        "(step - rise) / max(steps - rise, 1) → (rise - step) / max(steps - rise, 1)": (
            "the cosine is the same on both sides of 0"
        ),
        "step < rise → step <= rise": "at the last step of the rise both forms give 1",
        **dict.fromkeys(
            [
                "max(round(warmup * steps), 1) → max(1, round(warmup * steps))",
                "max(steps - rise, 1) → max(1, steps - rise)",
            ],
            "the larger of two numbers, whatever their order",
        ),
    },
)

# --- 6.6 sampling_law -----------------------------------------------------------------


def law_cases(seed: int) -> list[Case]:
    draw = seeded(seed)
    logits = 1.5 * torch.randn(4, 9, generator=draw)
    known = torch.tensor([[0.5, 0.3, 0.2]]).log()
    ties = torch.tensor([[2.0, 1.0, 2.0, 0.5, 1.0]])
    far = torch.tensor([[0.0, -5.0, -20.0, -40.0]])
    exact = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    return [
        Case("no filter", logits),
        Case("a low temperature", logits, 0.4),
        Case("a high temperature", logits, temperature=2.5),
        Case("temperature 0", torch.cat([logits[:, :5], ties]), 0.0, 2, 0.3),
        Case("top_k", logits, top_k=3),
        Case("top_k of one", logits, top_k=1),
        Case("top_k with ties at the edge", ties, top_k=3),
        Case("top_k of the whole vocabulary", logits, top_k=9),
        Case("top_k above the vocabulary", logits, top_k=20),
        Case("the example of the docstring", known, top_p=0.6),
        Case("top_p", logits, top_p=0.8),
        Case("a small top_p", logits, top_p=0.05),
        Case("enough is enough", exact, top_p=0.5),
        Case("top_p of 1 keeps the tail", far, top_p=1.0),
        Case("temperature, then top_p", logits, 3.0, top_p=0.7),
        Case("all three", logits, 0.7, 4, 0.75),
        Case("bfloat16 logits", logits.bfloat16(), 0.8, 5, 0.9),
        Case("a temperature below 0", logits, -1.0),
        Case("top_k of 0", logits, top_k=0),
        Case("top_p of 0", logits, top_p=0.0),
        Case("top_p above 1", logits, top_p=1.5),
    ]


def law_oracle(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Row by row: rank the tokens, walk down, stop; normalise what has been kept."""
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError
    if top_p is not None and (top_p <= 0 or top_p > 1):
        raise ValueError
    law = torch.full(logits.shape, -math.inf)
    for b, row in enumerate(logits.float().tolist()):
        if temperature == 0:
            best = [i for i, one in enumerate(row) if one == max(row)]
            law[b, best] = -math.log(len(best))
            continue
        weights = [math.exp((one - max(row)) / temperature) for one in row]
        ranked = sorted(range(len(row)), key=lambda i: -weights[i])
        if top_k is not None and top_k < len(row):
            edge = weights[ranked[top_k - 1]]
            ranked = [i for i in ranked if weights[i] >= edge]
        if top_p is not None and top_p < 1:
            whole, together, kept = sum(weights[i] for i in ranked), 0.0, []
            for i in ranked:
                if together >= top_p - 1e-7:
                    break
                kept.append(i)
                together += weights[i] / whole
            ranked = kept
        whole = sum(weights[i] for i in ranked)
        for i in ranked:
            law[b, i] = (row[i] - max(row)) / temperature - math.log(whole)
    return law


def law_by_sorting(logits, temperature=1.0, top_k=None, top_p=None):
    """Sort once, cut the sorted row, and put it back in order."""
    in_range = temperature >= 0 and (top_k is None or top_k >= 1)
    if not in_range or not (top_p is None or 0 < top_p <= 1):
        raise ValueError("out of range")
    logits = logits.float()
    if temperature == 0:
        best = (logits == logits.max(-1, keepdim=True).values).float()
        return (best / best.sum(-1, keepdim=True)).log()
    ranked, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if top_k is not None:
        keep = ranked >= ranked[:, min(top_k, ranked.shape[-1]) - 1, None]
    if top_p is not None and top_p < 1:
        p = ranked.masked_fill(~keep, -torch.inf).softmax(-1)
        above = F.pad(p.cumsum(-1)[:, :-1], (1, 0))
        keep = keep & (above < top_p)
    law = ranked.masked_fill(~keep, -torch.inf).log_softmax(-1)
    return torch.empty_like(law).scatter_(-1, order, law)


def law_by_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """Each row alone, in probabilities; the logarithm comes last."""
    if temperature < 0 or (top_k or 1) < 1 or top_k == 0:
        raise ValueError("temperature or top_k")
    if top_p is not None and (top_p > 1 or top_p <= 0):
        raise ValueError("top_p")
    rows = []
    for row in logits.to(torch.float32):
        if temperature == 0:
            p = (row == row.max()).float()
        else:
            p = (row / temperature).softmax(-1)
            if top_k is not None:
                p = p * (p >= p.sort(descending=True).values[:top_k][-1])
            if top_p is not None and top_p != 1:
                p = p / p.sum()
                above = torch.stack([p[p > one].sum() for one in p])
                p = p * (above < top_p)
        rows.append((p / p.sum()).log())
    return torch.stack(rows)


LAW = Exercise(
    id="6.6",
    answer=sampling_law,
    why="A model gives scores; how you turn them into a law to draw from decides how "
    "bold the text is, and whether RLHF may trust the log-probabilities.",
    difficulty=4,
    importance=4,
    minutes=20,
    hints=(
        "Walk down the ranking: what do you have to know at a token to decide "
        "whether it is still in?",
        "Divide by T. Top-k: drop what is below the k-th largest. Top-p: drop a token "
        "when those *above* it have probability $\\ge p$ already. Then "
        "$z - \\log \\sum e^z$.",
        "`ranked, order = logits.softmax(-1).sort(dim=-1, descending=True)`",
    ),
    bonus="Min-p keeps tokens with at least a share of the best one's probability. "
    "Write it; when does it keep more than top-p does?",
    cases=law_cases,
    oracle=law_oracle,
    traps=(
        Trap(
            "top_p is turned round: this keeps the best 1 − p of the probability. At "
            ".9 it should keep nine tenths, not one.",
            ("drop = (before >= top_p)", "drop = (before >= 1 - top_p)"),
            ("order, before >= top_p)", "order, before >= 1 - top_p)"),
        ),
        Trap(
            "The token that crosses the line is dropped. The tokens kept must have "
            "probability p *together*, so look at the sum before a token, not with it.",
            ("ranked.cumsum(-1) - ranked", "ranked.cumsum(-1)"),
        ),
        Trap(
            "A token is dropped by its place in the ranking, not by its own number: "
            "bring the decision back from sorted order to the vocabulary's.",
            (
                "(before >= top_p).scatter(-1, order, before >= top_p)",
                "before >= top_p",
            ),
        ),
        Trap(
            "It multiplies by the temperature. Dividing makes a temperature below 1 "
            "sharper.",
            ("logits = logits / temperature", "logits = logits * temperature"),
        ),
        Trap(
            "top_p looks at the law before the temperature. The order is temperature, "
            "top_k, top_p.",
            (
                "logits = logits / temperature",
                "plain, logits = logits, logits / temperature",
            ),
            (
                "logits.softmax(-1).sort",
                "plain.masked_fill(logits.isinf(), -torch.inf).softmax(-1).sort",
            ),
        ),
        Trap(
            "top_p looks at the law before top_k has cut it. What top_k leaves must be "
            "normalised first.",
            ("logits = logits / temperature", "whole = logits = logits / temperature"),
            ("logits.softmax(-1).sort", "whole.softmax(-1).sort"),
        ),
        Trap(
            "What is left is not normalised again: the probabilities of the tokens "
            "kept must sum to 1.",
            (
                "logits = logits / temperature",
                "logits = (logits / temperature).log_softmax(-1)",
            ),
            ("return logits.log_softmax(-1)", "return logits"),
        ),
        Trap(
            "These are probabilities. The result is their logarithm, minus infinity "
            "for a token that cannot be drawn.",
            ("return logits.log_softmax(-1)", "return logits.softmax(-1)"),
        ),
        Trap(
            "Ties at the edge of top_k are broken by place. All that equal the k-th "
            "largest stay: compare values, not positions.",
            (
                "logits < smallest",
                "torch.ones_like(logits, dtype=torch.bool).scatter(-1, "
                "logits.topk(top_k).indices, False)",
            ),
        ),
        Trap(
            "top_k keeps the least probable tokens.",
            (
                "logits < smallest",
                "logits > logits.topk(top_k, largest=False).values[:, -1:]",
            ),
        ),
        Trap(
            "A top_k above the vocabulary's size is an error here. It should keep all.",
            ("top_k is not None and top_k < logits.shape[-1]:", "top_k is not None:"),
        ),
        Trap(
            "Temperature 0 divides by 0. It stands for the limit: all probability on "
            "the largest logit.",
            ("if temperature == 0:", "if False:"),
        ),
        Trap(
            "The law stays in bfloat16, whose steps are too coarse for probabilities. "
            "Go to float32 first.",
            ("logits = logits.float()", "logits = logits.clone()"),
        ),
        Trap(
            "top_p = 1 loses the tail: a cumulative sum reaches 1 by rounding. At 1 "
            "there is nothing to cut.",
            ("top_p is not None and top_p < 1:", "top_p is not None:"),
        ),
    ),
    twins=(Twin(law_by_sorting), Twin(law_by_probabilities)),
    equivalent={
        **dict.fromkeys(
            [
                "logits.shape[-1] → logits.shape[1]",
                "-1 → 1",
                "logits.amax(-1, keepdim=True) → logits.amax(1, keepdim=True)",
                "logits.softmax(-1) → logits.softmax(1)",
                "logits.log_softmax(-1) → logits.log_softmax(1)",
                "ranked.cumsum(-1) → ranked.cumsum(1)",
                "(before >= top_p).scatter(-1, order, before >= top_p) → "
                "(before >= top_p).scatter(1, order, before >= top_p)",
                "torch.where(logits == logits.amax(-1, keepdim=True), 0.0, -torch.inf)"
                ".log_softmax(-1) → torch.where(logits == logits.amax(-1, "
                "keepdim=True), 0.0, -torch.inf).log_softmax(1)",
            ],
            "there are two axes, so the last is axis 1",
        ),
        **dict.fromkeys(
            [
                "before >= top_p → before > top_p",
                "before >= top_p → before <= top_p",
            ],
            "the tensor that scatter writes over, at every place",
        ),
        "top_k < logits.shape[-1] → top_k <= logits.shape[-1]": (
            "the V most probable of V tokens are all"
        ),
        "logits.softmax(-1).sort(dim=-1, descending=True) → "
        "logits.softmax(-1).sort(descending=True)": "sort takes the last axis anyway",
        "torch.where(logits == logits.amax(-1, keepdim=True), 0.0, -torch.inf) → "
        "torch.where(logits == logits.amax(-1, keepdim=True), 0.5, -torch.inf)": (
            "normalised after that"
        ),
    },
)

# --- 6.7 generate ---------------------------------------------------------------------


def left_padded(lengths: list[int], width: int, draw: torch.Generator) -> Any:
    prompts = torch.randint(7, (len(lengths), width), generator=draw)
    return prompts, torch.arange(width) >= width - torch.tensor(lengths)[:, None]


def generate_cases(seed: int) -> list[Case]:
    draw = seeded(seed)
    ragged = left_padded([4, 1, 3, 2], 4, draw)
    equal = left_padded([3, 3, 3], 3, draw)
    one = torch.tensor([[1, 5]]).expand(300, 2), torch.ones(300, 2).bool()
    gap = ragged[1].clone()
    gap[0, 2] = False
    empty = ragged[1].clone()
    empty[1] = False
    greedy = greedy_answers(tiny(seed), ragged[0], ragged[1], 7, -1)[0]
    first = {token: [row.index(token) for row in greedy.tolist() if token in row]
             for token in range(7)}  # fmt: skip
    end = max(first, key=lambda token: len(set(first[token])))
    prompts = ragged[0].clone()
    prompts[0, 1] = end  # in a prompt it ends nothing
    return [
        Case(
            "greedy, prompts of unequal lengths", seed, *ragged, 7, end, temperature=0
        ),
        Case("greedy, without an end", seed, *ragged, 3, -1, temperature=0),
        Case(
            "greedy, an end in a prompt",
            seed,
            prompts,
            ragged[1],
            6,
            end,
            temperature=0,
        ),
        Case("three hundred answers to a prompt", seed, *one, 1, 9),
        Case("drawn without filters", seed, *ragged, 6),
        Case(
            "drawn with filters", seed, *equal, 5, temperature=1.5, top_k=5, top_p=0.8
        ),
        Case("one token an answer", seed, *ragged, 1),
        Case("padding on the right", seed, ragged[0], ragged[1].flip(1), 3),
        Case("a gap in a prompt", seed, ragged[0], gap, 3),
        Case("an empty prompt", seed, ragged[0], empty, 3),
    ]


def run_generate(
    candidate: Candidate,
    seed: int,
    prompts: Tensor,
    prompt_mask: Tensor,
    T: int,
    eos_id: int = EOS,
    **law: Any,
) -> dict[str, Any]:
    """What can be said of answers without knowing in which order they were drawn."""
    model = tiny(seed)
    torch.manual_seed(seed)
    plain = model.hidden

    def strict(ids: Tensor, segments: Tensor | None = None, *a: Any, **kw: Any) -> Any:
        if segments is not None and segments.dtype == torch.bool:
            raise TypeError("segments are whole numbers: 0 for padding, 1 for text")
        return plain(ids, segments, *a, **kw)

    model.hidden = strict

    def drawn(number: int) -> Sampled:
        sizes = {"max_new_tokens": T, "eos_id": eos_id, "generator": seeded(number)}
        return candidate(model, prompts, prompt_mask, **sizes, **law)

    told = drawn(seed)
    ended = ((told.responses == eos_id) & told.mask).long().cumsum(1) > 0
    seen: dict[str, Any] = {
        "responses": told.responses.shape,
        "mask": told.mask.shape,
        "type of responses": told.responses.dtype,
        "carries a gradient": told.logprobs.requires_grad,
        "logprobs where mask is False": float(told.logprobs[~told.mask].abs().sum()),
        "tokens after the end": int((ended[:, :-1] & told.mask[:, 1:]).sum()),
        "cut off before the end": int((~told.mask & ~ended).sum()),
    }
    if law.get("temperature") == 0:
        seen["answers"] = told.responses * told.mask
        seen["lengths"] = told.mask.sum(1)
        return seen
    if len(prompts) > 100:
        counts = told.responses[:, 0].bincount(minlength=7) / len(prompts)
        logits = model(prompts[:1])[0, -1:].detach()
        exact = law_oracle(logits, **law)[0].exp()
        error = (exact * (1 - exact) / len(prompts)).sqrt()
        seen["first tokens as often as they should be"] = bool(
            ((counts - exact).abs() < 5 * error + 1e-6).all()
        )
        return seen
    again = drawn(seed)
    seen["the same again from the same generator"] = torch.equal(
        told.responses * told.mask, again.responses * again.mask
    )
    scored = rescored(model, prompts, prompt_mask, told, law)
    seen["logprobs"] = float((scored - told.logprobs).abs().max())
    return seen


def rescored(
    model: PaLM, prompts: Tensor, prompt_mask: Tensor, told: Sampled, law: dict
) -> Tensor:
    """Log-probability of each token, its prefix alone in a row without padding."""
    result = torch.zeros(told.responses.shape)
    with torch.no_grad():
        for b in range(len(prompts)):
            prefix = prompts[b, prompt_mask[b]].tolist()
            for t in range(int(told.mask[b].sum())):
                logits = model(torch.tensor([prefix]))[:, -1]
                token = int(told.responses[b, t])
                result[b, t] = law_oracle(logits, **law)[0, token]
                prefix.append(token)
    return result


@torch.no_grad()
def greedy_answers(
    model: PaLM, prompts: Tensor, prompt_mask: Tensor, T: int, eos_id: int
) -> tuple[Tensor, Tensor]:
    """The likeliest token, row by row, without padding and without a cache."""
    answers, lengths = torch.zeros(len(prompts), T, dtype=torch.long), []
    for b in range(len(prompts)):
        row = prompts[b, prompt_mask[b]].tolist()
        said: list[int] = []
        while len(said) < T and eos_id not in said:
            said.append(int(model(torch.tensor([row + said]))[0, -1].argmax()))
        answers[b, : len(said)] = torch.tensor(said)
        lengths.append(len(said))
    return answers, torch.tensor(lengths)


def generate_oracle(
    seed: int,
    prompts: Tensor,
    prompt_mask: Tensor,
    T: int,
    eos_id: int = EOS,
    **law: Any,
) -> dict[str, Any]:
    """What must be true of any answers; greedy ones are found by hand."""
    for row in prompt_mask.tolist():
        if not row[-1] or sorted(row) != row:
            raise ValueError
    seen: dict[str, Any] = {
        "responses": torch.Size([len(prompts), T]),
        "mask": torch.Size([len(prompts), T]),
        "type of responses": torch.long,
        "carries a gradient": False,
        "logprobs where mask is False": 0.0,
        "tokens after the end": 0,
        "cut off before the end": 0,
    }
    if law.get("temperature") == 0:
        answers = greedy_answers(tiny(seed), prompts, prompt_mask, T, eos_id)
        return seen | dict(zip(("answers", "lengths"), answers))
    if len(prompts) > 100:
        return seen | {"first tokens as often as they should be": True}
    seen["the same again from the same generator"] = True
    return seen | {"logprobs": 0.0}


@torch.no_grad()
def generate_plainly(
    model, prompts, prompt_mask, *, max_new_tokens, eos_id, generator, **law
):
    """Everything again for each token; rows that have ended go on unseen."""
    if (prompt_mask[:, :-1] & ~prompt_mask[:, 1:]).any() or not prompt_mask[
        :, -1
    ].all():
        raise ValueError("left padding, please")
    ids, seen = prompts, prompt_mask.long()
    alive = torch.ones(len(ids), 1, dtype=torch.bool)
    masks, logprobs = [], []
    for _ in range(max_new_tokens):
        law_now = sampling_law(model(ids, seen)[:, -1], **law)
        token = torch.multinomial(law_now.exp(), 1, generator=generator)
        masks.append(alive)
        logprobs.append(torch.where(alive, law_now.gather(-1, token), 0.0))
        alive = alive & (token != eos_id)
        ids = torch.cat([ids, token], 1)
        seen = torch.cat([seen, torch.ones_like(token)], 1)
    told = ids[:, prompts.shape[1] :]
    return Sampled(told, torch.cat(masks, 1), torch.cat(logprobs, 1))


@torch.inference_mode()
def generate_row_by_row(
    model, prompts, prompt_mask, *, max_new_tokens, eos_id, generator, **law
):
    B, T = len(prompts), max_new_tokens
    counts = prompt_mask.sum(1).tolist()
    if 0 in counts or any(not m[-n:].all() for m, n in zip(prompt_mask, counts)):
        raise ValueError("left padding, please")
    responses = torch.zeros(B, T, dtype=torch.long)
    mask, logprobs = torch.zeros(B, T).bool(), torch.zeros(B, T)
    for b in range(B):
        cache = KVCache(model.config, 1, counts[b] + T, model.embedding.weight)
        new = prompts[b : b + 1, -counts[b] :]
        for t in range(T):
            one = sampling_law(
                model.logits(model.hidden(new, cache=cache, last=1)[0]), **law
            )
            new = torch.multinomial(one.exp(), 1, generator=generator)
            responses[b, t], mask[b, t] = new[0, 0], True
            logprobs[b, t] = one[0, new[0, 0]]
            if new[0, 0] == eos_id:
                break
    return Sampled(responses.clone(), mask.clone(), logprobs.clone())


GENERATE = Exercise(
    id="6.7",
    answer=generate,
    why="A language model speaks one token at a time. RLHF trains on what is drawn "
    "here, so tokens, mask and log-probabilities have to be exact.",
    difficulty=5,
    importance=5,
    minutes=25,
    at_home=True,
    hints=(
        "In which column do all answers begin, and what does a row do when it has said "
        "its end while others have not?",
        "For each t: logits of the last column, the law of `sampling_law`, a token "
        "drawn from $e^{\\text{law}}$, its log-probability; then the token joins "
        "the row. Padding has segment 0, all else 1.",
        "`law = sampling_law(model(ids, segments)[:, -1], temperature, top_k, top_p)`",
    ),
    bonus="Count the columns that your loop computes for prompts of 9 tokens and "
    "answers of 26, with and without a cache.",
    cases=generate_cases,
    oracle=generate_oracle,
    run=run_generate,
    traps=(
        Trap(
            "Padding is seen: the model must know where it stands. Give it "
            "prompt_mask.long() as segments.",
            (
                "model.hidden(prompts, prompt_mask.long(), cache=cache)",
                "model.hidden(prompts, cache=cache)",
            ),
        ),
        Trap(
            "An <eos> in the prompt ends the answer. Only one that the answer itself "
            "has drawn counts.",
            (
                "going = token[:, 0] != eos_id",
                "going = (token[:, 0] != eos_id) & ~(prompts == eos_id).any(1)[rows]",
            ),
        ),
        Trap(
            "Rows are not cut after their <eos>: what they say then still counts in "
            "the mask.",
            ("going = token[:, 0] != eos_id", "going = token[:, 0] >= 0"),
        ),
        Trap(
            "The <eos> itself is left out of the mask. To end is a choice of the model "
            "like any other token: it counts.",
            ("mask[rows, t] = True", "mask[rows, t] = token[:, 0] != eos_id"),
            (
                "logprobs[rows, t] = law.gather(-1, token)[:, 0]",
                "logprobs[rows, t] = law.gather(-1, token)[:, 0] * (token[:, 0] != "
                "eos_id)",
            ),
        ),
        Trap(
            "The first row that ends ends all of them. Each row goes on until its own "
            "<eos>.",
            ("not going.any()", "not going.all()"),
        ),
        Trap(
            "The log-probabilities are those of the unfiltered law. Give those of the "
            "law that the token was drawn from, temperature and filters included.",
            (
                "law.gather(-1, token)[:, 0]",
                "model.logits(hidden[:, -1]).log_softmax(-1).gather(-1, token)[:, 0]",
            ),
        ),
        Trap(
            "It always takes the likeliest token. A sample is drawn: "
            "torch.multinomial, with the generator.",
            (
                "torch.multinomial(law.exp(), 1, generator=generator)",
                "law.argmax(-1, keepdim=True)",
            ),
        ),
        Trap(
            "It draws with torch's global randomness: without the generator nobody can "
            "repeat your answers.",
            (", generator=generator)", ")"),
        ),
        Trap(
            "The logits of the first column are read. What comes next stands at the "
            "last.",
            ("hidden[:, -1]", "hidden[:, 0]"),
        ),
        Trap(
            "Answers are a token short: there are max_new_tokens of them, the <eos> "
            "included.",
            ("in range(max_new_tokens):", "in range(max_new_tokens - 1):"),
        ),
        Trap(
            "Answers carry a gradient, so the graph of every step stays in memory. "
            "Sampling needs none: torch.no_grad().",
            ("@torch.no_grad()\n", ""),
        ),
        Trap(
            "Prompts that are right-padded, have gaps or are empty pass without a "
            "word. Their answers would be nonsense: raise ValueError.",
            (
                "if not (prompt_mask[:, -1].all() and (prompt_mask.long().diff() >= "
                "0).all()):",
                "if False:",
            ),
        ),
        Trap(
            "Temperature and filters have no effect: hand them on to sampling_law.",
            (
                "model.logits(hidden[:, -1]), temperature, top_k, top_p)",
                "model.logits(hidden[:, -1]))",
            ),
        ),
    ),
    twins=(Twin(generate_plainly), Twin(generate_row_by_row)),
    tolerance=2e-4,
    equivalent={
        **dict.fromkeys(
            [
                "law.gather(-1, token)[:, 0] → law.gather(-1, token)[:, -1]",
                "token[:, 0] → token[:, -1]",
                "token[:, 0] != eos_id → token[:, -1] != eos_id",
                "going.nonzero()[:, 0] → going.nonzero()[:, -1]",
            ],
            "there is one column, the first and the last",
        ),
        "law.gather(-1, token) → law.gather(1, token)": (
            "there are two axes, so the last is axis 1"
        ),
        **dict.fromkeys(
            [
                "max_new_tokens - 1 → max_new_tokens + 1",
                "max_new_tokens - 1 → max_new_tokens - 0",
                "max_new_tokens - 1 → 1 - max_new_tokens",
                "t == max_new_tokens - 1 or not going.any() → "
                "t == max_new_tokens - 1 and (not going.any())",
                "break → pass",
            ],
            "it only spares work for tokens or rows that nobody will see",
        ),
    },
)

EXERCISES = (PALM, COUNT, LOSS, ADAMW, SCALE, LAW, GENERATE)
