"""What a weight means to the program that reads it, and how one meaning becomes another.

With p_d the domain weight, a share of training tokens, T_d the target tokens and N_d the rows of domain d:

    share of sequences   p_d                        packed sequences are equally long
    share of rows        p_d·N_d/T_d, normalised    a domain of long rows needs fewer of them
    kept fraction        p_d/T_d over its maximum   what to keep of each domain so that the rest has the shares p
    rows kept            that fraction of N_d       rounded, at least one
    weight of a row      p_d/T_d, mean 1 over rows  what the column `sample_weight` has where a run weighs domains
    epochs               p_d·B/T_d                  passes over the domain at a budget of B tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_EPOCHS = 4.0
"""Passes over a domain above which repetition costs more than it gives (Muennighoff et al., arXiv 2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """One domain of a run in every unit.

    `tokens` and `rows` sum to 1 over the domains, the largest `kept` is 1, `row_weight` has mean 1 over all rows. All
    are 0 for a domain without weight.
    """

    domain: str
    tokens: float
    rows: float
    kept: float
    row_weight: float
    num_rows: int
    num_tokens: int

    def epochs(self, budget_tokens: int) -> float:
        """Passes over the domain when that many tokens are trained on in all."""
        return self.tokens * budget_tokens / self.num_tokens

    @property
    def kept_rows(self) -> int:
        """Rows to keep of the domain, rounded; at least one, since readers refuse a domain without rows."""
        return max(1, round(self.kept * self.num_rows))


def shares(domains: Sequence[Mapping[str, Any]]) -> list[Share]:
    """The domains of a run's record, largest weight first."""
    by_token = {d["domain"]: d["domain_weight"] / d["num_tokens"] if d["domain_weight"] else 0.0 for d in domains}
    by_row = {d["domain"]: by_token[d["domain"]] * d["num_samples"] for d in domains}
    all_rows, densest = sum(by_row.values()), max(by_token.values())
    num_rows = sum(d["num_samples"] for d in domains)
    found = [
        Share(
            domain=d["domain"],
            tokens=d["domain_weight"],
            rows=by_row[d["domain"]] / all_rows,
            kept=by_token[d["domain"]] / densest,
            row_weight=by_token[d["domain"]] * num_rows / all_rows,
            num_rows=d["num_samples"],
            num_tokens=d["num_tokens"],
        )
        for d in domains
    ]
    return sorted(found, key=lambda share: -share.tokens)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A meaning of weights: its `name` as users say it, its `meaning` in words, and `of` a share."""

    name: str
    meaning: str
    of: Callable[[Share], float]


TOKENS = Unit(name="tokens", meaning="share of tokens", of=lambda share: share.tokens)
SEQUENCES = Unit(
    name="sequences", meaning="share of sequences, which is the share of tokens", of=lambda share: share.tokens
)
ROWS = Unit(name="rows", meaning="share of rows", of=lambda share: share.rows)
KEPT = Unit(name="kept", meaning="rows kept of each domain", of=lambda share: share.kept_rows)
ROW_WEIGHT = Unit(name="weight", meaning="weight of every row, 1 on average", of=lambda share: share.row_weight)
