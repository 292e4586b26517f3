"""What a weight means to the program that reads it, and how one meaning becomes another.

With p_d the domain weight, a share of training tokens, T_d the target tokens and N_d the rows of domain d:

    share of sequences   p_d                        packed sequences are equally long
    share of rows        p_d·N_d/T_d, normalised    a domain of long rows needs fewer of them
    kept fraction        p_d/T_d over its maximum   what to keep of each domain so that the rest has the shares p
    epochs               p_d·B/T_d                  passes over the domain at a budget of B tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_EPOCHS = 4.0
"""Passes over a domain above which repetition costs more than it gives (Muennighoff et al., arXiv 2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """One domain of a run that has weight, in every unit; `tokens` and `rows` sum to 1, the largest `kept` is 1."""

    domain: str
    tokens: float
    rows: float
    kept: float
    num_tokens: int

    def epochs(self, budget_tokens: int) -> float:
        """Passes over the domain when that many tokens are trained on in all."""
        return self.tokens * budget_tokens / self.num_tokens


def shares(domains: Sequence[Mapping[str, Any]]) -> list[Share]:
    """The domains of a run's record, largest weight first; those without any weight are left out."""
    weighted = [domain for domain in domains if domain["domain_weight"] > 0]
    by_row = {d["domain"]: d["domain_weight"] * d["num_samples"] / d["num_tokens"] for d in weighted}
    by_token = {d["domain"]: d["domain_weight"] / d["num_tokens"] for d in weighted}
    all_rows, densest = sum(by_row.values()), max(by_token.values())
    found = [
        Share(
            domain=d["domain"],
            tokens=d["domain_weight"],
            rows=by_row[d["domain"]] / all_rows,
            kept=by_token[d["domain"]] / densest,
            num_tokens=d["num_tokens"],
        )
        for d in weighted
    ]
    return sorted(found, key=lambda share: -share.tokens)
