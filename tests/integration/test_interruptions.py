"""A run that is stopped, or whose workers die: no process stays, nothing is half-written, the lake goes on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lake_cases import command, curator, environment, refusal, tree, values_of
from process_cases import is_learning, outcome, processes_of, wait_until

pytest.importorskip("megatron.core", reason="needs the extra [train]")


def endless(here, *options):
    """A run that would take hours, in its own process group, as a terminal starts it."""
    arguments = ["learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--steps", 10**7]
    (here / "tmp").mkdir()
    return subprocess.Popen(
        command(*arguments, "--run-dir", here / "run", *options),
        cwd=here,
        env=environment(here, TMPDIR=str(here / "tmp")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def check_that_nothing_stayed(here, before):
    wait_until(lambda: not processes_of(here), 15)
    assert without_caches(tree(here)) == before
    assert not list((here / "lake" / "_curator").glob("tokens/.*"))
    assert not (here / "run" / "run.json").exists()
    assert not (here / "run" / "weights.parquet").exists()
    history = values_of(curator(here, "history", "lake", "--json"))
    assert (history["runs"], history["versions"]) == ([], [])
    assert values_of(curator(here, "ingest", "lake", "--json"))["unchanged"] == 3


def without_caches(found):
    """The files that matter: not the token cache, which the next run uses, nor the run's own folder."""
    return {p: digest for p, digest in found.items() if "/tokens/" not in p and p.split("/")[0] not in ("run", "tmp")}


@pytest.fixture
def before(here):
    """The files of a lake that was ingested."""
    values_of(curator(here, "ingest", "lake", "--json"))
    return without_caches(tree(here))


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGINT, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)],
    ids=["ctrl-c", "sigterm"],
)
def test_a_stopped_run(here, before, number, group):
    process = endless(here, "--json", "--tensor-parallel", 2)
    wait_until(lambda: is_learning(here), 60, process)
    assert len(processes_of(here)) >= 4  # the command, the helper, two workers
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    done = outcome(process)
    message = refusal(done, 1)
    assert message == (
        f"stopped before the run ended; nothing was published, what it wrote so far is in {here / 'run'}; "
        f"go on with `curator learn lake --resume {here / 'run'}`"
    )
    assert json.loads(done.stdout)["error"]["code"] == "interrupted"
    check_that_nothing_stayed(here, before)


@pytest.mark.slow
def test_ctrl_c_twice(here, before):
    process = endless(here)
    wait_until(lambda: is_learning(here), 60, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    done = outcome(process)
    assert done.returncode in (1, -signal.SIGINT)
    check_that_nothing_stayed(here, before)


def test_a_worker_that_is_killed(here, before):
    process = endless(here, "--tensor-parallel", 2)
    wait_until(lambda: is_learning(here), 60, process)
    found = processes_of(here)
    workers = [pid for pid, parent in found.items() if found.get(parent) == process.pid]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    message = refusal(outcome(process), 1)
    assert message.startswith(("worker 0 of 2 failed: ", "worker 1 of 2 failed: "))
    assert "SIGKILL" in message
    assert message.endswith(f"its output is in {here / 'run' / 'workers.log'}")
    check_that_nothing_stayed(here, before)


def test_a_command_that_is_killed_takes_its_workers_along(here, before):
    process = endless(here)
    wait_until(lambda: is_learning(here), 60, process)
    process.kill()
    process.communicate()
    check_that_nothing_stayed(here, before)


@pytest.mark.parametrize("arguments", [["ingest", "lake"], ["publish", "lake"]])
def test_a_stop_before_the_work_says_so(here, arguments):
    """Stopped at its first look at the lake: a pipe there, which opens when somebody writes to it."""
    (here / "lake" / "_curator").mkdir()
    os.mkfifo(here / "lake" / "_curator" / "lake.json")
    process = subprocess.Popen(
        command(*arguments), cwd=here, env=environment(here), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: waits_for_pipe(process.pid), 30, process)
    process.send_signal(signal.SIGINT)
    message = refusal(outcome(process), 1)
    assert message == "interrupted; nothing was published, the same command may be run again"
    (here / "lake" / "_curator" / "lake.json").unlink()
    assert values_of(curator(here, "ingest", "lake", "--json"))["added"] == 3


def waits_for_pipe(pid):
    try:
        return (
            "fifo" in Path(f"/proc/{pid}/wchan").read_text()
            or "wait_for_partner" in Path(f"/proc/{pid}/wchan").read_text()
        )
    except OSError:
        return False


def test_a_model_of_an_unknown_family(here, before):
    (here / "model").mkdir()
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")).save(
        str(here / "model" / "tokenizer.json")
    )
    (here / "model" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    )
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 2}
    (here / "model" / "config.json").write_text(json.dumps({"model_type": "bloom", **sizes}))
    arguments = ["lake", "--target", "target.parquet", "--config", "fast.toml", "--model", "model"]
    message = refusal(curator(here, "learn", *arguments), 2)
    assert "'bloom'" in message
    assert "supported are gemma2, gpt2, llama, mistral, qwen2, qwen3" in message
    assert values_of(curator(here, "history", "lake", "--json"))["runs"] == []
    assert not (here / "lake" / "_curator" / "tokens").exists()  # refused before any work was done for it
