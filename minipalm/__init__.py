"""PaLM with RLHF, from the tokenizer to PPO, small enough to read.

Read it along the lessons, or in this order:

    config    the sizes, and the presets, from smoke to full
    model     rotary positions, attention, SwiGLU, the parallel block, PaLM, sampling
    data      the toy world TinyTales, two tokenizers, readers of JSON-lines files
    rlhf      supervised fine-tuning, the reward model, rollouts, KL, GAE, PPO
    train     loops, AdamW, metrics, checkpoints
    evaluate  win rates with intervals, KL, the report
    report    the report of a run, also of one that goes on
    spmd      runs a lesson as a batch job; stopping: on signals; ends: why it failed
    course    what ./course calls: builds the notebooks, runs the pipeline
"""

__version__ = "0.1.0"
