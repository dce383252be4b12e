"""A module a lesson: its exercises, with oracles, traps and twins."""
