"""Sampling at full size: every buffer is there from the start, every step is the same.

`generate` grows its cache token by token, and Python starts each of the thousand
kernels of a step by hand. At full size that takes longer than the kernels themselves.
Here nothing changes its shape or its place from step to step, so that a GPU can record
a step once, as a CUDA graph, and repeat it by itself.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor

from minipalm.model.block import ParallelBlock, Rotations
from minipalm.model.branches import adapters, hidden_with_buffers
from minipalm.model.compiled import compiled
from minipalm.model.draw import next_token
from minipalm.model.generate import Sampled
from minipalm.model.palm import PaLM
from minipalm.model.rope import rotations

LOOK_EVERY = 8  # tokens after which ended rows are counted; the GPU waits for that
SMALLEST = 64  # rows; fewer cost as much, since the weights must be read in any case


class Decoder:
    """Answers to at most `rows` prompts at a time, from buffers of a fixed size.

    Columns 0 to max_prompt − 1 of the buffers are the prompts', left-padded, the others
    the answers'. A row that has ended goes on until half of the rows have, and the
    others move up: a step then does half of them.

    Args:
        model: parallel blocks. It is not copied: the decoder samples from its weights
            as they are at the time, so they may change in place (`refresh`, or
            training of adapters), but not move.
        rows: B, prompts at a time.
        max_prompt: P.
        max_response: R, the longest answer.

    Source: the scheme is that of gpt-fast (pytorch.org/blog/accelerating-generative-
    ai-2, 2023): a static cache, compiled blocks, a CUDA graph.
    """

    def __init__(
        self, model: PaLM, rows: int, max_prompt: int, max_response: int
    ) -> None:
        self.model, self.P, self.R = model, max_prompt, max_response
        config, like = model.config, model.embedding.weight
        if not all(isinstance(block, ParallelBlock) for block in model.blocks):
            raise ValueError("a decoder needs a model of parallel blocks")
        self.adapted = adds_adapters(model)
        size = (config.depth, rows, config.kv_heads, self.P + self.R, config.head_dim)
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)

        def of(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=like.device)

        self.row = of(rows)  # which prompt stands in each place
        self.first = of(rows)  # the column where it begins
        self.token = of(rows)  # the newest of each row
        self.going = of(rows, dtype=torch.bool)  # it has not ended
        self.responses = of(rows, self.R)
        self.mask = of(rows, self.R, dtype=torch.bool)
        self.logprobs = of(rows, self.R, dtype=torch.float32)
        self.uniforms = of(rows, self.R, dtype=torch.float32)
        self.drawn = of(1)  # tokens that each answer has so far
        self.eos_id = of(1)
        self.temperature = torch.ones(1, device=like.device)

        # attention's branch goes first, as its kernels are short
        self.stream = torch.cuda.Stream(priority=-1) if like.is_cuda else None
        self.sizes = [rows]  # of a step, the largest first
        while self.sizes[-1] % 2 == 0 and self.sizes[-1] > SMALLEST:
            self.sizes.append(self.sizes[-1] // 2)
        self.graphs = {size: self.record(size) for size in self.sizes if like.is_cuda}

    @torch.no_grad()
    def refresh(self, weights_from: PaLM) -> None:
        """Take over the weights of a model of the same shape, sharded or not, in place.

        A sharded one is put together weight by weight, which all ranks must do at once.
        """
        for mine, theirs in zip(
            self.model.parameters(), weights_from.parameters(), strict=True
        ):
            whole = theirs.to(mine.dtype)
            mine.copy_(whole.full_tensor() if isinstance(whole, DTensor) else whole)

    @torch.no_grad()
    def sample(
        self,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        uniforms: Float[Tensor, "B T"],
        *,
        eos_id: int,
        temperature: float = 1.0,
    ) -> Sampled:
        """Answer each prompt until its end-of-sequence token, or for T tokens.

        Token t of row b is the first whose cumulative probability exceeds
        uniforms[b, t]. So an answer depends on its own prompt and numbers, and not on
        the batch that it is in.

        Args:
            prompts, prompt_mask: left-padded, not empty; B ≤ rows, P ≤ max_prompt.
            uniforms: from [0, 1), independent; T ≤ max_response.
            eos_id: ends a row.
            temperature: divides the logits; above 0.

        Returns:
            as `generate` does.

        Raises:
            ValueError: a prompt is not left-padded or empty, or more is asked for than
                there is room.
        """
        B, T = uniforms.shape
        self.begin(prompts, prompt_mask, uniforms, eos_id, temperature)
        size = [size for size in self.sizes if size >= B][-1]
        self.read_prompts(size)
        for t in range(1, T):
            if t % LOOK_EVERY == 1:
                left = int(self.going.sum())
                if left == 0:
                    break
                while size // 2 in self.sizes and left <= size // 2:
                    self.move_up(size)
                    size //= 2
            if size in self.graphs:
                self.graphs[size].replay()
            else:
                self.step(size)
        order = self.row.argsort()[:B]
        done = (self.responses, self.mask, self.logprobs)
        return Sampled(*(x[order, :T] for x in done))

    def begin(
        self,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        uniforms: Float[Tensor, "B T"],
        eos_id: int,
        temperature: float,
    ) -> None:
        """Fill the buffers; places that no prompt has count as ended rows."""
        (B, T), P = uniforms.shape, prompts.shape[1]
        if self.adapted != adds_adapters(self.model):
            raise ValueError(
                "adapters were merged, or taken out again, since this decoder was made"
            )
        if not (prompt_mask[:, -1].all() and (prompt_mask.long().diff() >= 0).all()):
            raise ValueError("prompts must be left-padded and not empty")
        if B > len(self.row) or P > self.P or T > self.R or len(prompts) != B:
            raise ValueError(
                f"there is room for {len(self.row)} rows of {self.P} + {self.R} tokens "
                f"(got prompts {tuple(prompts.shape)} and numbers {tuple((B, T))})"
            )
        self.row.copy_(torch.arange(len(self.row)))
        self.prompts = F.pad(prompts, (self.P - P, 0, 0, len(self.row) - B))
        self.seen = F.pad(prompt_mask, (self.P - P, 0, 0, len(self.row) - B))
        self.first.copy_(self.P - self.seen.sum(1))
        self.uniforms[:B, :T] = uniforms
        self.mask.zero_()
        self.logprobs.zero_()
        self.going.copy_(self.row < B)
        self.drawn.zero_()
        self.eos_id.fill_(eos_id)
        self.temperature.fill_(temperature)

    def read_prompts(self, size: int) -> None:
        """Keep keys and values of the prompts; draw each answer's first token."""
        last = []
        for part in torch.arange(size).split(self.sizes[-1]):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            mask, rope = self.model.places(self.prompts[rows], self.seen[rows].long())
            columns = torch.arange(self.P, device=self.row.device)
            assert mask is not None
            last.append(self.last_hidden(self.prompts[rows], mask, rope, columns, rows))
        self.draw(torch.cat(last))

    @torch.no_grad()
    def step(self, size: int) -> None:
        """Draw one token more for each of the first `size` rows."""
        column = self.P + self.drawn - 1  # of the newest token
        columns = torch.arange(self.P + self.R, device=self.row.device)
        first = self.first[:size, None]
        mask = ((first <= columns) & (columns <= column))[:, None]
        config = self.model.config
        rope = rotations(column - first, config.head_dim, config.rope_base)
        ids = self.token[:size, None]
        self.draw(self.last_hidden(ids, mask, rope, column, slice(0, size)))

    def last_hidden(
        self,
        ids: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T S"],
        rope: Rotations,
        columns: Int[Tensor, "T"],
        rows: slice,
    ) -> Float[Tensor, "B D"]:
        """The state at the last of T tokens, which stand in these columns and rows."""
        keys, values = self.keys[:, rows], self.values[:, rows]
        x = hidden_with_buffers(
            self.model, ids, mask, rope, columns, keys, values, self.stream
        )
        return x[:, -1]

    def draw(self, hidden: Float[Tensor, "B D"]) -> None:
        """Note the next token of the first B rows; ended ones keep theirs."""
        B, t = len(hidden), self.drawn
        uniforms = self.uniforms[:B].index_select(1, t)[:, 0]
        head = self.model.embedding.weight
        choose = compiled(next_token) if hidden.is_cuda else next_token
        token, logprob = choose(hidden, head, self.temperature, uniforms)
        going = self.going[:B]
        self.token[:B] = token
        self.responses[:B].index_copy_(1, t, token[:, None])
        self.logprobs[:B].index_copy_(1, t, (logprob * going)[:, None])
        self.mask[:B].index_copy_(1, t, going[:, None])
        going &= token != self.eos_id
        t += 1

    def move_up(self, size: int) -> None:
        """Put the rows that go on before those that have ended."""
        order = self.going[:size].long().argsort(descending=True, stable=True)
        for state in (
            *(self.row, self.first, self.token, self.going),
            *(self.responses, self.mask, self.logprobs, self.uniforms),
        ):
            state[:size] = state[order]
        for number in range(len(self.keys)):  # layer by layer: less to hold at once
            for kept in (self.keys[number], self.values[number]):
                kept[: size // 2] = kept[order[: size // 2]]

    def record(self, size: int) -> torch.cuda.CUDAGraph:
        """A step as a CUDA graph: kernels, addresses and order, to be replayed."""
        self.step(size)  # compiles what is not compiled yet
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        self.drawn.zero_()
        with torch.cuda.graph(graph):
            self.step(size)
        return graph


def adds_adapters(model: PaLM) -> bool:
    """Whether there are some that are not merged into the weights."""
    blocks = (block for block in model.blocks if isinstance(block, ParallelBlock))
    return any(adapters(block) is not None for block in blocks)
