"""What training at full size takes, before a GPU is rented.

`gpu`         cards: memory, rates, prices
`flops`       operations a token
`memory`      bytes of a network at the worst moment of a step
`sharding`    bytes between GPUs
`seconds`     a training step
`decoding`    a sampling step
`iteration`   one iteration of PPO: memory and phases
`stages`      each loop of the pipeline: memory, steps, seconds
`plan`        all of them
`disk`        bytes that a run keeps, and at most has, on the disk
`report`      a plan in words; `python -m minipalm.scale` prints it
`money`       operations, hours, dollars
`rounding`    what bfloat16 does to small steps
`measured`    the plan held against a GPU
`page`        docs/planner.md
"""
