"""A language model that answers what a benchmark asks: how likely, and what next.

A benchmark knows texts only. Multiple choice asks how likely each choice is behind the
question; perplexity how likely a text is; generation what comes next, up to a stop.
Long texts are cut into windows, equal beginnings are read once, and rows of like length
share a batch: none of it changes a number, which tests hold against a plain loop.

Left out on purpose: chat templates, several devices, beams. lm-evaluation-harness's own
models have them (EleutherAI/lm-evaluation-harness).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.tokenizer import SPECIALS, Tokenizer
from minipalm.model.cache import KVCache
from minipalm.model.generate import sampling_law
from minipalm.model.palm import PaLM

Scored = tuple[list[int], int]  # ids of a row, and how many at its end are asked about


def split_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Scored:
    """<bos>, context and continuation as ids, and how many belong to the continuation.

    Spaces at the end of the context go to the continuation, since a byte-pair token
    begins with its space. The two are encoded as one text, as a reader would see them;
    only where a token would reach across the seam is each encoded on its own.

    Args:
        tokenizer: of the model.
        context: may be empty.
        continuation: what is asked about.

    Example: a = 3, fox = 4: ("a", " fox") is ([1, 3, 4], 1).
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    head = prompt_ids(tokenizer, kept)
    whole = prompt_ids(tokenizer, kept + continuation)
    if whole[: len(head)] != head:
        whole = head + tokenizer.encode(continuation)
    return whole, len(whole) - len(head)


