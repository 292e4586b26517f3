"""A Slurm batch script for a run whose workers are spread over machines."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

_GPUS_PER_NODE = 8


def slurm_script(run_dir: Path, world_size: int) -> str:
    """A script for `sbatch` that runs the workers of `run_dir`, one per GPU, with torchrun.

    Nodes are taken to have 8 GPUs; the header is there to be edited. Slurm sends SIGTERM ten minutes before the time is
    up, on which the run writes a checkpoint. The script queues itself again if it got any further than it was, so that
    a run that fails where it stands is not tried for ever.
    """
    per_node = min(world_size, _GPUS_PER_NODE)
    nodes = -(-world_size // per_node)
    folder = shlex.quote(str(run_dir))
    return f"""#!/bin/bash
#SBATCH --job-name=lake-curator
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={per_node}
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --output={folder}/slurm-%j.log
# The run folder and the token cache have to be on a file system that all nodes share.
newest() {{ find {folder}/checkpoints -maxdepth 1 -name 'step-*' 2> /dev/null | sort | tail -n 1; }}
before=$(newest)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {shlex.quote(sys.executable)} -m torch.distributed.run --shutdown-timeout=540 \\
  --nnodes={nodes} --nproc-per-node={per_node} --rdzv-backend=c10d --rdzv-endpoint="$head:29500" \\
  -m curator.worker {folder}
status=$?
if [ "$status" -ne 0 ] && [ "$(newest)" != "$before" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
