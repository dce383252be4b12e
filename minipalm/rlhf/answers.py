"""Ask a policy many prompts, and keep its answers as tokens and as texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.tokenizer import Tokenizer
from minipalm.model.palm import PaLM
from minipalm.model.place import beside
from minipalm.parallel import is_first, row_by_row
from minipalm.rlhf.sampling import Sampler

Tokens = tuple[
    Int[Tensor, "N P"], Bool[Tensor, "N P"], Int[Tensor, "N T"], Bool[Tensor, "N T"]
]  # prompts, prompt_mask (left-padded), responses, mask (right-padded)


@dataclass(frozen=True)
class Answers:
    """One answer to each prompt; entry n of all is about prompt n.

    Attributes:
        prompts, texts: prompts and answers as texts.
        finished: whether the answer ended by itself.
        tokens: what the models take. These are the tokens that were sampled, not those
            of `texts` encoded again.
    """

    prompts: list[str]
    texts: list[str]
    finished: list[bool]
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.prompts)

    def token_batches(self, size: int) -> Iterator[Tokens]:
        """The tokens of `size` answers at a time."""
        prompts, prompt_mask, responses, mask = (x.split(size) for x in self.tokens)
        yield from zip(prompts, prompt_mask, responses, mask)


def score_answers(
    reward: Callable[..., Tensor], answers: Answers, size: int = 256
) -> Float[Tensor, "N"]:
    """The reward of each answer, `size` at a time, without a gradient, on the CPU.

    Each process scores its share, and all get all scores.
    """
    return row_by_row(
        lambda rows: reward(*(x[rows] for x in answers.tokens)), len(answers), size
    ).cpu()


def answers_of(tokens: Tokens, tokenizer: Tokenizer) -> Answers:
    """The texts of sampled tokens."""
    prompts, prompt_mask, responses, mask = (x.cpu() for x in tokens)
    asked = [row[seen].tolist() for row, seen in zip(prompts, prompt_mask)]
    told = [row[kept].tolist() for row, kept in zip(responses, mask)]
    return Answers(
        prompts=[tokenizer.decode(row) for row in asked],
        texts=[tokenizer.decode(row) for row in told],
        finished=[row[-1] == tokenizer.eos_id for row in told],
        tokens=tokens,
    )


def answer(
    policy: PaLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_prompt: int,
    max_response: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> Answers:
    """Sample one answer to each prompt, without filters.

    Args:
        policy: answers.
        prompts: may repeat.
        max_prompt, max_response: P and T, in tokens.
        generator: draws the tokens.
        temperature: see `sampling_law`.
        batch_size: answers at a time.
    """
    sample = Sampler(policy)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    padded, prompt_mask = (beside(policy, x) for x in pad_left(ids, max_prompt))
    sampled = []
    with answer_bar(len(prompts), "answers") as bar:
        for few, seen in zip(padded.split(batch_size), prompt_mask.split(batch_size)):
            told = sample(
                policy,
                few,
                seen,
                max_new_tokens=max_response,
                eos_id=tokenizer.eos_id,
                generator=generator,
                temperature=temperature,
            )
            sampled.append((told.responses, told.mask))
            bar.update(len(few))
    responses, mask = (torch.cat(column) for column in zip(*sampled))
    return answers_of((padded, prompt_mask, responses, mask), tokenizer)


def answer_bar(number: int, name: str) -> tqdm:
    """A bar that counts answers. It appears where they take more than a few seconds."""
    hidden: dict[str, Any] = {} if is_first() else {"disable": True}
    return tqdm(total=number, desc=name, unit="answer", delay=5, **hidden)