def windows(ids: Sequence[int], scored: int, window: int) -> Iterator[Scored]:
    """Cut a row into pieces that fit, each of the last `scored` ids asked about once.

    A piece has at most window + 1 ids: the model reads all but the last. Each piece
    goes back as far as it can, so the last one has a full context, too.

    Args:
        ids: of the whole row.
        scored: how many at its end are asked about, fewer than there are.
        window: tokens that the model reads at once.

    Example: ids 0 to 6, the last 6 asked about, window 4: (0 1 2 3 4, 4) and
    (2 3 4 5 6, 2).

    Source: `loglikelihood_rolling` of lm-evaluation-harness has the same windows.
    """
    for start in range(len(ids) - scored, len(ids), window):
        end = min(start + window, len(ids))
        yield list(ids[max(0, end - window - 1) : end]), end - start


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops, or all of it."""
    return text[: min([at for at in map(text.find, stops) if at >= 0] or [len(text)])]


@dataclass(frozen=True)
class Sampling:
    """How to go on; see `sampling_law`."""

    stops: tuple[str, ...]
    max_new_tokens: int = 256  # the harness's own default
    temperature: float = 0.0  # 0: always the most probable token
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def read(cls, asked: Mapping[str, Any]) -> "Sampling":
        """From `generation_kwargs` of a task.

        Raises:
            ValueError: something is asked for that is not there.
        """
        rest = dict(asked)
        until = rest.pop("until", None) or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        greedy = not rest.pop("do_sample", False)
        temperature = 0.0 if greedy else float(rest.pop("temperature", 1.0))
        rest.pop("temperature", None)
        read = cls(
            stops=tuple(stop for stop in stops if stop),
            max_new_tokens=int(rest.pop("max_gen_toks", cls.max_new_tokens)),
            temperature=temperature,
            top_k=rest.pop("top_k", None),
            top_p=rest.pop("top_p", None),
        )
        if rest:
            raise ValueError(
                f"the task asks to generate with {', '.join(sorted(rest))}; known are "
                "until, max_gen_toks, do_sample, temperature, top_k and top_p"
            )
        return read


class Examinee:
    """A PaLM and its tokenizer, sitting an exam.

    Every row begins with <bos>, until the window has to drop it.

    Args:
        model: any PaLM; it is not changed.
        tokenizer: the one that it was trained with.
        window: tokens that it reads at once; those of a training row. What is before
            them is cut off.
        batch_size: rows at a time.
        generator: draws tokens where a task samples; on the model's device.
    """

    def __init__(
        self,
        model: PaLM,
        tokenizer: Tokenizer,
        *,
        window: int,
        batch_size: int = 32,
        generator: torch.Generator,
    ) -> None:
        if window < 2:
            raise ValueError(f"a window has room for 2 tokens or more (got {window})")
        self.model, self.tokenizer = model, tokenizer
        self.window, self.batch_size = window, batch_size
        self.generator = generator

    # --- how likely? ------------------------------------------------------------------

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]]
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log p(continuation | context), nats, and
        whether each of its tokens is the most probable one at its place.

        Example: two tokens of probability 1/2 and 1/4: −2.079.
        """
        return self.score([split_pair(self.tokenizer, *pair) for pair in pairs])

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """log p of each whole text after <bos>, nats, window by window."""
        rows = [prompt_ids(self.tokenizer, text) for text in texts]
        return [logprob for logprob, _ in self.score([(x, len(x) - 1) for x in rows])]

    @torch.no_grad()
    def score(self, asked: Sequence[Scored]) -> list[tuple[float, bool]]:
        """Of each row's last tokens: the sum of log-probabilities, and all greedy?"""
        # What the model reads -> who asks: (row, its last token, tokens asked about).
        # The one-letter choices of a question all read the same.
        readers: dict[tuple[int, ...], list[tuple[int, int, int]]] = defaultdict(list)
        for row, (ids, scored) in enumerate(asked):
            for piece, n in windows(ids, scored, self.window):
                readers[tuple(piece[:-1])].append((row, piece[-1], n))
        totals, greedy = [0.0] * len(asked), [True] * len(asked)
        # the longest first: what does not fit fails at once
        for batch in self.batches(sorted(readers, key=len, reverse=True)):
            laws = self.laws(batch, max(n for x in batch for _, _, n in readers[x]))
            for read, law in zip(batch, laws):
                for row, last, n in readers[read]:
                    targets = torch.tensor([*read, last][-n:], device=law.device)
                    picked = law[-n:].gather(-1, targets[:, None])[:, 0]
                    totals[row] += picked.sum().item()
                    greedy[row] &= bool((law[-n:].argmax(-1) == targets).all())
        return list(zip(totals, greedy))

    def laws(self, rows: Sequence[Sequence[int]], last: int) -> Float[Tensor, "B L V"]:
        """Log-probabilities of the token after each of the last L tokens, float32."""
        ids, segments = self.padded(rows)
        hidden = self.model.hidden(ids, segments, last=last)
        return self.model.logits(hidden).float().log_softmax(-1)

    # --- what next? -------------------------------------------------------------------

    def generate_until(
        self, pairs: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> list[str]:
        """Of each (context, generation_kwargs): what the model writes, up to a stop.

        An answer has at most half of the window: where max_gen_toks is more, less is
        written; the context is cut from the left to the room that is left.
        """
        groups: dict[Sampling, list[int]] = defaultdict(list)
        for row, (_, asked) in enumerate(pairs):
            groups[Sampling.read(asked)].append(row)
        answers = [""] * len(pairs)
        for sampling, members in groups.items():
            new = min(sampling.max_new_tokens, self.window // 2)
            room = self.window - new
            contexts = {
                row: prompt_ids(self.tokenizer, pairs[row][0])[-room:]
                for row in members
            }
            members.sort(key=lambda row: len(contexts[row]), reverse=True)
            for batch in self.batches(members):
                texts = self.write([contexts[row] for row in batch], new, sampling)
                for row, text in zip(batch, texts):
                    answers[row] = text
        return answers

    @torch.no_grad()
    def write(
        self, contexts: Sequence[Sequence[int]], new: int, sampling: Sampling
    ) -> list[str]:
        """Go on until <eos>, a stop, or for `new` tokens; `generate` with stops."""
        written: list[list[int]] = [[] for _ in contexts]
        # A stop that has just been completed lies within this many tokens, of a byte or
        # more each.
        reach = max([len(stop.encode()) for stop in sampling.stops], default=1)
        ids, segments = self.padded(contexts)
        B, P = ids.shape
        like = self.model.embedding.weight
        cache = KVCache(self.model.config, B, P + new, like)
        hidden = self.model.hidden(ids, segments, cache=cache, last=1)
        rows = list(range(B))  # still being written
        for t in range(new):
            logits = self.model.logits(hidden[:, -1])
            law = sampling_law(
                logits, sampling.temperature, sampling.top_k, sampling.top_p
            )
            token = torch.multinomial(law.exp(), 1, generator=self.generator)
            going = []
            for at, (row, one) in enumerate(zip(rows, token[:, 0].tolist())):
                if one == self.tokenizer.eos_id:
                    continue
                if one >= SPECIALS:  # the others stand for no text
                    written[row].append(one)
                tail = self.tokenizer.decode(written[row][-reach:])
                if not any(stop in tail for stop in sampling.stops):
                    going.append(at)
            if not going or t == new - 1:
                break
            if len(going) < len(rows):
                rows = [rows[at] for at in going]
                kept = torch.tensor(going, device=like.device)
                token = token[kept]
                cache.keep(kept)
            hidden = self.model.hidden(token, cache=cache)
        texts = [self.tokenizer.decode(row) for row in written]
        return [before_stop(text, sampling.stops) for text in texts]

    # --- both -------------------------------------------------------------------------

    def batches(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """batch_size items at a time; sorted by length they need little padding."""
        starts = range(0, len(items), self.batch_size)
        # disable=None: a bar in a terminal only
        for start in tqdm(starts, unit="batch", leave=False, disable=None):
            yield items[start : start + self.batch_size]

    def padded(
        self, rows: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Ids, left-padded, and segments: 1 at tokens, 0 at padding."""
        ids, mask = pad_left(rows, max(map(len, rows)))
        device = self.model.embedding.weight.device
        return ids.to(device), mask.long().to(device)
