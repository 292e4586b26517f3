"""Settings: one TOML or YAML file, environment variables and keyword arguments → frozen values.

Later wins: defaults, file, `CURATOR__SECTION__KEY` environment variables, arguments. An unknown key is an error that
names the nearest known one.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from curator.errors import ConfigError
from curator.mixture_files import SUFFIXES
from optim.blocks import BlockSchedule
from optim.layout import Layout, unsupported
from optim.presets import usual_learning_rate

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

ENV_PREFIX = "CURATOR__"
DEFAULT_FILE = "curator.toml"
PRIORS = ("uniform", "natural")
"""Where data weights may start, besides at a file's mixture."""
_SEARCH_TOKENS_PER_STEP = 2048
_LEAST_SEARCH_TOKENS_PER_STEP = 256
_JUDGING_ROWS = 100  # fewer tell two mixtures apart by large differences only


class _Told(ModelMetaclass):
    """Lets a section that is made by its name tell of mistakes as `parse` does."""

    if not TYPE_CHECKING:  # else the arguments would not be checked

        def __call__(self, **values):
            try:
                return super().__call__(**values)
            except ValidationError as error:
                raise _refusal(self, error, "the arguments") from error


class _Section(BaseModel, metaclass=_Told):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LakeConfig(_Section):
    """Where the corpus is and which columns matter."""

    url: str = Field("", description="files (folder, file, glob; any fsspec URL), delta: or iceberg: and a table")
    text: str = Field("text", description="column with the text of a row")
    domain: str = Field("domain", description="column (or hive partition) with the domain of a row")
    key: str | None = Field(None, description="column with a unique, stable key; None: a hash of domain and text")
    id_hash: Literal["xxh3_128", "sha256"] = Field(
        "xxh3_128", description="that hash; sha256 where texts may be made to collide"
    )
    mode: Literal["index", "table", "view"] = Field(
        "index",
        description="what the catalog keeps: ids and lengths of the rows; their columns, too, for queries that do not "
        "read the lake (table); or nothing, so that every session indexes anew (view)",
    )
    destination: str | None = Field(
        None,
        description="where versions are published; None: _curator inside the lake, _curator_NAME for a file or glob",
    )
    single_writer: bool = Field(
        False,
        description="publish also where the storage ignores conditional writes: you vouch that only one process at a "
        "time ever writes there, or versions are lost",
    )
    skip_bad_rows: bool = Field(False, description="leave out rows without text or domain instead of refusing them")
    min_domain_rows: int = Field(8, ge=1, description="least usable rows of a domain")
    storage_options: dict[str, Any] = Field(default_factory=dict, description="passed to fsspec", repr=False)


class TargetConfig(_Section):
    """The small set of what the model should be good at."""

    url: str = Field("", description="folder, file or glob of Parquet files")
    text: str | None = Field(None, description="column with the text; None: the lake's")
    leaks: Literal["exclude", "keep"] = Field(
        "exclude", description="what becomes of rows of the lake that also stand in the target"
    )


class WeightsConfig(_Section):
    """How the domain weights move."""

    optimizer: Literal["dual_averaging", "eg", "adam"] = Field(
        "dual_averaging",
        description="the prior tilted by the mean of all gradients; exponentiated gradient; or Adam on the logits",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="how far a mean gradient (eg, adam: a gradient) of the usual size moves a logit; "
        "None: 2.5 (eg, adam: .1)",
    )
    prior: str = Field(
        "uniform",
        description="where the weights start: uniform, natural, or a file with one mixture (`curator.mixture_files`)",
    )
    prior_pull: float = Field(0.0, ge=0, lt=1, description="share of the way back to the prior at every update")
    floor: float = Field(0.0, ge=0, lt=1, description="least weight of a domain")
    warmup_share: float = Field(0.0, ge=0, lt=1, description="share of the steps before gradients count")
    average_share: float = Field(
        0.5, gt=0, le=1, description="share of the later steps whose weights are averaged (eg, adam)"
    )
    inner_steps: int = Field(1, ge=1, description="model steps for each step of the weights")
    budget_tokens: int | None = Field(
        None, ge=1, description="tokens that the weights are meant to train on; caps the share of small domains"
    )
    max_epochs: float = Field(4.0, gt=0, description="passes over a domain at the budget at most")

    @field_validator("prior")
    @classmethod
    def _check_prior(cls, value: str) -> str:
        if value not in PRIORS and not value.endswith(SUFFIXES):
            raise ValueError(f"it must be uniform, natural or a file of a mixture ({', '.join(SUFFIXES)})")
        return value

    @property
    def usual_rate(self) -> float:
        """The learning rate that was asked for, or the optimizer's usual one."""
        return self.learning_rate or (2.5 if self.optimizer == "dual_averaging" else 0.1)


