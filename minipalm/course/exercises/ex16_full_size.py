"""Lesson 16: operations, bytes, the wire, the floor of sampling, rounding, money."""

import struct

import torch
from torch import Tensor

from minipalm.config import PaLMConfig
from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.model.palm import count_parameters
from minipalm.scale.decoding import decode_floor
from minipalm.scale.flops import training_flops
from minipalm.scale.memory import state_bytes
from minipalm.scale.money import hours_and_money
from minipalm.scale.rounding import surviving_share
from minipalm.scale.sharding import fsdp_traffic

WIDE = PaLMConfig(50, dim=16, depth=3, heads=8, head_dim=6, kv_heads=2)
DEEP = PaLMConfig(30, dim=24, depth=5, heads=9, head_dim=10, kv_heads=3, ff_mult=2)

# --- 16.1 training_flops ------------------------------------------------------------


def training_flops_cases(seed: int) -> list[Case]:
    more = seed % 7
    return [
        Case("short rows", WIDE, 9 + more),
        Case("rows of one token", DEEP, 1),
        Case("long rows", DEEP, 300 + more),
        Case("adapters", WIDE, 60 + more, True),
        Case("recompute", DEEP, 40 + more, recompute=True),
        Case("adapters and recompute", WIDE, 200 + more, True, True),
        Case("a row of no token", WIDE, 0),
    ]


def matrices(config: PaLMConfig) -> list[int]:
    """Numbers of each matrix and norm of the blocks."""
    D, H, G, K = config.dim, config.heads, config.kv_heads, config.head_dim
    M = config.ff_dim
    one = [D * H * K, D * G * K, D * G * K, D * M, D * M, H * K * D, M * D, D]
    return one * config.depth


def training_flops_oracle(
    config: PaLMConfig, length: int, adapters: bool = False, recompute: bool = False
) -> float:
    """A row token by token, matrix by matrix, pass by pass."""
    if length < 1:
        raise ValueError("no token")
    head = config.vocab_size * config.dim
    operations = 0.0
    for t in range(1, length + 1):
        for numbers in [*matrices(config), head, config.dim]:
            operations += 2 * numbers  # forward
            operations += 2 * numbers  # gradients of what came in
            operations += 0 if adapters else 2 * numbers  # gradients of the matrix
        for _ in range(config.depth * config.heads):
            scores = mixture = 2 * config.head_dim * t
            operations += 3 * (scores + mixture)
            operations += scores + mixture if recompute else 0
        if recompute:
            operations += sum(2 * numbers for numbers in matrices(config))
            operations += 2 * config.dim  # the last norm
    return operations / length


def flops_by_passes(config, length, adapters=False, recompute=False):
    """Forward, backward to the inputs, backward to the weights, once more forward."""
    if length < 1:
        raise ValueError(f"a row of {length} tokens")
    N = count_parameters(config)
    seen = sum(range(1, length + 1)) / length
    looked = 4 * config.heads * config.head_dim * config.depth * seen
    passes = [2 * N + looked, 2 * N + looked, looked]
    if not adapters:
        passes.append(2 * N)
    if recompute:
        passes.append(2 * (N - config.vocab_size * config.dim) + looked)
    return float(sum(passes))


def flops_by_rule(config, length, adapters=False, recompute=False):
    """6N or 4N, and what is added to them."""
    if length < 1:
        raise ValueError("at least one token")
    N, D = count_parameters(config), config.dim
    rule = (4 if adapters else 6) + (2 if recompute else 0)
    attention = 2 * config.depth * config.heads * config.head_dim * (length + 1)
    head = 2 * D * config.vocab_size if recompute else 0
    return rule * N - head + attention * (4 if recompute else 3)


def six_a_weight(config, length, adapters=False, recompute=False):
    if length < 1:
        raise ValueError("no token")
    return 6.0 * count_parameters(config)


WHOLE = "weights = 2 * count_parameters(config)"

