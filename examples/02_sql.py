"""Ask SQL about learned weights: the lake knows its runs and versions in any later process.

python examples/02_sql.py LAKE_URL
"""

import sys

import curator

QUESTIONS = {
    "What is each domain worth, against how often it occurs?": """
        SELECT domain, domain_weight, natural_share, ratio
        FROM domain_weights WHERE run_id = (SELECT max(run_id) FROM runs) ORDER BY ratio DESC""",
    "How many rows would a filter at the mean weight keep?": """
        SELECT domain, count(*) FILTER (sample_weight >= 1) AS kept, count(*) AS num_rows
        FROM samples GROUP BY domain ORDER BY kept DESC""",
    "Which rows come first in the most valuable domain?": """
        SELECT sample_id, left(text, 40) AS beginning, sample_weight
        FROM samples ORDER BY sample_weight DESC, sample_id LIMIT 3""",
    "What was published, when, from which run?": "SELECT version, created_at, run_id, num_rows FROM versions",
}


def main(url: str) -> None:
    with curator.open_lake(url) as lake:
        for question, query in QUESTIONS.items():
            print(f"\n{question}")
            print(lake.sql(query))


if __name__ == "__main__":
    main(sys.argv[1])
