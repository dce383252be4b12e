#!/bin/bash
# The pipeline at full size under Slurm:   sbatch scripts/slurm.sh [options of ./course full]
# The same line resumes what was stopped. Where a machine fails, or others go before, Slurm
# does that by itself (--requeue); a job that is out of time has to be submitted again.
#SBATCH --job-name=minipalm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1      # one command a machine; it starts a rank for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --mem=0                  # all of it: each rank needs tens of GB, Slurm gives less
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120        # two minutes before the end: notebooks are saved
#SBATCH --requeue
#SBATCH --output=minipalm-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"           # the clone, with .venv, on a disk that all machines share

# All machines meet at the first; Slurm tells each its own number.
names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${names%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000)) # and the eleven ports above it

srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m minipalm.course.full \
    --nnodes "$SLURM_NNODES" --rdzv-endpoint "$first:$port" "$@"
