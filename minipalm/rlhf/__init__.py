"""From preferences to a policy: SFT, reward model, rollouts, KL, GAE, PPO."""
