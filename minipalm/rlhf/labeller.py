"""Ask the labeller: comparisons of a policy's own answers, with noisy labels."""

from collections.abc import Sequence
from random import Random

import torch

from minipalm.data.datasets import DataError, Prompt
from minipalm.data.gold import gold_reward, label_pair
from minipalm.data.lexicon import is_tinytales_prompt
from minipalm.data.tokenizer import Tokenizer
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import answer
from minipalm.rlhf.pairs import Pairs, pairs_of


def labelled_pairs(
    policy: PaLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    number: int,
    *,
    max_prompt: int,
    max_response: int,
    seed: int,
) -> tuple[Pairs, list[tuple[float, float]]]:
    """Two answers to each of `number` prompts, compared by TinyTales' labeller.

    Args:
        policy: gives the answers, so that the labels are about texts that PPO begins
            with.
        tokenizer: the policy's.
        prompts: TinyTales' own; drawn with replacement.
        number: comparisons.
        max_prompt, max_response: P and T, in tokens.
        seed: of prompts, answers and labels.

    Returns:
        the comparisons, and the gold rewards of each one's two answers, which only the
        labeller should know.

    Raises:
        DataError: a prompt is not one of TinyTales.
    """
    check_known(prompts, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(prompts), (number,), generator=generator)
    asked = [prompts[row].prompt for row in rows]
    sampler = torch.Generator(policy.embedding.weight.device).manual_seed(seed + 1)
    first, second = (
        answer(
            policy,
            tokenizer,
            asked,
            max_prompt=max_prompt,
            max_response=max_response,
            generator=sampler,
        )
        for _ in range(2)
    )
    gold = [
        [gold_reward(*told) for told in zip(one.prompts, one.texts, one.finished)]
        for one in (first, second)
    ]
    rng = Random(seed)
    golds = list(zip(*gold))
    labels = [label_pair(a, b, rng) for a, b in golds]
    return pairs_of(first, second, labels), golds


def check_known(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> None:
    """Raise DataError at the first prompt that is not one of TinyTales."""
    for prompt in prompts:
        if not is_tinytales_prompt(tokenizer.decode(tokenizer.encode(prompt.prompt))):
            raise DataError(
                f"{prompt.source}: field 'prompt': the labeller knows only TinyTales' "
                f"prompts, got {prompt.prompt!r}; give comparisons of your own, by "
                "`preferences` (./course run --preferences FILE)"
            )