class LineSearchConfig(_Section):
    """How learned weights are judged on target rows that learning has not seen; off without places.

    A mixture that helps a short training may harm a longer one, and the other way round, so unless told otherwise these
    have as many steps as the run, and no more tokens than what the weights are meant to train
    (`weights.budget_tokens`).
    """

    places: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 2.0, 3.0, 5.0),
        description="places on the line from the prior (0) through the learned weights (1); []: off",
    )
    validation_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the target's rows kept out of learning; by default a quarter, or of a small target as "
        "many as make 100 rows, up to half",
    )
    steps: int | None = Field(None, ge=1, description="steps of each training; by default learn.steps")
    tokens_per_step: int | None = Field(
        None, ge=8, description="target tokens of a step; by default 2048, or fewer to end at the token budget"
    )
    seeds: int = Field(5, ge=2, description="trainings of the best place and of the prior")

    @property
    def num_choosing_seeds(self) -> int:
        """Trainings of each of the two places that did best with the first seed, before one of them is chosen."""
        return math.ceil(self.seeds / 2)

    @property
    def num_contenders(self) -> int:
        """Places that go on after the first seed."""
        return min(2, len(set(self.places)))


class BlocksConfig(_Section):
    """Randomized block coordinates: which layers train at a time."""

    size: int = Field(0, ge=0, description="layers that train at a time; 0: all")
    period: int = Field(5, ge=1, description="steps between two draws")
    edges: Literal["always", "sampled", "frozen"] = Field("always", description="embedding, final norm and head")
    moments: Literal["drop", "keep", "offload"] = Field("drop", description="Adam moments of a block that is left")

    def schedule(self, num_layers: int, seed: int) -> BlockSchedule:
        """Which layers train at which step, of a model with so many."""
        return BlockSchedule(num_layers=num_layers, size=self.size, period=self.period, edges=self.edges, seed=seed)


class RowsConfig(_Section):
    """How rows get weights within their domains; for granularity "sample"."""

    pairs: int = Field(
        4, ge=2, description="pairs of copies, each trained anew, under which the losses of the rows are compared"
    )
    steps: int | None = Field(None, ge=1, description="steps of each pair; by default a third of learn.steps")
    penalty: float = Field(0.5, gt=0, description="α of a pair's objective: the less, the more w is the target's")
    max_rows: int = Field(
        10_000, ge=1, description="rows that are compared, about; of more, the same share of every domain is drawn"
    )
    worst_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of a row's tokens that its gap is the mean of, those that the copy with the target explains "
        "worst; 1: all, as in the gap of a domain",
    )
    sharpness: float = Field(
        1.0, ge=0, description="how much a row of the usual distance from its domain gains or loses"
    )
    near_duplicates: float = Field(
        0.8,
        ge=0,
        le=1,
        description="similarity (Jaccard, sequences of 5 tokens) from which on compared rows of a domain share their "
        "weight; 0: they do not",
    )
    scorer: bool = Field(True, description="weigh rows that were not compared by what their text says of their gap")
    keep_copies: bool = Field(
        True,
        description="keep the copies with the run, up to 256 MiB, to compare rows that come later, too; that is how "
        "these are weighed by default where all rows were compared",
    )


class ClustersConfig(_Section):
    """How domains are split by content; for granularity "cluster"."""

    per_domain: int = Field(4, ge=1, description="clusters of a domain at most")
    least_rows: int = Field(100, ge=1, description="rows of a cluster at least, about; smaller domains stay whole")


class CheckpointConfig(_Section):
    """When a run writes down what it needs to be resumed; also when it is asked to stop."""

    every_minutes: float = Field(10.0, gt=0, description="minutes between two checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")


