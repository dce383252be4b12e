"""DPO, RLOO and GRPO against a second implementation: TRL's, in .venv-bench.

`./course bench` installs it there, at the version of bench/requirements.txt. Values,
gradients, and the advantages that TRL's trainers work out in a real first step.
"""

import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.environment import PYTHON, RACE_SETTINGS, ROOT, STAMP
from minipalm.rlhf.dpo import dpo_loss
from minipalm.rlhf.group import (
    grpo_advantages,
    grpo_loss,
    rloo_advantages,
    rloo_loss,
)
from tests.small import seeded

N, L, V = 5, 9, 11  # pairs, tokens of a row, vocabulary
B, T = 8, 7  # answers, tokens of an answer


def inputs():
    """Ragged, and far from the old policy: some ratios are clipped, on both sides."""
    generator = seeded()

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def ragged(rows, width, start=0):
        lengths = torch.randint(1, width - start + 1, (rows, 1), generator=generator)
        places = torch.arange(width)
        return (places >= start) & (places < start + lengths)

    logprobs = -normal(B, T).abs() - 0.1
    return {
        "ids": torch.randint(V, (2 * N, L), generator=generator),
        "completion_mask": ragged(2 * N, L, start=3).long(),
        "logits": normal(2 * N, L, V),
        "ref_logits": normal(2 * N, L, V),
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.2 * normal(B, T),
        "ref_logprobs": logprobs + 0.3 * normal(B, T),
        "advantages": normal(B),
        "mask": ragged(B, T),
    }


@pytest.fixture(scope="module")
def given():
    return inputs()


@pytest.fixture(scope="module")
def theirs(given, tmp_path_factory):
    """theirs["grpo/loss"], ...: what TRL finds."""
    if not STAMP.exists():
        pytest.skip("TRL is not installed: ./course bench installs it in .venv-bench")
    folder = tmp_path_factory.mktemp("trl")
    save_file(given, folder / "given")
    done = subprocess.run(
        [PYTHON, ROOT / "tests/rlhf/trl_peer.py", folder / "given", folder / "found"],
        cwd=folder,
        env=RACE_SETTINGS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "found")


def same(found, theirs, name, leaf):
    found.backward()
    torch.testing.assert_close(
        found.detach(), theirs[f"{name}/loss"], rtol=1e-5, atol=0
    )
    torch.testing.assert_close(leaf.grad, theirs[f"{name}/grad"], rtol=1e-4, atol=1e-7)
    assert leaf.grad.abs().max() > 1e-3


def answers_logprobs(logits, given):
    """Sums over the tokens of the answers, each from the logits one place earlier."""
    laws = logits[:, :-1].log_softmax(-1)
    each = laws.gather(-1, given["ids"][:, 1:, None])[..., 0]
    return (each * given["completion_mask"][:, 1:]).sum(1)


def dpo_inputs(given):
    logits = given["logits"].clone().requires_grad_()
    both = answers_logprobs(logits, given), answers_logprobs(given["ref_logits"], given)
    (chosen, rejected), (ref_chosen, ref_rejected) = (x.chunk(2) for x in both)
    return logits, (chosen, rejected, ref_chosen, ref_rejected)


def test_dpo_has_trls_loss_and_gradient(given, theirs):
    logits, logprobs = dpo_inputs(given)
    same(dpo_loss(*logprobs, beta=0.3), theirs, "dpo", logits)


def test_label_smoothing_mixes_trls_losses_of_both_labels(given, theirs):
    logits, logprobs = dpo_inputs(given)
    dpo_loss(*logprobs, beta=0.3, label_smoothing=0.2).backward()
    half = theirs["dpo_swapped/grad"].roll(N, 0)
    torch.testing.assert_close(
        logits.grad, 0.8 * theirs["dpo/grad"] + 0.2 * half, rtol=1e-4, atol=1e-7
    )


def token_inputs(given):
    logprobs = given["logprobs"].clone().requires_grad_()
    return logprobs, given["old_logprobs"], given["advantages"], given["mask"]


def test_rloo_has_trls_loss_and_gradient(given, theirs):
    logprobs, old, advantages, mask = token_inputs(given)
    same(rloo_loss(logprobs, old, advantages, mask), theirs, "rloo", logprobs)
    assert (logprobs.grad.abs().sum(1) == 0).any()  # some answers are clipped


@pytest.mark.parametrize("name, length", [("grpo", None), ("dr_grpo", 7)])
def test_grpo_has_trls_loss_and_gradient(given, theirs, name, length):
    logprobs, old, advantages, mask = token_inputs(given)
    ref = given["ref_logprobs"]
    loss = grpo_loss(logprobs, old, ref, advantages, mask, 0.1, length=length)
    same(loss, theirs, name, logprobs)


@pytest.mark.parametrize(
    "name, advantages",
    [
        ("rloo", rloo_advantages),
        ("grpo", grpo_advantages),
        ("dr_grpo", lambda rewards: grpo_advantages(rewards, divide_by_std=False)),
    ],
)
def test_advantages_are_those_of_a_real_step_of_trl(theirs, name, advantages):
    rewards = theirs[f"{name}_step/rewards"]
    found = advantages(rewards.view(-1, 4)).flatten()
    assert len(set(rewards.tolist())) > 2
    torch.testing.assert_close(found, theirs[f"{name}_step/advantages"])
