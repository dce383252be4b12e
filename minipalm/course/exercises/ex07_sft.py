"""Lesson 07: rows of demonstrations, the loss on responses, and a training step."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipalm.config import OptimConfig, PaLMConfig
from minipalm.course.exercise import Candidate, Case, Exercise, Trap, Twin
from minipalm.model.palm import PaLM
from minipalm.rlhf.sft import (
    Example,
    Rows,
    fill_rows,
    pack_examples,
    sft_loss,
)
from minipalm.train.optim import (
    batch_rows,
    lr_scale,
    micro_batches,
    optimizer_step,
    set_lr,
)
from minipalm.train.sft import sft_step

EOS = 2
V = 9


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples_of(seed: int, *lengths: tuple[int, int]) -> list[Example]:
    """Prompts and responses of these lengths; each response ends with <eos>."""
    draw = seeded(seed)

    def tokens(n: int) -> list[int]:
        return torch.randint(3, V, (n,), generator=draw).tolist()

    return [([1, *tokens(p - 1)], [*tokens(r - 1), EOS]) for p, r in lengths]


# --- 7.1 fill_rows ------------------------------------------------------------------


def fill_cases(seed: int) -> list[Case]:
    one, two, three, four, five = examples_of(
        seed, (3, 4), (1, 2), (2, 1), (1, 1), (4, 3)
    )
    known = [([1, 5], [6, 2]), ([1], [7, 2])]
    return [
        Case("the example of the docstring", [known], 8),
        Case("an example a row", [[one], [two], [three]], 7),
        Case(
            "several in some rows", [[one, two, four], [five], [three, four, two]], 13
        ),
        Case("rows that are full", [[one, three], [two, five]], 10),
        Case("a row with nothing in it", [[two], [], [five]], 9),
        Case("no rows", [], 4),
    ]


def fill_oracle(rows: list[list[Example]], width: int) -> Rows:
    """Token by token, into lists."""
    table: list[list[tuple[int, int, bool]]] = []
    for examples in rows:
        row: list[tuple[int, int, bool]] = []
        number = 0
        for prompt, response in examples:
            number += 1
            for token in prompt:
                row.append((token, number, False))
            for token in response:
                row.append((token, number, True))
        while len(row) < width:
            row.append((0, 0, False))
        table.append(row)
    shape = len(rows), width
    return Rows(
        torch.tensor([[c[0] for c in row] for row in table]).long().view(shape),
        torch.tensor([[c[1] for c in row] for row in table]).long().view(shape),
        torch.tensor([[c[2] for c in row] for row in table]).bool().view(shape),
    )


def fill_by_lists(rows, width):
    """Each row as three lists, padded at the end."""
    columns = ([], [], [])
    for examples in rows:
        ids, segments, mask = [], [], []
        for number, (prompt, response) in enumerate(examples):
            ids += prompt + response
            segments += [number + 1] * (len(prompt) + len(response))
            mask += [False] * len(prompt) + [True] * len(response)
        for column, values in zip(columns, (ids, segments, mask)):
            column.append(values + [0] * (width - len(values)))
    made = [torch.tensor(column).view(len(rows), width) for column in columns]
    return Rows(made[0].long(), made[1].long(), made[2].bool())


def fill_by_flags(rows, width):
    """Where a text begins, a running count of it, and a place for each token."""
    B = len(rows)
    ids, segments = torch.zeros(2, B, width, dtype=torch.int64)
    mask = torch.zeros(B, width) > 0
    for b in range(B):
        at = 0
        for number in range(len(rows[b])):
            for part, text in enumerate(rows[b][number]):
                for token in text:
                    ids[b, at], segments[b, at], mask[b, at] = token, number + 1, part
                    at += 1
    return Rows(ids, segments, mask)


FILL = Exercise(
    id="7.1",
    answer=fill_rows,
    why="Three tensors say it all: which tokens, whose text they belong to, and which "
    "of them the model is asked for.",
    difficulty=2,
    importance=5,
    minutes=12,
    hints=(
        "What does each of the three tensors hold at a prompt token, at a response "
        "token, and at padding?",
        "An example that begins at $s$ fills $s, \\dots, s + P + R - 1$; its mask "
        "begins at $s + P$ and includes the last token.",
        "`ids = torch.zeros(len(rows), width, dtype=torch.long)`",
    ),
    bonus="Chats have several turns. Which tokens should the mask of a chat hold, and "
    "how would you write it down as an Example?",
    cases=fill_cases,
    oracle=fill_oracle,
    traps=(
        Trap(
            "The prompt is in the mask. Only the response is asked for; the prompt is "
            "given.",
            ("mask[b, start + len(prompt) : end]", "mask[b, start:end]"),
        ),
        Trap(
            "The <eos> is not in the mask: a model that is never asked to end does not "
            "learn to.",
            ("start + len(prompt) : end]", "start + len(prompt) : end - 1]"),
        ),
        Trap(
            "The mask stands where tokens are predicted, one too early. It belongs to "
            "the response's own tokens; the loss does the shift.",
            (
                "start + len(prompt) : end]",
                "start + len(prompt) - 1 : end - 1]",
            ),
        ),
        Trap(
            "The first token of each response is missing from the mask. The last token "
            "of the prompt predicts it.",
            ("start + len(prompt) : end]", "start + len(prompt) + 1 : end]"),
        ),
        Trap(
            "The mask runs on to the end of the row: padding, and prompts that follow, "
            "would be learnt.",
            ("start + len(prompt) : end]", "start + len(prompt) :]"),
        ),
        Trap(
            "All examples of a row are segment 1, so they would see each other. Number "
            "them 1, 2, ... in each row.",
            ("segments[b, start:end] = segment", "segments[b, start:end] = 1"),
        ),
        Trap(
            "Segments count from 0, which means padding. The first example of a row is "
            "segment 1.",
            ("enumerate(examples, 1)", "enumerate(examples)"),
        ),
        Trap(
            "Each example begins at the left again and overwrites the one before. "
            "Go on where it has ended.",
            ("            start = end\n", ""),
        ),
        Trap(
            "Examples stand at the right end of their rows. Demonstrations are "
            "padded on the right.",
            (
                "        start = 0\n",
                "        start = width - sum(len(p) + len(r) for p, r in examples)\n",
            ),
        ),
        Trap(
            "The mask holds numbers. It is True or False, dtype torch.bool, so that it "
            "can pick out tokens.",
            ("dtype=torch.bool", "dtype=torch.long"),
        ),
    ),
    twins=(Twin(fill_by_lists), Twin(fill_by_flags)),
)

# --- 7.2 pack_examples --------------------------------------------------------------


def pack_cases(seed: int) -> list[Case]:
    draw = seeded(seed)
    lengths = torch.randint(1, 6, (14, 2), generator=draw).tolist()
    many = examples_of(seed, *map(tuple, lengths))
    known = examples_of(seed, (3, 4), (2, 4), (1, 1), (1, 2))
    told = examples_of(seed, (4, 4), (3, 3), (2, 3), (1, 3), (1, 1), (2, 1))
    # 5 and 8 leave 7 and 4: first fit puts 3 into the first row, best fit the second
    apart = examples_of(seed, (2, 3), (4, 4), (1, 2), (1, 1), (3, 6), (1, 3))
    return [
        Case("the example of the docstring", known, 9),
        Case("rows of twelve", told, 12),
        Case("more than one row has room", apart, 12),
        Case("many examples", many, 15),
        Case("a row for each", many[:4], 11),
        Case("examples as long as a row", examples_of(seed, (3, 3), (1, 5)), 6),
        Case("no examples", [], 5),
        Case("one that is too long", known, 6),
        Case("one that is a token too long", examples_of(seed, (1, 2), (3, 4)), 6),
    ]


def pack_oracle(examples: list[Example], width: int) -> Rows:
    """Look at every row from the first, every time; count its tokens anew."""
    rows: list[list[Example]] = []
    for prompt, response in examples:
        if len(prompt + response) > width:
            raise ValueError
        place = None
        for row in reversed(rows):  # the last one found is the first in order
            if len(sum([p + r for p, r in row], prompt + response)) <= width:
                place = row
        if place is None:
            place = []
            rows.append(place)
        place.append((prompt, response))
    return fill_oracle(rows, width)


def pack_with_next(examples, width):
    rows, used = [], []
    for example in examples:
        need = sum(map(len, example))
        if need > width:
            raise ValueError(f"{need} tokens do not fit into {width}")
        b = next((b for b, n in enumerate(used) if n + need <= width), len(rows))
        if b == len(rows):
            rows.append([])
            used.append(0)
        rows[b] = [*rows[b], example]
        used[b] += need
    return fill_rows(rows, width)


def pack_row_after_row(examples, width):
    """Fill a row with all that still fits, then the next: the same rows."""
    left = [(example, len(example[0]) + len(example[1])) for example in examples]
    if any(need > width for _, need in left):
        raise ValueError("an example is longer than a row")
    rows = []
    while left:
        row, rest, room = [], [], width
        for example, need in left:
            if need <= room:
                row.append(example)
                room -= need
            else:
                rest.append((example, need))
        rows.append(row)
        left = rest
    return fill_rows(rows, width)


def next_fit(examples, width):
    rows, room = [], 0
    for example in examples:
        need = len(example[0]) + len(example[1])
        if need > width:
            raise ValueError
        if need > room:
            rows.append([])
            room = width
        rows[-1].append(example)
        room -= need
    return fill_rows(rows, width)


def best_fit(examples, width, sign=1):
    rows, room = [], []
    for example in examples:
        need = len(example[0]) + len(example[1])
        if need > width:
            raise ValueError
        fits = [b for b in range(len(rows)) if room[b] >= need]
        b = min(fits, key=lambda b: sign * room[b], default=len(rows))
        if not fits:
            rows.append([])
            room.append(width)
        rows[b].append(example)
        room[b] -= need
    return fill_rows(rows, width)


def cut_examples(examples, width):
    short = []
    for prompt, response in examples:
        short.append((prompt[:width], response[: max(width - len(prompt), 0)]))
    return pack_examples(short, width)


PACK = Exercise(
    id="7.2",
    answer=pack_examples,
    why="Padded rows spend most of their work on nothing. Packed, the same examples "
    "need a fraction of the rows.",
    difficulty=3,
    importance=3,
    minutes=15,
    hints=(
        "What do you have to remember about each row to decide whether an example "
        "still fits?",
        "First fit: the row is $\\min \\{b : \\text{room}_b \\ge P + R\\}$, or a "
        "new one if there is none.",
        "`rows, room = [], []`, and `fill_rows(rows, width)` at the end",
    ),
    bonus="Sort the examples by length first. How many rows fewer are there, and what "
    "does a batch look like whose rows were packed that way?",
    cases=pack_cases,
    oracle=pack_oracle,
    traps=(
        Trap(
            "Only the newest row is looked at (next fit). An earlier row may still "
            "have room: take the first that has.",
            next_fit,
        ),
        Trap(
            "Each example goes to the fullest row with room (best fit). Here it is the "
            "first row with room.",
            best_fit,
        ),
        Trap(
            "Each example goes to the emptiest row with room. Here it is the first row "
            "with room.",
            lambda examples, width: best_fit(examples, width, -1),
        ),
        Trap(
            "Each example has a row of its own: that is padding, not packing.",
            ("if room[b] >= need:", "if False:"),
        ),
        Trap(
            "A row is refused when the example would fill it to the last token. Room "
            "equal to the need is enough.",
            ("if room[b] >= need:", "if room[b] > need:"),
        ),
        Trap(
            "An example as long as a row is an error here. It fits: only longer ones "
            "are too long.",
            ("if need > width:", "if need >= width:"),
        ),
        Trap(
            "An example that is too long is cut in silence, its <eos> first. Raise "
            "ValueError and let the caller decide.",
            cut_examples,
        ),
        Trap(
            "An example that is too long is left out in silence. Raise ValueError: "
            "data should not vanish.",
            lambda examples, width: pack_examples(
                [e for e in examples if len(e[0]) + len(e[1]) <= width], width
            ),
        ),
        Trap(
            "The prompt's tokens take no room, so rows overflow. An example needs "
            "prompt and response.",
            (
                "need = len(example[0]) + len(example[1])",
                "need = len(example[1])",
            ),
        ),
        Trap(
            "The examples are sorted by length first. Keep their order: whoever wants "
            "them sorted can sort them before.",
            lambda examples, width: pack_examples(
                sorted(examples, key=lambda e: -len(e[0]) - len(e[1])), width
            ),
        ),
    ),
    twins=(Twin(pack_with_next), Twin(pack_row_after_row)),
    equivalent={
        **dict.fromkeys(
            ["0 → -1 #2", "0 → 1 #2"],
            "the shortest of no examples is asked for by nobody",
        ),
        "first < len(rows) → first > len(rows)": (
            "the search begins at the first row again: slower, and the same row"
        ),
        "len(p) + len(r) → len(p) - len(r)": (
            "rows are then skipped later than they could be, with the same result"
        ),
    },
)

# --- 7.3 sft_loss -------------------------------------------------------------------


def tiny(seed: int) -> PaLM:
    """A small network whose norms are not all ones."""
    config = PaLMConfig(V, dim=12, depth=2, heads=2, head_dim=4, embed_std=0.4)
    model = PaLM(config, seeded(seed))
    with torch.no_grad():
        for n, weight in enumerate(model.parameters()):
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=seeded(seed + n))
    return model


class Bigrams(PaLM):
    """A bfloat16 model whose logits depend on the newest token alone."""

    table: Tensor

    def __init__(self, seed: int) -> None:
        nn.Module.__init__(self)
        table = 2 * torch.randn(V, V, generator=seeded(seed))
        self.register_buffer("table", table.bfloat16())

    def hidden(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.one_hot(ids, V).bfloat16()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.logits(self.hidden(ids))


def sft_cases(seed: int) -> list[Case]:
    examples = examples_of(seed, (3, 4), (1, 5), (2, 1), (4, 2), (1, 2))
    padded = fill_oracle([[one] for one in examples], 8)
    packed = pack_oracle(examples, 12)
    empty = Rows(padded.ids, padded.segments, padded.mask.clone())
    empty.mask[1] = False
    garbage = torch.where(packed.segments == 0, 5, packed.ids)
    return [
        Case("an example a row", tiny(seed), padded),
        Case("packed rows", tiny(seed), packed),
        Case("a row without a response", tiny(seed), empty),
        Case("a part of a batch", tiny(seed), padded[:2], 23),
        Case("a count as a tensor", tiny(seed), packed, total=torch.tensor(17)),
        Case("tokens in the padding", tiny(seed), Rows(garbage, *shape_of(packed))),
        Case("a bfloat16 model", Bigrams(seed), packed),
    ]


def shape_of(rows: Rows) -> tuple[Tensor, Tensor]:
    return rows.segments, rows.mask


def sft_oracle(model: Any, rows: Rows, total: Any = None) -> Tensor:
    """Every response token, one after the other, given all before it of its own "
    "text."""
    losses = []
    for b in range(len(rows.ids)):
        for t in range(rows.ids.shape[1]):
            if rows.mask[b, t]:
                own = rows.segments[b, :t] == rows.segments[b, t]
                logits = model(rows.ids[b, :t][own][None])[0, -1].float()
                share = logits.exp()[rows.ids[b, t]] / logits.exp().sum()
                losses.append(-share.log())
    return torch.stack(losses).sum() / (len(losses) if total is None else int(total))