TRAINING_FLOPS = Exercise(
    id="16.1",
    answer=training_flops,
    why="Hours, money, and the share of a GPU that you use: all begin with this "
    "number.",
    difficulty=3,
    importance=5,
    minutes=8,
    hints=(
        "How often is each weight multiplied with something for one token: on the way "
        "forward, and for each of the two gradients?",
        r"$3 \cdot (2N + 4HKL\,\tfrac{T+1}{2})$ for $L$ layers and rows of $T$ "
        "tokens. What changes with adapters, and what does recomputing add?",
        "`attention = 4 * config.heads * config.head_dim * config.depth * "
        "(length + 1) / 2`",
    ),
    bonus="At which length of a row is attention half of a training step of the "
    "full-size policy? And of your toy policy?",
    cases=training_flops_cases,
    oracle=training_flops_oracle,
    traps=(
        Trap(
            "Attention is missing. It has no weights, but it compares each token with "
            "those before it: 4·H·K operations a layer and token seen.",
            ("+ 3 * attention", "+ 0 * attention"),
            ("weights + attention -", "weights -"),
        ),
        Trap(
            "You let every token see the whole row. In a causal row the first sees "
            "one, the last sees all: (length + 1)/2 on average.",
            ("* (length + 1) / 2", "* float(length)"),
        ),
        Trap(
            "All H query heads compare and mix, though they share their G keys and "
            "values: attention counts H.",
            ("config.heads * config.head_dim", "config.kv_heads * config.head_dim"),
        ),
        Trap(
            "Every layer has its attention: depth is missing.",
            ("config.head_dim * config.depth", "config.head_dim"),
        ),
        Trap(
            "Six operations a weight are the rule of thumb. Asked for are attention, "
            "adapters and recomputing as well.",
            six_a_weight,
        ),
        Trap(
            "The embedding's weights belong to N: they are the head's, and meet every "
            "token's state.",
            (
                WHOLE,
                "weights = 2 * (count_parameters(config) - config.vocab_size * "
                "config.dim)",
            ),
        ),
        Trap(
            "length/2 leaves out that a token sees itself, too: the mean of 1 … length "
            "is (length + 1)/2.",
            ("* (length + 1) / 2", "* length / 2"),
        ),
        Trap(
            "The backward pass costs two forward passes, one for the gradients of "
            "inputs and one for those of weights: 3 in all.",
            ("(2 if adapters else 3)", "(1 if adapters else 2)"),
            ("+ 3 * attention", "+ 2 * attention"),
        ),
        Trap(
            "With adapters the frozen weights pass gradients on, but get none "
            "themselves: two passes instead of three.",
            ("(2 if adapters else 3)", "3"),
        ),
        Trap(
            "Frozen weights are not free in the backward pass: the gradient must go "
            "through them to reach the adapters of earlier blocks.",
            ("(2 if adapters else 3)", "(1 if adapters else 3)"),
        ),
        Trap(
            "Freezing spares the gradients of weights only. Attention has none, so its "
            "backward pass costs the same with adapters.",
            (
                "(2 if adapters else 3) * weights + 3 * attention",
                "(2 if adapters else 3) * (weights + attention)",
            ),
        ),
        Trap(
            "The head is not computed a second time, only the blocks are: take its "
            "2·V·D operations out.",
            (" - 2 * config.vocab_size * config.dim", ""),
        ),
        Trap(
            "When a block is computed again, so is its attention.",
            ("weights + attention -", "weights -"),
        ),
        Trap(
            "A weight takes part in a product *and* a sum: 2 operations for each "
            "token.",
            (WHOLE, "weights = count_parameters(config)"),
            ("- 2 * config.vocab_size", "- config.vocab_size"),
        ),
        Trap(
            "These are the operations of a whole row. Asked for are those of one of "
            "its tokens.",
            ("return total", "return total * length"),
        ),
        Trap(
            "The head is missing: its matrix is the embedding's, and is multiplied "
            "with every token's state.",
            (
                WHOLE,
                "weights = 2 * (count_parameters(config) - config.vocab_size * "
                "config.dim)",
            ),
            (" - 2 * config.vocab_size * config.dim", ""),
        ),
        Trap(
            "A row without tokens has no mean of anything: a ValueError.",
            ("if length < 1:", "if False:"),
        ),
    ),
    twins=(Twin(flops_by_passes), Twin(flops_by_rule)),
)

# --- 16.2 state_bytes ---------------------------------------------------------------


def state_bytes_cases(seed: int) -> list[Case]:
    n = 10 * (seed % 50)
    return [
        Case("the first example of the docstring", 0, 1000, gpus=2),
        Case("the second example of the docstring", 1000, 10),
        Case("all weights in float32", 0, 770 + n),
        Case("all weights in bfloat16", 0, 330 + n, 2),
        Case("frozen", 900 + n, 0),
        Case("adapters on three GPUs", 2000 + n, 51, 4, 3),
        Case("some bfloat16, some frozen, four GPUs", 600, 250 + n, 2, 4),
        Case("no GPU", 10, 10, 4, 0),
        Case("weights of three bytes", 10, 10, 3),
        Case("weights of eight bytes", 10, 10, 8),
    ]


def state_bytes_oracle(
    frozen: int, trained: int, weight_bytes: int = 4, gpus: int = 1
) -> dict[str, float]:
    """Weight by weight."""
    if gpus < 1 or weight_bytes not in (2, 4):
        raise ValueError("no such machine")
    held = {"weights": 0.0, "gradients": 0.0, "moments": 0.0}
    for _ in range(frozen):
        held["weights"] += 2
    for _ in range(trained):
        held["weights"] += weight_bytes
        held["gradients"] += weight_bytes
        for _moment in ("mean of the gradient", "mean of its square"):
            held["moments"] += weight_bytes
    return {name: each / gpus for name, each in held.items()}