class LearnConfig(_Section):
    """One learning run."""

    method: Literal["scalebio", "seal", "sama", "doge", "doremi", "rho", "validation_lm", "dsir", "regmix"] = Field(
        "scalebio", description="how the weights are found: scalebio, or a baseline of optim/learners"
    )
    model: str = Field("tiny", description="preset (tiny, small) or a Hugging Face model folder")
    granularity: Literal["domain", "cluster", "sample"] = Field(
        "domain",
        description="what gets a learned weight: domains alone, clusters of their rows by content, or every row, too",
    )
    steps: int = Field(300, ge=1, description="steps of the solver")
    seed: int = Field(0, ge=0, description="seed of initial weights, data order and blocks")
    sequence_length: int = Field(128, ge=8, description="target tokens of a sequence at most")
    rows_per_domain: int | None = Field(
        None, ge=1, description="sequences of each domain in a step; None: 4, or 32 of a lake's only domain"
    )
    domains_per_step: int = Field(32, ge=2, description="domains in a step at most")
    target_rows: int = Field(16, ge=1, description="target sequences in a step")
    penalty: float = Field(10.0, gt=0, description="α of the penalty objective")
    branch_steps: int = Field(25, ge=0, description="steps after which w starts again from u; 0: never")
    learning_rate: float | None = Field(
        None, gt=0, description="peak AdamW learning rate of both copies; None: 4e-3 (tiny), 2e-3 (small), else 2e-5"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay of both copies")
    vocab_size: int = Field(2048, ge=300, description="BPE vocabulary that presets train on the lake")
    micro_batch_tokens: int = Field(2048, ge=1, description="tokens in one forward pass")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="number format of the parameters")
    tensor_parallel: int = Field(1, ge=1, description="workers that share each layer")
    pipeline_parallel: int = Field(1, ge=1, description="workers that share the layers")
    data_parallel: int | None = Field(
        None, ge=1, description="workers that share the batch; by default chosen for presets on CPUs, else 1"
    )
    sequence_parallel: bool = Field(False, description="share positions over the tensor axis, too")
    recompute: bool = Field(False, description="run layers again in the backward pass to save memory")
    weights: WeightsConfig = Field(default_factory=lambda: WeightsConfig())
    blocks: BlocksConfig = Field(default_factory=lambda: BlocksConfig())
    line_search: LineSearchConfig = Field(default_factory=lambda: LineSearchConfig())
    rows: RowsConfig = Field(default_factory=lambda: RowsConfig())
    clusters: ClustersConfig = Field(default_factory=lambda: ClustersConfig())
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig())

    @property
    def peak_learning_rate(self) -> float:
        """The one that was asked for, or the usual one of the model."""
        return self.learning_rate or usual_learning_rate(self.model)

    def is_judged(self, num_domains: int) -> bool:
        """Whether a line search follows; baselines are taken as they come, and one domain has one mixture only."""
        return self.method == "scalebio" and bool(self.line_search.places) and num_domains > 1

    @property
    def search_size(self) -> tuple[int, int]:
        """(Steps, tokens per step) of each training of the line search.

        A token budget below steps × tokens makes the steps smaller, since a model that took fewer of them is trained
        less; what was asked for stays as it is, and no step is made smaller than some sequences.
        """
        search, budget = self.line_search, self.weights.budget_tokens
        steps, tokens = search.steps or self.steps, search.tokens_per_step or _SEARCH_TOKENS_PER_STEP
        if budget and not search.tokens_per_step:
            tokens = min(tokens, max(_LEAST_SEARCH_TOKENS_PER_STEP, self.sequence_length, math.ceil(budget / steps)))
        if budget and not search.steps:
            steps = min(steps, math.ceil(budget / tokens))
        return steps, tokens

    def num_fit_rows(self, num_rows: int, num_domains: int) -> int:
        """Of `num_rows` target rows, how many learning sees: the first ones, in the order of their hashes."""
        if not self.is_judged(num_domains):
            return num_rows
        share = self.line_search.validation_share
        num_judging = (
            round(share * num_rows) if share else max(round(0.25 * num_rows), min(_JUDGING_ROWS, num_rows // 2))
        )
        return num_rows - max(2, num_judging)

    @property
    def num_pair_steps(self) -> int:
        """Steps of each pair of copies under which rows are compared."""
        return self.rows.steps or max(1, round(self.steps / 3))

    def num_solver_steps(self, num_domains: int) -> int:
        """Steps in which domain weights are learned: none where rows are weighed and there is one domain."""
        return 0 if self.granularity == "sample" and num_domains == 1 else self.steps

    def pair_starts(self, num_domains: int) -> tuple[int, ...]:
        """The counts of steps after which a pair begins; none where domains alone are weighed."""
        if self.granularity != "sample":
            return ()
        first = self.num_solver_steps(num_domains)
        return tuple(first + k * self.num_pair_steps for k in range(self.rows.pairs))

    def num_total_steps(self, num_domains: int) -> int:
        """Steps of the solver, then of the pairs."""
        return self.num_solver_steps(num_domains) + len(self.pair_starts(num_domains)) * self.num_pair_steps

    @property
    def is_stepwise(self) -> bool:
        """Whether the method takes steps of `optim.solver`; the others count words, or train many models."""
        return self.method not in ("dsir", "regmix")

    def num_rows_per_domain(self, num_domains: int) -> int:
        """Sequences of each domain in a step: what was asked for, or the usual number."""
        return self.rows_per_domain or (4 if num_domains > 1 else 32)

    def block_schedule(self, num_layers: int) -> BlockSchedule:
        """Which layers train at which step, of a model with so many."""
        return self.blocks.schedule(num_layers, self.seed)

    @property
    def layout(self) -> Layout:
        """How the workers share the model."""
        return Layout(
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            data_parallel=self.data_parallel or 1,
            sequence_parallel=self.sequence_parallel,
        )


EXECUTION_FIELDS = frozenset(
    (
        "tensor_parallel",
        "pipeline_parallel",
        "data_parallel",
        "sequence_parallel",
        "recompute",
        "micro_batch_tokens",
        "checkpoint",
    )
)
"""Of `LearnConfig`, what may differ when a run is resumed: it changes how the work is done, not what is learned."""


class RefreshConfig(_Section):
    """When `curator refresh` learns again instead of keeping the weights, and what it does not publish."""

    new_domain_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of rows in domains without a weight, or of new rows that drifted, for it to learn again",
    )
    max_share_change: float = Field(
        0.1, ge=0, le=1, description="change of the domains' shares of rows above which it learns again"
    )
    max_feature_drift: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Jensen-Shannon divergence, beyond chance, of the text of a domain's new rows from that which was "
        "learned on, above which their share counts as that of a new domain",
    )
    max_gap_drift: float = Field(
        0.5,
        ge=0,
        description="standard deviations of the measured gaps by which the gaps that the scorer expects of a domain's "
        "new rows may lie from its mean, likewise",
    )
    max_age_days: float | None = Field(None, gt=0, description="age of the weights above which it learns again")
    max_drift: float = Field(
        0.5, ge=0, le=1, description="change of the domain weights above which nothing is published, unless forced"
    )
    max_unweighted_share: float = Field(
        0.1, ge=0, le=1, description="share of rows that get no weight above which nothing is published"
    )
    min_row_weight: float = Field(
        0.0, ge=0, description="weight of a row (the mean is 1) below which nothing is published"
    )
    max_row_weight: float = Field(
        1000.0, gt=0, description="weight of a row (the mean is 1) above which nothing is published"
    )
    max_val_rise: float = Field(
        0.01,
        ge=0,
        description="nats per token by which models trained on the new domain weights may be worse than those trained "
        "on the last version's, at the lower end of a 95 % interval, before nothing is published",
    )
    warm_start: bool = Field(
        False, description="begin learning at the last version's domain weights instead of the prior"
    )
    verdicts: tuple[Literal["converged", "not converged", "no gain", "unstable"], ...] = Field(
        ("converged", "not converged"), description="verdicts of runs that are published"
    )
    mode: Literal["copy", "sidecar"] = Field("copy", description="how versions are published")
    bloom_filters: tuple[Literal["sample_weight", "domain_weight", "weight_run_id"], ...] = Field(
        (), description="weight columns that get a bloom filter in the copies, for engines that look for single values"
    )
    lease_minutes: float = Field(
        10.0, gt=0, description="minutes after which the lock of a refresh that was killed is taken over"
    )


