"""Learn what rows are worth within their domain, look at the best and the worst, and write a training set by them.

python examples/04_weigh_rows.py FOLDER [STEPS]
"""

import sys
from pathlib import Path

import curator
from curator import demo_corpus
from curator.selection import TokenBudget

EXTREMES = """
    SELECT g.domain, round(g.row_weight, 2) AS row_weight, round(g.relative_gap, 3) AS relative_gap,
           left(regexp_replace(s.text, '\\s+', ' ', 'g'), 48) AS beginning
    FROM row_gaps AS g JOIN samples AS s USING (sample_id)
    WHERE g.run_id = $1
    QUALIFY row_number() OVER (PARTITION BY g.domain ORDER BY g.row_weight DESC) = 1
         OR row_number() OVER (PARTITION BY g.domain ORDER BY g.row_weight) = 1
    ORDER BY g.domain, row_weight DESC"""


def main(folder: Path, steps: int) -> None:
    corpus = demo_corpus.build(folder)
    with curator.open_lake(str(corpus.lake), text="text", domain="source") as lake:
        run = lake.learn(str(corpus.target), steps=steps, granularity="sample", rows={"max_rows": 500})
        print(run.verdict)
        lake.publish(run)
        print(lake.sql(EXTREMES.replace("$1", f"'{run.run_id}'")))

        # Rows in proportion to what they weigh, none more than twice, 200,000 tokens in all.
        chosen = TokenBudget(tokens=200_000, max_repeats=2, seed=0)
        written = lake.materialize(chosen, folder / "train", overwrite=True)
        print(f"{written.num_rows} rows, {written.num_tokens} tokens in {folder / 'train'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
