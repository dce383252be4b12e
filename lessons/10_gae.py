# %% [markdown]
# # 10 · GAE
#
# A score comes at the end of an answer. Which of its tokens deserve it? You
# build the estimator that says so, and see one dial lead from trusting the
# critic to trusting the score.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"

# %%
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minipalm import plot

# %% tags=["classroom"]
from minipalm.course.check import check, progress

# %% tags=["exercise"]
from minipalm.rlhf.gae import gae

# %% tags=["exercise"]
from minipalm.rlhf.gae import whiten

# %% tags=["classroom"]
progress()
