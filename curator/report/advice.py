"""What a run amounts to in a sentence, and what to do next: rules over its verdict, its line search and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from curator.comparison import Judgement

Tone = Literal["good", "mixed", "bad", "idle"]

_REFUTED: Mapping[Judgement | None, str] = {
    "worse": "them worse than equal parts of all domains",
    "no gain": "no gain over equal parts of all domains",
}
"""What a comparison can find that speaks against a run's weights."""
_BEGUN = {
    "converged": "The weights {}",
    "not converged": "The weights had not settled",
    "unstable": "The run was not stable",
}

_ROWS_TONES: Mapping[str, Tone] = {"unstable": "bad", "no gain": "idle"}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the rules look at.

    `is_stepwise` says whether the weights moved by steps. `place` is the place that the line search took, 0 for the
    prior; None where there was none. `judgement` is that of the newest comparison with this run, None without one;
    with one domain there are no mixtures to compare.
    `num_leaks_kept` are rows of the target that the lake kept. `lake`, `run_id`, `target` and `options` are what
    commands name, quoted for a shell; `options` are those of `curator learn` that the run had, but for its steps.
    """

    status: str
    num_domains: int
    is_stepwise: bool
    place: float | None
    judgement: Judgement | None
    num_leaks_kept: int
    steps: int
    weights_rate: float
    budget_tokens: int | None
    versions: tuple[int, ...]
    lake: str
    run_id: str
    target: str
    options: str

    @property
    def longer(self) -> str:
        """The command that learns again, with twice the steps."""
        return f"curator learn {self.lake} --target {self.target}{self.options} --steps {2 * self.steps}"

    @property
    def is_taken(self) -> bool:
        """Whether models trained on the weights beat those of the prior."""
        return bool(self.place)

    @property
    def is_useful(self) -> bool:
        """Whether something has shown that they help, and the newest comparison nothing else."""
        return (self.is_taken or self.judgement == "better") and self.judgement not in _REFUTED


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The finding in a sentence and how good it is; two or three sentences on what to do, and commands that do it."""

    headline: str
    tone: Tone
    sentences: tuple[str, ...]
    commands: tuple[str, ...]


def advice(found: Findings) -> Advice:
    """What to say of a run, and what to do."""
    if found.num_domains == 1:
        return _of_rows_alone(found)
    said = [_of_verdict(found), _of_comparison(found), _of_caveat(found)]
    headline, tone = _headline(found)
    return Advice(headline=headline, tone=tone, sentences=tuple(filter(None, said)), commands=tuple(_commands(found)))


def _of_rows_alone(found: Findings) -> Advice:
    """Of a run that weighed the rows of one domain: no comparison of mixtures says anything of it."""
    lake, tone = found.lake, _ROWS_TONES.get(found.status, "mixed")
    commands = []
    if found.status == "unstable":
        headline = "The run was not stable"
        first = "Do not use these weights: learn again with a lower learning rate (learn.learning_rate)."
    elif found.status == "no gain":
        headline = "No gain: nothing but noise tells the rows apart"
        first = "There is nothing to publish. Show more rows of the target or take more steps."
        commands.append(found.longer)
    else:
        headline = "The rows were weighed, but nothing has shown yet that their weights help"
        first = "Before you rely on them, train a model on the rows that weigh most and one on as many drawn at random."
        if not found.versions:
            commands.append(f"curator publish {lake} --run {found.run_id}")
        commands.append(f"curator materialize {lake} --top-k 0.5 --out HEAVIER")
    sentences = tuple(filter(None, (first, _of_leaks(found))))
    return Advice(headline=headline, tone=tone, sentences=sentences, commands=tuple(commands))


def _headline(found: Findings) -> tuple[str, Tone]:
    if found.status not in _BEGUN:
        return "No gain: the weights are those that the run began with", "idle"
    begun, is_settled = _BEGUN[found.status], found.status == "converged"
    begun = begun.format("settled" if found.is_stepwise else "were found")
    if found.judgement in _REFUTED:
        link = "but" if is_settled else "and"
        return f"{begun}, {link} the newest comparison found {_REFUTED[found.judgement]}", "bad"
    if found.is_useful:
        beaten = "those of the prior" if found.is_taken else "those of equal parts of all domains"
        link = "and" if is_settled else "but"
        return f"{begun}, {link} models trained on them beat {beaten}", "good" if is_settled else "mixed"
    link = "but" if is_settled else "and"
    return f"{begun}, {link} nothing has shown yet that they help", "mixed" if is_settled else "bad"


def _of_verdict(found: Findings) -> str:
    if found.judgement in _REFUTED:
        return (
            f"Do not train on these weights: the newest comparison found {_REFUTED[found.judgement]}. Show more "
            "rows of the target or take more steps, and compare again."
        )
    if found.status == "no gain":
        return (
            "There is nothing to publish. Show more rows of the target or take more steps; if you know a mixture that "
            "should help, compare it."
        )
    remedy = {
        "not converged": f"learn again with more steps (this run took {found.steps:,})",
        "unstable": f"learn again with a learning rate of the data weights below {found.weights_rate:g} "
        "(learn.weights.learning_rate), or with a lower learn.penalty",
    }.get(found.status)
    if found.is_useful:
        more = f"; {remedy}, which may find better ones" if remedy else ""
        return f"{_usable(found)}{more}."
    if remedy:
        return f"Do not use these weights yet: {remedy}."
    return "Compare these weights with others before you train on them."


def _usable(found: Findings) -> str:
    if found.versions:
        listed = ", ".join(map(str, found.versions))
        return f"Train on the published weights (version{'s' if len(found.versions) > 1 else ''} {listed})"
    return "Publish these weights and train on them"


def _of_comparison(found: Findings) -> str:
    return {
        "better": "The newest comparison found them better than equal parts of all domains.",
        "not judged": "The newest comparison had one seed or one test row, which tells no interval; take three seeds.",
        None: "" if found.status == "no gain" else "Hold back rows of the target as a test, and compare on them.",
    }.get(found.judgement, "")


def _of_leaks(found: Findings) -> str:
    if not found.num_leaks_kept:
        return ""
    rows = "row that also stands" if found.num_leaks_kept == 1 else "rows that also stand"
    return (
        f"The lake kept {found.num_leaks_kept:,} {rows} in the target, so weights and losses look better than they "
        'are: learn again with target.leaks = "exclude".'
    )


def _of_caveat(found: Findings) -> str:
    if found.num_leaks_kept:
        return _of_leaks(found)
    if found.is_useful and found.budget_tokens is None:
        return (
            "Name the tokens that you will train on (learn.weights.budget_tokens) when you learn for a real training, "
            "so that no domain is repeated too often."
        )
    return ""


def _commands(found: Findings) -> list[str]:
    commands = []
    if found.is_useful and not found.versions:
        commands.append(f"curator publish {found.lake} --run {found.run_id}")
    if found.status == "not converged":
        commands.append(found.longer)
    if found.judgement in (None, "not judged"):
        learned = "" if found.status == "no gain" else f" --mixture {found.run_id}"
        commands.append(
            f"curator compare {found.lake} --target {found.target} --test TEST.parquet --mixture natural{learned}"
        )
    return commands
