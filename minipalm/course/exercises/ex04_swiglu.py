"""Lesson 04: the gate, its width at equal parameters, and the whole layer."""

from fractions import Fraction

import torch
from torch import Tensor

from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.model.swiglu import gated_feedforward, gated_width, swiglu

# --- 4.1 swiglu ---------------------------------------------------------------------


def swiglu_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def both(*shape: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        gate, up = scale * torch.randn(2, *shape, generator=draw)
        return gate.requires_grad_(True), up.requires_grad_(True)

    far = (
        torch.tensor([-120.0, -20.0, 20.0, 120.0]),
        torch.tensor([3.0, 2.0, -1.5, 0.5]),
    )
    return [
        Case(
            "the example of the docstring",
            torch.tensor([0.0, 1.0, 5.0, -5.0]),
            torch.full((4,), 2.0),
        ),
        Case("a batch of tokens", *both(2, 3, 5)),
        Case("one vector", *both(4)),
        Case("gates far from 0", *(one.requires_grad_(True) for one in far)),
    ]


def swiglu_oracle(gate: Tensor, up: Tensor) -> Tensor:
    """One unit after the other: σ in the form that does not overflow on its side."""
    units = []
    for g, u in zip(gate.reshape(-1), up.reshape(-1)):
        if g >= 0:
            opening = 1 / (1 + torch.exp(-g))
        else:
            opening = torch.exp(g) / (1 + torch.exp(g))
        units.append(g * opening * u)
    return torch.stack(units).view(gate.shape)


GATED = "F.silu(gate) * up"

SWIGLU = Exercise(
    id="4.1",
    answer=swiglu,
    why="More than half of the weights of PaLM's blocks feed this one line, and most "
    "later language models have it, too.",
    difficulty=1,
    importance=5,
    minutes=5,
    hints=(
        "Of gate and up, which one says *what* passes, and which one *how much* of it?",
        "$\\text{swiglu}(g, u) = g\\,\\sigma(g)\\,u$",
        "`opening = torch.sigmoid(gate)`",
    ),
    bonus="The gate's own slope at 0 is u/2. What is the slope of a ReLU gate there, "
    "and what does a unit with g < 0 learn with either?",
    cases=swiglu_cases,
    oracle=swiglu_oracle,
    traps=(
        Trap(
            "That is GLU: the gate goes through a sigmoid alone. SwiGLU's gate is "
            "silu(g) = g σ(g).",
            (GATED, "gate.sigmoid() * up"),
        ),
        Trap(
            "The roles have changed places: silu belongs on the gate, and up passes as "
            "it is.",
            (GATED, "gate * F.silu(up)"),
        ),
        Trap(
            "Both sides go through silu. The value, up, passes as it is: it may be "
            "negative.",
            (GATED, "F.silu(gate) * F.silu(up)"),
        ),
        Trap(
            "silu comes after the product here. It is the gate's alone.",
            (GATED, "F.silu(gate * up)"),
        ),
        Trap("That is GEGLU, with GELU on the gate.", (GATED, "F.gelu(gate) * up")),
        Trap("That is ReGLU, with ReLU on the gate.", (GATED, "F.relu(gate) * up")),
        Trap(
            "Nothing bends the gate: a product of two linear maps is the bilinear "
            "layer. silu goes on the gate.",
            (GATED, "gate * up"),
        ),
        Trap(
            "Gate and value are added; a gate multiplies, so that 0 lets nothing pass.",
            (GATED, "F.silu(gate) + up"),
        ),
        Trap(
            "The value never passes: this is silu of the gate alone, a plain layer's "
            "activation.",
            (GATED, "F.silu(gate)"),
        ),
        Trap(
            "The gate gates itself: the second factor is up, another projection.",
            (GATED, "F.silu(gate) * gate"),
        ),
        Trap(
            "The right number for a very negative gate, but its gradient is NaN: "
            "e^{-g} overflows. Use torch.sigmoid or F.silu.",
            (GATED, "gate / (1 + (-gate).exp()) * up"),
        ),
        Trap(
            "σ is applied to 1.702 g: that is a quick stand-in for GELU, not silu.",
            (GATED, "gate * (1.702 * gate).sigmoid() * up"),
        ),
        Trap(
            "The gate learns nothing: it must stay in the graph of gradients.",
            (GATED, "F.silu(gate.detach()) * up"),
        ),
        Trap(
            "The gate's opening is σ(g) of this token's own number. A softmax lets "
            "units compete for one opening.",
            (GATED, "gate * gate.softmax(-1) * up"),
        ),
    ),
    twins=(
        Twin((GATED, "gate * gate.sigmoid() * up")),
        Twin((GATED, "0.5 * gate * (1 + (gate / 2).tanh()) * up")),
    ),
)

# --- 4.2 gated_width ----------------------------------------------------------------


def gated_width_cases(seed: int) -> list[Case]:
    some = torch.randint(100, 5000, (4,), generator=torch.Generator().manual_seed(seed))
    return [
        Case("the example of the docstring", 512),
        Case("a multiple of 8", 512, 8),
        Case("a third below", 100),
        Case("as wide as LLaMA's", 16_384, multiple_of=256),
        *(Case(f"width {one}", one, 16) for one in some.tolist()),
        Case("nearer below", 260, multiple_of=32),
        Case("two are equally near", 18, multiple_of=8),
        Case("two are equally near, the lower one odd", 30, multiple_of=8),
        Case("never 0", 3, multiple_of=8),
        Case("the narrowest", 1),
        Case("no width", 0, 4),
        Case("no multiple", 4, 0),
    ]


def gated_width_oracle(plain_width: int, multiple_of: int = 1) -> int:
    """Try every multiple, and keep the one whose three matrices cost most nearly as
    much as the two."""
    if plain_width < 1 or multiple_of < 1:
        raise ValueError("less than 1")
    best = multiple_of
    for M in range(multiple_of, plain_width + 2 * multiple_of, multiple_of):
        if abs(3 * M - 2 * plain_width) <= abs(3 * best - 2 * plain_width):
            best = M
    return best


def run_with_widths(candidate, plain_width, multiple_of=None):
    """A call. Where a width is refused, the words are the learner's own.

    Only the type of that error counts, so that another mistake is still recognised.
    """
    given = [plain_width] if multiple_of is None else [plain_width, multiple_of]
    try:
        return candidate(*given)
    except ValueError:
        if min(given) < 1:
            raise ValueError("refused") from None
        raise


def gated_width_in_whole_numbers(plain_width, multiple_of=1):
    if min(plain_width, multiple_of) <= 0:
        raise ValueError("less than 1")
    third = 3 * multiple_of
    return max(multiple_of, (4 * plain_width + third) // (2 * third) * multiple_of)


def gated_width_by_fractions(plain_width, multiple_of=1):
    if not (plain_width >= 1 and multiple_of >= 1):
        raise ValueError("less than 1")
    exact = Fraction(2 * plain_width, 3)
    below = int(exact // multiple_of) * multiple_of
    above = below + multiple_of
    return below if below and exact - below < above - exact else above


ROUNDED = "math.floor(2 * plain_width / (3 * multiple_of) + 0.5)"

GATED_WIDTH = Exercise(
    id="4.2",
    answer=gated_width,
    why="A comparison of two layers says something only if both cost the same.",
    difficulty=2,
    importance=4,
    minutes=8,
    hints=(
        "How many parameters has a plain layer of width W at model width D, and how "
        "many a gated one of width M?",
        "$3 D M = 2 D W$, so $M = \\tfrac{2}{3} W$; then count in units of "
        "`multiple_of`, and round.",
        "`multiples = 2 * plain_width / (3 * multiple_of)`",
    ),
    bonus="PaLM did not narrow its gated layer: M = 4D with three matrices. Which "
    "plain width costs as much?",
    cases=gated_width_cases,
    oracle=gated_width_oracle,
    run=run_with_widths,
    traps=(
        Trap(
            "Half the width would be right for four matrices against two. There are "
            "three: 2/3 of the width.",
            ("2 * plain_width / (3 * multiple_of)", "plain_width / (2 * multiple_of)"),
        ),
        Trap(
            "Three matrices against two make the gated layer narrower, by 2/3; here it "
            "gets wider.",
            (
                "2 * plain_width / (3 * multiple_of)",
                "3 * plain_width / (2 * multiple_of)",
            ),
        ),
        Trap(
            "The width is not reduced at all: the gated layer then has half as many "
            "parameters again.",
            ("2 * plain_width / (3 * multiple_of)", "plain_width / multiple_of"),
        ),
        Trap(
            "Always rounded down: the *nearest* multiple is asked for.",
            (" + 0.5", ""),
        ),
        Trap(
            "Always rounded up, as LLaMA does; the *nearest* multiple is asked for.",
            (
                ROUNDED,
                "math.ceil(2 * plain_width / (3 * multiple_of))",
            ),
        ),
        Trap(
            "Python's round() takes a half to the even neighbour; of two equally near "
            "multiples the larger is asked for.",
            (ROUNDED, "round(2 * plain_width / (3 * multiple_of))"),
        ),
        Trap(
            "round() takes a half to the even neighbour, and a narrow layer to 0. Of "
            "two equally near ones take the larger, and one multiple at the least.",
            (ROUNDED, "round(2 * plain_width / (3 * multiple_of))"),
            ("max(multiples, 1)", "multiples"),
        ),
        Trap(
            "Rounded down, and a narrow layer down to 0: take the *nearest* multiple, "
            "and one multiple at the least.",
            (" + 0.5", ""),
            ("max(multiples, 1)", "multiples"),
        ),
        Trap(
            "A layer of width 0 computes nothing: take one multiple at the least.",
            ("max(multiples, 1)", "multiples"),
        ),
        Trap(
            "`multiple_of` has no effect: the width must be a multiple of it.",
            (ROUNDED, "math.floor(2 * plain_width / 3 + 0.5)"),
            ("max(multiples, 1) * multiple_of", "max(multiples, 1)"),
        ),
        Trap(
            "That is the number of multiples; the width is that number times "
            "`multiple_of`.",
            ("max(multiples, 1) * multiple_of", "max(multiples, 1)"),
        ),
        Trap(
            "A width is a whole number: return an int.",
            (
                "max(multiples, 1) * multiple_of",
                "float(max(multiples, 1) * multiple_of)",
            ),
        ),
        Trap(
            "A width or a multiple below 1 makes no sense: raise a ValueError.",
            ("if plain_width < 1 or multiple_of < 1:", "if False:"),
        ),
        Trap(
            "Rounded twice: 2/3 is cut to a whole number before the nearest multiple "
            "is looked for. Round once, at the end.",
            (ROUNDED, "math.floor(2 * plain_width // 3 / multiple_of + 0.5)"),
        ),
    ),
    twins=(Twin(gated_width_in_whole_numbers), Twin(gated_width_by_fractions)),
    equivalent={
        "max(multiples, 1) → max(1, multiples)": "the larger of two, in either order",
    },
)

# --- 4.3 gated_feedforward ----------------------------------------------------------


def feedforward_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def layer(*shape: int, M: int) -> list[Tensor]:
        D = shape[-1]
        tensors = [
            torch.randn(*size, generator=draw)
            for size in (shape, (D, M), (D, M), (M, D))
        ]
        return [one.requires_grad_(True) for one in tensors]

    eye = torch.eye(2)
    return [
        Case("the example of the docstring", torch.tensor([1.0, 2.0]), eye, eye, eye),
        Case("a batch of tokens", *layer(2, 3, 4, M=7)),
        Case("as wide inside as outside", *layer(5, 3, M=3)),
        Case("one token", *layer(6, M=2)),
    ]


def feedforward_oracle(
    x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor
) -> Tensor:
    """Unit after unit: its gate, its value, and what it adds to each output."""
    D, M = w_gate.shape
    tokens = []
    for token in x.reshape(-1, D):
        out = [token[0] * 0.0 for _ in range(D)]
        for m in range(M):
            gate = sum(token[d] * w_gate[d, m] for d in range(D))
            value = sum(token[d] * w_up[d, m] for d in range(D))
            passed = gate / (1 + torch.exp(-gate)) * value
            out = [out[d] + passed * w_down[m, d] for d in range(D)]
        tokens.append(torch.stack(out))
    return torch.stack(tokens).view(x.shape)


def feedforward_fused(x, w_gate, w_up, w_down):
    """One product for both projections, as the parallel block does it."""
    both = x @ torch.cat([w_gate, w_up], dim=1)
    gate, up = both.chunk(2, dim=-1)
    return swiglu(gate, up) @ w_down


def feedforward_by_einsum(x, w_gate, w_up, w_down):
    gate = torch.einsum("...d,dm->...m", x, w_gate)
    opened = torch.sigmoid(gate) * gate
    return torch.einsum("...m,...d,dm,mk->...k", opened, x, w_up, w_down)


LAYER = "swiglu(x @ w_gate, x @ w_up) @ w_down"

FEEDFORWARD = Exercise(
    id="4.3",
    answer=gated_feedforward,
    why="This is the layer that you put beside the plain one, and the half of a "
    "transformer block that is not attention.",
    difficulty=1,
    importance=4,
    minutes=5,
    hints=(
        "Which two of the three matrices read x, and which one writes?",
        "$(\\text{silu}(x W_{gate}) \\odot x W_{up})\\, W_{down}$",
        "`gate = x @ w_gate`",
    ),
    bonus="Permute the hidden units of all three matrices alike: nothing changes. How "
    "many networks with M units are the same function?",
    cases=feedforward_cases,
    oracle=feedforward_oracle,
    traps=(
        Trap(
            "Gate and up have changed places: w_gate's projection is the one that goes "
            "through silu.",
            (LAYER, "swiglu(x @ w_up, x @ w_gate) @ w_down"),
        ),
        Trap(
            "Both projections are w_gate's: w_up is not used, and would never learn.",
            (LAYER, "swiglu(x @ w_gate, x @ w_gate) @ w_down"),
        ),
        Trap(
            "Both projections are w_up's: w_gate is not used, and would never learn.",
            (LAYER, "swiglu(x @ w_up, x @ w_up) @ w_down"),
        ),
        Trap(
            "x is added: the residual connection is the block's business, not this "
            "layer's.",
            (LAYER, f"x + {LAYER}"),
        ),
        Trap(
            "There is no second factor: silu of one projection is the plain layer.",
            (LAYER, "F.silu(x @ w_gate) @ w_down"),
        ),
        Trap(
            "Nothing bends the gate: without silu this is the bilinear layer.",
            (LAYER, "((x @ w_gate) * (x @ w_up)) @ w_down"),
        ),
        Trap(
            "Plain GLU: a sigmoid on the gate. silu(g) = g σ(g) is asked for.",
            (LAYER, "((x @ w_gate).sigmoid() * (x @ w_up)) @ w_down"),
        ),
        Trap(
            "The output goes through the gate again; after w_down nothing follows.",
            (LAYER, f"F.silu({LAYER})"),
        ),
        Trap(
            "The matrices are transposed here, as nn.Linear keeps its own. These are "
            "D × M: a row of x is multiplied from the left.",
            (LAYER, "swiglu(x @ w_gate.mT, x @ w_up.mT) @ w_down.mT"),
        ),
        Trap(
            "The input learns nothing: gradients must flow back into x, too, or the "
            "layers below stand still.",
            (LAYER, LAYER.replace("x @", "x.detach() @")),
        ),
    ),
    twins=(Twin(feedforward_fused), Twin(feedforward_by_einsum)),
)

EXERCISES = (SWIGLU, GATED_WIDTH, FEEDFORWARD)