def state_by_table(frozen, trained, weight_bytes=4, gpus=1):
    """How often each kind of number is held, times bytes."""
    if not (gpus >= 1 and weight_bytes in {2, 4}):
        raise ValueError("one GPU or more; 2 or 4 bytes")
    copies = {"weights": 1, "gradients": 1, "moments": 2}
    each = {name: n * trained * weight_bytes / gpus for name, n in copies.items()}
    each["weights"] += frozen / gpus * 2
    return each


def state_by_tensors(frozen, trained, weight_bytes=4, gpus=1):
    """Ask PyTorch what its tensors take, on the meta device."""
    types = {2: torch.bfloat16, 4: torch.float32}
    if gpus < 1 or weight_bytes not in types:
        raise ValueError("no such machine")
    weight = torch.empty(trained, dtype=types[weight_bytes], device="meta")
    still = torch.empty(frozen, dtype=torch.bfloat16, device="meta")

    def size(*tensors):
        return sum(x.numel() * x.element_size() for x in tensors) / gpus

    return {
        "weights": size(weight, still),
        "gradients": size(weight),
        "moments": size(weight, weight),
    }


MINE = "mine = weight_bytes * trained / gpus"

STATE_BYTES = Exercise(
    id="16.2",
    answer=state_bytes,
    why="The first question to any training run: does it fit?",
    difficulty=2,
    importance=5,
    minutes=6,
    hints=(
        "What does AdamW remember of a weight from step to step, and does it do so for "
        "a weight that is never changed?",
        "A trained weight: itself, its gradient, two moments. A frozen one: itself, in "
        "2 bytes. All of it divided by g.",
        "`mine = weight_bytes * trained / gpus`",
    ),
    bonus="AdamW with 8-bit moments keeps one byte a moment. What is then the largest "
    "part of a full fine-tune, and how many GPUs fewer does it take?",
    cases=state_bytes_cases,
    oracle=state_bytes_oracle,
    traps=(
        Trap(
            "Frozen weights have no gradients and no moments: that is what adapters "
            "save.",
            (MINE, "mine = weight_bytes * (frozen + trained) / gpus"),
            ("2 * frozen / gpus + mine", "mine - (weight_bytes - 2) * frozen / gpus"),
        ),
        Trap(
            "AdamW has two moments a weight: a mean of gradients, and a mean of their "
            "squares.",
            ('"moments": 2 * mine', '"moments": mine'),
        ),
        Trap(
            "The moments are of the weights' type: with bfloat16 weights they take 2 "
            "bytes each.",
            ('"moments": 2 * mine', '"moments": 8 * trained / gpus'),
        ),
        Trap(
            "Gradients are of the trained weights' type: float32 masters have float32 "
            "gradients.",
            ('"gradients": mine', '"gradients": 2 * trained / gpus'),
        ),
        Trap(
            "Frozen weights are there for products only, in bfloat16: 2 bytes, "
            "whatever the trained ones have.",
            ("2 * frozen / gpus", "weight_bytes * frozen / gpus"),
        ),
        Trap(
            "Frozen weights are shared among the GPUs, too.",
            ("2 * frozen / gpus", "2.0 * frozen"),
        ),
        Trap(
            "Only the moments are shared here: ZeRO's first stage. The third shares "
            "gradients and weights as well.",
            (MINE, "mine = 1.0 * weight_bytes * trained"),
            ("2 * frozen / gpus", "2.0 * frozen"),
            ("2 * mine", "2 * mine / gpus"),
        ),
        Trap(
            "The weights are whole on each GPU here: ZeRO's second stage. The third "
            "shares them as well.",
            ("2 * frozen / gpus + mine", "2 * frozen + mine * gpus"),
        ),
        Trap(
            "Nothing is shared: each of g GPUs holds 1/g of everything.",
            (MINE, "mine = 1.0 * weight_bytes * trained"),
            ("2 * frozen / gpus", "2.0 * frozen"),
        ),
        Trap(
            "Trained weights have weight_bytes each; 2 bytes are for those that are "
            "never changed.",
            ("2 * frozen / gpus + mine", "2 * (frozen + trained) / gpus"),
        ),
        Trap(
            "No GPU, or weights of another size than 2 or 4 bytes: a ValueError.",
            (
                "if gpus < 1 or weight_bytes not in (2, 4):",
                "gpus = gpus or 1\n    if False:",
            ),
        ),
    ),
    twins=(Twin(state_by_table), Twin(state_by_tensors)),
)

