"""Sampling from a policy wherever it lies: in one piece, in parts, under adapters."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from minipalm.model.decoder import Decoder
from minipalm.model.generate import Sampled, generate
from minipalm.model.lora import merged
from minipalm.model.palm import PaLM
from minipalm.model.place import has_adapters, machine_of, whole
from minipalm.parallel import gather_rows, ranks, share


class Sampler:
    """`generate` for a policy that lies on a machine; ready for the next batch.

    Its answers are the same on any number of processes, and all processes get all of
    them. Without a decoder each process samples all rows, alike. With one, a row has
    uniform numbers of its own, so that it does not matter who answers it: each process
    answers its share.

    Args:
        policy: as `place` or `fine_tuned` gave it; sampled from as it is at each call.
    """

    def __init__(self, policy: PaLM) -> None:
        self.policy = policy
        self.decoder: Decoder | None = None
        self.size = (0, 0, 0)  # rows, max_prompt, max_response

    def __call__(
        self,
        policy: PaLM,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        *,
        max_new_tokens: int,
        eos_id: int,
        generator: torch.Generator,
        temperature: float = 1.0,
    ) -> Sampled:
        """The arguments of `generate`, and what it gives; policy is the sampler's own.

        The generator may be on the CPU, wherever the policy is.
        """
        assert policy is self.policy
        how: dict[str, Any] = {"eos_id": eos_id, "temperature": temperature}
        if not machine_of(policy).decoder:
            how |= {"max_new_tokens": max_new_tokens}
            if generator.device != prompts.device:
                seed = int(torch.randint(2**62, (), generator=generator))
                generator = torch.Generator(prompts.device).manual_seed(seed)
            with merged(policy):
                model = whole(policy)
                return generate(model, prompts, prompt_mask, generator=generator, **how)
        B, world = len(prompts), ranks().world
        uniforms = torch.rand(
            B, max_new_tokens, generator=generator, device=generator.device
        )
        filled = -(-B // world) * world - B  # the same number of rows for each
        rows = [
            share(F.pad(x, (0, 0, 0, filled), value=1)).to(prompts.device)
            for x in (prompts, prompt_mask, uniforms)
        ]
        decoder = self.ready(len(rows[0]), prompts.shape[1], max_new_tokens)
        mine = decoder.sample(*rows, **how)
        if world > 1 and learns(policy):  # whole, it takes more room than this part
            self.decoder = None
        parts = (mine.responses, mine.mask, mine.logprobs)
        return Sampled(*(gather_rows(part)[:B] for part in parts))

    def ready(self, rows: int, max_prompt: int, max_response: int) -> Decoder:
        """A decoder of at least this size, with the policy's weights as they are."""
        size = (rows, max_prompt, max_response)
        kept, self.decoder = self.decoder, None
        if kept is None or any(a < b for a, b in zip(self.size, size)):
            del kept  # its memory, before the new one's
            adapted = has_adapters(self.policy)  # they are not merged: bfloat16 would
            # swallow most of their steps; the decoder adds them as training does
            model = self.policy if adapted else whole(self.policy)
            kept, self.size = Decoder(model, *size), size
        elif learns(self.policy) and not has_adapters(self.policy):  # in place
            kept.refresh(self.policy)
        self.decoder = kept
        return kept


def learns(policy: PaLM) -> bool:
    """Whether its weights may have changed since the last call."""
    return any(weight.requires_grad for weight in policy.parameters())
