"""The command line: the same calls as the Python API, for shells and schedulers.

`--json` puts exactly one JSON object on the last line of stdout; progress and errors go to stderr. Exit codes: 0 ok,
1 failed, 2 usage or input, 75 try again (see `curator.errors`).
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from curator.config import Config, LearnConfig, TargetConfig
    from curator.lake import Lake


class _Commands(TyperGroup):
    """Typer answers Ctrl-C with status 130 and no word; ours is a sentence and status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            from curator.errors import STOPPED, InterruptedRunError

            raise InterruptedRunError(STOPPED) from error


app = typer.Typer(
    name="curator",
    cls=_Commands,
    help="Learn what every domain and row of a data lake is worth for your target, and write it back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

LakeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[LAKE_URL]", help="Folder, file or glob of Parquet files; any fsspec URL.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML or YAML settings; by default ./curator.toml when no LAKE_URL is given."),
]
TextOption = Annotated[str | None, typer.Option("--text", help="Column with the text.", show_default=False)]
DomainOption = Annotated[
    str | None, typer.Option("--domain", help="Column or hive partition with the domain.", show_default=False)
]
KeyOption = Annotated[str | None, typer.Option("--key", help="Column with a unique, stable key.", show_default=False)]
DestinationOption = Annotated[
    str | None,
    typer.Option("--destination", help="Where versions go; default: _curator in the lake.", show_default=False),
]
SkipOption = Annotated[
    bool | None,
    typer.Option("--skip-bad-rows", help="Leave out rows without text or domain.", show_default=False),
]
MinRowsOption = Annotated[
    int | None, typer.Option("--min-domain-rows", help="Least usable rows of a domain.", show_default=False)
]


def _print_version(value: bool) -> None:
    if value:
        from curator import __version__

        print(__version__)  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del debug, version  # main() takes the first off the line before it is parsed; the other has its callback


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="New folder for the demo's lake.")] = Path("curator-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the lake and of the run.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the run.", show_default=False)] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Build a small lake of real text, learn its weights, publish them, and ask SQL about them."""
    from curator import console
    from curator.demo import STEPS, run_demo

    if not as_json:
        console.err().print(f"Building a lake from the text of this Python installation in {folder} …")
    with console.progress() as tell:
        result = run_demo(folder, seed=seed, steps=STEPS if steps is None else steps, on_progress=tell)
    record = result.run.record
    if as_json:
        console.print_json(
            _learn_values(record)
            | {"version": result.publication.version, "lake": str(result.lake), "target": str(result.target)}
            | {"related": result.related, "corrupted": result.corrupted}
        )
        return
    print_ = console.out().print
    print_("\nTarget: the Python language reference. Which of these sources is worth training on?\n")
    console.print_domains(record)
    print_(f"\nVerdict   {result.run.verdict}")
    print_(
        f"Truth     half the characters of '{result.corrupted}' were replaced on purpose: "
        f"ratio {result.ratios[result.corrupted]:.2f}; '{result.related}' is documentation like the target: "
        f"ratio {result.ratios[result.related]:.2f}"
    )
    print_(f"\nLake      {result.lake}\nTarget    {result.target}\nRun       {result.run.run_dir}")
    print_(f"Version   {result.publication.version} in {result.publication.location}")
    query = (
        "SELECT domain, count(*) AS num_rows, avg(sample_weight) AS sample_weight FROM samples GROUP BY ALL ORDER BY 3"
    )
    _print_next(
        f'curator sql {result.lake} "{query}"',
        f"curator learn {result.lake} --target {result.target} --domain source --tensor-parallel 2 --steps 50",
        f"curator history {result.lake}",
    )


@app.command()
def init(
    lake_url: Annotated[str, typer.Argument(metavar="LAKE_URL", help="Folder, file or glob of Parquet files.")],
    target: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("curator.toml"),
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file instead of writing it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a lake and write a commented configuration file for it."""
    from curator import console
    from curator.initialize import propose, render, write_config

    proposal = propose(lake_url)
    if dry_run and not as_json:
        print(render(proposal), end="")  # noqa: T201
        return
    if not dry_run:
        write_config(proposal, target, force=force)
    if as_json:
        values = {name: getattr(proposal, name) for name in ("url", "text", "domain", "key", "num_files", "num_rows")}
        console.print_json({"status": "ok", "config": None if dry_run else str(target)} | values)
        return
    console.out().print(
        f"{target}: text={proposal.text}, domain={proposal.domain}, key={proposal.key or 'content hash'} "
        f"({proposal.num_files} files, {proposal.num_rows:,} rows)"
    )
    _print_next("curator ingest", "curator learn --target TARGET_URL")