def sft_of_all_logits(model, rows, total=None):
    """Logits everywhere; the mask comes in at the end."""
    logprobs = model(rows.ids, rows.segments)[:, :-1].float().log_softmax(-1)
    told = logprobs.gather(-1, rows.ids[:, 1:, None])[..., 0]
    mask = rows.mask[:, 1:]
    return -(told * mask).sum() / (mask.sum() if total is None else total)


def sft_by_ignoring(model, rows, total=None):
    """cross_entropy's own way to leave tokens out."""
    logits = model.logits(model.hidden(rows.ids, rows.segments)).float()
    targets = rows.ids.roll(-1, 1).masked_fill(~rows.mask.roll(-1, 1), -1)
    targets[:, -1] = -1
    losses = F.cross_entropy(
        logits.mT, targets, ignore_index=-1, reduction="none"
    ).sum()
    return losses / (rows.mask.sum() if total is None else total)


def mean_of_means(model, rows, total=None):
    parts = [sft_loss(model, rows[b : b + 1]) for b in range(len(rows))]
    whole = torch.stack([part for part in parts if not part.isnan()]).mean()
    return whole if total is None else whole * rows.mask.sum() / total


SFT = Exercise(
    id="7.3",
    answer=sft_loss,
    why="The model learns to answer, not to ask: one mask makes a language model's "
    "loss a teacher of answers.",
    difficulty=3,
    importance=5,
    minutes=15,
    hints=(
        "The mask is True at a response token. At which position is that token "
        "predicted?",
        "$L = -\\frac{1}{\\text{total}} \\sum_{b,t} m_{b,t+1} \\log p(x_{b,t+1} \\mid "
        "x_{b,\\le t}, \\text{own segment})$",
        "`hidden = model.hidden(rows.ids[:, :-1], rows.segments[:, :-1])`",
    ),
    bonus="What does the loss on prompts tell about the model, if you measure it but "
    "do not train on it? Does it fall during SFT?",
    cases=sft_cases,
    oracle=sft_oracle,
    traps=(
        Trap(
            "The prompt is counted, too: the mask, not the segments, says which tokens "
            "are asked for.",
            ("targets = rows.mask[:, 1:]", "targets = rows.segments[:, 1:] > 0"),
        ),
        Trap(
            "Every place of the row is counted, padding included. The mask has no part "
            "in it.",
            (
                "targets = rows.mask[:, 1:]",
                "targets = torch.ones_like(rows.mask[:, 1:])",
            ),
        ),
        Trap(
            "The mask is not shifted with the targets: cut both on the left, or the "
            "last prompt token is asked for and the last of the answer is not.",
            ("targets = rows.mask[:, 1:]", "targets = rows.mask[:, :-1]"),
        ),
        Trap(
            "The <eos> is masked out: the model would never learn to end. It is a "
            "response token like any other.",
            (
                "targets = rows.mask[:, 1:]",
                "targets = rows.mask[:, 1:] & (rows.ids[:, 1:] != 2)",
            ),
        ),
        Trap(
            "Segments are not handed on, so packed examples see each other, and the "
            "second is told what the first has answered.",
            (
                "model.hidden(rows.ids[:, :-1], rows.segments[:, :-1])",
                "model.hidden(rows.ids[:, :-1])",
            ),
        ),
        Trap(
            "Each position is asked for the token that it holds. Tokens and mask are "
            "shifted by one against the states.",
            (
                "model.hidden(rows.ids[:, :-1], rows.segments[:, :-1])",
                "model.hidden(rows.ids[:, 1:], rows.segments[:, 1:])",
            ),
        ),
        Trap(
            "This is a mean of the rows' means: a token of a short answer would weigh "
            "more than one of a long answer. Take one mean over all tokens.",
            mean_of_means,
        ),
        Trap(
            "It divides by all places of the rows. The mean is over response tokens "
            "only.",
            ("targets.sum() if total", "targets.numel() if total"),
        ),
        Trap(
            "`total` has no effect. With it the parts of a batch add up to the loss of "
            "the whole batch.",
            ("(targets.sum() if total is None else total)", "targets.sum()"),
        ),
        Trap(
            "It is a sum over tokens; long batches would take larger steps. Divide by "
            "the number of response tokens.",
            ("(targets.sum() if total is None else total)", "1"),
        ),
        Trap(
            "The sign is turned round: this loss falls when the demonstrations become "
            "less probable.",
            ("return losses", "return -losses"),
        ),
        Trap(
            "The logits stay in bfloat16. A log-sum-exp over the vocabulary needs "
            "float32: call .float() first.",
            ("model.logits(hidden[targets]).float()", "model.logits(hidden[targets])"),
        ),
    ),
    twins=(Twin(sft_of_all_logits), Twin(sft_by_ignoring)),
)