class CompareConfig(_Section):
    """How the models that mixtures are judged by are trained: each on `steps` · `tokens_per_step` tokens."""

    model: str = Field("tiny", description="preset (tiny, small) or a Hugging Face model folder")
    steps: int = Field(300, ge=1, description="steps of each training")
    tokens_per_step: int = Field(4096, ge=8, description="target tokens of a step")
    seeds: int = Field(3, ge=1, description="trainings of each mixture; an interval needs at least 2")
    sequence_length: int = Field(128, ge=8, description="target tokens of a sequence at most")
    learning_rate: float | None = Field(
        None, gt=0, description="peak AdamW learning rate; None: 4e-3 (tiny), 2e-3 (small), else 2e-5"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    vocab_size: int = Field(2048, ge=300, description="BPE vocabulary that presets train on the lake")
    micro_batch_tokens: int = Field(2048, ge=1, description="tokens in one forward pass")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="number format of the parameters")
    tensor_parallel: int = Field(1, ge=1, description="workers that share each layer")
    pipeline_parallel: int = Field(1, ge=1, description="workers that share the layers")
    data_parallel: int = Field(1, ge=1, description="workers that share the batch")
    sequence_parallel: bool = Field(False, description="share positions over the tensor axis, too")
    recompute: bool = Field(False, description="run layers again in the backward pass to save memory")
    blocks: BlocksConfig = Field(default_factory=lambda: BlocksConfig())
    at_once: int | None = Field(
        None, ge=1, description="trainings side by side; by default one a core for presets on CPUs, else 1"
    )

    @property
    def peak_learning_rate(self) -> float:
        """The one that was asked for, or the usual one of the model."""
        return self.learning_rate or usual_learning_rate(self.model)

    @property
    def layout(self) -> Layout:
        """How the workers of a training share the model."""
        return Layout(
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            data_parallel=self.data_parallel,
            sequence_parallel=self.sequence_parallel,
        )