@app.command()
def ingest(
    lake_url: LakeArgument = None,
    text: TextOption = None,
    domain: DomainOption = None,
    key: KeyOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    skip_bad_rows: SkipOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the lake into its row index: ids, domains and lengths; only files that changed are read."""
    import dataclasses

    from curator import console

    settings = _settings(lake_url, config)
    with (
        _open(
            settings, text=text, domain=domain, key=key, destination=destination, skip_bad_rows=skip_bad_rows
        ) as lake,
        console.progress() as tell,
    ):
        report = lake.ingest(tell)
        counts = lake.domain_counts()
    if as_json:
        console.print_json({"status": "ok", **dataclasses.asdict(report), "domains": dict(counts)})
        return
    console.print_rows(["domain", "usable rows"], counts)
    console.out().print(
        f"\n{report.num_files} files, {report.num_rows:,} rows ({report.num_unusable:,} left out); "
        f"{report.added} files new, {report.changed} changed, {report.removed} gone, {report.unchanged} as before"
    )


@app.command()
def learn(
    lake_url: LakeArgument = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Parquet files of what the model should be good at.", show_default=False),
    ] = None,
    text: TextOption = None,
    domain: DomainOption = None,
    key: KeyOption = None,
    target_text: Annotated[
        str | None,
        typer.Option("--target-text", help="The target's text column; default: the lake's.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="scalebio (the default), or a baseline: seal, sama, doge, doremi, …", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="tiny, small, or a Hugging Face model folder.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the solver.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", show_default=False)] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option("--tensor-parallel", help="Workers that share each layer.", show_default=False)
    ] = None,
    pipeline_parallel: Annotated[
        int | None, typer.Option("--pipeline-parallel", help="Workers that share the layers.", show_default=False)
    ] = None,
    data_parallel: Annotated[
        int | None,
        typer.Option(
            "--data-parallel",
            help="Workers that share the batch; default: for presets, one a core.",
            show_default=False,
        ),
    ] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", help="Layers that train at a time; 0: all.", show_default=False)
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="New folder for the run.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", help="Folder of a stopped run to go on with; only the layout may be given.", show_default=False
        ),
    ] = None,
    destination: DestinationOption = None,
    min_domain_rows: MinRowsOption = None,
    config: ConfigOption = None,
    *,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Stop before the workers, to run them with torchrun or Slurm.")
    ] = False,
    skip_bad_rows: SkipOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn the weight of every domain for a target, with two copies of a model on Megatron-Core."""
    from curator import console
    from curator.config import override

    layout = {
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "data_parallel": data_parallel,
    }
    settings = _settings(lake_url, config)
    chosen = override(
        settings.learn,
        method=method,
        model=model,
        steps=steps,
        seed=seed,
        **layout,
        blocks=None if block_size is None else {"size": block_size},
    )
    if resume:
        begun_with: dict[str, object] = {
            "target": target,
            "target-text": target_text,
            "method": method,
            "model": model,
            "steps": steps,
            "seed": seed,
        }
        begun_with |= {"block-size": block_size, "run-dir": run_dir, "prepare": prepare or None}
        _check_resumed_alone(begun_with)
    goal = override(settings.target, url=target, text=target_text)
    columns = {"text": text, "domain": domain, "key": key, "destination": destination}
    options = {"skip_bad_rows": skip_bad_rows, "min_domain_rows": min_domain_rows}
    with _open(settings, **columns, **options) as lake:
        if prepare:
            _prepare(lake, goal, chosen, run_dir, as_json=as_json)
            return
        with console.progress() as tell:
            if resume:
                asked = {name: size for name, size in layout.items() if size is not None}
                run = lake.resume(resume, on_progress=tell, **asked)
            else:
                run = lake.learn(goal, run_dir=run_dir, config=chosen, on_progress=tell)
        if as_json:
            console.print_json(_learn_values(run.record))
            return
        console.print_domains(run.record)
        console.out().print(
            f"\nVerdict   {run.verdict}\nLeaks     {run.leaks}\nRun       {run.run_id} in {run.run_dir}"
        )
        place = f" --destination {shlex.quote(lake.config.destination)}" if lake.config.destination else ""
        _print_next(f"curator publish {shlex.quote(lake.config.url)}{place} --run {run.run_id}")


def _prepare(lake: Lake, goal: TargetConfig, chosen: LearnConfig, run_dir: Path | None, *, as_json: bool) -> None:
    """Write the orders of a run, and say how to run its workers."""
    from curator import console
    from curator.errors import ConfigError

    if run_dir is None:
        raise ConfigError("--prepare needs --run-dir, a folder that all machines share")
    with console.progress() as tell:
        folder = lake.prepare(goal, run_dir=run_dir, config=chosen, on_progress=tell)
    workers = chosen.layout.world_size
    torchrun = f"torchrun --nproc-per-node {workers} -m curator.worker {shlex.quote(str(folder))}"
    if as_json:
        console.print_json({"run_dir": str(folder), "workers": workers, "command": torchrun})
        return
    place = shlex.quote(lake.config.url)
    _print_next(torchrun, f"sbatch {folder / 'slurm.sh'}", f"curator learn {place} --resume {shlex.quote(str(folder))}")


def _check_resumed_alone(begun_with: Mapping[str, object]) -> None:
    """Refuse options that a run that has begun cannot take any more."""
    from curator.errors import ConfigError

    given = [name for name, value in begun_with.items() if value is not None]
    if given:
        raise ConfigError(
            f"--{given[0]} cannot be given with --resume: a run goes on with what it was begun with; "
            "only --tensor-parallel, --pipeline-parallel and --data-parallel may change"
        )


@app.command()
def compare(
    lake_url: LakeArgument = None,
    mixture: Annotated[
        list[str] | None,
        typer.Option(
            "--mixture",
            help="natural, latest, a run id, domain:NAME, oracle, FILE.json, or NAME=any of these; may be repeated. "
            "uniform is always compared.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="The target that weights were learned for.", show_default=False),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", help="Parquet files of held-out rows of the same kind.", show_default=False),
    ] = None,
    text: TextOption = None,
    domain: DomainOption = None,
    key: KeyOption = None,
    target_text: Annotated[
        str | None,
        typer.Option("--target-text", help="Text column of target and test; default: the lake's.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="tiny, small, or a Hugging Face model folder.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of each training.", show_default=False)] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option("--tokens-per-step", help="Tokens of a step.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Trainings of each mixture.", show_default=False)] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option("--tensor-parallel", help="Workers that share each layer.", show_default=False)
    ] = None,
    pipeline_parallel: Annotated[
        int | None, typer.Option("--pipeline-parallel", help="Workers that share the layers.", show_default=False)
    ] = None,
    data_parallel: Annotated[
        int | None, typer.Option("--data-parallel", help="Workers that share the batch.", show_default=False)
    ] = None,
    destination: DestinationOption = None,
    min_domain_rows: MinRowsOption = None,
    config: ConfigOption = None,
    *,
    each_domain: Annotated[bool, typer.Option("--each-domain", help="Compare every domain alone, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained; train nothing.")] = False,
    skip_bad_rows: SkipOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train fresh models on mixtures of the domains, and say which is better on held-out rows, with intervals."""
    import dataclasses

    from curator import console
    from curator.config import TargetConfig, override
    from curator.errors import ConfigError

    settings = _settings(lake_url, config)
    sizes = {"steps": steps, "tokens_per_step": tokens_per_step, "seeds": seeds}
    layout = {
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "data_parallel": data_parallel,
    }
    chosen = override(settings.compare, model=model, **sizes, **layout)
    goal = override(settings.target, url=target, text=target_text)
    columns = {"text": text, "domain": domain, "key": key, "destination": destination}
    options = {"skip_bad_rows": skip_bad_rows, "min_domain_rows": min_domain_rows}
    if not test:
        raise ConfigError("no test part was named; pass --test URL: rows of the target's kind that are not in it")
    asked: dict[str, Any] = {"target": goal, "test": TargetConfig(url=test, text=goal.text), "config": chosen}
    with _open(settings, **columns, **options) as lake, console.progress() as tell:
        asked |= {"each_domain": each_domain, "on_progress": tell}
        if dry_run:
            planned = lake.plan_comparison(*(mixture or []), **asked)
        else:
            found = lake.compare(*(mixture or []), **asked)
    if dry_run and as_json:
        console.print_json({"status": "ok", "dry_run": True, **dataclasses.asdict(planned)})
    elif dry_run:
        console.print_comparison_plan(planned)
    elif as_json:
        console.print_json({"status": "ok", "dry_run": False, **found.to_json()})
    else:
        console.print_comparison(found)


@app.command()
def publish(
    lake_url: LakeArgument = None,
    run: Annotated[str, typer.Option("--run", help="The run to publish.")] = "latest",
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's weights as columns of new Parquet files and make them the lake's newest version, atomically."""
    import dataclasses

    from curator import console

    with _open(_settings(lake_url, config), destination=destination) as lake, console.progress() as tell:
        publication = lake.publish(run, dry_run=dry_run, on_progress=tell)
    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(publication)})
        return
    print_ = console.out().print
    files = f"{publication.num_files} files, {publication.num_rows:,} rows"
    if dry_run:
        print_(f"would write {files} to {publication.location}; nothing was written")
    elif publication.created:
        print_(
            f"version {publication.version}: {files}, {publication.size_bytes / 1e6:,.1f} MB in {publication.location}"
        )
    else:
        print_(f"version {publication.version} holds this run for these files already: {publication.location}")
    if publication.num_unweighted:
        print_(f"{publication.num_unweighted:,} rows have no weight: they came after the run, or have no text")
    if publication.num_gone:
        print_(
            f"{publication.num_gone:,} rows that the run weighed are gone from the lake: the mean weight is not 1 "
            "any more; learn again"
        )


@app.command()
def sql(
    lake_url: Annotated[str, typer.Argument(metavar="LAKE_URL", help="The lake to ask.")],
    query: Annotated[
        str,
        typer.Argument(help="DuckDB SQL over samples, domain_weights, runs, diagnostics, comparisons, versions."),
    ],
    destination: DestinationOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Ask SQL: `samples` (every row with its weights), `domain_weights`, `runs`, `diagnostics` and more."""
    from curator import console

    with _open(_settings(lake_url, None), destination=destination) as lake:
        names, rows = lake.fetch(query)
    if as_json:
        console.print_json({"status": "ok", "columns": names, "rows": [list(row) for row in rows]})
        return
    console.print_rows(names, rows)


@app.command()
def history(
    lake_url: LakeArgument = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the lake's runs and its published versions."""
    import dataclasses

    from curator import console

    with _open(_settings(lake_url, config), destination=destination) as lake:
        versions = [dataclasses.asdict(version) for version in lake.history()]
        runs = [run.record for run in lake.runs()]
    if as_json:
        brief = [
            {key: record[key] for key in ("run_id", "created_at", "status", "snapshot_id", "run_dir")}
            | {"verdict": record["verdict"]["status"]}
            for record in runs
        ]
        console.print_json({"status": "ok", "runs": brief, "versions": versions})
        return
    console.print_rows(
        ["run", "created", "method", "model", "steps", "verdict"],
        [[r["run_id"], r["created_at"], *_learned_by(r["learn"]), r["verdict"]["status"]] for r in runs],
        title=f"Runs of {lake.url}",
    )
    print()  # noqa: T201
    names = ["version", "created_at", "run_id", "num_files", "num_rows", "location"]
    console.print_rows(names, [[row[name] for name in names] for row in versions], title="Published versions")


@app.command()
def plan(
    model: Annotated[
        str, typer.Option("--model", help="Preset, model folder, llama-3-8b, qwen2.5-32b or yi-34b.")
    ] = "tiny",
    devices: Annotated[
        int | None, typer.Option("--devices", help="Propose a layout for so many.", show_default=False)
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", help="GiB of each device; refuse what needs more.", show_default=False)
    ] = None,
    tensor_parallel: Annotated[int, typer.Option("--tensor-parallel", help="Workers that share each layer.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option("--pipeline-parallel", help="Workers that share the layers.")] = 1,
    data_parallel: Annotated[int, typer.Option("--data-parallel", help="Workers that share the batch.")] = 1,
    block_size: Annotated[int, typer.Option("--block-size", help="Layers that train at a time; 0: all.")] = 0,
    edges: Annotated[str, typer.Option("--edges", help="always, sampled or frozen: embedding and head.")] = "always",
    moments: Annotated[str, typer.Option("--moments", help="drop, keep or offload those of a block left.")] = "drop",
    sequence_length: Annotated[int, typer.Option("--sequence-length", help="Tokens of a row.")] = 2048,
    micro_batch_tokens: Annotated[
        int | None, typer.Option("--micro-batch-tokens", help="Default: one row.", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16 or float32.")] = "bfloat16",
    device: Annotated[str, typer.Option("--device", help="cuda or cpu: whose attention is planned for.")] = "cuda",
    flops: Annotated[
        float | None, typer.Option("--flops", help="Operations a second of a device.", min=1, show_default=False)
    ] = None,
    step_tokens: Annotated[int, typer.Option("--step-tokens", help="Tokens of a step, for --flops.", min=1)] = 65536,
    *,
    sequence_parallel: Annotated[bool, typer.Option("--sequence-parallel", help="Share positions, too.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Run layers again in the backward pass.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take of each device's memory, or propose a layout for --devices; needs neither."""
    from curator import console
    from curator import plan as planning

    learn = planning.chosen(
        {
            "model": model,
            "tensor_parallel": tensor_parallel,
            "pipeline_parallel": pipeline_parallel,
            "data_parallel": data_parallel,
            "sequence_parallel": sequence_parallel,
            "recompute": recompute,
            "sequence_length": sequence_length,
            "micro_batch_tokens": sequence_length if micro_batch_tokens is None else micro_batch_tokens,
            "dtype": dtype,
            "blocks": {"size": block_size, "edges": edges, "moments": moments},
        }
    )
    made = planning.plan_run(learn, devices=devices, memory_gib=memory, device=device)
    seconds = None if flops is None else made.seconds(step_tokens, flops=flops)
    if as_json:
        console.print_json(planning.values(made, seconds=seconds))
        return
    title = f"{model}, {made.size.num_parameters / 1e9:.2f} B parameters, two copies: GiB on a device of each stage"
    console.print_rows(["stage", *planning.COLUMNS], planning.rows(made), title=title)
    console.out().print(f"\nSetup     {made.setup}")
    if seconds is not None:
        console.out().print(f"Estimate  {seconds:.3g} s for {step_tokens:,} tokens, from {flops:g} operations a second")


@app.command()
def doctor(
    destination: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="A destination to test by writing to it.", show_default=False)
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check versions, extras, credentials, intruding packages and a destination; say how to mend each failure."""
    import dataclasses

    from curator import console
    from curator.doctor import diagnose

    checks = diagnose(destination)
    failed = any(check.outcome == "failed" for check in checks)
    if as_json:
        status = "failed" if failed else "ok"
        console.print_json({"status": status, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        console.print_rows(["check", "", "found", "fix"], [[c.name, c.outcome, c.found, c.fix] for c in checks])
    if failed:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: run a command, and turn an error into one sentence and its exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(app(arguments or ["--help"], standalone_mode=False))
    except BrokenPipeError:  # the reader of our output is gone, as in `curator history LAKE | head -1`
        sys.stderr.close()
        os._exit(1)
    except Exception as error:  # the last place where a traceback could be kept from the user
        if debug:
            traceback.print_exc()
        code, message, exit_code = _described(error, arguments)
        _report(code, message, as_json="--json" in arguments)
        sys.exit(exit_code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _described(error: Exception, arguments: list[str]) -> tuple[str, str, int]:
    """(stable code, sentence, exit code) of an error."""
    from curator.errors import CuratorError

    if isinstance(error, CuratorError):
        return error.code, str(error), error.exit_code
    if hasattr(error, "format_message"):  # an option or argument that typer refuses
        known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
        command = next((f" {argument}" for argument in arguments if argument in known), "")
        return "usage", f"{error.format_message().rstrip('.')}; see `curator{command} --help`", 2
    return "internal", f"{type(error).__name__}: {error}; this is a defect of ours, --debug shows where", 1


def _report(code: str, message: str, *, as_json: bool) -> None:
    line = " ".join(message.split())
    print(f"curator: {line}", file=sys.stderr)  # noqa: T201
    if as_json:
        from curator import console

        console.print_json({"status": "error", "error": {"code": code, "message": line}})


def _settings(lake_url: str | None, path: Path | None) -> Config:
    """The settings of the file that was named, or of ./curator.toml when no lake was."""
    from curator.config import DEFAULT_FILE, load_config, override
    from curator.errors import ConfigError

    if path is None and lake_url is None:
        if not Path(DEFAULT_FILE).exists():
            raise ConfigError(
                f"no LAKE_URL was given and there is no {DEFAULT_FILE} here; `curator init LAKE_URL` writes one"
            )
        path = Path(DEFAULT_FILE)
    config = load_config(path)
    return override(config, lake={"url": lake_url} if lake_url else None)


def _open(settings: Config, **given: Any) -> Lake:
    from curator.errors import ConfigError
    from curator.lake import open_lake

    if not settings.lake.url:
        raise ConfigError("no lake was named; pass LAKE_URL or set lake.url")
    return open_lake(settings.lake.url, config=settings.lake, **given)


def _learned_by(learn: Mapping[str, Any]) -> list[Any]:
    """Method, model and steps; runs from before there were other methods do not name theirs."""
    return [learn.get("method", "scalebio"), learn["model"], learn["steps"]]


def _learn_values(record: Any) -> dict[str, Any]:
    return {
        "status": "ok",
        "run_id": record["run_id"],
        "domain_weights": {row["domain"]: row["domain_weight"] for row in record["domains"]},
        "natural_share": {row["domain"]: row["natural_share"] for row in record["domains"]},
        "leaks": record["leaks"],
        "verdict": f"{record['verdict']['status']}: {record['verdict']['reason']}",
        "run_dir": record["run_dir"],
        "seconds": record["seconds"],
    }


def _print_next(*commands: str) -> None:
    from curator import console

    console.out().print("\nNext:")
    for command in commands:
        print(f"  {command}")  # noqa: T201


if __name__ == "__main__":
    main()