# --- 7.4 batch_rows -----------------------------------------------------------------


def batch_cases(seed: int) -> list[Case]:
    return [
        Case("batches that fill an epoch", 12, 4, 9, seed),
        Case("batches that span the end of an epoch", 10, 4, 10, seed),
        Case("the example of the docstring", 4, 3, 8, seed + 3),
        Case("more rows a step than there are", 3, 8, 6, seed),
        Case("one row", 1, 2, 2, seed),
        Case("thirty rows, one by one", 30, 1, 90, seed),
        Case("nothing to learn from", 0, 4, 1, seed),
    ]


def run_batches(candidate: Candidate, n: int, size: int, steps: int, seed: int) -> Any:
    """What can be said of the rows without knowing how they were shuffled."""
    torch.manual_seed(seed + 1)
    before = torch.get_rng_state()
    later = candidate(n, size, steps, seed).tolist()  # before the steps in front of it
    got = [candidate(n, size, step, seed) for step in range(1, steps + 1)]
    other = [candidate(n, size, step, seed + 1) for step in range(1, steps + 1)]
    ambient = torch.equal(torch.get_rng_state(), before)
    rows = [row for batch in got for row in batch.tolist()]
    others = [row for batch in other for row in batch.tolist()]
    epochs = [rows[i : i + n] for i in range(0, len(rows) - n + 1, n)]
    seen: dict[str, Any] = {
        "type": got[0].dtype,
        "rows a step": [tuple(batch.shape) for batch in got],
        "each epoch, sorted": [sorted(epoch) for epoch in epochs],
        "a step alone gives the same rows": later == got[-1].tolist(),
        "torch's own random state is left alone": ambient,
    }
    if n >= 10:  # where equal orders by chance need not be feared
        theirs = [others[i : i + n] for i in range(0, len(others) - n + 1, n)]
        seen |= {
            "epochs with an order of their own": len({tuple(e) for e in epochs}),
            "epochs that another seed has, too": sum(e in theirs for e in epochs),
            "an epoch in the order of the rows": list(range(n)) in epochs,
        }
    return seen


