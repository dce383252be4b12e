"""x-transformers, set up to be as near to PaLM as it can be (its blocks are serial)."""

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

from bench import shapes
from bench.race import Side, Step, repeat


def network(flash: bool) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=shapes.VOCAB,
            max_seq_len=shapes.TRAIN_TOKENS,
            use_abs_pos_emb=False,
            tie_embedding=True,
            attn_layers=Decoder(
                dim=shapes.DIM,
                depth=shapes.DEPTH,
                heads=shapes.HEADS,
                attn_dim_head=shapes.HEAD_DIM,
                attn_one_kv_head=True,
                attn_flash=flash,
                rotary_pos_emb=True,
                rotary_xpos=True,
                rotary_emb_dim=shapes.HEAD_DIM,
                ff_glu=True,
                ff_swish=True,
                ff_no_bias=True,  # its GLU keeps one: 0.2 % more parameters than ours
            ),
        )
    )


def side(step: Step, model: torch.nn.Module) -> Side:
    return Side(repeat(step), sum(weight.numel() for weight in model.parameters()))


def training_step(flash: bool) -> Side:
    """It leaves the loop to its user: our optimizer, on its network."""
    model = network(flash)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = shapes.token_rows(shapes.TRAIN_ROWS, shapes.TRAIN_TOKENS)

    def step() -> None:
        model(ids).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return side(step, model)


def generation(flash: bool) -> Side:
    """With its key/value cache, which is its default."""
    model = network(flash)
    prompts = shapes.token_rows(shapes.SAMPLE_ROWS, shapes.PROMPT)

    def step() -> None:
        answers = model.generate(prompts, shapes.SAMPLE_TOKENS)
        assert answers.shape == (shapes.SAMPLE_ROWS, shapes.SAMPLE_TOKENS)

    return side(step, model)