# --- 16.3 fsdp_traffic --------------------------------------------------------------


def fsdp_traffic_cases(seed: int) -> list[Case]:
    n = 120 * (seed % 50 + 1)
    return [
        Case("the example of the docstring", 1000, 1000, 4),
        Case("one GPU", n, n, 1),
        Case("two GPUs, all trained", n, n, 2),
        Case("adapters on three GPUs", 10 * n, 45, 3),
        Case("frozen, eight GPUs", n, 0, 8),
        Case("several micro-batches", 5 * n, 5 * n, 5, 3),
        Case("adapters, several micro-batches", 7 * n, 90, 6, micro_batches=4),
        Case("no GPU", n, n, 0),
        Case("no micro-batch", n, n, 2, 0),
    ]


def fsdp_traffic_oracle(
    weights: int, trained: int, gpus: int, micro_batches: int = 1
) -> float:
    """What one GPU gets, from each of the others, in each pass."""
    if gpus < 1 or micro_batches < 1:
        raise ValueError("nobody, or nothing to do")
    received = 0.0
    for _ in range(micro_batches):
        for _pass in ("forward", "backward"):
            for _other in range(gpus - 1):
                received += 2 * weights / gpus  # its share of the weights
        for _other in range(gpus - 1):
            received += 4 * trained / gpus  # its part of the sum for my share
    return received


def traffic_by_shards(weights, trained, gpus, micro_batches=1):
    """What is not mine, of each kind."""
    if min(gpus, micro_batches) < 1:
        raise ValueError("1 or more of both")
    foreign = weights - weights / gpus
    parts = trained - trained / gpus
    return micro_batches * (4 * foreign + 4 * parts)


def traffic_by_list(weights, trained, gpus, micro_batches=1):
    """All that is sent, divided by all who receive."""
    if gpus < 1 or micro_batches < 1:
        raise ValueError("1 or more of both")
    pairs = [(a, b) for a in range(gpus) for b in range(gpus) if a != b]
    gathered = sum(2 * weights / gpus for _ in pairs)
    added = sum(4 * trained / gpus for _ in pairs)
    return (gathered + gathered + added) * micro_batches / gpus


FSDP_TRAFFIC = Exercise(
    id="16.3",
    answer=fsdp_traffic,
    why="Sharing a network costs no memory and is paid on the wire: here is the price.",
    difficulty=3,
    importance=4,
    minutes=8,
    hints=(
        "In which passes must a GPU have a block whole, and which part of it does it "
        "have already?",
        r"$m \cdot (2 \cdot 2N + 4N_\text{trained})\,\frac{g-1}{g}$ for $m$ "
        "micro-batches.",
        "`received = (2 * 2 * weights + 4 * trained) * (gpus - 1) / gpus`",
    ),
    bonus="Plain data parallelism keeps all weights on each GPU and only adds up "
    "gradients: each receives 2 · 4N · (g − 1)/g bytes. When is FSDP's traffic less?",
    cases=fsdp_traffic_cases,
    oracle=fsdp_traffic_oracle,
    traps=(
        Trap(
            "The weights are forgotten after the forward pass: the backward pass "
            "gathers them a second time.",
            ("(2 * 2 * weights +", "(2 * weights +"),
        ),
        Trap(
            "A GPU does not receive what it has: of g shares it gets g − 1.",
            (" * (gpus - 1) / gpus", " * float(gpus > 1)"),
        ),
        Trap(
            "1/g is what it has already. It receives the rest, (g − 1)/g.",
            (" * (gpus - 1) / gpus", " / gpus"),
        ),
        Trap(
            "Each GPU keeps only its share of the sum, so gradients travel once: half "
            "of what an all-reduce sends.",
            ("4 * trained", "2 * 4 * trained"),
        ),
        Trap(
            "Each of the other g − 1 GPUs sends its share, 1/g of the weights, and not "
            "a whole copy. (Or have you counted what all receive together?)",
            (" * (gpus - 1) / gpus", " * float(gpus - 1)"),
        ),
        Trap(
            "Gradients are added up in float32: 4 bytes each. In bfloat16 small parts "
            "of a large sum are lost.",
            ("4 * trained", "2 * trained"),
        ),
        Trap(
            "For products the weights travel in bfloat16, 2 bytes, though their "
            "masters have 4.",
            ("2 * 2 * weights", "2 * 4 * weights"),
        ),
        Trap(
            "Frozen weights have no gradient that could travel: count `trained` there.",
            ("4 * trained", "4 * weights"),
        ),
        Trap(
            "Frozen weights travel, too: all are needed for the products.",
            ("2 * 2 * weights", "2 * 2 * trained"),
        ),
        Trap(
            "Every micro-batch gathers the weights anew: that is why few large ones "
            "are better than many small ones.",
            ("micro_batches * received", "received"),
        ),
        Trap(
            "Gradients travel for every micro-batch as well, since no GPU has room to "
            "collect whole ones.",
            (
                "micro_batches * received",
                "micro_batches * received - (micro_batches - 1) * 4 * trained "
                "* (gpus - 1) / gpus",
            ),
        ),
        Trap(
            "No GPU, or no micro-batch: a ValueError.",
            (
                "if gpus < 1 or micro_batches < 1:",
                "gpus = gpus or 1\n    if False:",
            ),
        ),
    ),
    twins=(Twin(traffic_by_shards), Twin(traffic_by_list)),
)

