"""The loops, and what a run of any length needs: schedules, metrics, checkpoints."""