class Config(_Section):
    """A whole configuration file."""

    lake: LakeConfig = Field(default_factory=lambda: LakeConfig())
    target: TargetConfig = Field(default_factory=lambda: TargetConfig())
    learn: LearnConfig = Field(default_factory=lambda: LearnConfig())
    compare: CompareConfig = Field(default_factory=lambda: CompareConfig())
    refresh: RefreshConfig = Field(default_factory=lambda: RefreshConfig())


Section = TypeVar("Section", bound=BaseModel)


def load_config(path: str | Path | None, *, environ: Mapping[str, str] | None = None) -> Config:
    """The settings of a file (None: defaults alone) under the environment's overrides.

    Raises:
        ConfigError: the file cannot be read, or holds an unknown key or a value that is not allowed.
    """
    values = _read(Path(path)) if path is not None else {}
    variables = _variables(os.environ if environ is None else environ)

    def source_of(key: tuple[str, ...]) -> str:
        name = ENV_PREFIX + "__".join(key).upper()
        return f"environment variable {name}" if key in variables or path is None else str(path)

    return parse(Config, _merged(values, _nested(variables)), source_of)


def parse(section: type[Section], values: Mapping[str, Any], source: str | Callable[[tuple[str, ...]], str]) -> Section:
    """`values` as a settings object; errors name the source, the key, what is allowed and the nearest known key.

    Args:
        section: the kind of settings.
        values: not checked yet.
        source: where `values` come from; where that differs by key, a function of the key's path.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _refusal(section, error, source) from error


def override(settings: Section, **values: Any) -> Section:
    """`settings` with the values that are not None replaced, checked anew."""
    given = {name: value for name, value in values.items() if value is not None}
    return parse(type(settings), _merged(settings.model_dump(exclude_unset=True), given), "the arguments")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            return dict(_parse_yaml(text) or {})
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}", hint="`curator init LAKE_URL` writes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read as configuration: {error}",
            hint="`curator init LAKE_URL --dry-run` prints one that can",
        ) from error


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ConfigError("a YAML configuration needs PyYAML: pip install pyyaml, or write TOML") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _variables(environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """`CURATOR__LEARN__STEPS=100` → {("learn", "steps"): "100"}; pydantic turns the strings into numbers."""
    return {
        tuple(name.removeprefix(ENV_PREFIX).lower().split("__")): value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX)
    }


def _nested(variables: Mapping[tuple[str, ...], str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for (*parents, leaf), value in sorted(variables.items()):
        place = values
        for depth, part in enumerate(parents):
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                name = ENV_PREFIX + "__".join(parents[: depth + 1]).upper()
                raise ConfigError(
                    f"environment variable {name} is a section, not a value", hint=f"set {name}__KEY instead"
                )
        place[leaf] = value
    return values


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _refusal(
    section: type[BaseModel], error: ValidationError, source: str | Callable[[tuple[str, ...]], str]
) -> ConfigError:
    items = [(tuple(map(str, item["loc"])), item) for item in error.errors()]
    said = [_explain(section, key, item, source if isinstance(source, str) else source(key)) for key, item in items]
    return ConfigError("; ".join(said))


def _explain(section: type[BaseModel], path: tuple[str, ...], item: Any, source: str) -> str:
    where = f"{source}: {'.'.join(path)}"
    refused = unsupported(path[-1], item["input"])
    if refused:
        return f"{where}: {refused}"
    if item["type"] == "extra_forbidden":
        known = _known_keys(section, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
        return f"{where} is not a known key; {hint}"
    given = "" if "storage_options" in path else f"={item['input']!r}"  # those may be credentials
    said = item["msg"].removeprefix("Value error, ")
    return f"{where}{given}: {said[0].lower()}{said[1:]}"


def _known_keys(section: type[BaseModel], parents: Sequence[str]) -> list[str]:
    for name in parents:
        nested = section.model_fields[name].annotation
        assert isinstance(nested, type)
        assert issubclass(nested, BaseModel)
        section = nested
    return sorted(section.model_fields)
