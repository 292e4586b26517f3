"""Hand learned weights to trainers: files in their own units, and rows drawn by weight in plain torch.

python examples/05_train_on_weights.py LAKE_URL FOLDER
"""

import sys
from pathlib import Path

import torch

import curator
from curator.torch import WeightedSampler


class Texts(torch.utils.data.Dataset[str]):
    """The published rows; a trainer of yours would have tokens here."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]


def main(url: str, folder: Path) -> None:
    with curator.open_lake(url) as lake:
        run = lake.runs()[-1]
        for name, suffix in (("megatron", "txt"), ("energon", "yaml"), ("datasets", "json")):
            written = run.export(name, folder / f"{name}.{suffix}", places="data/{domain}", overwrite=True)
            print(written)

        rows = lake.sql("SELECT text, source, coalesce(sample_weight, 0) AS weight FROM samples").pl()
        sampler = WeightedSampler(rows["weight"], num_draws=2_000, seed=0)
        loader = torch.utils.data.DataLoader(Texts(rows["text"].to_list()), batch_size=32, sampler=sampler)
        print(f"{len(loader)} batches, the first row: {next(iter(loader))[0][:60]!r}")

        drawn = rows[list(sampler)]["source"].value_counts(sort=True)
        print("domains of the rows drawn:", dict(drawn.iter_rows()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