def batch_oracle(n: int, size: int, steps: int, seed: int) -> Any:
    """What must be true of any right answer."""
    if n < 1:
        raise ValueError
    epochs = steps * size // n
    seen: dict[str, Any] = {
        "type": torch.long,
        "rows a step": [(size,)] * steps,
        "each epoch, sorted": [list(range(n))] * epochs,
        "a step alone gives the same rows": True,
        "torch's own random state is left alone": True,
    }
    if n >= 10:
        seen |= {
            "epochs with an order of their own": epochs,
            "epochs that another seed has, too": 0,
            "an epoch in the order of the rows": False,
        }
    return seen


def batch_from_the_first(n, batch_size, step, seed):
    """All epochs from the first, from one generator, cut into batches."""
    if n < 1:
        raise ValueError("no rows")
    draw, rows = torch.Generator().manual_seed(seed), []
    while len(rows) < step * batch_size:
        rows += torch.randperm(n, generator=draw).tolist()
    return torch.tensor(rows[(step - 1) * batch_size : step * batch_size])


def batch_by_sorting(n, batch_size, step, seed):
    """Sort random keys, an epoch at a time."""
    if not n:
        raise ValueError("no rows")
    first = (step - 1) * batch_size
    begin, end = first // n, (first + batch_size - 1) // n
    parts = []
    for epoch in range(begin, end + 1):
        draw = torch.Generator().manual_seed(hash((seed, epoch)) % 2**60)
        parts.append(torch.rand(n, generator=draw, dtype=torch.double).argsort())
    return torch.cat(parts)[first - begin * n :][:batch_size]


