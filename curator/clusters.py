"""Domains split by content: clusters of rows that use like words, which get weights of their own.

A row is the square roots of the shares of its words and of its sequences of three bytes that fall into hashed buckets
(`curator.features`), less the mean of its domain, in the directions in which rows differ most within domains. k-means
there makes the clusters of each domain. The solver then learns their weights as if they were domains. In the artifact
a domain weighs what its clusters do together, and a row, within its domain, what its cluster does: a row that comes
later gets the weight of the cluster that it is nearest to, and no model is needed for it.

Shapes: N rows, D domains, K clusters of all domains, H buckets, P directions.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from connectors.store import Store
from curator.errors import InputError, StorageError
from curator.features import content, unit_hashes
from curator.files import appearing_whole
from curator.progress import Progress, ProgressCallback
from curator.row_gaps import CLUSTERS
from curator.scorer import from_npz, places_in, read_npz
from curator.tokens import TokenCache
from curator.weights import DomainWeight

if TYPE_CHECKING:
    from curator.config import ClustersConfig
    from curator.lake import Lake

SCHEMA_VERSION = 1
_SAMPLE_ROWS = 20_000
"""Rows that the clusters are found in, about, in equal parts of the domains."""
_LEAST_SAMPLE = 500
"""Rows of a domain among them, as far as it has so many."""
_NUM_DIRECTIONS = 32
_STARTS = 4
"""Of k-means, of which the tightest is kept."""
_NUM_WORDS = 5
_WORD_ROWS = 500
"""Rows of a cluster, at most, whose words are counted for its description."""
_WORD = re.compile(r"[^\W\d_]{2,}")
_DIGITS = 6
"""Decimals of a row's coordinates: what the rows beside it do to the rounding of a product stays below."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Domains = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The clusters of a lake's domains, each domain's in a row and the largest first.

    `domain_K` says whose each cluster is, `words_K` what its rows speak of more than their domain does, `ratio_K` what
    its rows weigh within their domain, 1 until that has been learned. `mean_DH`, `basis_HP` and `center_KP` say where
    a row belongs.
    """

    domains: tuple[str, ...]
    domain_K: Indices
    words_K: tuple[str, ...]
    ratio_K: Floats
    mean_DH: Floats
    basis_HP: Floats
    center_KP: Floats

    @property
    def names(self) -> tuple[str, ...]:
        """DOMAIN/0, DOMAIN/1 … ."""
        first_D = np.searchsorted(self.domain_K, np.arange(len(self.domains)))
        return tuple(f"{self.domains[d]}/{k - first_D[d]}" for k, d in enumerate(self.domain_K))

    def index(self, labels: pa.Array) -> Domains:
        """The places of domains in `domains`, −1 for one that the run did not know."""
        return places_in(self.domains, labels)

    def assign(self, texts: pa.Array, domain_N: Domains) -> Indices:
        """The cluster of each row, (N,): the nearest one of its domain.

        Args:
            texts: strings.
            domain_N: indexes `domains`.
        """
        cluster_N = np.empty(len(texts), dtype=np.int64)
        for domain in np.unique(domain_N):
            own, of_domain = np.flatnonzero(domain_N == domain), np.flatnonzero(self.domain_K == domain)
            nearest = np.zeros(len(own), dtype=np.int64)
            if len(of_domain) > 1:
                place_NP = _places(content(texts.take(pa.array(own))), self.mean_DH[domain], self.basis_HP)
                nearest = _nearest(place_NP, self.center_KP[of_domain])
            cluster_N[own] = of_domain[nearest]
        return cluster_N

    def row_weights(self, texts: pa.Array, domain_N: Domains) -> Floats:
        """In-domain weights v (N,): those of the rows' clusters; the run's rows have mean 1 over their domain's tokens.

        Args:
            texts: strings.
            domain_N: indexes `domains`.
        """
        weight_N: Floats = self.ratio_K[self.assign(texts, domain_N)]
        return weight_N

    def spread(self, value_D: Sequence[float], tokens_K: Indices) -> list[float]:
        """Domains' shares as shares of their clusters, (K,), by the tokens of each."""
        spread_K: list[float] = (np.asarray(value_D)[self.domain_K] * self._within(tokens_K)).tolist()
        return spread_K

    def fold(self, value_K: Sequence[float]) -> list[float]:
        """The sums over the clusters of each domain, (D,)."""
        sum_D: list[float] = np.bincount(self.domain_K, weights=value_K, minlength=len(self.domains)).tolist()
        return sum_D

    def _fold_known(self, value_K: Sequence[float | None]) -> list[float] | list[None]:
        """The same, and None for all where some are not known."""
        known = [value for value in value_K if value is not None]
        return self.fold(known) if len(known) == len(value_K) else [None] * len(self.domains)

    def _within(self, value_K: Sequence[float] | Indices) -> Floats:
        """Shares of the domains' sums, (K,)."""
        values = np.asarray(value_K, dtype=np.float64)
        shares: Floats = values / np.array(self.fold(values.tolist()))[self.domain_K]
        return shares

    def learned(self, parts: Sequence[DomainWeight]) -> Clusters:
        """With the in-domain weights of the rows that belong to learned weights of the clusters."""
        within_K = self._within([row.domain_weight for row in parts])
        return replace(self, ratio_K=within_K / self._within([row.num_tokens for row in parts]))

    def of_domains(self, parts: Sequence[DomainWeight], domains: Sequence[DomainWeight]) -> tuple[DomainWeight, ...]:
        """The table of domains with what a run says of their clusters: intervals add up, as if all erred alike."""
        low_D, high_D, tokens_D = (
            self._fold_known([getattr(row, name) for row in parts]) for name in ("ci_low", "ci_high", "tokens_seen")
        )
        return tuple(
            row.measured(low, high, tokens)
            for row, low, high, tokens in zip(domains, low_D, high_D, tokens_D, strict=True)
        )

    def figures(self, parts: Sequence[DomainWeight]) -> list[dict[str, Any]]:
        """For the run's record: the table of clusters, of which each names its domain and says its words."""
        return [
            {"cluster": row.domain, **asdict(row), "domain": self.domains[domain], "words": words}
            for row, domain, words in zip(parts, self.domain_K, self.words_K, strict=True)
        ]

    def write(self, path: Path) -> None:
        """Write it as npz without pickled objects."""
        texts = {name: np.array(getattr(self, name), np.str_) for name in ("domains", "words_K")}
        np.savez_compressed(path, schema_version=SCHEMA_VERSION, **vars(self) | texts)

    @staticmethod
    def of(corpus: TokenCache) -> Clusters:
        """Those that a token cache is labelled by."""
        path = corpus.folder / CLUSTERS
        return from_npz(path.read_bytes(), str(path), SCHEMA_VERSION, _from_arrays)

    @staticmethod
    def read(store: Store, path: str) -> Clusters:
        """What `write` wrote.

        Raises:
            InputError: there is none.
            StorageError: it is damaged, or of another version of this package.
        """
        return read_npz(store, path, SCHEMA_VERSION, _from_arrays)


