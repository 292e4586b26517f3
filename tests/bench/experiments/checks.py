"""What each experiment must show, from a comparison and ScaleBiO's runs: whether it does, and a sentence why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scipy.stats import spearmanr

from curator.compare import Comparison
from curator.run import Run

Shown = tuple[bool, str]
Check = Callable[[Comparison, Sequence[Run]], Shown]

RELATED = {"fr": 6.44, "es": 6.46, "gl": 6.51, "pt": 6.55, "it": 6.63, "ro": 7.05}
TRANSFER_TO_CATALAN = RELATED | {"nl": 7.16, "et": 7.32, "tr": 7.47, "pl": 7.61, "de": 7.62, "eu": 7.62}
"""Test loss of a model trained on one language alone (a plain-torch pilot of .5M weights)."""


def weights(runs: Sequence[Run]) -> dict[str, float]:
    """Mean domain weights over the seeds."""
    total: dict[str, float] = {}
    for run in runs:
        for row in run.record["domains"]:
            total[row["domain"]] = total.get(row["domain"], 0.0) + row["domain_weight"] / len(runs)
    return total


def beats_uniform(comparison: Comparison, _: Sequence[Run]) -> Shown:
    """An interval below 0."""
    found = comparison["scalebio"]
    return found.judgement == "better", found.sentence


def beats_baselines(comparison: Comparison, _: Sequence[Run]) -> Shown:
    """No other learned mixture, nor the natural one, has a lower test loss."""
    others = [r for r in comparison.results if r.run_id or r.mixture in ("uniform", "natural")]
    best = min((r for r in others if r.mixture != "scalebio"), key=lambda r: r.test_loss)
    own = comparison["scalebio"].test_loss
    return own <= best.test_loss, f"scalebio {own:.4f}, the best of the baselines ({best.mixture}) {best.test_loss:.4f}"


def closes(share: float, *mixtures: str) -> Check:
    """At least `share` of the way from uniform to the best of these mixtures."""

    def check(comparison: Comparison, _: Sequence[Run]) -> Shown:
        best = min(comparison[name].difference for name in mixtures)
        closed = comparison["scalebio"].difference / best
        names = " / ".join(mixtures)
        return closed >= share, f"closes {closed:.0%} of the gap from uniform to {names} (wanted {share:.0%})"

    return check


def at_least(share: float, *domains: str) -> Check:
    """These domains together have that weight, in the mean over seeds."""

    def check(_: Comparison, runs: Sequence[Run]) -> Shown:
        total = sum(weights(runs)[domain] for domain in domains)
        return total >= share, f"{' + '.join(domains)} {total:.3f} (wanted at least {share})"

    return check


def at_most(share: float, *domains: str) -> Check:
    """These domains together have no more than that weight, in the mean over seeds."""

    def check(_: Comparison, runs: Sequence[Run]) -> Shown:
        total = sum(weights(runs)[domain] for domain in domains)
        return total <= share, f"{' + '.join(domains)} {total:.3f} (wanted at most {share})"

    return check


def lead(*domains: str) -> Check:
    """These domains have the largest weights, in any order."""

    def check(_: Comparison, runs: Sequence[Run]) -> Shown:
        ranked = sorted(weights(runs).items(), key=lambda item: -item[1])
        first = {name for name, _ in ranked[: len(domains)]}
        return first == set(domains), f"{', '.join(sorted(first))} lead (wanted {', '.join(domains)})"

    return check


def follows_transfer(_: Comparison, runs: Sequence[Run]) -> Shown:
    """Weights fall as the single language's loss rises."""
    found = weights(runs)
    rho = -float(spearmanr([found[name] for name in TRANSFER_TO_CATALAN], list(TRANSFER_TO_CATALAN.values()))[0])
    return rho >= 0.7, f"Spearman of weight and transfer {rho:.2f} (wanted .7)"


def falls_with_corruption(_: Comparison, runs: Sequence[Run]) -> Shown:
    """The mean over seeds of the rank correlation between weight and a partition's corruption."""
    rhos = []
    for run in runs:
        found = weights([run])
        names = sorted(found)
        corruption = [min(1.0, 0.2 * int(name.removeprefix("part-"))) for name in names]
        rhos.append(float(spearmanr([found[name] for name in names], corruption)[0]))
    mean = sum(rhos) / len(rhos)
    return mean <= -0.9, f"Spearman of weight and corruption {mean:.2f} (wanted -.9)"


def gains(*domains: str) -> Check:
    """These domains have more than the uniform share."""

    def check(_: Comparison, runs: Sequence[Run]) -> Shown:
        found = weights(runs)
        uniform = 1 / len(found)
        figures = ", ".join(f"{name} {found[name]:.3f}" for name in domains)
        return all(found[name] > uniform for name in domains), f"{figures} (uniform {uniform:.3f})"

    return check


CHECKS: dict[str, Sequence[Check]] = {
    "denoise": (beats_uniform, at_most(0.05, "scrambled", "characters"), closes(0.6, "clean alone"), beats_baselines),
    "partitions": (falls_with_corruption,),
    "multilingual-easy": (beats_uniform, at_least(0.7, "ca"), closes(0.85, "ca alone"), beats_baselines),
    "multilingual-hard": (beats_uniform, lead(*RELATED), follows_transfer, beats_baselines),
    "domains": (
        beats_uniform,
        lead("medquad", "cs_abstracts"),
        at_least(0.5, "medquad", "cs_abstracts"),
        closes(0.8, "medquad cs", "medquad cs wikipedia speeches"),
        beats_baselines,
    ),
    "instruct": (beats_uniform, gains("flan_cot_aqua"), beats_baselines),
    "dutch": (beats_uniform, beats_baselines),
    "reviews": (beats_uniform, beats_baselines),
    "code": (beats_uniform, beats_baselines),
}
