"""Commands that learn and judge weights, and plan what it takes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator.cli.options import (
    BLOCK_SIZE,
    DATA_PARALLEL,
    PIPELINE_PARALLEL,
    TENSOR_PARALLEL,
    ConfigOption,
    DestinationOption,
    DomainOption,
    GranularityOption,
    JsonOption,
    KeyOption,
    LakeArgument,
    MinRowsOption,
    ModelOption,
    SkipOption,
    TargetTextOption,
    TextOption,
    given_layout,
    open_given,
    print_next,
    read_settings,
)

if TYPE_CHECKING:
    from curator.config import LearnConfig, TargetConfig
    from curator.lake import Lake


def learn(
    lake_url: LakeArgument = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Parquet files of what the model should be good at.", show_default=False),
    ] = None,
    text: TextOption = None,
    domain: DomainOption = None,
    key: KeyOption = None,
    target_text: TargetTextOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="scalebio (the default), or a baseline: seal, sama, doge, doremi, …", show_default=False
        ),
    ] = None,
    granularity: GranularityOption = None,
    model: ModelOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps of the solver (learn.steps).", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", show_default=False)] = None,
    tensor_parallel: Annotated[int | None, TENSOR_PARALLEL] = None,
    pipeline_parallel: Annotated[int | None, PIPELINE_PARALLEL] = None,
    data_parallel: Annotated[
        int | None,
        typer.Option(
            "--data-parallel",
            help="Workers that share the batch; default: for presets, one a core.",
            show_default=False,
        ),
    ] = None,
    block_size: Annotated[int | None, BLOCK_SIZE] = None,
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
    """Learn the weight of every domain, and of the rows, for a target, with two copies of a model on Megatron-Core."""
    from curator import console
    from curator.config import override

    layout = given_layout(tensor_parallel, pipeline_parallel, data_parallel)
    settings = read_settings(lake_url, config)
    chosen = override(
        settings.learn,
        method=method,
        granularity=granularity,
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
            "granularity": granularity,
            "model": model,
            "steps": steps,
            "seed": seed,
        }
        begun_with |= {"block-size": block_size, "run-dir": run_dir, "prepare": prepare or None}
        _check_resumed_alone(begun_with)
    goal = override(settings.target, url=target, text=target_text)
    columns = {"text": text, "domain": domain, "key": key, "destination": destination}
    options = {"skip_bad_rows": skip_bad_rows, "min_domain_rows": min_domain_rows}
    with open_given(settings, **columns, **options) as lake:
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
            console.print_json(learn_values(run.record))
            return
        console.print_domains(run.record)
        console.print_clusters(run.record)
        console.out().print(
            f"\nVerdict   {run.verdict}\nLeaks     {run.leaks}\nRun       {run.run_id} in {run.run_dir}"
        )
        if num_duplicates := run.record["duplicates"].get("num_duplicates"):
            share = run.record["duplicates"]["share"]
            console.out().print(f"Repeated  {num_duplicates:,} rows ({share:.2%}) repeat another of their domain")
        named = f"{lake.command_address} --run {run.run_id}"
        print_next(f"curator report {named}", f"curator publish {named}")


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
        console.print_json({"status": "ok", "run_dir": str(folder), "workers": workers, "command": torchrun})
        return
    script = shlex.quote(str(folder / "slurm.sh"))
    go_on = f"curator learn {lake.command_address} --resume {shlex.quote(str(folder))}"
    print_next(torchrun, f"sbatch {script}", go_on)


def _check_resumed_alone(begun_with: Mapping[str, object]) -> None:
    """Refuse options that a run that has begun cannot take any more."""
    from curator.errors import ConfigError

    given = [name for name, value in begun_with.items() if value is not None]
    if given:
        raise ConfigError(
            f"--{given[0]} cannot be given with --resume: a run goes on with what it was begun with",
            hint="only --tensor-parallel, --pipeline-parallel and --data-parallel may change",
        )


def compare(
    lake_url: LakeArgument = None,
    mixture: Annotated[
        list[str] | None,
        typer.Option(
            "--mixture",
            help="natural, latest, a run id, domain:NAME, oracle, a file (.json, .yaml, .csv, .txt, .blend), or "
            "NAME=any of these; may be repeated. "
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
    model: ModelOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps of each training (compare.steps).", show_default=False)
    ] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option("--tokens-per-step", help="Tokens of a step.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Trainings of each mixture.", show_default=False)] = None,
    tensor_parallel: Annotated[int | None, TENSOR_PARALLEL] = None,
    pipeline_parallel: Annotated[int | None, PIPELINE_PARALLEL] = None,
    data_parallel: Annotated[int | None, DATA_PARALLEL] = None,
    destination: DestinationOption = None,
    min_domain_rows: MinRowsOption = None,
    config: ConfigOption = None,
    *,
    each_domain: Annotated[bool, typer.Option("--each-domain", help="Compare every domain alone, too.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained; train nothing (texts are read and tokenized).")
    ] = False,
    skip_bad_rows: SkipOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train fresh models on mixtures of the domains, and say which is better on held-out rows, with intervals."""
    import dataclasses

    from curator import console
    from curator.config import TargetConfig, override
    from curator.errors import ConfigError

    settings = read_settings(lake_url, config)
    sizes = {"steps": steps, "tokens_per_step": tokens_per_step, "seeds": seeds}
    layout = given_layout(tensor_parallel, pipeline_parallel, data_parallel)
    chosen = override(settings.compare, model=model, **sizes, **layout)
    goal = override(settings.target, url=target, text=target_text)
    columns = {"text": text, "domain": domain, "key": key, "destination": destination}
    options = {"skip_bad_rows": skip_bad_rows, "min_domain_rows": min_domain_rows}
    if not test:
        raise ConfigError(
            "no test part was named", hint="pass --test URL: rows of the target's kind that are not in it"
        )
    asked: dict[str, Any] = {"target": goal, "test": TargetConfig(url=test, text=goal.text), "config": chosen}
    with open_given(settings, **columns, **options) as lake, console.progress() as tell:
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


