"""Lesson 02: angles, rotation, wavelengths, and the score that sees distance only."""

import cmath
import math

import torch
from torch import Tensor

from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.model.rope import rotate, rotations, scores_by_distance, wavelengths


def run_with_width(candidate, first, *args, **kwargs):
    """A call. Where an odd head width is refused, the words are the learner's own.

    Only the type of that error counts, so that another mistake is still recognised.
    """
    head_dim = first if isinstance(first, int) else args[0]
    try:
        return candidate(first, *args, **kwargs)
    except ValueError:
        if head_dim % 2:
            raise ValueError("refused") from None
        raise


# --- 2.1 rotations ------------------------------------------------------------------


def rotations_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def places(B: int, T: int, most: int = 60) -> Tensor:
        return torch.randint(2, most, (B, T), generator=draw)

    packed = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 0, 1, 2]])
    now = torch.tensor([[3, 9, 1, 40, 7], [-2, 30, 5, -11, 8]])
    return [
        Case("the example of the docstring", torch.tensor([[2]]), 4, 100.0),
        Case("positions in any order", places(2, 5), 8),
        Case("packed and padded rows", packed, 6),
        Case("another base", places(3, 4), 10, base=50.0),
        Case("far into a long text", places(1, 7, 900) + 100, 6),
        Case("one pair", places(2, 3), 2),
        Case("an odd head width", places(2, 3), 5),
        Case("other positions, some of them negative", now, 8),
        Case("the same positions, another base", now.clone(), 8, 70.0),
    ]