def with_replacement(n, batch_size, step, seed):
    if n == 0:
        raise ValueError
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randint(n, (batch_size,), generator=draw)


def short_batches(n, batch_size, step, seed):
    if n == 0:
        raise ValueError
    each = -(-n // batch_size)
    epoch, place = divmod(step - 1, each)
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=draw)[place * batch_size :][:batch_size]


def dropped_rest(n, batch_size, step, seed):
    if n == 0:
        raise ValueError
    each = max(n // batch_size, 1)
    epoch, place = divmod(step - 1, each)
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=draw)[place * batch_size :][:batch_size]


BATCH = Exercise(
    id="7.4",
    answer=batch_rows,
    why="Every row once an epoch, and the same rows again after a crash: a run that "
    "resumes must not know that it was ever stopped.",
    difficulty=3,
    importance=3,
    minutes=12,
    at_home=True,
    hints=(
        "Lay all epochs end to end. Which places of that endless list does step s "
        "take?",
        "Places $(s-1)B, \\dots, sB - 1$; place $i$ is row $\\pi_e(i \\bmod n)$ of "
        "epoch $e = \\lfloor i / n \\rfloor$, and $\\pi_e$ depends on seed and $e$ "
        "alone.",
        "`places = range((step - 1) * batch_size, step * batch_size)`",
    ),
    bonus="Order the rows of an epoch from easy to hard instead, by the loss of the "
    "untrained model. Does the run end better or worse?",
    cases=batch_cases,
    oracle=batch_oracle,
    run=run_batches,
    traps=(
        Trap(
            "Rows are drawn anew at every step, so an epoch sees some twice and others "
            "never. Shuffle once an epoch and go through it.",
            with_replacement,
        ),
        Trap(
            "Every epoch has the same order. Let the number of the epoch join the "
            "seed.",
            ("seed * 1_000_003 + epoch", "seed * 1_000_003"),
        ),
        Trap(
            "The seed has no effect: another seed should see other orders.",
            ("seed * 1_000_003 + epoch", "epoch"),
        ),
        Trap(
            "seed + epoch is the same for seed 0 in epoch 1 and for seed 1 in epoch 0: "
            "runs that should be independent share their orders.",
            ("seed * 1_000_003 + epoch", "seed + epoch"),
        ),
        Trap(
            "Steps count from 1, so step 1 begins at place 0. Here the first batch of "
            "the run is skipped.",
            (
                "range((step - 1) * batch_size, step * batch_size)",
                "range(step * batch_size, (step + 1) * batch_size)",
            ),
        ),
        Trap(
            "The batch at the end of an epoch is cut short. A batch always has "
            "batch_size rows: it goes on with the next epoch.",
            short_batches,
        ),
        Trap(
            "The rows that do not fill a batch are dropped at the end of an epoch. "
            "They come first in a batch that goes on with the next epoch.",
            dropped_rest,
        ),
        Trap(
            "The order comes from torch's global randomness, so a resumed run sees "
            "other rows. Use a generator made from seed and epoch.",
            (
                "n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)",
                "n",
            ),
        ),
        Trap(
            "torch.manual_seed sets the global random state, and all that is drawn "
            "elsewhere changes with it. Make a torch.Generator of your own.",
            ("torch.Generator().manual_seed(", "torch.manual_seed("),
        ),
        Trap(
            "The rows are not shuffled: neighbours in the file would always share a "
            "batch.",
            (
                "torch.randperm(\n            n, "
                "generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)\n"
                "        )",
                "torch.arange(n)",
            ),
        ),
        Trap(
            "Without any rows there is nothing to train on: raise ValueError, rather "
            "than fail in an arithmetic error.",
            ("if n == 0:", "if False:"),
        ),
    ),
    twins=(Twin(batch_from_the_first), Twin(batch_by_sorting)),
    equivalent=dict.fromkeys(
        [
            "seed * 1000003 + epoch → seed * 1000003 - epoch",
            "seed * 1000003 → seed * 1000002",
            "seed * 1000003 → seed * 1000004",
        ],
        "any other way to mix seed and epoch is as good",
    ),
)

