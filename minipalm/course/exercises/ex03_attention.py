"""Lesson 03: who may look at whom, attention with shared heads, and the cache."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minipalm.config import PaLMConfig
from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.model.attention import attention, attention_mask, fused_attention
from minipalm.model.cache import KVCache, cache_bytes

# --- 3.1 attention_mask -------------------------------------------------------------


def mask_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def packed(rows: int, width: int, last: int) -> tuple[Tensor, Tensor]:
        """Texts of random lengths, side by side; the last `last` tokens ask."""
        cuts = torch.rand(rows, width, generator=draw) < 0.3
        keys = 1 + cuts.long().cumsum(1)
        return keys[:, width - last :].clone(), keys

    example = torch.tensor([[0, 1, 1, 2]])
    padded = (torch.arange(6) >= torch.tensor([[0], [2], [5]])).long()
    both = torch.tensor([[0, 0, 1, 1, 2, 2, 2], [1, 2, 2, 3, 3, 0, 0]])
    return [
        Case("the example of the docstring", example, example.clone()),
        Case("its last two tokens", example[:, 2:].clone(), example),
        Case("left padding", padded, padded.clone()),
        Case("packed texts", *packed(3, 7, 7)),
        Case("padding on both sides of packed texts", both, both.clone()),
        Case("the last 3 of 8 tokens", *packed(2, 8, 3)),
        Case("one new token", padded[:, 5:].clone(), padded),
        Case("other texts of the same lengths", *packed(3, 7, 7)),
    ]


def mask_oracle(queries: Tensor, keys: Tensor) -> Tensor:
    """One pair after the other."""
    (B, T), S = queries.shape, keys.shape[1]
    mask = torch.zeros(B, T, S, dtype=torch.bool)
    for b in range(B):
        for t in range(T):
            place = S - T + t
            for s in range(S):
                if s <= place and int(keys[b, s]) == int(queries[b, t]):
                    mask[b, t, s] = True
    return mask


def mask_by_tril(queries, keys):
    T, S = queries.shape[1], keys.shape[1]
    same = queries.unsqueeze(2).eq(keys.unsqueeze(1))
    return same.tril(diagonal=S - T)


def mask_by_rows(queries, keys):
    """All rows of the square, then the last of them."""
    S, T = keys.shape[1], queries.shape[1]
    late = torch.ones(S, S).triu(1) > 0
    square = (keys[:, None] == keys[:, :, None]).masked_fill(late, False)
    return square[:, S - T :]


MASK = Exercise(
    id="3.1",
    answer=attention_mask,
    why="The mask is what makes the network guess the next token instead of reading "
    "it.",
    difficulty=2,
    importance=5,
    minutes=12,
    hints=(
        "In a row of S tokens, at which place does the first of the last T stand?",
        "Query $t$ sees key $s$ if $s \\le S - T + t$ and both are of one segment.",
        "`row = torch.arange(S - T, S, device=keys.device)[:, None]`",
    ),
    bonus="Let the tokens of a prompt see each other in both directions, and those of "
    "the answer only backwards (a prefix language model). Which argument is missing?",
    cases=mask_cases,
    oracle=mask_oracle,
    traps=(
        Trap(
            "A token does not see itself here. It may: what it must not see is the "
            "*next* token, which it has to guess.",
            ("<= row", "< row"),
        ),
        Trap(
            "The direction is turned round: each query sees the tokens after it, not "
            "those before.",
            ("<= row", ">= row"),
        ),
        Trap(
            "True means *may see* in this course. This mask is True where a query must "
            "not look.",
            (
                "causal & (queries[:, :, None] == keys[:, None, :])",
                "~(causal & (queries[:, :, None] == keys[:, None, :]))",
            ),
        ),
        Trap(
            "Segments are ignored: a text sees its neighbour in the row, and the "
            "padding before it.",
            (
                "causal & (queries[:, :, None] == keys[:, None, :])",
                "causal.expand(len(keys), T, S)",
            ),
        ),
        Trap(
            "The rows are counted from 0. The T queries are the *last* of S tokens: "
            "query t stands at the place S − T + t.",
            ("torch.arange(S - T, S, device", "torch.arange(T, device"),
        ),
        Trap(
            "The mask has a row for each of the S tokens. With a cache only the last T "
            "ask: these rows alone.",
            ("torch.arange(S - T, S, device", "torch.arange(S, device"),
        ),
        Trap(
            "Padding sees nothing here, and a softmax over nothing is 0/0 = NaN. "
            "Padding is a segment like others: it may see itself.",
            (
                "keys[:, None, :])",
                "keys[:, None, :]) & (keys[:, None, :] > 0)",
            ),
        ),
        Trap(
            "Only the segments are compared: within its text, a token sees the later "
            "ones, too.",
            ("return causal & (", "return ("),
        ),
        Trap(
            "A text sees all texts before it in the row. It may see those tokens only "
            "whose segment equals its own.",
            ("queries[:, :, None] == keys", "queries[:, :, None] >= keys"),
        ),
        Trap(
            "The axes are exchanged: a row of the mask is a query, a column is a key, "
            "B T S.",
            (
                "return causal & (queries[:, :, None] == keys[:, None, :])",
                "return (causal & (queries[:, :, None] == keys[:, None, :])).mT",
            ),
        ),
        Trap(
            "The numbers are right, the type is not: a mask is of booleans, so that ~ "
            "and & mean what they say.",
            (
                "causal & (queries[:, :, None] == keys[:, None, :])",
                "(causal & (queries[:, :, None] == keys[:, None, :])).float()",
            ),
        ),
    ),
    twins=(Twin(mask_by_tril), Twin(mask_by_rows)),
)

# --- 3.2 attention ------------------------------------------------------------------


def attention_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def heads(B: int, H: int, G: int, T: int, S: int, K: int) -> list[Tensor]:
        sizes = [(B, H, T, K), (B, G, S, K), (B, G, S, K)]
        made = [1.5 * torch.randn(size, generator=draw) for size in sizes]
        return [one.requires_grad_(True) for one in made]

    def cut(B: int, H: int, G: int, T: int, K: int) -> list[Tensor]:
        """Heads as a network has them: columns of (B, T, H·K), not in one piece."""
        made = [torch.randn(B, T, N, K, generator=draw) for N in (H, G, G)]
        return [one.transpose(1, 2).requires_grad_(True) for one in made]

    def some(B: int, T: int, S: int) -> Tensor:
        """Random, never later than the query, and every query sees itself."""
        mask = torch.rand(B, T, S, generator=draw) < 0.5
        itself = torch.eye(S, dtype=torch.bool)[S - T :]
        return (mask & torch.ones(T, S, dtype=torch.bool).tril(S - T)) | itself

    q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    q[..., 0], k[:, :, 0, 0], v[:, :, 0] = 2.0, 1.0, 1.0
    full, alone = torch.ones(2, 1, 7).bool(), torch.eye(3).bool()[None]
    # Scores are 200,000 plus 0 to 3, with a sign: exact in float32. exp of it is not.
    queries, keys = torch.zeros(2, 2, 4, 16), torch.zeros(2, 1, 4, 16)
    queries[..., 0], keys[..., 0] = 4.0, 200_000.0 + torch.tensor([1.0, 0.0, 3.0, 2.0])
    values = torch.eye(4, 16).expand(2, 1, 4, 16)
    high, low = (queries, keys, values), (-queries, keys, values)
    return [
        Case("the example of the docstring", q, k, v, torch.ones(1, 1, 2).bool()),
        Case("two groups, a mask", *heads(2, 4, 2, 5, 5, 6), some(2, 5, 5)),
        Case("one key/value head, no mask", *heads(2, 3, 1, 4, 4, 2)),
        Case("a head each, the last 2 of 5", *heads(3, 2, 2, 2, 5, 3), some(3, 2, 5)),
        Case("the last 3 of 6 tokens, no mask", *heads(1, 4, 2, 3, 6, 5)),
        Case("one new token that sees all", *heads(2, 6, 2, 1, 7, 3), full),
        Case("each sees itself only", *heads(1, 2, 1, 3, 3, 8), alone),
        Case("heads cut out of rows", *cut(2, 4, 2, 3, 5), some(2, 3, 3)),
        Case("heads cut out of rows, no mask", *cut(1, 2, 2, 4, 3)),
        Case("large scores", *high, some(2, 4, 4)),
        Case("scores far below 0", *low, some(2, 4, 4)),
        Case("scores far below 0, no mask", *low),
    ]


def attention_oracle(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """One query after the other: look at what it may see, weigh, add up."""
    (B, H, T, K), (G, S) = q.shape, k.shape[1:3]
    rows = []
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            for t in range(T):
                if mask is None:
                    seen = list(range(S - T + t + 1))
                else:
                    seen = [s for s in range(S) if mask[b, t, s]]
                scores = [(q[b, h, t] * k[b, g, s]).sum() / K**0.5 for s in seen]
                highest = max(float(score) for score in scores)
                powers = [(score - highest).exp() for score in scores]
                total = sum(powers)
                parts = [p / total * v[b, g, s] for p, s in zip(powers, seen)]
                rows.append(sum(parts[1:], parts[0]))
    return torch.stack(rows).view(B, H, T, K)


def attention_by_group(q, k, v, mask=None):
    """Heads of a group on an axis of their own; nothing is copied."""
    B, H, T, K = q.shape
    G, S = k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.arange(S)[None, None] <= torch.arange(S - T, S)[None, :, None]
    q = q.unflatten(1, (G, H // G))
    scores = torch.einsum("bgrtk,bgsk->bgrts", q * K**-0.5, k)
    scores = torch.where(mask[:, None, None], scores, -1e30)
    powers = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    weights = powers / powers.sum(-1, keepdim=True)
    return torch.einsum("bgrts,bgsk->bgrtk", weights, v).reshape(B, H, T, K)


def attention_by_pytorch(q, k, v, mask=None):
    H, T, G, S = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.ones(1, T, S, dtype=torch.bool).tril(S - T)
    groups = [h * G // H for h in range(H)]
    return F.scaled_dot_product_attention(q, k[:, groups], v[:, groups], mask[:, None])


def attention_head_by_head(q, k, v, mask=None):
    (H, T, K), (G, S) = q.shape[1:], k.shape[1:3]
    heads = []
    for h in range(H):
        g = h // (H // G)
        scores = torch.bmm(q[:, h], k[:, g].transpose(1, 2)) / math.sqrt(K)
        hidden = ~torch.ones(T, S).bool().tril(S - T) if mask is None else ~mask
        weights = torch.softmax(scores + hidden.float() * -1e9, dim=2)
        heads.append(torch.bmm(weights, v[:, g]))
    return torch.stack(heads, dim=1)


MASKED = "scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)"

ATTENTION = Exercise(
    id="3.2",
    answer=attention,
    why="This is the only place of the network in which one token learns anything "
    "about another.",
    difficulty=4,
    importance=5,
    minutes=20,
    hints=(
        "The weights of a query sum to 1 over what? Which axis of the scores is that?",
        "$\\text{softmax}_s(q_t \\cdot k_s / \\sqrt K)$, with $-\\infty$ in the place "
        "of every score that the mask forbids; then the weighted sum of the $v_s$.",
        "`k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))`",
    ),
    bonus="Do it without copying keys: give the heads of a group an axis of their own, "
    "B G R T K, and let einsum do the rest. Measure both for 64 heads.",
    cases=attention_cases,
    oracle=attention_oracle,
    traps=(
        Trap(
            "The scores are not divided by √K. Without that they grow with the width "
            "of a head, and softmax looks at one key only.",
            ("q @ k.mT / math.sqrt(K)", "q @ k.mT"),
        ),
        Trap(
            "The scores are divided by K. A sum of K products has a standard deviation "
            "of √K: divide by that.",
            ("/ math.sqrt(K)", "/ K"),
        ),
        Trap(
            "It divides by the root of all heads' width, H·K. A score is a sum over "
            "one head: √K.",
            ("/ math.sqrt(K)", "/ math.sqrt(H * K)"),
        ),
        Trap(
            "The softmax runs over the queries. Each query spreads a weight of 1 over "
            "the *keys*: the last axis.",
            ("softmax(dim=-1)", "softmax(dim=-2)"),
        ),
        Trap(
            "The mask is inverted: it is True where a query *may* see a key, and the "
            "others get −∞.",
            ("~mask[:, None]", "mask[:, None]"),
        ),
        Trap(
            "The mask is added to the scores as 0 and 1, which hides nothing. What is "
            "forbidden needs a score of −∞.",
            (MASKED, "(scores + mask[:, None]).softmax(dim=-1)"),
        ),
        Trap(
            "What is forbidden has the score 0 here, and exp(0) = 1 is a weight like "
            "others. It needs −∞.",
            (MASKED, "(scores * mask[:, None]).softmax(dim=-1)"),
        ),
        Trap(
            "The mask comes after the softmax, so that the weights left no longer sum "
            "to 1. Put −∞ in the scores before it.",
            (MASKED, "scores.softmax(dim=-1) * mask[:, None]"),
        ),
        Trap(
            "The weights do not sum to 1: exp alone is not a softmax, it is divided by "
            "the sum over the keys that may be seen.",
            (MASKED, "scores.exp() * mask[:, None]"),
        ),
        Trap(
            "exp of a score above 88 is ∞ in float32, and ∞/∞ NaN. Take the largest "
            "score off all of them first, as torch.softmax does.",
            (
                MASKED,
                "scores.masked_fill(~mask[:, None], -torch.inf).exp()\n"
                "    weights = weights / weights.sum(-1, keepdim=True)",
            ),
        ),
        Trap(
            "−10,000 is not −∞: where all that a query may see has a lower score, what "
            "is forbidden gets the weight. Use -torch.inf.",
            ("-torch.inf", "-1e4"),
        ),
        Trap(
            "There are more query heads than key/value heads: give each query head "
            "the keys and values of its group first.",
            ("k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))", "pass"),
        ),
        Trap(
            "The mask, B T S, lacks an axis for the heads of the scores, B H T S: it "
            "is the same for all heads.",
            ("~mask[:, None]", "~mask"),
        ),
        Trap(
            "The mask has no effect: each query sees all keys, later ones included.",
            (".masked_fill(~mask[:, None], -torch.inf)", ""),
        ),
        Trap(
            "Query heads are dealt out to the groups in turn, h % G. Neighbours "
            "share: head h reads key/value head h // (H/G).",
            ("x.repeat_interleave(H // G, dim=1)", "x.repeat(1, H // G, 1, 1)"),
        ),
        Trap(
            "Without a mask, attention is causal all the same; here each query sees "
            "all keys.",
            (".tril(S - T)", ""),
        ),
        Trap(
            "Without a mask, the queries are the *last* T of S tokens; here they are "
            "taken for the first.",
            (".tril(S - T)", ".tril()"),
        ),
        Trap(
            "The weights are right, but it is the values that they add up, not the "
            "keys.",
            ("return weights @ v", "return weights @ k"),
        ),
    ),
    twins=(
        Twin(attention_by_group),
        Twin(attention_by_pytorch),
        Twin(attention_head_by_head),
        Twin(fused_attention),
    ),
)

# --- 3.3 KVCache.extend -------------------------------------------------------------


def fill_cases(seed: int) -> list[Case]:
    return [
        Case("a prompt, then token by token", seed, [4, 1, 1]),
        Case("two pieces", seed + 10, [3, 5], depth=3, G=1),
        Case("room to the last place", seed + 20, [2, 1, 3], size=6),
        Case("a row has ended", seed + 30, [2, 1, 1], keep=[2, 0]),
        Case("another type", seed + 40, [1, 2], dtype=torch.float64),
    ]


def new_tokens(seed, steps, depth, B, G, K, dtype):
    """Keys and values by step and layer."""
    draw = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(2, B, G, T, K, generator=draw).to(dtype).unbind()
            for _ in range(depth)
        ]
        for T in steps
    ]


def fill(
    cache_class, seed, steps, size=20, depth=2, G=2, keep=None, dtype=torch.float32
):
    """Write pieces of some lengths, all layers in turn; what came back each time.

    keep: the rows of the batch that go on after the first piece.
    """
    B, K = 3, 5
    config = PaLMConfig(7, dim=8, depth=depth, heads=2 * G, head_dim=K, kv_heads=G)
    cache = cache_class(config, B, size, torch.zeros(1, dtype=dtype))
    returned, lengths = [], []
    pieces = new_tokens(seed, steps, depth, B, G, K, dtype)
    for n, (T, piece) in enumerate(zip(steps, pieces)):
        for layer, (k, v) in enumerate(piece):
            rows = slice(None) if keep is None or n == 0 else keep
            keys, values = cache.extend(layer, k[rows], v[rows])
            returned += [keys.clone(), values.clone()]
            lengths.append(cache.length)
        cache.advance(T)
        if keep is not None and n == 0:
            cache.keep(torch.tensor(keep))
    end = sum(steps)
    return {
        "returned": returned,
        "length": lengths,
        "keys": cache.keys[:, :, :, :end].clone(),
        "values": cache.values[:, :, :, :end].clone(),
    }


def fill_oracle(seed, steps, size=20, depth=2, G=2, keep=None, dtype=torch.float32):
    """A list of tokens for each layer, joined whenever it is asked for."""
    pieces = new_tokens(seed, steps, depth, 3, G, 5, dtype)
    past: list[list[list[Tensor]]] = [[[], []] for _ in range(depth)]
    returned, lengths = [], []
    for n, piece in enumerate(pieces):
        for layer in range(depth):
            for kind in range(2):
                new = piece[layer][kind]
                if keep is not None and n > 0:
                    new = new[keep]
                past[layer][kind] += [new[:, :, t] for t in range(new.shape[2])]
                returned.append(torch.stack(past[layer][kind], dim=2))
            lengths.append(sum(steps[:n]))
        if keep is not None and n == 0:
            for both in past:
                both[:] = [[token[keep] for token in kind] for kind in both]
    keys, values = (
        torch.stack([torch.stack(both[kind], dim=2) for both in past])
        for kind in range(2)
    )
    return {"returned": returned, "length": lengths, "keys": keys, "values": values}


WRITE_K = "self.keys[layer, :, :, self.length : end] = k"
WRITE_V = "self.values[layer, :, :, self.length : end] = v"
RETURN = "return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]"

CACHE = Exercise(
    id="3.3",
    answer=KVCache,
    hole="extend",
    why="Keys and values of earlier tokens never change: a network that writes token "
    "by token computes them once.",
    difficulty=3,
    importance=4,
    minutes=12,
    hints=(
        "Between which places of the last axis but one do the T new tokens belong?",
        "Write to the places length to length + T of this layer; give back the places "
        "0 to length + T.",
        "`end = self.length + k.shape[2]`",
    ),
    bonus="Give the cache a window: it holds the last 64 tokens only, and writes over "
    "the oldest. What must change in the mask, and what in RoPE?",
    run=fill,
    cases=fill_cases,
    oracle=fill_oracle,
    traps=(
        Trap(
            "Every call writes from place 0 and destroys what was there: new tokens "
            "stand behind the `length` earlier ones.",
            (WRITE_K, "self.keys[layer, :, :, : k.shape[2]] = k"),
            (WRITE_V, "self.values[layer, :, :, : k.shape[2]] = v"),
        ),
        Trap(
            "The length moves with each layer, so the second layer writes too far to "
            "the right. `advance` moves it, once all layers have written.",
            ("        " + RETURN, "        self.length = end\n        " + RETURN),
        ),
        Trap(
            "Only the new tokens come back. The query needs the keys of all tokens so "
            "far.",
            (RETURN, "return k, v"),
        ),
        Trap(
            "The whole room comes back, with zeros where nothing is written yet; a "
            "query would give them weight. Cut at length + T.",
            (RETURN, "return self.keys[layer], self.values[layer]"),
        ),
        Trap(
            "All layers share one place: each has keys and values of its own, at "
            "[layer].",
            (WRITE_K, WRITE_K.replace("layer", "0")),
            (WRITE_V, WRITE_V.replace("layer", "0")),
            (RETURN, RETURN.replace("layer", "0")),
        ),
        Trap(
            "The values that come back are keys: look at what is written where.",
            (WRITE_V, WRITE_V.replace("= v", "= k")),
        ),
        Trap(
            "The tokens are joined for this call only and not kept: the next call "
            "finds zeros in their place.",
            (WRITE_K, "old = self.length"),
            (WRITE_V, "parts = self.keys[layer, :, :, :old], k"),
            (
                RETURN,
                "return torch.cat(parts, 2), "
                "torch.cat((self.values[layer, :, :, :old], v), 2)",
            ),
        ),
        Trap(
            "Only one place is written. A whole prompt comes at once: T tokens, at the "
            "places length to length + T.",
            (WRITE_K, "self.keys[layer, :, :, self.length] = k"),
            (WRITE_V, "self.values[layer, :, :, self.length] = v"),
        ),
        Trap(
            "All layers come back. Those of this layer alone are asked for.",
            (RETURN, "return self.keys[:, :, :, :end], self.values[:, :, :, :end]"),
        ),
        Trap(
            "The earlier tokens come back without the new ones: a token sees itself, "
            "so its own key must be among them.",
            (RETURN, RETURN.replace(":end", ": self.length")),
        ),
    ),
    twins=(
        Twin(
            ("end = self.length + k.shape[2]", "T = k.shape[2]"),
            (WRITE_K, "self.keys[layer].narrow(2, self.length, T).copy_(k)"),
            (WRITE_V, "self.values[layer].narrow(2, self.length, T).copy_(v)"),
            (
                RETURN,
                "both = self.keys[layer], self.values[layer]\n"
                "        return tuple(one[:, :, : self.length + T] for one in both)",
            ),
        ),
        Twin(
            ("end = self.length + k.shape[2]", "begin, T = self.length, k.shape[2]"),
            (WRITE_K, "places = torch.arange(begin, begin + T)"),
            (
                WRITE_V,
                "both = []\n"
                "        for all_, new in ((self.keys, k), (self.values, v)):\n"
                "            both.append(torch.cat([all_[layer][:, :, :begin], new], "
                "2))\n            all_[layer].index_copy_(2, places, new)",
            ),
            (RETURN, "return both[0], both[1]"),
        ),
    ),
)

# --- 3.4 cache_bytes ----------------------------------------------------------------


def bytes_cases(seed: int) -> list[Case]:
    big = PaLMConfig(256, dim=4096, depth=32, heads=16, head_dim=64)
    small = PaLMConfig(9, dim=10, depth=3, heads=6, head_dim=4, kv_heads=2)
    each = PaLMConfig(9, dim=12, depth=5, heads=7, head_dim=6, kv_heads=7)
    return [
        Case("the example of the docstring", big, 1, 1),
        Case("two groups", small, 4 + seed, 7),
        Case("a head each, four bytes", each, 3, 11 + seed, each=4),
        Case("an empty cache", small, 3, 0),
        Case("one byte", small, 2, 5, 1),
    ]


def bytes_oracle(config: PaLMConfig, batch: int, tokens: int, each: int = 2) -> int:
    """One vector after the other."""
    total = 0
    for _layer in range(config.depth):
        for _kind in ("key", "value"):
            for _head in range(config.kv_heads):
                total += batch * tokens * config.head_dim * each
    return total


def bytes_of_tensors(config, batch, tokens, each=2):
    """Of a cache that exists, on a device that holds no data."""
    shape = (config.depth, batch, config.kv_heads, tokens, config.head_dim)
    both = [torch.empty(shape, dtype=torch.int8, device="meta") for _ in range(2)]
    return sum(one.numel() for one in both) * each


def bytes_from_the_projection(config, batch, tokens, each=2):
    columns = config.qkv_dim - config.heads * config.head_dim
    return columns * config.depth * each * batch * tokens


BYTES = Exercise(
    id="3.4",
    answer=cache_bytes,
    why="The cache, not the weights, decides how many answers a machine can write at "
    "once.",
    difficulty=1,
    importance=3,
    minutes=5,
    hints=(
        "Which vectors of one token does one layer keep, and how wide is each?",
        "$2 \\cdot \\text{depth} \\cdot G \\cdot K$ numbers a token.",
        "`a_layer = config.kv_heads * config.head_dim`",
    ),
    bonus="A cache of 8-bit integers needs a scale for every vector. From which K on "
    "does it take less than 60 % of the bytes?",
    cases=bytes_cases,
    oracle=bytes_oracle,
    traps=(
        Trap(
            "Only one of the two is counted: a token leaves a key *and* a value.",
            ("return 2 * config", "return config"),
        ),
        Trap(
            "Query heads are counted. Only keys and values are kept, so it is "
            "kv_heads, however many query heads read them.",
            ("config.kv_heads * config.head_dim", "config.heads * config.head_dim"),
        ),
        Trap(
            "It counts one layer; every layer keeps keys and values of its own.",
            ("2 * config.depth *", "2 *"),
        ),
        Trap(
            "A key is as wide as a head, K, not as the whole network, D.",
            ("config.head_dim", "config.dim"),
        ),
        Trap(
            "The key/value heads are left out: each of the G has a key and a value.",
            ("config.kv_heads * config.head_dim", "config.head_dim"),
        ),
        Trap(
            "It counts numbers, not bytes: each takes `each` bytes.",
            ("tokens * each", "tokens"),
        ),
        Trap(
            "Queries are in it, too. They are used once, by their own token, and never "
            "kept.",
            (
                "2 * config.depth * a_layer",
                "config.depth * config.qkv_dim",
            ),
        ),
        Trap(
            "These are bits. A byte has eight of them, and `each` counts bytes.",
            ("tokens * each", "tokens * each * 8"),
        ),
    ),
    twins=(Twin(bytes_of_tensors), Twin(bytes_from_the_projection)),
)

EXERCISES = (MASK, ATTENTION, CACHE, BYTES)
