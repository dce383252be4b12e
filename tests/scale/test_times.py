"""Seconds: floors, traffic, and phases that add up."""

from dataclasses import replace

import pytest

from minipalm.config import FULL, get_preset
from minipalm.scale.decoding import decode_floor, decode_seconds
from minipalm.scale.gpu import GPUS, H200, get_gpu
from minipalm.scale.iteration import ppo_memory, ppo_seconds
from minipalm.scale.memory import total
from minipalm.scale.seconds import training_seconds
from minipalm.scale.sharding import fsdp_traffic

POLICY = replace(FULL.policy, vocab_size=FULL.vocab_size)
TRUNK = replace(FULL.reward_trunk, vocab_size=FULL.vocab_size)


def ring(shards, width):
    """Bytes that the first of some GPUs receives until all have all shards."""
    has = [{i} for i in range(len(shards))]
    received = 0
    while any(len(one) < len(shards) for one in has):
        passed = [set(has[i - 1]) - has[i] for i in range(len(has))]
        received += sum(shards[i] * width for i in passed[0])
        has = [mine | new for mine, new in zip(has, passed)]
    return received


@pytest.mark.parametrize("gpus", [1, 2, 4, 5])
def test_traffic_is_that_of_gathering_in_a_ring(gpus):
    shards = [60 // gpus] * gpus
    gathered = ring(shards, 2)
    reduced = ring(shards, 4)  # the same way round, the other way through
    assert fsdp_traffic(60, 60, gpus) == 2 * gathered + reduced
    assert fsdp_traffic(60, 0, gpus, 3) == 3 * 2 * gathered


def test_no_gpu_and_no_micro_batch_are_refused():
    with pytest.raises(ValueError, match="got 0 and 1"):
        fsdp_traffic(1, 1, 0)
    with pytest.raises(ValueError, match="got 1 and 0"):
        fsdp_traffic(1, 1, 1, 0)


def test_a_step_of_few_rows_costs_what_one_row_costs():
    rates = H200.flops, H200.bandwidth
    one, few, many = (decode_floor(POLICY, n, 192, *rates) for n in (1, 64, 256))
    assert one == pytest.approx(3.19e-3, rel=2e-3)
    assert few == pytest.approx(3.21e-3, rel=4e-3)
    assert many == pytest.approx(5.14e-3, rel=4e-3)  # by now products count
    with pytest.raises(ValueError, match="1 row or more"):
        decode_floor(POLICY, 0, 192, *rates)


def test_python_starts_kernels_slower_than_a_graph_does():
    eager = replace(FULL.machine, decoder=False)
    graph = decode_seconds(POLICY, FULL.machine, 1, 192, H200)
    assert 3 < decode_seconds(POLICY, eager, 1, 192, H200) / graph < 10


def test_more_tokens_more_seconds_and_more_gpus_fewer():
    machine = FULL.machine
    one = training_seconds(POLICY, machine, 4, 2048, H200)
    assert 1.8 < training_seconds(POLICY, machine, 8, 2048, H200) / one < 2
    two = training_seconds(POLICY, machine, 2, 2048, H200, gpus=2)
    assert one / 2 < two < one  # half the products, and the wire
    parts = training_seconds(POLICY, machine, 4, 2048, H200, gpus=2, micro_batches=4)
    assert parts > training_seconds(POLICY, machine, 4, 2048, H200, gpus=2)


def test_an_iteration_has_a_pass_less_where_log_probabilities_are_used_again():
    sizes = FULL.max_prompt, FULL.max_response
    again = ppo_seconds(POLICY, TRUNK, FULL.machine, FULL.ppo, *sizes, H200, 2)
    kept = replace(FULL.ppo, reuse_logprobs=True)
    once = ppo_seconds(POLICY, TRUNK, FULL.machine, kept, *sizes, H200, 2)
    assert set(again) - set(once) == {"old log-probs"}
    assert all(again[name] == once[name] for name in once)


def test_an_iteration_of_adapters_took_what_was_measured():
    """9.16 s and 54.3 GiB on one H200, by the same prototypes as plan.json's first."""
    preset = get_preset("full-lora")
    machine = replace(preset.machine, weights="float32")
    sizes = preset.max_prompt, preset.max_response
    args = POLICY, TRUNK, machine, preset.ppo, *sizes
    assert sum(ppo_seconds(*args, H200).values()) == pytest.approx(9.16, rel=0.1)
    apart = replace(preset.ppo, minibatch_size=32, micro_batch=32)  # none waits
    memory = ppo_memory(POLICY, TRUNK, machine, apart, *sizes)
    assert sum(map(total, memory.values())) / 2**30 == pytest.approx(54.3, rel=0.1)


def test_a_whole_fine_tune_on_two_gpus_took_what_was_measured():
    """Training phases 3.46 s and 0.75 s, 70.0 GiB a GPU, with recomputation."""
    machine = replace(FULL.machine, recompute=True)
    sizes = FULL.max_prompt, FULL.max_response
    args = POLICY, TRUNK, machine, FULL.ppo, *sizes
    phases = ppo_seconds(*args, H200, 2)
    assert phases["train policy"] == pytest.approx(3.46, rel=0.1)
    assert phases["reference log-probs"] == pytest.approx(0.82, rel=0.1)


def test_every_card_says_where_its_numbers_come_from():
    for gpu in GPUS.values():
        assert gpu.source and gpu.price > 0
        assert gpu.flops < 1e15 and gpu.memory < 150 * 2**30
    assert get_gpu("h200", 2.0).price == 2.0
    with pytest.raises(ValueError, match="gpu must be one of h200"):
        get_gpu("h20")
    with pytest.raises(ValueError, match="0 or more dollars"):
        get_gpu("h200", -1.0)