# --- 7.5 sft_step -------------------------------------------------------------------


def step_cases(seed: int) -> list[Case]:
    return [
        Case("the whole batch at once", seed, 0),
        Case("parts of two rows, the last of one", seed, 2),
        Case("row by row, packed", seed, 1, width=14),
        Case("parts larger than the batch", seed, 64, width=11),
        Case("a gradient that is not clipped", seed, 3, clip=1e3, lr=0.02),
    ]


def world(seed: int, width: int, clip: float, lr: float, micro_batch: int) -> Any:
    """A network, three batches of five examples each, and the dials."""
    lengths = [(3, 7), (1, 2), (2, 1), (4, 5), (1, 4)]
    some = [examples_of(10 * seed + n, *lengths) for n in range(3)]
    batches = [pack_oracle(one, width) if width else pad_rows(one) for one in some]
    config = OptimConfig(
        steps=4,
        batch_size=5,
        lr=lr,
        warmup=0.5,
        grad_clip=clip,
        micro_batch=micro_batch,
    )
    return tiny(seed), batches, config


def pad_rows(examples: list[Example]) -> Rows:
    return fill_oracle([[one] for one in examples], 10)


def run_step(
    candidate: Candidate,
    seed: int,
    micro_batch: int,
    width: int = 0,
    clip: float = 0.3,
    lr: float = 0.3,
) -> dict[str, Any]:
    """Three steps; what each returns and leaves behind."""
    model, batches, config = world(seed, width, clip, lr, micro_batch)
    # SGD with momentum, since Adam blows up the rounding of gradients near 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    plain, passes = model.hidden, []

    def counted(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        passes.append(len(ids))
        return plain(ids, *args, **kwargs)

    model.hidden = counted
    seen: dict[str, Any] = {}
    for step, rows in enumerate(batches, start=1):
        told = candidate(model, optimizer, rows, config, step)
        grads = [w.grad for w in model.parameters() if w.grad is not None]
        seen[f"loss and norm of step {step}"] = told
        seen[f"gradient left after step {step}"] = float(
            sum(g.abs().sum() for g in grads)
        )
        for name, weight in model.named_parameters():
            seen[f"{name} after step {step}"] = weight.detach().clone()
    part = micro_batch or 64
    seen["passes of too many rows"] = sum(rows > part for rows in passes)
    return seen


def step_oracle(
    seed: int, micro_batch: int, width: int = 0, clip: float = 0.3, lr: float = 0.3
) -> dict[str, Any]:
    """The slow loss of the whole batch, and the step written out weight by weight."""
    model, batches, config = world(seed, width, clip, lr, micro_batch)
    weights = dict(model.named_parameters())
    speed = {name: torch.zeros_like(w) for name, w in weights.items()}
    seen: dict[str, Any] = {}
    for step, rows in enumerate(batches, start=1):
        loss = sft_oracle(model, rows)
        grads = torch.autograd.grad(loss, list(weights.values()))
        norm = sum(float(g.square().sum()) for g in grads) ** 0.5
        share = lr_scale(step, config.steps, config.warmup, config.final_lr)
        with torch.no_grad():
            for (name, w), g in zip(weights.items(), grads):
                speed[name] = 0.5 * speed[name] + g * min(1.0, clip / norm)
                w -= lr * share * speed[name]
        seen[f"loss and norm of step {step}"] = (loss.item(), norm)
        seen[f"gradient left after step {step}"] = 0.0
        seen |= {
            f"{n} after step {step}": w.detach().clone() for n, w in weights.items()
        }
    seen["passes of too many rows"] = 0
    return seen


def step_written_out(model, optimizer, rows, config, step):
    """All of it, without the helpers."""
    size, total = config.micro_batch or len(rows), int(rows.mask.sum())
    model.zero_grad()
    losses = []
    for start in range(0, len(rows), size):
        loss = sft_loss(model, rows[start : start + size], total)
        loss.backward()
        losses.append(float(loss))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    share = lr_scale(step, config.steps, config.warmup, config.final_lr)
    for group in optimizer.param_groups:
        group["lr"] = share * config.lr
    optimizer.step()
    model.zero_grad(set_to_none=False)
    return sum(losses), float(norm)


def step_by_weights(model, optimizer, rows, config, step):
    """Each part's own mean, weighted by its share of the response tokens."""
    weights, total, loss = list(model.parameters()), rows.mask.sum(), 0.0
    summed = [torch.zeros_like(w) for w in weights]
    for part in torch.arange(len(rows)).split(config.micro_batch or len(rows)):
        share = rows.mask[part].sum() / total
        mean = sft_loss(model, rows[part])
        for one, grad in zip(summed, torch.autograd.grad(mean, weights)):
            one += share * grad
        loss += float(share * mean)
    for weight, one in zip(weights, summed):
        weight.grad = one
    return loss, optimizer_step(model, optimizer, config, step)


def own_step(clip=True, rate=True, zero=True, late=False):
    """Wrong steps, written out: without clipping, schedule or an end to gradients."""

    def step_of(model, optimizer, rows, config, step):
        total, loss = rows.mask.sum(), 0.0
        for part in micro_batches(torch.arange(len(rows)), config.micro_batch):
            partial = sft_loss(model, rows[part], total)
            partial.backward()
            loss += partial.item()
        most = config.grad_clip if clip else float("inf")
        norm = nn.utils.clip_grad_norm_(model.parameters(), most).item()
        share = lr_scale(step, config.steps, config.warmup, config.final_lr)
        set_lr(optimizer, config.lr * (share if rate else 1.0))
        optimizer.step()
        if zero:
            optimizer.zero_grad()
        return loss, min(norm, config.grad_clip) if late else norm

    return step_of


STEP = Exercise(
    id="7.5",
    answer=sft_step,
    why="This is training: loss, gradient, step. Cut into parts, it fits into any "
    "memory and must still be the same step.",
    difficulty=3,
    importance=5,
    minutes=15,
    hints=(
        "If each part divides by the response tokens of the whole batch, what is the "
        "sum of their gradients?",
        "$\\nabla L = \\sum_i \\nabla L_i$ with $L_i = -\\frac{1}{\\sum_b m} "
        "\\sum_{b \\in i} m \\log p$, and only then one step.",
        "`total = rows.mask.sum()`, and `optimizer_step(model, optimizer, config, "
        "step)` for the rest",
    ),
    bonus="Give the parts very different numbers of response tokens and compare with "
    "a mean of the parts' means: how far apart do the two runs end?",
    cases=step_cases,
    oracle=step_oracle,
    run=run_step,
    changes_inputs=True,
    traps=(
        Trap(
            "Each part divides by its own tokens, so the sum is several times the "
            "mean. Give sft_loss the total of the whole batch.",
            ("rows[part], total)", "rows[part])"),
        ),
        Trap(
            "This is a mean of the parts' means: parts with few response tokens weigh "
            "too much. Divide each by the total of the batch.",
            (
                "sft_loss(model, rows[part], total)",
                "sft_loss(model, rows[part]) / "
                "len(micro_batches(torch.arange(len(rows)), config.micro_batch))",
            ),
        ),
        Trap(
            "It averages twice: each part is divided by the batch's total already, and "
            "then again by the number of parts.",
            (
                "sft_loss(model, rows[part], total)",
                "sft_loss(model, rows[part], total) / "
                "len(micro_batches(torch.arange(len(rows)), config.micro_batch))",
            ),
        ),
        Trap(
            "The gradient stays for the next step and is added to that of the next "
            "batch. zero_grad at the end.",
            own_step(zero=False),
        ),
        Trap(
            "The gradient is forgotten before each part, so only the last part is "
            "learnt from.",
            (
                "        partial.backward()",
                "        model.zero_grad()\n        partial.backward()",
            ),
        ),
        Trap(
            "Every part takes a step of its own. A batch is one step, after all of its "
            "parts.",
            (
                "        loss += partial.item()",
                "        loss += partial.item()\n"
                "        norm = optimizer_step(model, optimizer, config, step)",
            ),
            (
                "return loss, optimizer_step(model, optimizer, config, step)",
                "return loss, norm",
            ),
        ),
        Trap(
            "The gradient is not clipped: one odd batch could throw the model far off. "
            "config.grad_clip is the largest norm.",
            own_step(clip=False),
        ),
        Trap(
            "The schedule has no effect: the rate is config.lr times lr_scale of this "
            "step.",
            own_step(rate=False),
        ),
        Trap(
            "The norm is told after clipping, where it can hardly tell you anything. "
            "Give the one from before.",
            own_step(late=True),
        ),
        Trap(
            "The rate is that of the step before. Steps count from 1, as lr_scale "
            "does.",
            ("optimizer, config, step)", "optimizer, config, step - 1)"),
        ),
        Trap(
            "The loss told is that of the last part. Add the parts up.",
            ("loss += partial.item()", "loss = partial.item()"),
        ),
        Trap(
            "The loss is a tensor that still holds the graph of every part, and the "
            "memory with it. Take the number: .item().",
            ("loss += partial.item()", "loss = loss + partial"),
        ),
        Trap(
            "The batch goes through in one piece whatever micro_batch says. It bounds "
            "the rows of a pass, and with them the memory.",
            (
                "micro_batches(torch.arange(len(rows)), config.micro_batch)",
                "[slice(None)]",
            ),
        ),
        Trap(
            "The last part is left out where it is smaller than the others. Every row "
            "of the batch counts.",
            (
                "in micro_batches(torch.arange(len(rows)), config.micro_batch):",
                "in micro_batches(torch.arange(len(rows) // (config.micro_batch or 1) "
                "* (config.micro_batch or 1) or len(rows)), config.micro_batch):",
            ),
        ),
        Trap(
            "Nothing is learnt: without backward there is no gradient to step along.",
            ("        partial.backward()\n", ""),
        ),
    ),
    twins=(Twin(step_written_out), Twin(step_by_weights)),
    tolerance=3e-4,
    equivalent={
        "rows = beside(model, rows) → pass": (
            "in a class the rows and the model both lie on the CPU"
        ),
    },
)

EXERCISES = (FILL, PACK, SFT, BATCH, STEP)