# --- 16.4 decode_floor --------------------------------------------------------------


def decode_floor_cases(seed: int) -> list[Case]:
    n = 1.0 + 0.02 * (seed % 10)
    return [
        Case("one row, slow memory", WIDE, 1, 5, 1e6 * n, 2e4),
        Case("one row, slow products", DEEP, 1, 9, 3e4 * n, 1e6),
        Case("many rows, slow products", WIDE, 40, 6.5, 1e6 * n, 1e9),
        Case("many rows, slow memory", DEEP, 30, 12.5, 1e9, 1e5 * n),
        Case("long rows, slow memory", WIDE, 7, 900.0, 1e9, 2e5 * n),
        Case("long rows, slow products", DEEP, 7, 800.0, 5e6 * n, 1e9),
        Case("both are near", WIDE, 3, 20.0, 5e5 * n, 2e5),
        Case("no rows", WIDE, 0, 5.0, 1e6, 1e6),
    ]


def decode_floor_oracle(
    config: PaLMConfig, rows: int, seen: float, flops: float, bandwidth: float
) -> float:
    """Every matrix and every row's cache, one after the other."""
    if rows < 1:
        raise ValueError("nobody writes")
    read = computed = 0.0
    head = config.vocab_size * config.dim
    for numbers in [*matrices(config), head, config.dim]:
        read += 2 * numbers
        for _row in range(rows):
            computed += 2 * numbers
    for _row in range(rows):
        for _layer in range(config.depth):
            for _head in range(config.kv_heads):
                read += 2 * 2 * config.head_dim * seen  # a key and a value a token
            for _head in range(config.heads):
                computed += 2 * 2 * config.head_dim * seen  # score, and mixture
    return max(read / bandwidth, computed / flops)


def floor_by_row(config, rows, seen, flops, bandwidth):
    """What the rows share, and what each adds."""
    if rows < 1:
        raise ValueError("at least one row")
    N, L, K = count_parameters(config), config.depth, config.head_dim
    slow = 2 * N / bandwidth + rows * 4 * config.kv_heads * K * L * seen / bandwidth
    busy = rows * (2 * N + 4 * config.heads * K * L * seen) / flops
    return slow if slow > busy else busy


def floor_in_bytes(config, rows, seen, flops, bandwidth):
    """In bytes: how many could have been read in the time of the products."""
    if rows <= 0:
        raise ValueError("at least one row")
    cache = [2 * config.kv_heads * config.head_dim] * config.depth
    numbers = count_parameters(config) + rows * seen * sum(cache)
    looked = sum(4 * config.head_dim * seen for _ in range(config.heads))
    work = rows * (2 * count_parameters(config) + config.depth * looked)
    return max(2 * numbers, work * bandwidth / flops) / bandwidth


