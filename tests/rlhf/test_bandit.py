"""PPO on a world so small that the best policy is known: 4 tokens, 3 places.

The best policy for score − β KL is π* ∝ π_ref e^{score/β}, and its objective is
β log E_ref e^{score/β}: sums over the 64 answers. Almost any mistake in masks, shifts,
signs, KL, advantages or losses keeps PPO from getting there.
"""

import itertools

import pytest
import torch

from minipalm.config import PaLMConfig
from minipalm.data.tokenizer import WordTokenizer
from minipalm.model.palm import PaLM
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.rollout import text_reward
from minipalm.train.ppo import train_ppo
from minipalm.train.run import Run
from tests.small import ppo_config, seeded

V, T = 4, 3
ANSWERS = torch.tensor(list(itertools.product(range(V), repeat=T)))
# Three tokens: after a prompt of one, 1 and 11 and 111 would look alike to a network
# that knows distances only, and no policy could tell its first token from its second.
PROMPT = torch.tensor([[1, 2, 3]])


def law(policy):
    """log π of all 64 answers, exactly."""
    prompts = PROMPT.expand(len(ANSWERS), -1)
    tokens = (prompts, prompts > 0, ANSWERS, ANSWERS >= 0)
    with torch.no_grad():
        logits = response_logits(policy, *tokens)
    return token_logprobs(logits, ANSWERS).sum(1).double()


def kl(p, q):
    """KL(p ‖ q) of two laws given as logs."""
    return (p.exp() * (p - q)).sum().item()


def table(scores):
    """A reward function that looks the answer up."""

    def reward(prompts, prompt_mask, responses, mask):
        places = responses @ torch.tensor([V * V, V, 1])
        return scores[places]

    return reward


def small_world(seed):
    """A policy and its reference, near to uniform, and a critic."""
    generator = seeded(seed)
    config = PaLMConfig(V, dim=32, depth=2, heads=2, head_dim=8, embed_std=0.03)
    policy, reference = PaLM(config, generator), PaLM(config)
    reference.load_state_dict(policy.state_dict())
    critic = Critic(PaLM(config, generator), "last")
    torch.nn.init.zeros_(critic.head.weight), torch.nn.init.zeros_(critic.head.bias)
    assert kl(law(reference), torch.full((64,), 1 / 64).log()) < 0.2
    return policy, reference, critic


def train(folder, policy, reference, critic, reward, beta, iterations, **config):
    train_ppo(
        policy,
        reference,
        critic,
        reward,
        PROMPT,
        PROMPT > 0,
        ppo_config(
            **{
                "iterations": iterations,
                "batch_size": 256,
                "minibatch_size": 128,
                "policy_lr": 3e-3,
                "value_lr": 1e-2,
                "final_lr": 0.0,
                "lam": 1.0,
                "value_clip": 10.0,
                "missing_eos_penalty": 0.0,
                **config,
            }
        ),
        Run(folder),
        seed=0,
        kl_coef=beta,
        max_response=T,
        eos_id=-1,
        checkpoint_every=10_000,
    )
    return law(policy)


@pytest.mark.parametrize("seed, beta, iterations", [(0, 1.0, 120), (1, 0.7, 120)])
def test_ppo_reaches_the_best_policy_there_is(tmp_path, seed, beta, iterations):
    """Property 51."""
    policy, reference, critic = small_world(seed)
    scores = torch.randn(64, generator=seeded(100 + seed))
    ref = law(reference)
    best = (ref + scores / beta).log_softmax(0)
    optimum = beta * (ref + scores / beta).logsumexp(0).item()
    assert kl(ref, best) > 0.3  # it has somewhere to go

    found = train(tmp_path, policy, reference, critic, table(scores), beta, iterations)
    objective = (found.exp() * scores).sum().item() - beta * kl(found, ref)
    assert kl(found, best) < 0.02
    assert objective == pytest.approx(optimum, rel=0.01)
    assert objective <= optimum + 1e-6  # nothing can be better
    # β log E_ref e^{r/β} is the best objective: the gap is β KL(π ‖ π*).
    assert optimum - objective == pytest.approx(beta * kl(found, best), abs=1e-4)


# --- rewards whose outcome is known ------------------------------------------------

COUNTS = (ANSWERS == 2).sum(1).double()


def expected_count(policy_law):
    return (policy_law.exp() * COUNTS).sum().item()


def trained(folder, reward, beta, seed=0, **config):
    """(the law after 20 iterations, the reference's law)"""
    policy, reference, critic = small_world(seed)
    found = train(folder, policy, reference, critic, reward, beta, 20, **config)
    return found, law(reference)


def test_a_constant_reward_leaves_the_policy_where_it_is(tmp_path):
    """Property 52."""
    found, ref = trained(tmp_path, table(torch.full((64,), 3.0)), beta=0.5)
    assert kl(found, ref) < 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rewarded_token_is_learnt_and_a_punished_one_avoided(tmp_path, sign):
    """Property 52."""
    found, ref = trained(tmp_path, table(sign * COUNTS.float()), beta=0.1)
    assert expected_count(ref) == pytest.approx(0.75, abs=0.3)
    assert expected_count(found) > 2.5 if sign > 0 else expected_count(found) < 0.1


def test_a_huge_beta_holds_the_policy_at_its_reference(tmp_path):
    """Property 52."""
    reward = table(COUNTS.float())
    found, ref = trained(tmp_path / "held", reward, beta=1000.0)
    free, _ = trained(tmp_path / "free", reward, beta=0.1)
    assert kl(found, ref) < 0.02 < 1 < kl(free, ref)


def test_a_python_function_of_texts_is_learnt(tmp_path):
    """Property 52: no network, no tensors."""
    tokenizer = WordTokenizer(["fox"])  # <pad>, <bos>, <eos>, fox

    def reward(prompt, response, finished):
        return response.split().count("fox") - 0.5 * finished

    found, ref = trained(tmp_path, text_reward(reward, tokenizer), beta=0.1)
    foxes = (ANSWERS == 3).sum(1).double()
    before, after = ((one.exp() * foxes).sum().item() for one in (ref, found))
    assert before < 1.2 and after > 2.5
