"""Every test runs with the shapes in minipalm's signatures checked at each call."""

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)  # the same sums in the same order on every machine

# All modules that take tensors; the others would only get slower.
SHAPES = [f"minipalm.{part}" for part in ("model", "rlhf", "train", "evaluate")]
install_import_hook(
    [*SHAPES, "minipalm.data.batches"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
