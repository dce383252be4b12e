"""Lesson 05: the parallel block, its serial twin, and how their weights begin."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipalm.config import PaLMConfig
from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.model.attention import attention, attention_mask
from minipalm.model.block import ParallelBlock, SerialBlock, init_block, split_heads
from minipalm.model.cache import KVCache
from minipalm.model.rope import rotate, rotations

# --- 5.1 split_heads ----------------------------------------------------------------


def small(H: int, G: int, K: int, D: int = 10) -> PaLMConfig:
    """M = 3 D, so that no two widths are alike."""
    return PaLMConfig(9, dim=D, depth=3, heads=H, head_dim=K, kv_heads=G, ff_mult=3)


def heads_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def tokens(B: int, T: int, C: int, K: int, rows: int) -> tuple[Tensor, ...]:
        """Columns, and rotations of places that are not 0, 1, 2, ..."""
        qkv = torch.randn(B, T, C, generator=draw).requires_grad_(True)
        places = torch.randint(1, 40, (rows, T), generator=draw)
        return qkv, *rotations(places, K)

    def case(name: str, H: int, G: int, K: int, B: int, T: int, rows: int) -> Case:
        qkv, *rope = tokens(B, T, (H + 2 * G) * K, K, rows)
        return Case(name, qkv, small(H, G, K), tuple(rope))

    return [
        case("two groups", 4, 2, 6, 2, 5, 2),
        case("one key/value head", 3, 1, 4, 2, 3, 2),
        case("a head each, one row of places for all", 3, 3, 2, 4, 5, 1),
        case("one token", 2, 1, 8, 3, 1, 3),
    ]


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """RoPE of one vector, one pair after the other."""
    half = len(x) // 2
    first, second = [], []
    for i in range(half):
        first.append(x[i] * cosine[i] - x[i + half] * sine[i])
        second.append(x[i] * sine[i] + x[i + half] * cosine[i])
    return torch.stack(first + second)


def heads_oracle(
    qkv: Tensor, config: PaLMConfig, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """One head of one token after the other: its columns, turned if need be."""
    (B, T, C), K, G = qkv.shape, config.head_dim, config.kv_heads
    cosine, sine = (part.expand(B, 1, T, K // 2) for part in rope)
    number, H = C // K, config.heads
    made = []
    for n in range(number):
        for b in range(B):
            for t in range(T):
                one = qkv[b, t, n * K : (n + 1) * K]
                turned = turn(one, cosine[b, 0, t], sine[b, 0, t])
                made.append(turned if n < number - G else one)
    heads = torch.stack(made).view(number, B, T, K).transpose(0, 1)
    return heads[:, :H], heads[:, H : H + G], heads[:, H + G :]


def heads_by_view(qkv, config, rope):
    (B, T, C), K, G = qkv.shape, config.head_dim, config.kv_heads
    heads = qkv.view(B, T, C // K, K).transpose(1, 2)
    q, k, v = heads.split([C // K - 2 * G, G, G], dim=1)
    return rotate(q, *rope), rotate(k, *rope), v


def heads_by_columns(qkv, config, rope):
    """Cut the columns first, make heads of each part afterwards."""
    K, G = config.head_dim, config.kv_heads
    H = config.heads
    parts = qkv.split([H * K, G * K, G * K], dim=2)
    heads = (one.unflatten(2, (-1, K)) for one in parts)
    q, k, v = (one.permute(0, 2, 1, 3) for one in heads)
    return rotate(q, *rope), rotate(k, *rope), v


REARRANGE = 'rearrange(qkv, "B T (heads K) -> B heads T K", K=config.head_dim)'
ROTATE = "rotate(heads[:, :-G], *rope)"
RETURN = "return rotated[:, :-G], rotated[:, -G:], heads[:, -G:]"

HEADS = Exercise(
    id="5.1",
    answer=split_heads,
    why="One product makes queries, keys and values of all heads at once; here it "
    "becomes clear which column was meant for what.",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "Of the three parts, which must know the token's place, and which must not?",
        "Columns $(H + 2G) \\cdot K$ → axis of $H + 2G$ heads, moved before time; the "
        "first $H$ and the next $G$ are rotated.",
        '`heads = rearrange(qkv, "B T (heads K) -> B heads T K", K=config.head_dim)`',
    ),
    bonus="Lay the columns out group by group instead: the queries of a group, its "
    "key, its value. Why do libraries that split a network over cards like that order?",
    cases=heads_cases,
    oracle=heads_oracle,
    traps=(
        Trap(
            "The keys are not rotated. A score tells the distance only if query and "
            "key are both turned by their own place.",
            (RETURN, "return rotated[:, :-G], heads[:, -2 * G : -G], heads[:, -G:]"),
        ),
        Trap(
            "The queries are not rotated. A score tells the distance only if query and "
            "key are both turned by their own place.",
            (RETURN, "return heads[:, : -2 * G], rotated[:, -G:], heads[:, -G:]"),
        ),
        Trap(
            "Nothing is rotated, so the order of the tokens is lost: queries and keys "
            "go through `rotate`.",
            (ROTATE, "heads[:, :-G]"),
        ),
        Trap(
            "The values are rotated, too. They are what is read, not what is compared: "
            "they stay as they are.",
            (ROTATE, "rotate(heads, *rope)"),
            (RETURN, "return rotated.split([heads.shape[1] - 2 * G, G, G], 1)"),
        ),
        Trap(
            "Each head takes columns far apart. A head is K columns side by "
            "side: (heads K), not (K heads).",
            ("(heads K)", "(K heads)"),
        ),
        Trap(
            "A reshape alone does not move the axis of heads before that of time: it "
            "mixes tokens. Cut the columns first, then transpose.",
            (
                REARRANGE,
                "qkv.reshape(len(qkv), -1, qkv.shape[1], config.head_dim)",
            ),
        ),
        Trap(
            "Keys and values are exchanged: the columns are q | k | v.",
            (
                ROTATE,
                "rotate(torch.cat([heads[:, : -2 * G], heads[:, -G:]], 1), *rope)",
            ),
            (RETURN, "return rotated[:, :-G], rotated[:, -G:], heads[:, -2 * G : -G]"),
        ),
        Trap(
            "Keys and values are taken from the front. The queries stand first: "
            "q | k | v.",
            (
                REARRANGE,
                REARRANGE + ".roll(-2 * config.kv_heads, 1)",
            ),
        ),
        Trap(
            "The axes are B T heads K. Attention wants the heads before the tokens: "
            "B heads T K.",
            (
                RETURN,
                "both = rotated[:, :-G], rotated[:, -G:], heads[:, -G:]\n"
                "    return tuple(one.transpose(1, 2) for one in both)",
            ),
        ),
        Trap(
            "One key/value head is taken for granted. There are config.kv_heads of "
            "them.",
            ("G = config.kv_heads", "G = 1"),
        ),
    ),
    twins=(Twin(heads_by_view), Twin(heads_by_columns)),
)

# --- 5.2 and 5.3: the blocks --------------------------------------------------------


def parts_of(config: PaLMConfig, serial: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a block's weights."""
    D, M, C = config.dim, config.ff_dim, config.qkv_dim
    out = {
        "w_attention.weight": (D, config.heads * config.head_dim),
        "w_feedforward.weight": (D, M),
    }
    if not serial:
        return {"norm.weight": (D,), "w_in.weight": (C + 2 * M, D), **out}
    return {
        "attention_norm.weight": (D,),
        "w_qkv.weight": (C, D),
        "feedforward_norm.weight": (D,),
        "w_gate_up.weight": (2 * M, D),
        **out,
    }