DECODE_FLOOR = Exercise(
    id="16.4",
    answer=decode_floor,
    why="It says how far a sampler is from what the machine can do, and why answers "
    "are written in large batches.",
    difficulty=3,
    importance=4,
    minutes=8,
    hints=(
        "Sixty-four rows are written at once. How often must a weight be fetched from "
        "memory for one step, and how often is it multiplied?",
        r"$\max\left(\frac{2\,(N + B\,t\,2GKL)}{W},\ "
        r"\frac{B\,(2N + 4HKL\,t)}{C}\right)$ for $B$ rows, $t$ tokens seen, $L$ "
        "layers.",
        "`pairs = 2 * config.kv_heads * config.head_dim * config.depth`",
    ),
    bonus="With 16 key/value heads instead of one, from which number of rows on does "
    "the cache take longer to read than the weights?",
    cases=decode_floor_cases,
    oracle=decode_floor_oracle,
    traps=(
        Trap(
            "Reading and computing go on at the same time: the longer of the two "
            "counts, not their sum.",
            (
                "max(read / bandwidth, computed / flops)",
                "read / bandwidth + computed / flops",
            ),
        ),
        Trap(
            "The shorter one is over while the longer one goes on: the larger counts.",
            ("max(read", "min(read"),
        ),
        Trap(
            "Only reading counts here. With many rows each weight that was read is "
            "used so often that products take longer.",
            ("max(read / bandwidth, computed / flops)", "read / bandwidth"),
        ),
        Trap(
            "A weight is read once a step, however many rows use it: that is why "
            "batches are cheap.",
            (
                "2 * (weights + rows * seen * pairs)",
                "2 * rows * (weights + seen * pairs)",
            ),
        ),
        Trap(
            "Keys and values of the tokens seen must be read as well, for each row.",
            ("weights + rows * seen * pairs", "weights"),
        ),
        Trap(
            "The cache holds keys *and* values: two for each key/value head.",
            ("pairs = 2 * config.kv_heads", "pairs = config.kv_heads"),
        ),
        Trap(
            "The cache has G key/value heads, not H: sharing them is what makes it "
            "small.",
            ("pairs = 2 * config.kv_heads", "pairs = 2 * config.heads"),
        ),
        Trap(
            "Every layer has keys and values of its own.",
            (
                "config.kv_heads * config.head_dim * config.depth",
                "config.kv_heads * config.head_dim",
            ),
        ),
        Trap(
            "Each row has a cache of its own, and all of them are read.",
            ("weights + rows * seen * pairs", "weights + seen * pairs"),
        ),
        Trap(
            "In bfloat16 a number has 2 bytes.",
            ("read = 2 * (", "read = ("),
        ),
        Trap(
            "In bfloat16 a number has 2 bytes: 4 would be float32.",
            ("read = 2 * (", "read = 4 * ("),
        ),
        Trap(
            "Each row has its token: rows times the operations of one.",
            ("computed = rows * (", "computed = ("),
        ),
        Trap(
            "A weight takes part in a product and a sum: 2 operations a token.",
            ("rows * (2 * weights + attention)", "rows * (weights + attention)"),
        ),
        Trap(
            "Attention computes, too: 4·H·K a layer for each token seen.",
            ("rows * (2 * weights + attention)", "rows * 2 * weights"),
        ),
        Trap(
            "All H query heads compute, though they share keys and values.",
            ("attention = 4 * config.heads", "attention = 4 * config.kv_heads"),
        ),
        Trap(
            "No rows, no step: a ValueError.",
            ("if rows < 1:", "if False:"),
        ),
    ),
    twins=(Twin(floor_by_row), Twin(floor_in_bytes)),
    equivalent={
        "max(read / bandwidth, computed / flops) → "
        "max(computed / flops, read / bandwidth)": (
            "the larger of two numbers does not depend on their order"
        ),
    },
)

# --- 16.5 surviving_share -----------------------------------------------------------


def surviving_share_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=draw)

    sparse = drawn(90, scale=1e-3)
    sparse[torch.randperm(90, generator=draw)[:50]] = 0.0
    ones = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    half = 1 / 256  # half of the distance to the next number at 1
    near = torch.tensor([1.0005, 1.0003, 0.999, 1.5, 1.001, 2.0008]) * half
    known = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.01, 0.001, 0.0])
    coarse = drawn(7, 30, scale=0.02).bfloat16()
    tiny = drawn(60, scale=1e-7)
    return [
        Case("the example of the docstring", *known),
        Case("a matrix", drawn(8, 40, scale=0.05), drawn(8, 40, scale=1e-4)),
        Case("most updates are 0", drawn(90, scale=0.3), sparse),
        Case("weights of bfloat16", coarse, drawn(7, 30, scale=1e-5)),
        Case("hardly more than half of the way", ones, near),
        Case("kept in float16", drawn(200), drawn(200, scale=1e-3), torch.float16),
        Case("kept in float32", drawn(60), tiny, dtype=torch.float32),
        Case("no update at all", drawn(5), torch.zeros(5)),
    ]


def rounded(x: float, dtype: torch.dtype) -> float:
    """The nearest number of a type; of two, the one with an even last bit."""
    if dtype == torch.float16:
        return struct.unpack("e", struct.pack("e", x))[0]
    [bits] = struct.unpack("I", struct.pack("f", x))
    if dtype == torch.bfloat16:
        below, rest = bits & ~0xFFFF, bits & 0xFFFF
        odd = (below >> 16) & 1
        up = rest > 0x8000 or (rest == 0x8000 and odd)
        bits = below + 0x10000 if up else below
    return struct.unpack("f", struct.pack("I", bits))[0]


def surviving_share_oracle(
    weights: Tensor, updates: Tensor, dtype: torch.dtype = torch.bfloat16
) -> float:
    """Weight by weight, rounding the bits by hand."""
    alive = asked = 0
    both = zip(weights.flatten().tolist(), updates.flatten().tolist())
    for weight, update in both:
        if update == 0:
            continue
        asked += 1
        kept = rounded(weight, dtype)
        total = rounded(kept + update, torch.float32)
        alive += rounded(total, dtype) != kept
    return alive / asked if asked else 0.0


