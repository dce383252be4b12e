"""PPO from a log, as a loop: replay, improve, again; nobody is asked anything."""

from dataclasses import asdict, replace

import torch

from minipalm.clock import Clock
from minipalm.config import OfflineConfig
from minipalm.model.palm import PaLM
from minipalm.model.place import beside, machine_of
from minipalm.parallel import of_all
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.log import Log
from minipalm.rlhf.offline import replay
from minipalm.rlhf.ppo import PPOStats, ppo_update
from minipalm.train.optim import adamw, batch_rows, lr_scale, set_lr
from minipalm.train.run import Run, steps_left


def train_offline(
    policy: PaLM,
    reference: PaLM,
    critic: Critic,
    log: Log,
    config: OfflineConfig,
    run: Run,
    seed: int,
    *,
    kl_coef: float,
    checkpoint_every: int = 10,
) -> None:
    """Raise the reward of the policy's answers by what a log says about other answers.

    Args:
        policy, critic: changed in place. The policy need not be the one that has
            written the log, but had better begin near to it.
        reference: what the KL is measured from; never changed.
        log: on any device. Each iteration takes batch_size answers: all of
            them once a pass, in a new order each pass.
        config: see OfflineConfig.
        run: where metrics and checkpoints go; resumes by itself. Among the metrics:
            score and kl, which are estimates from the log's answers, and staleness,
            ess, heaviest and limited, which tell how far to trust them (`replay`).
            A batch with an ess below least_ess is looked at, not learnt from: steps 0.
        seed: of the order of the answers and of the minibatches.
        kl_coef: β, fixed.
        checkpoint_every: iterations; the last is kept in any case.

    Raises:
        TrainingError: a loss is no number any more.
    """
    ppo, clock = config.ppo, Clock(policy)
    together = replace(ppo, micro_batch=of_all(ppo.micro_batch))
    policy_optimizer = adamw(policy, eps=ppo.adam_eps)
    critic_optimizer = adamw(critic, eps=ppo.adam_eps)
    generator = torch.Generator().manual_seed(seed)
    modules = {"policy": policy, "critic": critic}
    optimizers = {
        "policy_optimizer": policy_optimizer,
        "critic_optimizer": critic_optimizer,
    }
    generators = {"generator": generator}
    start, _ = run.resume(ppo.iterations, modules, optimizers, generators)
    for step, bar in steps_left(start, ppo.iterations, run.name):
        rows = batch_rows(len(log), ppo.batch_size, step, seed)
        batch = log.uncut(rows) if machine_of(policy).compile else log[rows]
        rollout, seen = replay(
            policy,
            reference,
            critic,
            beside(policy, batch),
            config=ppo,
            kl_coef=kl_coef,
            weight_limit=config.weight_limit,
            clock=clock,
        )
        share = lr_scale(step, ppo.iterations, ppo.warmup, ppo.final_lr)
        set_lr(policy_optimizer, ppo.policy_lr * share)
        set_lr(critic_optimizer, ppo.value_lr * share)
        stats = PPOStats()  # of no step
        if seen["ess"] >= config.least_ess:
            pair = policy_optimizer, critic_optimizer
            with clock.phase("update"):
                stats = ppo_update(policy, critic, rollout, *pair, together, generator)
        metrics = {**seen, **asdict(stats)}
        run.check_finite(step, **metrics)
        run.check_weights(step, modules)
        lap = clock.lap(rollout.prompts.numel() + rollout.responses.numel())
        run.log(step, kl_coef=kl_coef, **metrics, **lap)
        bar.set_postfix(
            ess=f"{seen['ess']:.2f}", stale=f"{seen['staleness']:.2f}", refresh=False
        )
        if step % checkpoint_every == 0 or step == ppo.iterations:
            run.save(step, ppo.iterations, modules, optimizers, generators)