def world(config, seed, B, T, padded, serial):
    """Weights (norms unlike 1), a stream that is not normalised, rotations, a mask."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parts_of(config, serial).items():
        drawn = torch.randn(shape, generator=draw)
        weights[name] = (
            drawn.tanh() / 2 + 1 if len(shape) == 1 else drawn / shape[1] ** 0.5
        )
    x = 2.0 * torch.randn(B, T, config.dim, generator=draw) + 0.7
    places = torch.randint(1, 4, (B, T), generator=draw).cumsum(1)
    mask = None
    if padded:
        segments = (torch.arange(T) >= torch.arange(B)[:, None]).long()
        mask = attention_mask(segments, segments)
    return weights, x, rotations(places, config.head_dim), mask


def seen(y: Tensor, x: Tensor, weights: dict[str, Tensor]) -> dict[str, object]:
    """The result, and its gradient for each weight and for x."""
    total = (y * torch.linspace(1, 2, y.numel()).view(y.shape)).sum()
    wanted = {"x": x, **weights}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    gradients = {
        name: torch.zeros(()) if one is None else one / max(1.0, float(one.abs().max()))
        for name, one in zip(wanted, found)
    }
    return {"y": y.detach(), "gradients": gradients}


def pass_through(block_class, seed, config, B=2, T=4, padded=False, pieces=()):
    """What a block makes of a stream: at once with gradients, or in cached pieces."""
    serial = hasattr(block_class(config), "w_qkv")
    weights, x, rope, mask = world(config, seed, B, T, padded, serial)
    block = block_class(config)
    block.load_state_dict(weights)
    if not pieces:
        x.requires_grad_(True)
        y = block(x, rope) if mask is None else block(x, rope, mask)
        return seen(y, x, dict(block.named_parameters()))
    cache, parts, begin = KVCache(config, B, T, x), [], 0
    with torch.no_grad():
        for n in pieces:
            end = begin + n
            piece = x[:, begin:end].clone()
            turned = tuple(part[:, :, begin:end] for part in rope)
            allowed = None if mask is None else mask[:, begin:end, :end]
            parts.append(block(piece, turned, allowed, cache, 1))
            parts.append(piece)  # as it is afterwards
            cache.advance(n)
            begin = end
    return {"y": torch.cat(parts, 1), "keys": cache.keys, "values": cache.values}


def slow_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.sum() / len(x)
    variance = (centred * centred).sum() / len(x)
    return centred / (variance + 1e-5).sqrt() * weight


def slow_attention(config, qkv, cosine, sine, allowed):
    """For one row: a list of columns for each token -> a list of H·K numbers each."""
    H, G, K = config.heads, config.kv_heads, config.head_dim
    heads = [one.split(K) for one in qkv]
    turned = [
        [turn(head, cosine[t], sine[t]) for head in token[: H + G]]
        for t, token in enumerate(heads)
    ]
    rows = []
    for t in range(len(qkv)):
        columns = []
        for h in range(H):
            g = h // (H // G)
            places = [s for s in range(t + 1) if allowed is None or allowed[t, s]]
            scores = [(turned[t][h] * turned[s][H + g]).sum() for s in places]
            weights = (torch.stack(scores) / math.sqrt(K)).softmax(0)
            values = torch.stack([heads[s][H + G + g] for s in places])
            columns.append((weights[:, None] * values).sum(0))
        rows.append(torch.cat(columns))
    keys = torch.stack([torch.stack(one[H:]) for one in turned], 1)
    values = torch.stack([torch.stack(one[H + G :]) for one in heads], 1)
    return rows, keys, values


def slow_block(config, w, x, rope, mask, serial):
    """Token by token, matrix by vector; with the keys and values of all tokens."""
    M = config.ff_dim
    rows, kept = [], []
    for b in range(len(x)):
        cosine, sine = rope[0][b, 0], rope[1][b, 0]
        allowed = None if mask is None else mask[b]
        if serial:
            h = [slow_norm(one, w["attention_norm.weight"]) for one in x[b]]
            qkv = [w["w_qkv.weight"] @ one for one in h]
        else:
            h = [slow_norm(one, w["norm.weight"]) for one in x[b]]
            qkv = [(w["w_in.weight"] @ one)[: -2 * M] for one in h]
        read, *both = slow_attention(config, qkv, cosine, sine, allowed)
        for t in range(x.shape[1]):
            y = x[b, t] + w["w_attention.weight"] @ read[t]
            if serial:
                normed = slow_norm(y, w["feedforward_norm.weight"])
                both_halves = w["w_gate_up.weight"] @ normed
            else:
                both_halves = (w["w_in.weight"] @ h[t])[-2 * M :]
            gate, up = both_halves[:M], both_halves[M:]
            hidden = gate / (1 + (-gate).exp()) * up
            rows.append(y + w["w_feedforward.weight"] @ hidden)
        kept.append(both)
    keys, values = (torch.stack(one) for one in zip(*kept))
    return torch.stack(rows).view(x.shape), keys, values


def block_oracle(serial):
    def oracle(seed, config, B=2, T=4, padded=False, pieces=()):
        weights, x, rope, mask = world(config, seed, B, T, padded, serial)
        if not pieces:
            for one in (x, *weights.values()):
                one.requires_grad_(True)
            y, _, _ = slow_block(config, weights, x, rope, mask, serial)
            return seen(y, x, weights)
        y, keys, values = slow_block(config, weights, x, rope, mask, serial)
        cut = zip(y.split(pieces, 1), x.split(pieces, 1))
        kept = {}
        for name, one in (("keys", keys), ("values", values)):
            kept[name] = torch.zeros(config.depth, *one.shape)
            kept[name][1] = one
        return {"y": torch.cat([part for two in cut for part in two], 1), **kept}

    return oracle


def block_cases(seed: int) -> list[Case]:
    return [
        Case("two groups", seed, small(4, 2, 6), T=4),
        Case("left padding", seed + 10, small(2, 1, 4, D=8), B=3, T=5, padded=True),
        Case("a head each", seed + 20, small(3, 3, 2, D=6), B=1, T=3),
        Case("with a cache", seed + 30, small(2, 1, 4), T=4, pieces=(2, 1, 1)),
        Case(
            "cache, padding", seed + 40, small(4, 2, 2), T=5, padded=True, pieces=(3, 2)
        ),
    ]


class SeparateProducts(ParallelBlock):
    """Five projections instead of one, and the attention of lesson 03."""

    def all_tokens(self, x, rope, mask, cache, layer):
        h = F.layer_norm(x, x.shape[-1:], self.norm.weight)
        c, K = self.config, self.config.head_dim
        widths = [c.heads * K, c.kv_heads * K, c.kv_heads * K, c.ff_dim, c.ff_dim]
        q, k, v, gate, up = (h @ w.T for w in self.w_in.weight.split(widths))
        q, k, v = (one.unflatten(-1, (-1, K)).transpose(1, 2) for one in (q, k, v))
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        read = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        return (
            x + read @ self.w_attention.weight.T + self.w_feedforward(F.silu(gate) * up)
        )


class OneWayOut(ParallelBlock):
    """Both ways out as one product, too."""

    def all_tokens(self, x, rope, mask, cache, layer):
        out, M = self.w_in(self.norm(x)), self.config.ff_dim
        q, k, v = split_heads(out[..., : self.widths[0]], self.config, rope)
        if cache:
            k, v = cache.extend(layer, k, v)
        read = attention(q, k, v, mask).permute(0, 2, 1, 3).flatten(2)
        hidden = F.silu(out[..., -2 * M : -M]) * out[..., -M:]
        ways = [self.w_attention.weight, self.w_feedforward.weight]
        return F.linear(torch.cat([read, hidden], -1), torch.cat(ways, 1)) + x


class SerialByParts(SerialBlock):
    """Two layers, each of them a function of the stream."""

    def all_tokens(self, x, rope, mask, cache, layer):
        def look(h):
            q, k, v = split_heads(self.w_qkv(h), self.config, rope)
            if cache is not None:
                k, v = cache.extend(layer, k, v)
            return self.w_attention(attention(q, k, v, mask).transpose(1, 2).flatten(2))

        def think(h):
            M = self.config.ff_dim
            w_gate, w_up = self.w_gate_up.weight[:M], self.w_gate_up.weight[M:]
            return self.w_feedforward(F.silu(h @ w_gate.T) * (h @ w_up.T))

        y = look(self.attention_norm(x)) + x
        return think(self.feedforward_norm(y)) + y


IN = "self.w_in(self.norm(x))"
SUM = "y = self.w_attention(heads) + self.w_feedforward(swiglu(gate, up))"
SHARED = (  # traps of both blocks
    Trap(
        "The mask is not handed to attention: padding and other texts are seen.",
        ("fused_attention(q, k, v, mask)", "fused_attention(q, k, v)"),
    ),
    Trap(
        "The cache is not used: with one, attention must read the keys and values of "
        "all tokens so far.",
        ("if cache is not None:", "if False:"),
    ),
    Trap(
        "The cache is written to but not read: go on with the keys and values that "
        "`extend` gives back, those of all tokens so far.",
        ("k, v = cache.extend(layer", "cache.extend(layer"),
    ),
    Trap(
        "Every layer writes to layer 0 of the cache: hand `layer` on.",
        ("k, v = cache.extend(layer", "k, v = cache.extend(0"),
    ),
    Trap(
        "The columns of the heads are interleaved. The heads lie side by side: "
        "B T (H K), not B T (K H).",
        ('"B H T K -> B T (H K)"', '"B H T K -> B T (K H)"'),
    ),
    Trap(
        "A reshape alone does not bring the heads behind the tokens: it mixes tokens. "
        "Transpose first.",
        (
            'rearrange(fused_attention(q, k, v, mask), "B H T K -> B T (H K)")',
            "fused_attention(q, k, v, mask).reshape(*x.shape[:2], -1)",
        ),
    ),
    Trap(
        "Gate and up are exchanged: the first M columns are the gate, which goes "
        "through silu.",
        ("feedforward(swiglu(gate, up))", "feedforward(swiglu(up, gate))"),
    ),
)

PARALLEL = Exercise(
    id="5.2",
    answer=ParallelBlock,
    hole="all_tokens",
    why="This is the layer that PaLM repeats; nothing else in the network is as large.",
    difficulty=3,
    importance=5,
    minutes=15,
    hints=(
        "Which of the five projections needs to wait for another one's result?",
        "$y = x + W_a \\, \\text{attention}(\\bar x) + W_f \\, \\text{swiglu}(\\bar "
        "x)$ with one $\\bar x = \\text{norm}(x)$ for both.",
        "`qkv, gate, up = self.w_in(self.norm(x)).split(self.widths, dim=-1)`",
    ),
    bonus="Make one product of the two ways out, too. Is it faster on your machine? "
    "When is it slower?",
    run=pass_through,
    cases=block_cases,
    oracle=block_oracle(serial=False),
    traps=(
        Trap(
            "The norm is missing: attention and feed-forward both read norm(x), so "
            "that the size of the stream does not matter to them.",
            (IN, "self.w_in(x)"),
        ),
        Trap(
            "The norm is applied twice. With its learnt weight that is not the same as "
            "once.",
            (IN, "self.w_in(self.norm(self.norm(x)))"),
        ),
        Trap(
            "The residual is missing: a block *adds* to the stream, x + ….",
            ("return x + y", "return y"),
        ),
        Trap(
            "What is added to is the normalised stream. The residual is x itself; only "
            "the layers read norm(x).",
            ("return x + y", "return self.norm(x) + y"),
        ),
        Trap(
            "The stream is added twice, once for attention and once for the "
            "feed-forward layer. There is one x in the sum.",
            ("return x + y", "return 2 * x + y"),
        ),
        Trap(
            "The feed-forward layer reads what attention has written: that is the "
            "serial block. Here both read the same norm(x).",
            (
                SUM,
                "x = x + self.w_attention(heads)\n"
                "        _, gate, up = self.w_in(self.norm(x)).split(self.widths, -1)\n"
                "        y = self.w_feedforward(swiglu(gate, up))",
            ),
        ),
        Trap(
            "Attention reads norm(x), the feed-forward layer x without the norm. Both "
            "read norm(x).",
            (SUM, "_, gate, up = self.w_in(x).split(self.widths, -1)\n        " + SUM),
        ),
        Trap(
            "There is a second norm, on what is added. The parallel block has one, at "
            "its entrance.",
            ("return x + y", "return x + self.norm(y)"),
        ),
        Trap(
            "The norm stands behind the sum, as in 2017. Here it stands before the "
            "layers and the stream itself is never normalised.",
            (IN, "self.w_in(x)"),
            ("return x + y", "return self.norm(x + y)"),
        ),
        Trap(
            "The feed-forward layer's result is not added.",
            (SUM, "y = self.w_attention(heads)"),
        ),
        Trap(
            "Attention's result is not added.",
            (SUM, "y = self.w_feedforward(swiglu(gate, up))"),
        ),
        Trap(
            "It changes x in place. Whoever called it may still need the old one: "
            "write x + y, not x += y.",
            ("return x + y", "x += y\n        return x"),
        ),
        *SHARED,
    ),
    twins=(Twin(SeparateProducts), Twin(OneWayOut)),
)

ATTENDED = "x = x + self.w_attention(heads)"
HALVES = "gate, up = self.w_gate_up(self.feedforward_norm(x)).chunk(2, dim=-1)"

SERIAL = Exercise(
    id="5.3",
    answer=SerialBlock,
    hole="all_tokens",
    why="You can only say what the parallel block costs, and saves, beside the one it "
    "replaces.",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "What does the feed-forward layer know here that it does not know in the "
        "parallel block?",
        "$y = x + W_a \\, \\text{attention}(\\text{norm}(x))$, then "
        "$y + W_f \\, \\text{swiglu}(\\text{norm}'(y))$.",
        "`q, k, v = split_heads(self.w_qkv(self.attention_norm(x)), self.config, "
        "rope)`",
    ),
    bonus="Train a third kind: feed-forward first, attention second. Which of the "
    "three has the lowest loss after as many steps?",
    run=pass_through,
    cases=block_cases,
    oracle=block_oracle(serial=True),
    traps=(
        Trap(
            "The feed-forward layer reads y without its norm.",
            ("self.w_gate_up(self.feedforward_norm(x))", "self.w_gate_up(x)"),
        ),
        Trap(
            "Attention reads x without its norm.",
            ("self.w_qkv(self.attention_norm(x))", "self.w_qkv(x)"),
        ),
        Trap(
            "The feed-forward layer reads x of before attention: that is the parallel "
            "block. Here it waits for y.",
            (ATTENDED, "before, x = x, x + self.w_attention(heads)"),
            (HALVES, HALVES.replace("norm(x)", "norm(before)")),
        ),
        Trap(
            "One norm serves both layers. The serial block has two, with a weight of "
            "its own each.",
            (HALVES, HALVES.replace("feedforward_norm", "attention_norm")),
        ),
        Trap(
            "The two norms are exchanged: `attention_norm` stands before attention.",
            ("self.attention_norm(x)", "self.feedforward_norm(x)"),
            (HALVES, HALVES.replace("feedforward_norm", "attention_norm")),
        ),
        Trap(
            "The first residual is missing: y = x + …, so that attention adds to the "
            "stream.",
            (ATTENDED, "x = self.w_attention(heads)"),
        ),
        Trap(
            "The second residual is missing: the feed-forward layer's result is added "
            "to y.",
            ("return x + self.w_feed", "return self.w_feed"),
        ),
        Trap(
            "The last sum begins at x, not at y, so what attention has read gets lost "
            "on the way.",
            (ATTENDED, "before, x = x, x + self.w_attention(heads)"),
            ("return x + self.w_feed", "return before + self.w_feed"),
        ),
        Trap(
            "Gate and up take turns column by column. They lie side by side: the first "
            "M columns, and the last M.",
            (
                HALVES,
                "both = self.w_gate_up(self.feedforward_norm(x))\n"
                "        gate, up = both[..., ::2], both[..., 1::2]",
            ),
        ),
        Trap(
            "The norms stand behind the sums, as in 2017. Here each stands before its "
            "layer, and the stream itself is never normalised.",
            ("self.w_qkv(self.attention_norm(x))", "self.w_qkv(x)"),
            (ATTENDED, "x = self.attention_norm(x + self.w_attention(heads))"),
            (HALVES, HALVES.replace("self.feedforward_norm(x)", "x")),
            (
                "return x + self.w_feedforward(swiglu(gate, up))",
                "y = x + self.w_feedforward(swiglu(gate, up))\n"
                "        return self.feedforward_norm(y)",
            ),
        ),
        *SHARED,
    ),
    twins=(
        Twin(SerialByParts),
        Twin(
            (HALVES, "h = self.feedforward_norm(x)"),
            (
                "return x + self.w_feedforward(swiglu(gate, up))",
                "M = self.config.ff_dim\n"
                "        gate = linear(h, self.w_gate_up.weight[:M])\n"
                "        up = linear(h, self.w_gate_up.weight[M:])\n"
                "        gated = up * gate * gate.sigmoid()\n"
                "        return torch.add(self.w_feedforward(gated), x)",
            ),
        ),
    ),
)

# --- 5.4 init_block -----------------------------------------------------------------


def init_cases(seed: int) -> list[Case]:
    return [
        Case("a parallel block, depth 4", 7 * seed, ParallelBlock, 4),
        Case("a serial block, depth 9", 7 * seed + 1, SerialBlock, 9),
        Case("the only block", 7 * seed + 2, ParallelBlock, 1),
    ]


INIT = PaLMConfig(9, dim=64, depth=4, heads=6, head_dim=16, kv_heads=2, ff_mult=3)


def spread(init, seed, block_class, depth):
    """Measured on the weights, whatever the order in which they were drawn."""

    def drawn(seed: int | None) -> nn.Module:
        state = torch.get_rng_state()
        block = block_class(INIT)
        torch.set_rng_state(state)  # nn.Linear has drawn from it
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        init(block, depth, generator)
        return block

    def same(one: nn.Module, other: nn.Module) -> bool:
        matrices = [w for w in one.parameters() if w.dim() == 2]
        others = [w for w in other.parameters() if w.dim() == 2]
        return all(torch.equal(a, b) for a, b in zip(matrices, others))

    before = torch.get_rng_state()
    block = drawn(seed)
    untouched = torch.equal(before, torch.get_rng_state())
    result: dict[str, object] = {}
    for name, weight in block.named_parameters():
        w = weight.detach()
        if w.dim() == 1:
            result[name] = bool((w == 1).all())
            continue
        std = w.std()
        result[name] = {
            "mean in standard deviations": (w.mean() / std).item(),
            "standard deviation · 1000": 1000 * std.item(),
            "share within one": (w.abs() < std).float().mean().item(),
            "trainable": weight.requires_grad,
        }
    result["the generator decides"] = (
        same(block, drawn(seed)) and not same(block, drawn(seed + 1)) and untouched
    )
    torch.manual_seed(seed)
    one = drawn(None)
    torch.manual_seed(seed)
    result["without one, torch's own does"] = same(one, drawn(None))
    return result


def spread_oracle(seed, block_class, depth):
    """Said in numbers."""
    D, M, HK = INIT.dim, INIT.ff_dim, INIT.heads * INIT.head_dim
    inputs = {"w_in": D, "w_qkv": D, "w_gate_up": D}
    writers = {"w_attention": HK, "w_feedforward": M}
    result: dict[str, object] = {}
    for full_name in parts_of(INIT, block_class is SerialBlock):
        name = full_name.split(".")[0]
        if "norm" in name:
            result[full_name] = True
            continue
        variance = 1 / inputs[name] if name in inputs else 1 / writers[name] / depth
        result[full_name] = {
            "mean in standard deviations": 0.0,
            "standard deviation · 1000": 1000 * variance**0.5,
            "share within one": math.erf(0.5**0.5),
            "trainable": True,
        }
    result["the generator decides"] = True
    result["without one, torch's own does"] = True
    return result


@torch.no_grad()
def init_by_layer(block, depth, generator):
    """Linear layer by linear layer, in another order."""
    layers = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    for name in sorted(layers, reverse=True):
        w = layers[name].weight
        writes = name in ("w_attention", "w_feedforward")
        variance = 1 / (layers[name].in_features * (depth if writes else 1))
        w.copy_(torch.randn(w.shape, generator=generator) * variance**0.5)


def init_by_data(block, depth, generator):
    for name, parameter in block.named_parameters():
        if "norm" not in name:
            scale = (depth if "in" not in name and "qkv" not in name else 1) ** -0.5
            scale = 1.0 if "gate" in name else scale
            nn.init.kaiming_normal_(
                parameter, nonlinearity="linear", generator=generator
            )
            parameter.data.mul_(scale)


STD = "std = 1 / math.sqrt(weight.shape[1])"
DEPTH = "std /= math.sqrt(depth)"

INITIAL = Exercise(
    id="5.4",
    answer=init_block,
    why="A network too loud or too quiet at its first step spends its first steps on "
    "getting over that, or does not get over it.",
    difficulty=2,
    importance=4,
    minutes=8,
    hints=(
        "n numbers of variance 1, each times a weight of variance s², are added: what "
        "is the variance of the sum?",
        "$1/\\sqrt{\\text{fan\\_in}}$, and for the two that write to the stream "
        "$1/\\sqrt{\\text{fan\\_in} \\cdot \\text{depth}}$.",
        "`for name, weight in block.named_parameters():`",
    ),
    bonus="GPT-2 divides by √(2·depth), since a serial block writes twice. Draw the "
    "stream's size for both blocks with either. Does it matter after training?",
    run=spread,
    cases=init_cases,
    oracle=spread_oracle,
    tolerance=0.06,
    traps=(
        Trap(
            "The matrices that write to the stream are not divided by √depth: the sum "
            "of many blocks grows with their number.",
            (DEPTH, "pass"),
        ),
        Trap(
            "It divides by depth. Independent terms add up in their variances: √depth.",
            (DEPTH, "std /= depth"),
        ),
        Trap(
            "√(2·depth) is GPT-2's rule, which counts two writes a block. The rule "
            "asked for here is √depth.",
            (DEPTH, "std /= math.sqrt(2 * depth)"),
        ),
        Trap(
            "All matrices are divided by √depth. Only w_attention and w_feedforward "
            "write to the stream.",
            ('if name.startswith(("w_attention", "w_feedforward")):', "if True:"),
        ),
        Trap(
            "Only one of the two that write to the stream is divided by √depth: both "
            "w_attention and w_feedforward do.",
            ('(("w_attention", "w_feedforward"))', '("w_feedforward")'),
        ),
        Trap(
            "This is 1/√fan_out. A sum has as many terms as there are inputs: the "
            "second axis of an nn.Linear's weight.",
            ("weight.shape[1]", "weight.shape[0]"),
        ),
        Trap(
            "1/fan_in is the variance. normal_ wants the standard deviation, its root.",
            (STD, "std = 1 / weight.shape[1]"),
        ),
        Trap(
            "A standard deviation of .02 for every width: that suits one width only. "
            "Here it follows from the number of inputs.",
            (STD, "std = 0.02"),
        ),
        Trap(
            "The norms' weights are drawn, too. They begin at 1: draw matrices only.",
            ("if weight.dim() == 2:", "if True:"),
            ("weight.shape[1]", "weight.shape[-1]"),
        ),
        Trap(
            "The generator is not used, so that the seed of the lesson does not decide "
            "the weights.",
            (", generator=generator", ""),
        ),
        Trap(
            "The numbers are drawn evenly from an interval. N(0, s²) is the normal "
            "law.",
            (
                "weight.normal_(0.0, std, generator=generator)",
                "weight.uniform_(-(3**0.5) * std, 3**0.5 * std, generator=generator)",
            ),
        ),
        Trap(
            "It multiplies by √depth, which makes deep networks louder still.",
            (DEPTH, "std *= math.sqrt(depth)"),
        ),
    ),
    twins=(Twin(init_by_layer), Twin(init_by_data)),
)

EXERCISES = (HEADS, PARALLEL, SERIAL, INITIAL)