def share_of_chosen(weights, updates, dtype=torch.bfloat16):
    """Choose first, then step."""
    places = updates.nonzero(as_tuple=True)
    kept, steps = weights.to(dtype)[places], updates[places]
    after = torch.add(kept.float(), steps).to(dtype)
    return float((after.float() - kept.float()).abs().gt(0).sum()) / max(len(steps), 1)


def share_in_place(weights, updates, dtype=torch.bfloat16):
    """In a buffer, as an optimizer would."""
    buffer = weights.to(dtype).float().clone()
    before = buffer.clone()
    buffer += updates
    moved = buffer.to(dtype).float().ne(before)
    asked = int(updates.count_nonzero())
    return int((moved & updates.ne(0)).sum()) / asked if asked else 0.0


def by_threshold(distance):
    """Steps that are longer than a share of the weight."""

    def share(weights, updates, dtype=torch.bfloat16):
        kept, asked = weights.to(dtype).float(), updates != 0
        if not asked.any():
            return 0.0
        alive = updates.abs() > distance(dtype) * kept.abs()
        return alive[asked].float().mean().item()

    return share


SURVIVING_SHARE = Exercise(
    id="16.5",
    answer=surviving_share,
    why="A run in bfloat16 can do every step and learn nothing. The loss does not say "
    "so; this does.",
    difficulty=2,
    importance=4,
    minutes=7,
    hints=(
        "bfloat16 has 8 binary digits. Near 1, what is the next number, and where does "
        "1 plus a thousandth end?",
        r"Of the updates that are not 0: the share for which $\text{round}(w + u) \ne "
        "w$, where w is a rounded weight.",
        "`kept = weights.to(dtype)`, then add in float32 and round again.",
    ),
    bonus="Sum a thousand updates of 1e-3 to a weight of 1, in bfloat16, with "
    "`stochastic_rounding` and without. Then with Kahan's compensation.",
    cases=surviving_share_cases,
    oracle=surviving_share_oracle,
    traps=(
        Trap(
            "You compare with the weight before it was rounded: then rounding itself "
            "looks like a step. Round first, then step.",
            ("(stepped != kept)", "(stepped.float() != weights.float())"),
        ),
        Trap(
            "The sum is not rounded back: in float32 nearly every step survives.",
            ("(kept.float() + updates).to(dtype)", "(kept.float() + updates)"),
        ),
        Trap(
            "Updates of 0 ask for nothing: leave them out of the share.",
            ("[asked].float()", ".float()"),
        ),
        Trap(
            "That is the share of steps that are lost.",
            ("(stepped != kept)", "(stepped == kept)"),
        ),
        Trap(
            "The step itself is added in float32. Rounding it first loses what would "
            "have tipped the sum over.",
            ("(kept.float() + updates)", "(kept.float() + updates.to(dtype).float())"),
        ),
        Trap(
            "The weight is added to as it was drawn. What the run has is the rounded "
            "one.",
            ("(kept.float() + updates)", "(weights.float() + updates)"),
        ),
        Trap(
            "The type is an argument: it is not always bfloat16.",
            ("weights.to(dtype)", "weights.to(torch.bfloat16)"),
            ("updates).to(dtype)", "updates).to(torch.bfloat16)"),
        ),
        Trap(
            "Asked for is a share, not a number of weights.",
            (".float().mean()", ".float().sum()"),
        ),
        Trap(
            "A Python float is asked for: .item().",
            (".mean().item()", ".mean()"),
        ),
        Trap(
            "eps times the weight is too coarse a rule: neighbours are as far apart "
            "all the way to the next power of two. Add, round, and compare.",
            by_threshold(lambda dtype: torch.finfo(dtype).eps),
        ),
        Trap(
            "Half of eps times the weight is near, but neighbours are as far apart all "
            "the way to the next power of two. Add, round, and compare.",
            by_threshold(lambda dtype: torch.finfo(dtype).eps / 2),
        ),
        Trap(
            "1/128 is the distance at 1 only, and of bfloat16 only. Add, round, and "
            "compare: then the type knows its own distances.",
            by_threshold(lambda dtype: 1 / 128),
        ),
        Trap(
            "1/256 is half of the distance at 1 only, and of bfloat16 only. Add, "
            "round, and compare: then the type knows its own distances.",
            by_threshold(lambda dtype: 1 / 256),
        ),
        Trap(
            "Where nothing was asked for, a mean of nothing is NaN: give 0.",
            ("if not asked.any():", "if False:"),
        ),
    ),
    twins=(Twin(share_of_chosen), Twin(share_in_place)),
    equivalent={
        "kept.float() → kept": "a bfloat16 and a float32 tensor are added in float32",
    },
)

