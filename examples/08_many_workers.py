"""Prepare a run, let torchrun start its workers (on one machine here, on many by the run folder's slurm.sh), record it.

python examples/08_many_workers.py FOLDER [STEPS]
"""

import subprocess
import sys
from pathlib import Path

import curator
from curator import demo_corpus

WORKERS = 2


def main(folder: Path, steps: int) -> None:
    corpus = demo_corpus.build(folder)
    with curator.open_lake(str(corpus.lake), text="text", domain="source") as lake:
        # Two pipeline stages; on GPUs rather tensor_parallel up to the GPUs of a node, then pipeline_parallel.
        run_dir = lake.prepare(str(corpus.target), run_dir=folder / "run", steps=steps, pipeline_parallel=WORKERS)

    # The run folder must be on a file system that all machines share. Without arguments of your scheduler:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS)]
    subprocess.run([*torchrun, "-m", "curator.worker", str(run_dir)], check=True)

    with curator.open_lake(str(corpus.lake)) as lake:
        run = lake.resume(run_dir)  # records what the workers left; were they killed, it would go on from a checkpoint
        print(run)
        print("workers:", run.record["backend"]["layout"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