def rotations_oracle(
    positions: Tensor, head_dim: int, base: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """One angle after the other, in Python's own numbers."""
    if head_dim % 2 == 1:
        raise ValueError("odd")
    B, T = positions.shape
    cosine, sine = torch.zeros(2, B, 1, T, head_dim // 2)
    for b in range(B):
        for t in range(T):
            for i in range(head_dim // 2):
                angle = int(positions[b, t]) / math.pow(base, 2 * i / head_dim)
                cosine[b, 0, t, i] = math.cos(angle)
                sine[b, 0, t, i] = math.sin(angle)
    return cosine, sine


def rotations_by_outer_product(positions, head_dim, base=10_000.0):
    if head_dim % 2 != 0:
        raise ValueError("pairs")
    i = torch.arange(head_dim // 2, dtype=torch.float64)
    speeds = torch.exp(-math.log(base) * 2 * i / head_dim)
    angles = torch.einsum("bt,i->bti", positions.double(), speeds)[:, None]
    return torch.cos(angles).float(), torch.sin(angles).float()


def rotations_as_complex_numbers(positions, head_dim, base=10_000.0):
    if head_dim & 1:
        raise ValueError("pairs")
    angles = torch.stack(
        [positions * base ** (-2 * i / head_dim) for i in range(head_dim // 2)], -1
    )
    turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    return turns.real.clone(), turns.imag.clone()


def rotations_from_one_per_number(positions, head_dim, base=10_000.0):
    """The trap of width K: each angle twice, as many libraries keep them."""
    cosine, sine = rotations(positions, head_dim, base)
    return torch.cat([cosine, cosine], -1), torch.cat([sine, sine], -1)


ANGLES = "positions[:, None, :, None] * base**-exponents"

ROTATIONS = Exercise(
    id="2.1",
    answer=rotations,
    why="Attention alone cannot see order. These angles are all that a PaLM is told "
    "about position.",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "How many angles does one token need, if each head is K/2 pairs and all heads "
        "turn alike?",
        "$\\varphi_i = p \\cdot \\text{base}^{-2i/K}$ for $i = 0, 1, \\ldots, K/2 - "
        "1$; axes: row, head (one), position, pair.",
        "`exponents = torch.arange(0, head_dim, 2) / head_dim`",
    ),
    bonus="Positions beyond all that training has seen turn the slow pairs to angles "
    "they never had. Divide the positions by 4 instead: what does the fastest "
    "pair lose?",
    cases=rotations_cases,
    oracle=rotations_oracle,
    run=run_with_width,
    tolerance=5e-4,
    traps=(
        Trap(
            "`base ** -2 * i` is read as `(base ** -2) * i`: power binds before times. "
            "Put the whole exponent in brackets.",
            ("base**-exponents", "(base**-1.0 * exponents)"),
        ),
        Trap(
            "The exponent is 2i/K for pair i; here it is i/K, so the slow pairs turn "
            "far too fast.",
            ("torch.arange(0, head_dim, 2, ", "torch.arange(head_dim // 2, "),
        ),
        Trap(
            "The exponent is 2i/K, divided by the whole head width K, not by the "
            "number of pairs.",
            (" / head_dim", " / (head_dim // 2)"),
        ),
        Trap(
            "The exponent's sign is turned: later pairs must turn more slowly than the "
            "first, base**(-2i/K).",
            ("base**-exponents", "base**exponents"),
        ),
        Trap(
            "Cosine and sine have changed places: cosine comes first. At position 0 "
            "nothing may turn, and cos 0 = 1.",
            ("angles.cos(), angles.sin()", "angles.sin(), angles.cos()"),
        ),
        Trap(
            "The angles are taken for degrees. They are radians already, as torch.cos "
            "expects.",
            (ANGLES, f"torch.deg2rad({ANGLES})"),
        ),
        Trap(
            "The positions that were given are ignored: 0, 1, 2, ... is wrong where "
            "rows are padded or hold several texts.",
            (
                ANGLES,
                "torch.arange(positions.shape[1]).expand_as(positions)"
                "[:, None, :, None] * base**-exponents",
            ),
        ),
        Trap(
            "All rows get one set of angles for 0, 1, 2, ...; each row has positions "
            "of its own, so the result needs the axis B.",
            (
                ANGLES,
                "torch.arange(positions.shape[1])[None, None, :, None]"
                " * base**-exponents",
            ),
        ),
        Trap(
            "The first row's positions are used for all rows.",
            (
                ANGLES,
                "positions[:1].expand_as(positions)[:, None, :, None] * "
                "base**-exponents",
            ),
        ),
        Trap(
            "Positions count from 0 here: the first token of a text is not turned.",
            (ANGLES, "(positions + 1)[:, None, :, None] * base**-exponents"),
        ),
        Trap(
            "The angles go through bfloat16, whose 8 bits cannot tell position 257 "
            "from 256. Angles need float32.",
            (ANGLES, f"({ANGLES}).bfloat16().float()"),
        ),
        Trap(
            "The angles go through float16: its 11 bits are too few for a long text, "
            "and the fast pairs point anywhere. Angles need float32.",
            (ANGLES, f"({ANGLES}).half().float()"),
        ),
        Trap(
            "Each angle stands there twice. There are K/2 pairs and one angle a pair: "
            "the last axis has width K/2.",
            rotations_from_one_per_number,
        ),
        Trap(
            "The axis of one for the heads is missing: the shape is (B, 1, T, K/2), to "
            "fit queries of shape (B, H, T, K).",
            ("positions[:, None, :, None]", "positions[:, :, None]"),
        ),
        Trap(
            "The argument `base` is ignored: 10,000 is only what it is if nobody says "
            "otherwise.",
            ("base**-exponents", "10_000.0**-exponents"),
        ),
        Trap(
            "An odd head width has one number that belongs to no pair: raise a "
            "ValueError.",
            ("if head_dim % 2:", "if False:"),
        ),
        Trap(
            "The speed of a pair is base**(-2i/K), a power of base; here it is the "
            "power of e alone, so base has no effect.",
            ("base**-exponents", "torch.exp(-exponents)"),
        ),
    ),
    twins=(Twin(rotations_by_outer_product), Twin(rotations_as_complex_numbers)),
)

# --- 2.2 rotate ---------------------------------------------------------------------


def rotate_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def turns(B: int, T: int, half: int) -> tuple[Tensor, Tensor]:
        angles = 6.0 * torch.rand(B, 1, T, half, generator=draw) + 0.2
        return angles.cos(), angles.sin()

    quarter = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    cosine, sine = (one.view(1, 1, 1, 2) for one in quarter)
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    return [
        Case("the example of the docstring", x, cosine, sine),
        Case("queries", normal(2, 3, 5, 8).requires_grad_(True), *turns(2, 5, 4)),
        Case("one row of angles for all", normal(3, 2, 4, 6), *turns(1, 4, 3)),
        Case("one pair", normal(2, 1, 3, 2).requires_grad_(True), *turns(2, 3, 1)),
        Case("bfloat16", normal(2, 3, 4, 4).bfloat16(), *turns(2, 4, 2)),
        Case("no head at all", normal(2, 0, 3, 4), *turns(2, 3, 2)),
    ]


def rotate_oracle(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Each token's vectors times a matrix that turns one pair after the other."""
    B, H, T, K = x.shape
    rows = []
    for b in range(B):
        tokens = []
        for t in range(T):
            matrix = torch.zeros(K, K)
            for i in range(K // 2):
                j = i + K // 2
                row = b if len(cosine) > 1 else 0
                c, s = float(cosine[row, 0, t, i]), float(sine[row, 0, t, i])
                matrix[i, i], matrix[i, j] = c, -s
                matrix[j, i], matrix[j, j] = s, c
            tokens.append(x[b, :, t].float() @ matrix.T)
        rows.append(torch.stack(tokens, 1))
    return torch.stack(rows).to(x.dtype)


def rotate_as_complex_numbers(x, cosine, sine):
    """A pair is a complex number; a turn is a product with one of length 1."""
    half = x.shape[-1] // 2
    numbers = torch.complex(x[..., :half].float(), x[..., half:].float())
    numbers = numbers * torch.complex(cosine, sine)
    return torch.cat([numbers.real, numbers.imag], -1).to(x.dtype)


def rotate_half(x, cosine, sine):
    """x cos + (−second, first) sin, each angle twice: the form of many libraries."""
    first, second = x.float().tensor_split(2, -1)
    quarter = torch.cat([-second, first], -1)
    cosine, sine = cosine.repeat(1, 1, 1, 2), sine.repeat(1, 1, 1, 2)
    return (x * cosine + quarter * sine).type_as(x)


def rotate_neighbours(x, cosine, sine):
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = even * cosine - odd * sine, odd * cosine + even * sine
    return torch.stack(pairs, -1).flatten(-2).to(x.dtype)


def rotate_neighbours_into_halves(x, cosine, sine):
    """The pairs of one convention read, those of the other written."""
    first, second = x[..., 0::2], x[..., 1::2]
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(x.dtype)


def rotate_halves_into_neighbours(x, cosine, sine):
    first, second = x.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)


def rotate_half_of_the_head(x, cosine, sine):
    turning = torch.arange(cosine.shape[-1]) < (cosine.shape[-1] + 1) // 2
    return rotate(x, torch.where(turning, cosine, 1.0), torch.where(turning, sine, 0.0))


def rotate_one_after_the_other(x, cosine, sine):
    first, second = x.chunk(2, dim=-1)
    first = first * cosine - second * sine
    second = second * cosine + first * sine
    return torch.cat([first, second], dim=-1).to(x.dtype)


def rotate_in_place(x, cosine, sine):
    with torch.no_grad():
        x.copy_(rotate(x, cosine, sine))
    return x


ROTATE = Exercise(
    id="2.2",
    answer=rotate,
    why="Turned by their own positions, a query and a key see how far apart they "
    "stand, and nothing else about where.",
    difficulty=2,
    importance=5,
    minutes=10,
    hints=(
        "Which two numbers of a head of width 8 make pair 1?",
        "$(a, b) \\to (a\\cos\\varphi - b\\sin\\varphi,\\; b\\cos\\varphi + "
        "a\\sin\\varphi)$, with $a$ from the first half and $b$ from the second.",
        "`first, second = x.chunk(2, dim=-1)`",
    ),
    bonus="Write it with complex numbers: a turn is then one product. Why do networks "
    "in production rarely use that form?",
    cases=rotate_cases,
    oracle=rotate_oracle,
    traps=(
        Trap(
            "Neighbours are paired, x_2i with x_{2i+1}. That is RoPE, too, but here "
            "x_i goes with x_{i+K/2}; weights trained with one order fail with the "
            "other.",
            rotate_neighbours,
        ),
        Trap(
            "Read as neighbours, written as halves: each number must come back to the "
            "place that it was taken from.",
            rotate_neighbours_into_halves,
        ),
        Trap(
            "Read as halves, written as neighbours: each number must come back to the "
            "place that it was taken from.",
            rotate_halves_into_neighbours,
        ),
        Trap(
            "Turned clockwise: both signs before the sine are the wrong way round. "
            "Scores survive that, but no other network's weights do.",
            ("first * cosine - second * sine", "first * cosine + second * sine"),
            ("second * cosine + first * sine", "second * cosine - first * sine"),
        ),
        Trap(
            "One sign is wrong: a cos φ + b sin φ with b cos φ + a sin φ is no "
            "rotation, the vector changes its length.",
            ("first * cosine - second * sine", "first * cosine + second * sine"),
        ),
        Trap(
            "One sign is wrong: with b cos φ − a sin φ in the second half it is no "
            "rotation, the vector changes its length.",
            ("second * cosine + first * sine", "second * cosine - first * sine"),
        ),
        Trap(
            "Cosine and sine have changed places: then position 0 makes a quarter turn "
            "instead of none.",
            ("first * cosine - second * sine", "first * sine - second * cosine"),
            ("second * cosine + first * sine", "second * sine + first * cosine"),
        ),
        Trap(
            "Only half of the pairs turn. Some models do that on purpose; here every "
            "pair of the head turns.",
            rotate_half_of_the_head,
        ),
        Trap(
            "The second half is computed from the new first half. Both need the old "
            "numbers.",
            rotate_one_after_the_other,
        ),
        Trap(
            "The two halves come back in the wrong order.",
            ("torch.cat(turned, dim=-1)", "torch.cat(turned[::-1], dim=-1)"),
        ),
        Trap(
            "Float32 angles make the result float32: bring it back to the type of x.",
            (".to(x.dtype)", ""),
        ),
        Trap(
            "Cosine and sine are rounded to the type of x before the product. Turn in "
            "float32 and round once, at the end.",
            (
                "x.chunk(2, dim=-1)",
                "x.chunk(2, dim=-1); cosine = cosine.to(x.dtype); "
                "sine = sine.to(x.dtype)",
            ),
        ),
        Trap(
            "The queries that were handed in are overwritten. Return new ones: others "
            "may still need the old.",
            rotate_in_place,
        ),
        Trap(
            "No gradient gets through: queries and keys come from weights that learn "
            "through the rotation.",
            (".to(x.dtype)", ".to(x.dtype).detach()"),
        ),
        Trap(
            "Each half is only scaled by a cosine and a sine of its own. A rotation "
            "mixes the two numbers of a pair.",
            ("first * cosine - second * sine", "first * cosine"),
            ("second * cosine + first * sine", "second * sine"),
        ),
    ),
    twins=(Twin(rotate_as_complex_numbers), Twin(rotate_half)),
)

# --- 2.3 wavelengths ----------------------------------------------------------------


def wavelengths_cases(seed: int) -> list[Case]:
    base = 20.0 + 13.0 * seed
    return [
        Case("the example of the docstring", 4, 100.0),
        Case("the usual base", 16),
        Case("another base", 10, base=base),
        Case("one pair", 2),
        Case("a base near 1", 8, 1.2),
        Case("an odd head width", 5),
    ]


def wavelengths_oracle(head_dim: int, base: float = 10_000.0) -> Tensor:
    """Full turn divided by the angle of one token, pair after pair."""
    if head_dim % 2 == 1:
        raise ValueError("odd")
    lengths = []
    for i in range(head_dim // 2):
        radians_a_token = base ** (-2 * i / head_dim)
        lengths.append(2 * math.pi / radians_a_token)
    return torch.tensor(lengths)


def wavelengths_from_speeds(head_dim, base=10_000.0):
    pairs, rest = divmod(head_dim, 2)
    if rest:
        raise ValueError("pairs")
    speeds = torch.exp(torch.arange(pairs) * (-math.log(base) / pairs))
    return math.tau / speeds


def wavelengths_by_steps(head_dim, base=10_000.0):
    if head_dim % 2:
        raise ValueError("pairs")
    factor, each = base ** (2 / head_dim), math.tau
    lengths = []
    while len(lengths) < head_dim // 2:
        lengths.append(each)
        each *= factor
    return torch.tensor(lengths, dtype=torch.float32)


POWER = "base ** (torch.arange(0, head_dim, 2) / head_dim)"

WAVELENGTHS = Exercise(
    id="2.3",
    answer=wavelengths,
    why="How far a head can see by position is written in these few numbers, and a "
    "longer context means to change them.",
    difficulty=1,
    importance=3,
    minutes=5,
    hints=(
        "By how many radians does pair i turn a token, and how many radians are a full "
        "turn?",
        "$\\lambda_i = 2\\pi \\,/\\, \\text{base}^{-2i/K}$",
        "`exponents = torch.arange(0, head_dim, 2) / head_dim`",
    ),
    bonus="Which base makes the slowest of 32 pairs turn exactly once in 128,000 "
    "tokens?",
    cases=wavelengths_cases,
    oracle=wavelengths_oracle,
    run=run_with_width,
    traps=(
        Trap(
            "These are speeds, radians a token. A wavelength is tokens a turn: 2π "
            "divided by the speed.",
            (
                "2 * math.pi * " + POWER,
                "base ** -(torch.arange(0, head_dim, 2) / head_dim)",
            ),
        ),
        Trap(
            "These are turns a token. A wavelength is the other way round, tokens a "
            "turn.",
            (
                "2 * math.pi * " + POWER,
                "base ** -(torch.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)",
            ),
        ),
        Trap(
            "These are tokens a radian: a full turn is 2π radians.",
            ("2 * math.pi * ", ""),
        ),
        Trap(
            "These are tokens for half a turn: a full turn is 2π radians, not π.",
            ("2 * math.pi", "math.pi"),
        ),
        Trap(
            "A full turn is 2π radians here; 360 would be degrees.",
            ("2 * math.pi", "360"),
        ),
        Trap(
            "The sign of the exponent is turned: later pairs need more tokens for a "
            "turn, not fewer.",
            ("base ** (torch", "base ** -(torch"),
        ),
        Trap(
            "The exponent is 2i/K for pair i; here it is i/K.",
            ("torch.arange(0, head_dim, 2)", "torch.arange(head_dim // 2)"),
        ),
        Trap(
            "There are K numbers here, one for each number of the head; it has K/2 "
            "pairs.",
            ("torch.arange(0, head_dim, 2)", "torch.arange(head_dim)"),
        ),
        Trap(
            "The argument `base` is ignored: 10,000 is only what it is if nobody says "
            "otherwise.",
            ("base ** (torch", "10_000.0 ** (torch"),
        ),
        Trap(
            "An odd head width has one number that belongs to no pair: raise a "
            "ValueError.",
            ("if head_dim % 2:", "if False:"),
        ),
        Trap(
            "The slowest pair comes first here; the fastest should.",
            ("2 * math.pi * " + POWER, f"(2 * math.pi * {POWER}).flip(0)"),
        ),
    ),
    twins=(Twin(wavelengths_from_speeds), Twin(wavelengths_by_steps)),
)

# --- 2.4 scores_by_distance ---------------------------------------------------------


def scores_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def pairs(N: int, K: int) -> tuple[Tensor, Tensor]:
        q, k = 2.0 * torch.randn(2, N, K, generator=draw)
        return q.requires_grad_(True), k.requires_grad_(True)

    one = torch.tensor([[1.0, 0.0]])
    far = torch.tensor([40, 3, 11, 3, 200])
    return [
        Case("the example of the docstring", one, one, torch.tensor([0, 1])),
        Case("distances in any order", *pairs(3, 8), far),
        Case("queries before their keys", *pairs(2, 4), torch.tensor([-5, 0, 2])),
        Case("another base", *pairs(4, 6), far[:2], base=30.0),
        Case("nothing but distance 0", *pairs(2, 6), torch.tensor([0])),
    ]


def scores_oracle(
    q: Tensor, k: Tensor, distances: Tensor, base: float = 10_000.0
) -> Tensor:
    """A sum over pairs: in each, the query's turn before the key, as complex numbers.

    The score of a pair is Re(q e^{iφ} k*), with real and imaginary parts half a head
    apart.
    """
    N, K = q.shape
    half, rows = K // 2, []
    for n in range(N):
        row = []
        for distance in distances.tolist():
            total = q[n, 0] * 0.0
            for i in range(half):
                turn = cmath.exp(1j * distance * base ** (-2 * i / K))
                a, b, c, d = q[n, i], q[n, i + half], k[n, i], k[n, i + half]
                total = total + turn.real * (a * c + b * d)
                total = total + turn.imag * (a * d - b * c)
            row.append(total / math.sqrt(K))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def scores_with_both_turned(q, k, distances, base=10_000.0):
    """Both stand somewhere: keys from 17 on, queries that much later."""
    S = len(distances)
    queries = q[:, None, None].expand(-1, 1, S, -1)
    keys = k[:, None, None].expand(-1, 1, S, -1)
    start = torch.full_like(distances, 17)
    queries = rotate(queries, *rotations((start + distances)[None], q.shape[1], base))
    keys = rotate(keys, *rotations(start[None], q.shape[1], base))
    return torch.einsum("nhsk,nhsk->ns", queries, keys) * q.shape[1] ** -0.5


def scores_with_keys_turned_back(q, k, distances, base=10_000.0):
    columns = []
    for distance in distances:
        turn = rotations(-distance.view(1, 1), q.shape[1], base)
        key = rotate(k[:, None, None], *turn)[:, 0, 0]
        columns.append((q * key).sum(1) / q.shape[1] ** 0.5)
    return torch.stack(columns, 1)


def scores_of_all_pairs(q, k, distances, base=10_000.0):
    queries = q[:, None, None].expand(-1, 1, len(distances), -1)
    turned = rotate(queries, *rotations(distances[None], q.shape[1], base))
    every = torch.einsum("nsk,mk->nms", turned[:, 0], k) / math.sqrt(q.shape[1])
    return every.mean(1)


def scores_with_every_key(q, k, distances, base=10_000.0):
    queries = q[:, None, None].expand(-1, 1, len(distances), -1)
    turned = rotate(queries, *rotations(distances[None], q.shape[1], base))
    return turned[:, 0] @ k.mT / math.sqrt(q.shape[1])


def scores_with_both_at_distance(q, k, distances, base=10_000.0):
    turns = rotations(distances[None], q.shape[1], base)
    wide = (x[:, None, None].expand(-1, 1, len(distances), -1) for x in (q, k))
    queries, keys = (rotate(x, *turns)[:, 0] for x in wide)
    return (queries * keys).sum(-1) / math.sqrt(q.shape[1])


SCORES = Exercise(
    id="2.4",
    answer=scores_by_distance,
    why="This is the promise of RoPE as one function: a score that takes a distance "
    "and no positions.",
    difficulty=3,
    importance=4,
    minutes=12,
    hints=(
        "`rotate` wants its tokens on axis T. Which axis can hold your distances?",
        "$\\text{score}(d) = (R_d\\, q) \\cdot k / \\sqrt{K}$, where $R_d$ turns each "
        "pair as position $d$ does.",
        '`queries = repeat(q, "N K -> N 1 S K", S=len(distances))`, a query at each '
        "distance; now turn them by `rotations(distances[None], K, base)`.",
    ),
    bonus="Multiply out one pair by hand: with which phase shift does its cosine of "
    "the distance begin, and which property of q and k sets its height?",
    cases=scores_cases,
    oracle=scores_oracle,
    tolerance=5e-4,
    traps=(
        Trap(
            "The distance has the wrong sign: the *query* stands that many tokens "
            "after its key, so it is the query that turns further.",
            ("distances[None]", "-distances[None]"),
        ),
        Trap(
            "The score is divided by √K, which is missing: without it, wide heads get "
            "larger scores.",
            (" / math.sqrt(K)", ""),
        ),
        Trap(
            "The score is divided by √K, not by K.",
            ("math.sqrt(K)", "K"),
        ),
        Trap(
            "Query and key turn by the same angle, so nothing depends on the distance. "
            "Their positions must differ by it.",
            scores_with_both_at_distance,
        ),
        Trap(
            "The argument `base` never reaches the angles.",
            ("K, base)", "K)"),
        ),
        Trap(
            "The sign of a distance is lost: a query before its key gets another score "
            "than one behind it.",
            ("distances[None]", "distances.abs()[None]"),
        ),
        Trap(
            "The distances that were given are ignored: they need not be 0, 1, 2, ...",
            ("distances[None]", "torch.arange(len(distances))[None]"),
        ),
        Trap(
            "Each query meets all keys and the scores are averaged. Query n belongs to "
            "key n alone.",
            scores_of_all_pairs,
        ),
        Trap(
            "Each query meets every key here. Query n belongs to key n alone: multiply "
            "number by number and sum over K.",
            scores_with_every_key,
        ),
        Trap(
            "There is a row for each distance here: query and key n is the row, the "
            "distance the column.",
            (".sum(-1) / math.sqrt(K)", ".sum(-1).mT / math.sqrt(K)"),
        ),
        Trap(
            "These are weights, not scores: no softmax here.",
            (
                "(turned[:, 0] * k[:, None]).sum(-1) / math.sqrt(K)",
                "((turned[:, 0] * k[:, None]).sum(-1) / math.sqrt(K)).softmax(-1)",
            ),
        ),
    ),
    twins=(Twin(scores_with_both_turned), Twin(scores_with_keys_turned_back)),
    equivalent={
        "q.shape[-1] → q.shape[1]": "q has two axes, so both name the last",
        "turned[:, 0] → turned[:, -1]": "that axis has one place: the head",
    },
)

EXERCISES = (ROTATIONS, ROTATE, WAVELENGTHS, SCORES)