def _from_arrays(values: dict[str, Any]) -> Clusters:
    return Clusters(**values | {name: tuple(map(str, values[name])) for name in ("domains", "words_K")})


def clustered(lake: Lake, corpus: TokenCache, settings: ClustersConfig, on_progress: ProgressCallback) -> TokenCache:
    """The rows of a token cache under the clusters that they belong to, kept beside it for the next use.

    Raises:
        InputError: the lake falls into one cluster only.
    """
    folder = corpus.folder.with_name(f"clusters-{settings.per_domain}-{settings.least_rows}")
    try:
        found = TokenCache.open(folder)
        Clusters.of(found)
    except (OSError, ValueError, KeyError, StorageError):
        shutil.rmtree(folder, ignore_errors=True)  # damaged, if it is there: it can be made again
    else:
        return found
    work = _Clustering(lake, corpus, settings, on_progress)
    clusters = work.find()
    if len(clusters.names) < 2:
        raise _undivided(lake, settings)
    label_N = work.labels(clusters)
    with appearing_whole(folder) as place:
        corpus.relabelled(place, label_N.astype(np.int32), clusters.names)
        clusters.write(place / CLUSTERS)
    return TokenCache.open(folder)


def num_clusters(lake: Lake, rows_D: Sequence[int], settings: ClustersConfig) -> list[int]:
    """Into how many clusters domains of so many rows are split at most.

    Raises:
        InputError: there would be one cluster in all.
    """
    most_D = [max(1, min(settings.per_domain, rows // settings.least_rows)) for rows in rows_D]
    if sum(most_D) < 2:
        raise _undivided(lake, settings)
    return most_D


def _undivided(lake: Lake, settings: ClustersConfig) -> InputError:
    return InputError(
        f"the rows of {lake.url} make one cluster only",
        hint=f"a domain is split into at most learn.clusters.per_domain="
        f"{settings.per_domain} parts of at least learn.clusters.least_rows={settings.least_rows} rows, about: change "
        "them, add rows, or learn with --granularity sample",
    )


class _Clustering:
    """One search for the clusters of a lake."""

    def __init__(self, lake: Lake, corpus: TokenCache, settings: ClustersConfig, on_progress: ProgressCallback) -> None:
        self._lake = lake
        self._settings = settings
        self._tell = on_progress
        self._ids = corpus.sample_ids()
        self._domain_N = np.asarray(corpus.domain)
        self._domains = corpus.domains

    def find(self) -> Clusters:
        """The clusters of a sample of the rows, the same for the same rows."""
        chosen = self._chosen()
        text_R: list[str] = [""] * len(chosen)
        parts, found = [], []
        for index, texts in self._texts(chosen, "rows compared for clusters"):
            parts.append(content(texts).astype(np.float32))
            found.append(index)
            for place, text in zip(index.tolist(), texts.to_pylist(), strict=True):
                text_R[place] = text
        content_RH = np.concatenate(parts)[np.argsort(np.concatenate(found))]
        domain_R = self._domain_N[chosen]
        mean_DH = np.stack([content_RH[domain_R == d].mean(axis=0) for d in range(len(self._domains))])
        basis_HP = _directions(content_RH - mean_DH[domain_R])
        rows_D = np.bincount(self._domain_N, minlength=len(self._domains)).tolist()
        domain_K, center_KP, words_K = [], [], []
        for domain, wanted in enumerate(num_clusters(self._lake, rows_D, self._settings)):
            own = np.flatnonzero(domain_R == domain)
            place_RP = _places(content_RH[own], mean_DH[domain], basis_HP)
            least = max(1, round(self._settings.least_rows * len(own) / rows_D[domain]))
            centers = _centers(place_RP, wanted, least)
            nearest = _nearest(place_RP, centers)
            domain_K += [domain] * len(centers)
            center_KP.append(centers)
            words_K += _words([text_R[place] for place in own], nearest, len(centers))
        return Clusters(
            domains=self._domains,
            domain_K=np.array(domain_K),
            words_K=tuple(words_K),
            ratio_K=np.ones(len(domain_K)),
            mean_DH=mean_DH.astype(np.float64),
            basis_HP=basis_HP,
            center_KP=np.concatenate(center_KP),
        )

    def labels(self, clusters: Clusters) -> Indices:
        """The cluster of every row, (N,)."""
        label_N = np.empty(len(self._domain_N), dtype=np.int64)
        for index, texts in self._texts(np.arange(len(label_N)), "rows put into clusters"):
            label_N[index] = clusters.assign(texts, self._domain_N[index])
        return label_N

    def _chosen(self) -> Indices:
        """The rows of every domain whose hashes come first."""
        hash_N = unit_hashes(self._ids, "clusters")
        most = max(_LEAST_SAMPLE, _SAMPLE_ROWS // len(self._domains))
        order = np.lexsort((hash_N, self._domain_N))
        first_D = np.searchsorted(self._domain_N[order], np.arange(len(self._domains)))
        rank_N = np.arange(len(order)) - first_D[self._domain_N[order]]
        return np.sort(order[rank_N < most])

    def _texts(self, places: Indices, detail: str) -> Iterator[tuple[Indices, pa.Array]]:
        """(places in `places`, texts) in batches, in any order."""
        done = 0
        for index, texts in self._lake.texts_of(self._ids.take(pa.array(places))):
            yield index, texts
            done += len(index)
            self._tell(Progress(stage="cluster", done=done, total=len(places), detail=detail))
        if done != len(places):
            raise InputError(f"{len(places) - done:,} rows are not in {self._lake.url} any more", hint="learn again")


def _directions(residual_RH: NDArray[np.float32]) -> Floats:
    """The principal directions of rows about their domains' means, (H, P), with signs that do not depend on chance."""
    values = residual_RH.T @ residual_RH
    basis_HP = np.linalg.eigh(values.astype(np.float64))[1][:, ::-1][:, :_NUM_DIRECTIONS]
    largest_P = basis_HP[np.abs(basis_HP).argmax(axis=0), np.arange(basis_HP.shape[1])]
    directions: Floats = basis_HP * np.sign(largest_P)
    return directions


def _places(content_NH: NDArray[Any], mean_H: Floats, basis_HP: Floats) -> Floats:
    place_NP: Floats = np.round((content_NH - mean_H) @ basis_HP, _DIGITS)
    return place_NP


def _nearest(place_NP: Floats, center_KP: Floats) -> Indices:
    distance_NK = ((place_NP[:, None] - center_KP[None]) ** 2).sum(axis=2)
    nearest: Indices = distance_NK.argmin(axis=1)
    return nearest


def _centers(place_RP: Floats, wanted: int, least: int) -> Floats:
    """The means of at most so many clusters, the largest first, none of them with fewer rows than `least`."""
    from scipy.cluster.vq import ClusterError, kmeans2

    best: Floats = place_RP.mean(axis=0, keepdims=True)
    best_loss = np.inf
    wanted = min(wanted, len(np.unique(place_RP, axis=0)))
    for start in range(_STARTS if wanted > 1 else 0):
        try:
            centers = kmeans2(place_RP, wanted, iter=50, minit="++", missing="raise", seed=start)[0]
        except ClusterError:  # one of them lost all of its rows
            continue
        loss = ((place_RP - centers[_nearest(place_RP, centers)]) ** 2).sum()
        if loss < best_loss:
            best, best_loss = centers, loss
    while len(best) > 1:
        size_K = np.bincount(_nearest(place_RP, best), minlength=len(best))
        if size_K.min() >= least:
            return np.asarray(best[np.argsort(-size_K, kind="stable")])
        best = np.delete(best, size_K.argmin(), axis=0)
    return best


def _words(texts: Sequence[str], cluster_R: Indices, num_clusters: int) -> list[str]:
    """The words that most set each cluster apart from all of its domain, by share times log ratio of shares."""
    if num_clusters == 1:
        return [""]
    counted = []
    for cluster in range(num_clusters):
        own = np.flatnonzero(cluster_R == cluster)[:_WORD_ROWS]
        counted.append(Counter(word for place in own for word in set(_WORD.findall(texts[place].lower()))))
    share_K = [{word: count / count_all for word, count in found.items()} for found, count_all in _with_totals(counted)]
    mean: Counter[str] = Counter()
    for shares in share_K:
        mean.update({word: share / num_clusters for word, share in shares.items()})
    said = []
    for shares in share_K:
        ranked = sorted(shares, key=lambda word: (-shares[word] * np.log(shares[word] / mean[word]), word))
        said.append(" ".join(ranked[:_NUM_WORDS]))
    return said


def _with_totals(counted: Sequence[Counter[str]]) -> Iterator[tuple[Counter[str], int]]:
    return ((found, max(1, found.total())) for found in counted)
