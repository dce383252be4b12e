"""Compiled and recomputed blocks: the same gradients, names and copies."""

import copy
import subprocess
import sys

import torch

from minipalm.model.compiled import recompute_blocks
from tests.small import V, gradients, seeded, small_palm


def run(model, last=None):
    ids = torch.randint(V, (3, 9), generator=seeded(5))
    segments = torch.ones_like(ids)
    segments[0, :4] = 0
    model.hidden(ids, segments, last=last).square().sum().backward()
    return gradients(model)


def test_recomputed_gradients_are_the_same_bit_for_bit():
    for last in (None, 4):
        plain, other = small_palm(), small_palm()
        recompute_blocks(other)
        assert list(other.state_dict()) == list(plain.state_dict())
        expected = run(plain, last)
        for name, gradient in run(other, last).items():
            assert torch.equal(gradient, expected[name])


def test_recomputation_keeps_only_what_goes_into_a_block():
    def kept(model):
        sizes = []
        ids = torch.randint(V, (3, 9), generator=seeded(5))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            model.hidden(ids)
        return sum(sizes)

    plain, other = small_palm(depth=6), small_palm(depth=6)
    recompute_blocks(other)
    assert kept(other) < kept(plain) / 5


def test_a_copy_of_changed_blocks_works_on_its_own_weights():
    model = small_palm()
    recompute_blocks(model)
    twin = copy.deepcopy(model)
    ids = torch.randint(V, (2, 5), generator=seeded())
    before = model(ids)
    with torch.no_grad():
        for weight in twin.blocks.parameters():
            weight.zero_()
    assert torch.equal(model(ids), before)
    assert not torch.allclose(twin(ids), before)


# In a process of its own: here, checks of shapes stand in what is to be compiled.
COMPILED = """
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from minipalm.config import PaLMConfig
from minipalm.model import attention
from minipalm.model.compiled import compile_blocks, recompute_blocks
from minipalm.model.generate import generate
from minipalm.model.lora import adapter_parameters, with_adapters
from minipalm.model.palm import PaLM

attention.attention_in_blocks = attention.attention_at_once  # as on a GPU
config = PaLMConfig(64, dim=32, depth=5, heads=4, head_dim=8, embed_std=0.3)
ids = torch.randint(64, (3, 20))
segments = torch.ones_like(ids)
segments[0, :5] = 0
for lora in (False, True):
    plain, fast = (PaLM(config, torch.Generator().manual_seed(0)) for _ in "ab")
    if lora:
        plain, fast = with_adapters(plain, 2), with_adapters(fast, 2)
        for model in (plain, fast):
            for weight in adapter_parameters(model):
                torch.nn.init.constant_(weight, 0.1)
    backend = CompileCounterWithBackend("aot_eager")
    recompute_blocks(fast)
    compile_blocks(fast, backend)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for model in (plain, fast):
        model.hidden(ids, segments).square().sum().backward()
    for one, other in zip(plain.parameters(), fast.parameters()):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)
    assert backend.frame_count <= 2, backend.frame_count  # not one for each block
    graphs = backend.frame_count
    generate(fast, ids, segments.bool(), max_new_tokens=4, eos_id=2,
             generator=torch.Generator())
    assert backend.frame_count == graphs  # a growing cache is not compiled
print("as they should be")
"""


def test_compiled_blocks_share_their_graphs_and_have_the_same_gradients():
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip().endswith("as they should be"), done.stderr[-2000:]
