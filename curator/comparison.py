"""What a comparison of mixtures found: figures, a verdict in words, and both as JSON and as a table to read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from curator import notebook
from curator.intervals import Estimate
from curator.mixtures import UNIFORM

SCHEMA_VERSION = 1
COLUMNS = (
    "mixture",
    "test loss",
    "difference to uniform",
    "95 % interval",
    "verdict",
    "most epochs",
    "seconds to learn",
    "M tokens to learn",
    "seconds to train",
)

Judgement = Literal["reference", "better", "no gain", "worse", "not judged"]


@dataclass(frozen=True, kw_only=True)
class MixtureResult:
    """One mixture's models on the test rows.

    `test_loss` is in nats per token; `difference` is to `uniform`, below 0 where the mixture is better; both with the
    ends of their 95 % intervals (NaN with one seed or one test row). `train_tokens` and `train_loss` are means over
    the seeds. `max_epochs` is how often the most repeated domain was seen. `learn_seconds` is what finding the weights
    took, and `train_seconds` what training the models of all seeds took.
    """

    mixture: str
    run_id: str | None
    judgement: Judgement
    test_loss: float
    test_loss_low: float
    test_loss_high: float
    difference: float
    difference_low: float
    difference_high: float
    train_loss: float
    train_tokens: float
    max_epochs: float
    most_repeated: str
    learn_seconds: float
    learn_tokens: float
    train_seconds: float
    weights: dict[str, float]

    @property
    def sentence(self) -> str:
        """What is said of it; of the reference, nothing."""
        by = f"{self.difference:+.3f} nats per token"
        interval = f"[{self.difference_low:+.3f}, {self.difference_high:+.3f}]"
        said = {
            "better": f"{self.mixture} is better than {UNIFORM}: {by}, 95 % interval {interval}.",
            "worse": f"{self.mixture} is worse than {UNIFORM}: {by}, 95 % interval {interval}.",
            "no gain": f"{self.mixture} brings no gain over {UNIFORM}: {by}, 95 % interval {interval} includes 0.",
            "not judged": f"{self.mixture} differs from {UNIFORM} by {by}; one seed or one test row tells no interval.",
            "reference": "",
        }
        return said[self.judgement]

    @property
    def cells(self) -> list[str]:
        """Its row of a table with `COLUMNS`."""
        is_reference = self.judgement == "reference"
        is_judged = self.judgement not in ("reference", "not judged")
        return [
            self.mixture,
            f"{self.test_loss:.4f}",
            "" if is_reference else f"{self.difference:+.4f}",
            f"{self.difference_low:+.4f} … {self.difference_high:+.4f}" if is_judged else "",
            self.judgement,
            f"{self.max_epochs:.2f} ({self.most_repeated})",
            f"{self.learn_seconds:,.0f}" if self.run_id else "",
            f"{self.learn_tokens / 1e6:.2f}" if self.run_id else "",
            f"{self.train_seconds:,.0f}",
        ]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mixtures of one lake, judged by models trained on them; `results` in the order they were asked for.

    `num_left_out` rows of the test part also stand in the target or the lake and were not measured on. `tokens` is
    what each model was trained on. `location` is the folder that holds `comparison.json` and `comparison.md`.
    """

    comparison_id: str
    created_at: str
    snapshot_id: str
    target: str
    test: str
    num_test_rows: int
    num_test_tokens: int
    num_left_out: int
    tokens: int
    compare: dict[str, Any]
    results: tuple[MixtureResult, ...]
    location: str

    def __getitem__(self, mixture: str) -> MixtureResult:
        """The result of a mixture, by its name."""
        by_name = {result.mixture: result for result in self.results}
        if mixture not in by_name:
            raise KeyError(f"{mixture!r} was not compared; {', '.join(map(repr, by_name))} were")
        return by_name[mixture]

    @property
    def ranked(self) -> list[MixtureResult]:
        """The results, lowest test loss first."""
        return sorted(self.results, key=lambda result: result.test_loss)

    @property
    def sentences(self) -> list[str]:
        """What is said of each mixture but the reference."""
        return [result.sentence for result in self.results if result.sentence]

    @property
    def verdict(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    @property
    def conditions(self) -> str:
        """What the figures hold for, in a line."""
        seeds = self.compare["seeds"]
        return (
            f"{seeds} seed{'s' if seeds > 1 else ''}, {self.tokens:,} tokens each, model {self.compare['model']}; "
            f"{self.num_test_rows:,} test rows ({self.num_left_out:,} more stand in the target or the lake)"
        )

    def to_markdown(self) -> str:
        """The table and the verdict, as `comparison.md` has them."""
        rows = [COLUMNS, ["---"] * len(COLUMNS), *(result.cells for result in self.ranked)]
        table = "\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows)
        said = "\n".join(f"- {_escaped(sentence)}" for sentence in self.sentences)
        return (
            f"# Comparison {self.comparison_id}\n\nTarget {self.target}, test {self.test}, lake snapshot "
            f"{self.snapshot_id}.\n{self.conditions}. Losses in nats per token; intervals over seeds and test rows.\n\n"
            f"{table}\n\n{said}\n"
        )

    def to_json(self) -> dict[str, Any]:
        """As values of JSON; a number that is none becomes null."""
        values = dataclasses.asdict(self) | {"schema_version": SCHEMA_VERSION, "verdict": self.verdict}
        values["results"] = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            for row in values["results"]
        ]
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`.

        Raises:
            KeyError: a field is missing.
        """
        results = tuple(MixtureResult(**_fields(MixtureResult, _numbers(row))) for row in values["results"])
        return Comparison(**(_fields(Comparison, values) | {"results": results}))

    def __repr__(self) -> str:
        width = max(len(result.mixture) for result in self.results)
        lines = [f"  {result.mixture:<{width}}  {_brief(result)}" for result in self.ranked]
        return "\n".join([f"Comparison({self.comparison_id!r}: {self.conditions})", *lines])

    def _repr_html_(self) -> str:
        """What notebooks show."""
        rows = [result.cells for result in self.ranked]
        return notebook.table(f"Comparison {self.comparison_id}", COLUMNS, rows, [*self.sentences, self.conditions])


def judged(difference: Estimate) -> Judgement:
    """What a difference to the reference amounts to."""
    if math.isnan(difference.low):
        return "not judged"
    if difference.high < 0:
        return "better"
    return "worse" if difference.low > 0 else "no gain"


def _brief(result: MixtureResult) -> str:
    if result.judgement == "reference":
        return f"{result.test_loss:.4f}"
    interval = f"[{result.difference_low:+.4f}, {result.difference_high:+.4f}]"
    return f"{result.test_loss:.4f}  {result.difference:+.4f} {interval} {result.judgement}"


def _fields(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in dataclasses.fields(kind)}


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A result as JSON has it, with the numbers that are none."""
    return {k: math.nan if v is None and k != "run_id" else v for k, v in row.items()}


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
