"""The share of the ceiling: operations that a step needs, and that a GPU could do."""

from collections.abc import Callable

from minipalm.config import Preset
from minipalm.scale.gpu import GPUS

Row = dict[str, float]  # a line of metrics.jsonl


def operations(preset: Preset, name: str) -> Callable[[Row], float] | None:
    """What a step of a training costs, from its row in metrics.jsonl.

    Each token and each weight that the method needs count once: nothing that is
    computed again, and of adapters' training no gradients of frozen weights. None for
    the methods of lesson 15, which are not counted.
    """
    from minipalm.scale.flops import forward_flops, training_flops  # torch

    stage, _, run = name.partition("/")
    if stage == "15_offline":
        return None
    network = preset.reward_trunk
    if run == "policy" or stage == "11_ppo":
        network = preset.policy
    adapters = preset.machine.lora_rank > 0 and stage in ("07_sft", "11_ppo")
    length = preset.max_prompt + preset.max_response
    if stage == "11_ppo":
        ppo, trunk = preset.ppo, preset.reward_trunk
        passes = 2 + (not ppo.reuse_logprobs)  # sampling, reference, old log-probs
        one = passes * forward_flops(network, length / 2)
        one += 2 * forward_flops(trunk, length / 2)  # values, scores
        one += ppo.epochs * training_flops(network, length, adapters)
        one += ppo.epochs * training_flops(trunk, length)
        return lambda row: (
            ppo.batch_size
            * (preset.max_prompt + row.get("length", preset.max_response))  # no padding
            * one
        )
    if stage != "08_reward_model":
        length = preset.window
    each = training_flops(network, length, adapters and run == "policy")
    return lambda row: row.get("tokens_per_second", 0.0) * row["seconds"] * each


NAMES = {  # as the driver gives them, beside the card of `minipalm.scale.gpu`
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA GeForce RTX 4090": "24g",
    "NVIDIA GeForce RTX 3070": "8g",
}


def known_ceiling(gpu: str | None) -> float | None:
    """Operations a second of a GPU, by the name that its driver gives.

    None for all others, also of the same family. On a board for PCIe, with another
    cooler or cut into parts (MIG) a chip does less, and nobody here has measured it.
    """
    card = GPUS.get(NAMES.get(gpu or "", ""))
    return card.flops if card else None