def plan(
    lake_url: LakeArgument = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="With a lake: what the model should be good at.", show_default=False),
    ] = None,
    text: TextOption = None,
    domain: DomainOption = None,
    key: KeyOption = None,
    target_text: TargetTextOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Preset, model folder, llama-3-8b, qwen2.5-32b or yi-34b.", show_default=False),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps of the solver (learn.steps).", show_default=False)
    ] = None,
    granularity: GranularityOption = None,
    calibration_steps: Annotated[
        int | None,
        typer.Option(
            "--calibration-steps",
            help="With a lake: steps that are timed; 0: no time. Default: 8.",
            min=0,
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", help="Propose a layout for so many.", show_default=False)
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", help="GiB of each device; refuse what needs more.", show_default=False)
    ] = None,
    tensor_parallel: Annotated[int | None, TENSOR_PARALLEL] = None,
    pipeline_parallel: Annotated[int | None, PIPELINE_PARALLEL] = None,
    data_parallel: Annotated[int | None, DATA_PARALLEL] = None,
    block_size: Annotated[int | None, BLOCK_SIZE] = None,
    edges: Annotated[
        str | None,
        typer.Option("--edges", help="always, sampled or frozen: embedding and head.", show_default=False),
    ] = None,
    moments: Annotated[
        str | None,
        typer.Option("--moments", help="drop, keep or offload those of a block left.", show_default=False),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option("--sequence-length", help="Tokens of a row; without a lake 2048.", show_default=False),
    ] = None,
    micro_batch_tokens: Annotated[
        int | None,
        typer.Option("--micro-batch-tokens", help="Without a lake by default one row.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="bfloat16 or float32; without a lake bfloat16.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="cuda or cpu: whose attention is planned for; without a lake cuda.", show_default=False
        ),
    ] = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="Operations a second of a device.", min=1, show_default=False)
    ] = None,
    step_tokens: Annotated[int, typer.Option("--step-tokens", help="Tokens of a step, for --flops.", min=1)] = 65536,
    config: ConfigOption = None,
    *,
    sequence_parallel: Annotated[
        bool | None, typer.Option("--sequence-parallel", help="Share positions, too.", show_default=False)
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option("--recompute", help="Run layers again in the backward pass.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take. With a lake: rows, tokens, steps, bytes, memory, time; without: a device's memory.

    With LAKE_URL or --config the settings are those of `curator learn`, and a few of its steps are timed here; so with
    ./curator.toml and one of --target, --granularity, --calibration-steps, or no option at all. Without, a model and a
    layout are looked at alone, or a layout proposed for --devices; that needs neither data nor devices.
    """
    from curator.config import DEFAULT_FILE, override

    blocks = {"size": block_size, "edges": edges, "moments": moments}
    values: dict[str, Any] = {
        "model": model,
        "steps": steps,
        **given_layout(tensor_parallel, pipeline_parallel, data_parallel),
        "sequence_parallel": sequence_parallel,
        "recompute": recompute,
        "sequence_length": sequence_length,
        "micro_batch_tokens": micro_batch_tokens,
        "dtype": dtype,
        "blocks": {name: value for name, value in blocks.items() if value is not None},
    }
    given = {name: value for name, value in values.items() if value is not None}
    of_lake = {
        "target": target,
        "target-text": target_text,
        "granularity": granularity,
        "calibration-steps": calibration_steps,
    }
    of_devices = {"devices": devices, "flops": flops, "device": device}
    if lake_url is None and config is None and Path(DEFAULT_FILE).exists():
        asked = any(value is not None for value in of_lake.values())
        is_bare = not any(value or value == 0 for value in [*given.values(), *of_devices.values(), memory])
        config = Path(DEFAULT_FILE) if asked or is_bare else None
    if lake_url is None and config is None:
        _check_no_lake(of_lake)
        _plan_devices(given, devices, memory, device or "cuda", flops, step_tokens, as_json=as_json)
        return
    _check_lake(of_devices)
    settings = read_settings(lake_url, config)
    goal = override(settings.target, url=target, text=target_text)
    learn = override(settings.learn, **given)
    if granularity is not None:
        learn = override(learn, granularity=granularity)
    with open_given(settings, text=text, domain=domain, key=key) as lake:
        _forecast(lake, goal, learn, calibration_steps, memory, as_json=as_json)


def _check_no_lake(given: Mapping[str, object]) -> None:
    from curator.errors import ConfigError

    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--{name} is about a lake, and none was named", hint=f"pass LAKE_URL, or leave --{name} out"
            )


def _check_lake(given: Mapping[str, object]) -> None:
    from curator.errors import ConfigError

    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--{name} is for plans without a lake, whose run is timed on this machine",
                hint=f"leave --{name} out, or LAKE_URL and --config",
            )


def _plan_devices(
    given: Mapping[str, Any],
    devices: int | None,
    memory: float | None,
    device: str,
    flops: float | None,
    step_tokens: int,
    *,
    as_json: bool,
) -> None:
    from curator import console
    from curator import plan as planning

    learn = planning.chosen(given)
    with console.progress() as tell:
        made = planning.plan_run(learn, devices=devices, memory_gib=memory, device=device, on_progress=tell)
    seconds = None if flops is None else made.seconds(step_tokens, flops=flops)
    if as_json:
        console.print_json(planning.values(made, seconds=seconds))
        return
    title = (
        f"{learn.model}, {made.size.num_parameters / 1e9:.2f} B parameters, two copies: GiB on a device of each stage"
    )
    console.print_rows(["stage", *planning.COLUMNS], planning.rows(made), title=title)
    console.out().print(f"\nSetup     {made.setup}")
    if seconds is not None:
        console.out().print(f"Estimate  {seconds:.3g} s for {step_tokens:,} tokens, from {flops:g} operations a second")


def _forecast(
    lake: Lake,
    goal: TargetConfig,
    learn: LearnConfig,
    calibration_steps: int | None,
    memory: float | None,
    *,
    as_json: bool,
) -> None:
    """Say what the run will take of this machine; the memory is that of the layout that it would have here."""
    import dataclasses

    from curator import console
    from curator import plan as planning

    with console.progress() as tell:
        found = lake.forecast(goal, config=learn, calibration_steps=calibration_steps, on_progress=tell)
    fixed = learn.model_copy(update={"data_parallel": found.data_parallel})
    made = planning.plan_run(fixed, memory_gib=memory, device=found.device)
    if as_json:
        console.print_json(planning.values(made, seconds=None) | dataclasses.asdict(found))
    else:
        console.print_forecast(found, made.worst.total)


def learn_values(record: Any) -> dict[str, Any]:
    """What `--json` prints of a run."""
    clusters = record.get("clusters")
    found = {
        "status": "ok",
        "run_id": record["run_id"],
        "domain_weights": {row["domain"]: row["domain_weight"] for row in record["domains"]},
        "natural_share": {row["domain"]: row["natural_share"] for row in record["domains"]},
        "leaks": record["leaks"],
        "duplicates": record["duplicates"],
        "verdict": f"{record['verdict']['status']}: {record['verdict']['reason']}",
        "run_dir": record["run_dir"],
        "seconds": record["seconds"],
    }
    return found | ({"clusters": {row["cluster"]: row["domain_weight"] for row in clusters}} if clusters else {})
