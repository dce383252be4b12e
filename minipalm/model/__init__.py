"""The network: RoPE, attention, SwiGLU, the block, PaLM, and sampling from it."""