# --- 16.6 hours_and_money -----------------------------------------------------------


def hours_and_money_cases(seed: int) -> list[Case]:
    n = 1.0 + 0.1 * (seed % 10)
    return [
        Case("the example of the docstring", 7.2e18, 4, 1e15, 0.5, 2.5),
        Case("one GPU, all of its rate", 9e17 * n, 1, 5e13, 1.0, 0.7),
        Case("eight GPUs", 3e21 * n, 8, 3e14, 0.4, 1.5),
        Case("three GPUs for nothing", 6e19 * n, 3, 2e14, 0.8, 0.0),
        Case("no GPU", 1e18, 0, 1e14, 0.5, 1.0),
        Case("nothing is reached", 1e18, 1, 1e14, 0.0, 1.0),
        Case("more than all is reached", 1e18, 1, 1e14, 1.5, 1.0),
    ]


def hours_and_money_oracle(
    flops: float, gpus: int, rate: float, share: float, price: float
) -> tuple[float, float]:
    """Give each GPU its part, look how long it takes, and let each be paid."""
    if gpus < 1 or not 0 < share <= 1:
        raise ValueError("no work is done like this")
    part = flops / gpus
    seconds = part / (rate * share)
    money = 0.0
    for _gpu in range(gpus):
        money += seconds / 3600 * price
    return seconds / 3600, money


def gpu_hours_first(flops, gpus, rate, share, price):
    """GPU-hours first."""
    if gpus < 1 or share <= 0 or share > 1:
        raise ValueError("1 GPU or more; a share from 0 to 1")
    gpu_hours = flops / (rate * share * 3600)
    return gpu_hours / gpus, gpu_hours * price


def money_by_second(flops, gpus, rate, share, price):
    """The price of a second."""
    if not (gpus >= 1 and 0 < share <= 1):
        raise ValueError("1 GPU or more; a share from 0 to 1")
    seconds = flops / rate / share / gpus
    return seconds / 60 / 60, gpus * seconds * (price / 3600)


HOURS_AND_MONEY = Exercise(
    id="16.6",
    answer=hours_and_money,
    why="It is asked before anything else, and mostly answered by guessing.",
    difficulty=1,
    importance=4,
    minutes=4,
    hints=(
        "Twice as many GPUs: how many hours, and how many dollars?",
        r"$\text{hours} = \frac{F}{g\,C\,s} / 3600$, dollars = hours · g · price.",
        "`hours = flops / (gpus * rate * share) / 3600`",
    ),
    bonus="Somebody quotes 5,000 A100-hours. Which share of the data sheet's 312 "
    "TFLOP/s do you need to pretrain the policy on 80 billion tokens with them?",
    cases=hours_and_money_cases,
    oracle=hours_and_money_oracle,
    traps=(
        Trap(
            "These are seconds: 3,600 of them are an hour.",
            (" / 3600", ""),
        ),
        Trap(
            "The price is for one GPU and one hour: all of them are paid.",
            ("hours * gpus * price", "hours * price"),
        ),
        Trap(
            "More GPUs take less time: divide by their number.",
            ("flops / (gpus * rate * share)", "flops / (rate * share)"),
        ),
        Trap(
            "More GPUs do not take longer: their number belongs below.",
            ("flops / (gpus * rate * share)", "flops * gpus / (rate * share)"),
        ),
        Trap(
            "Reaching half of the rate takes twice as long: divide by the share.",
            ("flops / (gpus * rate * share)", "flops / (gpus * rate) * share"),
        ),
        Trap(
            "Nobody reaches all of the rate: the share is left out.",
            ("gpus * rate * share", "gpus * rate"),
        ),
        Trap(
            "Dollars are for the hours of all GPUs, paid once: their number is in "
            "there twice.",
            ("hours * gpus * price", "hours * gpus * gpus * price"),
        ),
        Trap(
            "Hours first, then dollars.",
            (
                "return hours, hours * gpus * price",
                "return hours * gpus * price, hours",
            ),
        ),
        Trap(
            "Asked for are hours on the clock. GPU-hours are those times the number of "
            "GPUs.",
            ("return hours, hours", "return hours * gpus, hours"),
        ),
        Trap(
            "No GPU, or a share that is not above 0 and at most 1: a ValueError.",
            (
                "if gpus < 1 or not 0 < share <= 1:",
                "gpus, share = gpus or 1, share or 1\n    if False:",
            ),
        ),
    ),
    twins=(Twin(gpu_hours_first), Twin(money_by_second)),
)

EXERCISES = (
    TRAINING_FLOPS,
    STATE_BYTES,
    FSDP_TRAFFIC,
    DECODE_FLOOR,
    SURVIVING_SHARE,
    HOURS_AND_MONEY,
)
