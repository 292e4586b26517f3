"""What a run amounts to in a sentence, and what to do next: rules over its verdict, its line search and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from curator.comparison import Judgement

Tone = Literal["good", "mixed", "bad", "idle"]

_EQUAL = "equal parts of all domains"
_REFUTED: Mapping[Judgement, str] = {
    "worse": f"them worse than {_EQUAL}",
    "no gain": f"no gain over {_EQUAL}",
}
"""What a comparison can find that speaks against a run's weights."""
_LEAST_GAIN = 0.01
"""Nats per token: a comparison whose interval has 0 and such a gain in it has refuted nothing; what a refresh lets pass
as a rise, too (`refresh.max_val_rise`)."""
_BEGUN = {
    "converged": "The weights {}",
    "not converged": "The weights had not settled",
    "unstable": "The run was not stable",
}

_ROWS_TONES: Mapping[str, Tone] = {"unstable": "bad", "no gain": "idle"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the newest comparison found of a run's weights against equal parts, in nats per token, below 0 if better."""

    judgement: Judgement
    low: float
    high: float
    num_seeds: int

    @property
    def is_open(self) -> bool:
        """Whether 0 and a gain that would matter are both within its interval."""
        return self.judgement == "no gain" and self.low < -_LEAST_GAIN

    @property
    def refuted(self) -> str | None:
        """What speaks against the weights."""
        return None if self.is_open else _REFUTED.get(self.judgement)

    @property
    def interval(self) -> str:
        """With what it rests on."""
        seeds = f"{self.num_seeds} seed{'s' if self.num_seeds != 1 else ''}"
        return f"95 % interval [{self.low:+.3f}, {self.high:+.3f}] nats per token over {seeds}"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the rules look at.

    `is_stepwise` says whether the weights moved by steps. `place` is the place that the line search took, 0 for the
    prior; None where there was none. `compared` is the newest comparison with this run, None without one; with one
    domain there are no mixtures to compare.
    `num_leaks_kept` are rows of the target that the lake kept. `lake`, `run_id`, `target` and `options` are what
    commands name, quoted for a shell; `options` are those of `curator learn` that the run had, but for its steps.
    """

    status: str
    num_domains: int
    is_stepwise: bool
    place: float | None
    compared: Compared | None
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
        return (self.is_taken or self.judgement == "better") and not self.refuted

    @property
    def judgement(self) -> Judgement | None:
        """Of the newest comparison; None without one."""
        return self.compared.judgement if self.compared else None

    @property
    def refuted(self) -> str | None:
        """What the newest comparison found against the weights."""
        return self.compared.refuted if self.compared else None

    @property
    def left_open(self) -> Compared | None:
        """The newest comparison, where it tells neither a gain nor that there is none of weights that moved at all."""
        return self.compared if self.compared and self.compared.is_open and self.status != "no gain" else None


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
    if found.refuted:
        link = "but" if is_settled else "and"
        return f"{begun}, {link} the newest comparison found {found.refuted}", "bad"
    if found.left_open:
        link = "but" if is_settled or found.is_taken else "and"
        beat = f", {'and' if is_settled else 'but'} models trained on them beat those of the prior" * found.is_taken
        said = f"the newest comparison leaves open whether they beat {_EQUAL}: {found.left_open.interval}"
        return f"{begun}{beat}, {link} {said}", "mixed" if is_settled or found.is_taken else "bad"
    if found.is_useful:
        beaten = "those of the prior" if found.is_taken else f"those of {_EQUAL}"
        link = "and" if is_settled else "but"
        return f"{begun}, {link} models trained on them beat {beaten}", "good" if is_settled else "mixed"
    link = "but" if is_settled else "and"
    return f"{begun}, {link} nothing has shown yet that they help", "mixed" if is_settled else "bad"


def _of_verdict(found: Findings) -> str:
    if found.refuted:
        return (
            f"Do not train on these weights: the newest comparison found {found.refuted}. Show more "
            "rows of the target or take more steps, and compare again."
        )
    if found.left_open:
        return (
            "Before you rely on these weights, compare them again on more test rows or with more seeds, whose number "
            "you choose beforehand: an interval that includes 0 and is wide speaks neither for them nor against them."
        )
    if found.status == "no gain":
        return (
            "There is nothing to publish. Show more rows of the target or take more steps; if you know a mixture that "
            "should help, compare it."
        )
    remedy = {
        "not converged": f"learn again with more steps (learn.steps; this run had {found.steps:,})",
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
        "better": f"The newest comparison found them better than {_EQUAL}.",
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
    if found.is_useful and not found.left_open and not found.versions:
        commands.append(f"curator publish {found.lake} --run {found.run_id}")
    if found.status == "not converged":
        commands.append(found.longer)
    if found.judgement in (None, "not judged") or found.left_open:
        learned = "" if found.status == "no gain" else f" --mixture {found.run_id}"
        seeds = f" --seeds {2 * found.left_open.num_seeds}" if found.left_open else ""
        commands.append(
            f"curator compare {found.lake} --target {found.target} --test TEST.parquet --mixture natural{learned}"
            f"{seeds}"
        )
    return commands
