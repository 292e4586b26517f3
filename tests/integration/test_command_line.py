"""The product as a user has it: `python -m curator …`, one process a command."""

import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from lake_cases import (
    LANGUAGES,
    curator,
    refusal,
    sentences,
    tree,
    values_of,
    write_lake,
    write_rows,
    write_settings,
    write_target,
)

from optim.launch import device_count

pytest.importorskip("megatron.core", reason="needs the extra [train]")


def test_the_whole_path_in_six_commands(here):
    before = tree(here / "lake")
    ingested = values_of(curator(here, "ingest", "lake", "--json"))
    assert ingested["domains"] == dict.fromkeys(LANGUAGES, 24)
    assert (ingested["status"], ingested["num_files"], ingested["num_rows"]) == ("ok", 3, 72)

    learning = curator(here, "learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--json")
    learned = values_of(learning)
    assert {"status", "run_id", "domain_weights", "natural_share", "verdict", "run_dir"} <= learned.keys()
    assert learned["status"] == "ok"
    assert learned["domain_weights"].keys() == learned["natural_share"].keys() == LANGUAGES.keys()
    assert sum(learned["domain_weights"].values()) == pytest.approx(1)
    assert sum(learned["natural_share"].values()) == pytest.approx(1)
    assert max(learned["domain_weights"], key=learned["domain_weights"].get) == "north"
    assert learned["verdict"].startswith("not converged: ")
    assert (here / "lake" / "_curator" / "runs" / learned["run_id"]).samefile(learned["run_dir"])
    assert "learn 12/12" in learning.stderr
    lines = (here / "lake" / "_curator" / "runs" / learned["run_id"] / "trajectory.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(12))

    dry = values_of(curator(here, "publish", "lake", "--run", learned["run_id"], "--dry-run", "--json"))
    assert (dry["dry_run"], dry["version"], dry["created"]) == (True, None, False)
    assert not (here / "lake" / "_curator" / "data").exists()

    published = values_of(curator(here, "publish", "lake", "--run", learned["run_id"], "--json"))
    assert (published["status"], published["version"], published["created"]) == ("ok", 1, True)
    assert (published["num_rows"], published["num_unweighted"]) == (72, 0)
    copies = sorted(path.name for path in (here / "lake" / "_curator" / "data").rglob("*.parquet"))
    assert copies == ["east.parquet", "north.parquet", "south.parquet"]
    assert published["location"].startswith(str(here / "lake" / "_curator" / "data"))

    query = "SELECT domain, avg(sample_weight) AS w, avg(domain_weight) FROM samples GROUP BY ALL ORDER BY w DESC"
    asked = values_of(curator(here, "sql", "lake", query, "--json"))
    assert asked["columns"] == ["domain", "w", "avg(domain_weight)"]
    assert {row[0]: row[2] for row in asked["rows"]} == pytest.approx(learned["domain_weights"], rel=1e-5)
    assert asked["rows"][0][0] == "north"

    history = values_of(curator(here, "history", "lake", "--json"))
    assert [run["run_id"] for run in history["runs"]] == [learned["run_id"]]
    assert [(v["version"], v["run_id"], v["location"]) for v in history["versions"]] == [
        (1, learned["run_id"], published["location"])
    ]
    after = {path: digest for path, digest in tree(here / "lake").items() if not path.startswith("_curator/")}
    assert after == before


def test_tables_for_people_and_settings_of_file_environment_and_options_in_that_order(here):
    (here / "curator.toml").write_text(
        f"[lake]\nurl = 'lake'\n[target]\nurl = 'target.parquet'\n{(here / 'fast.toml').read_text()}seed = 1\n"
    )
    learned = curator(here, "learn", "--steps", 7, CURATOR__LEARN__SEED="3", CURATOR__LEARN__STEPS="9")
    assert learned.returncode == 0, learned.stderr
    assert all(name in learned.stdout for name in LANGUAGES)
    next_command = learned.stdout.splitlines()[-1].split()
    assert next_command[:4] == ["curator", "publish", "lake", "--run"]
    run_id = next_command[4]
    record = json.loads((here / "lake" / "_curator" / "runs" / run_id / "run.json").read_text())
    assert (record["learn"]["steps"], record["learn"]["seed"], record["learn"]["sequence_length"]) == (7, 3, 32)

    published = curator(here, *next_command[1:])
    assert published.stdout.startswith("version 1: 3 files, 72 rows"), published.stderr
    again = curator(here, *next_command[1:])
    assert again.stdout.startswith("version 1 holds this run for these files already")
    shown = curator(here, "history").stdout
    assert run_id in shown
    assert "Published versions" in shown


def test_two_by_one_workers_learn_what_one_does(here):
    arguments = ["learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--json"]
    one = values_of(curator(here, *arguments))
    two = values_of(curator(here, *arguments, "--tensor-parallel", 2, "--pipeline-parallel", 1))
    assert two["domain_weights"] == pytest.approx(one["domain_weights"], abs=1e-4)  # float32 sums in another order
    assert two["domain_weights"] != one["natural_share"]
    record = json.loads((here / "lake" / "_curator" / "runs" / two["run_id"] / "run.json").read_text())
    assert (record["learn"]["tensor_parallel"], record["learn"]["pipeline_parallel"]) == (2, 1)


def test_a_run_folder_elsewhere_is_known_to_the_lake(here):
    arguments = ["learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--json"]
    values = values_of(curator(here, *arguments, "--run-dir", "runs/first"))
    assert values["run_dir"] == str(here / "runs" / "first")
    assert {"run.json", "weights.parquet", "trajectory.jsonl", "workers.log"} <= {
        path.name for path in (here / "runs" / "first").iterdir()
    }
    shutil.rmtree(here / "runs")  # the lake has what it needs
    assert values_of(curator(here, "publish", "lake", "--json"))["run_id"] == values["run_id"]
    (here / "runs" / "second").mkdir(parents=True)
    (here / "runs" / "second" / "notes.txt").write_text("mine")
    message = refusal(curator(here, *arguments[:-1], "--run-dir", "runs/second"), 2)
    assert message == "run folder runs/second is not an empty folder; name a new one, nothing is overwritten"
    assert [path.name for path in (here / "runs" / "second").iterdir()] == ["notes.txt"]


def test_a_partitioned_lake_with_odd_names_and_a_text_column_of_another_name(here):
    domains = ["[red]", 'it\'s "quoted"', "日本 🎈"]
    from urllib.parse import quote

    for name, language in zip(domains, LANGUAGES, strict=True):
        place = here / "hive lake [1]" / f"source={quote(name, safe='')}" / "part '0' [*].parquet"
        write_rows(place, body=sentences(language, 20), n=list(range(20)))
    arguments = ["hive lake [1]", "--text", "body", "--domain", "source", "--target", "target.parquet"]
    process = curator(here, "learn", *arguments, "--target-text", "text", "--config", "fast.toml", "--json")
    values = values_of(process)
    assert list(values["domain_weights"]) == sorted(domains)
    assert "[red]" in process.stderr
    published = values_of(curator(here, "publish", "hive lake [1]", "--json"))
    assert (published["num_files"], published["num_unweighted"]) == (3, 0)
    rows = values_of(
        curator(here, "sql", "hive lake [1]", "SELECT source, count(sample_weight) FROM samples GROUP BY 1", "--json")
    )["rows"]
    assert sorted(rows) == [[name, 20] for name in sorted(domains)]
    shown = curator(here, "sql", "hive lake [1]", "SELECT DISTINCT domain FROM samples").stdout
    assert {line.strip() for line in shown.splitlines()} == {"domain", *domains}


def test_a_glob_with_a_key_column_and_numbers_as_domains(here):
    for i, language in enumerate(LANGUAGES):
        keys = [f"{language}-{n}" for n in range(20)]
        write_rows(here / "raw" / f"take-{i}.parquet", text=sentences(language, 20), label=[i % 2] * 20, id=keys)
    write_rows(here / "raw" / "take-few.parquet", text=sentences("pqr", 3), label=[7] * 3, id=["a", "b", "c"])
    write_rows(here / "raw" / "leave.parquet", text=["a"], label=[9], id=["x"])
    options = ["--domain", "label", "--key", "id", "--target", "target.parquet", "--config", "fast.toml"]
    options += ["--min-domain-rows", 3]
    values = values_of(curator(here, "learn", "raw/take-*.parquet", *options, "--json"))
    assert values["domain_weights"].keys() == {"0", "1", "7"}
    assert values["natural_share"]["0"] > values["natural_share"]["1"] > values["natural_share"]["7"]
    assert values_of(curator(here, "publish", "raw/take-*.parquet", "--json"))["num_files"] == 4
    query = "SELECT sample_id, label, sample_weight IS NOT NULL FROM samples WHERE sample_id = 'north-3'"
    asked = values_of(curator(here, "sql", "raw/take-*.parquet", query, "--json"))
    assert asked["rows"] == [["north-3", 0, True]]


def test_a_preset_gets_one_worker_a_core_but_no_more_than_its_rows_feed(here):
    write_settings(here / "fast.toml", target_rows=8)
    command = ("learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--json", "--run-dir")
    values_of(curator(here, *command, "unasked"))
    values_of(curator(here, *command, "asked", "--data-parallel", 1))
    layouts = [json.loads((here / run / "run.json").read_text())["backend"]["layout"] for run in ("unasked", "asked")]
    assert layouts == [f"TP=1 PP=1 DP={min(2, device_count('cpu'))}", "TP=1 PP=1 DP=1"]


@pytest.mark.slow
def test_a_boolean_domain_and_rows_left_out(here):
    texts = [*sentences("north", 10), None, "", *sentences("south", 10)]
    write_rows(here / "flags" / "a.parquet", text=texts, good=[True] * 11 + [False] * 11)
    options = ["--domain", "good", "--target", "target.parquet", "--config", "fast.toml"]
    message = refusal(curator(here, "ingest", "flags", *options[:2]), 2)
    assert "2 row(s) with no text in column 'text' (null, empty or only spaces), first row 10" in message
    assert "--skip-bad-rows" in message
    values = values_of(curator(here, "learn", "flags", *options, "--skip-bad-rows", "--json"))
    assert values["domain_weights"].keys() == {"true", "false"}
    assert values_of(curator(here, "publish", "flags", "--json"))["num_unweighted"] == 2


def test_init_writes_the_file_that_the_next_commands_use(here):
    values = values_of(curator(here, "init", "lake", "--json"))
    assert (values["text"], values["domain"], values["num_rows"]) == ("text", "domain", 72)
    assert "curator.toml exists" in refusal(curator(here, "init", "lake"), 2)
    assert values_of(curator(here, "ingest", "--json"))["num_rows"] == 72
    shown = curator(here, "init", "lake", "--dry-run", "--out", "other.toml")
    assert shown.stdout == (here / "curator.toml").read_text()
    assert not (here / "other.toml").exists()


def test_a_failure_in_json_is_one_object_too(here):
    process = curator(here, "history", "gone", "--json")
    message = refusal(process, 2)
    (line,) = process.stdout.splitlines()
    error = {
        "code": "input",
        "message": "gone does not exist",
        "hint": "give a folder, file or glob of Parquet files, or a URL such as s3://…",
    }
    assert json.loads(line) == {"schema_version": 1, "status": "error", "error": error}
    assert message == f"{error['message']}; {error['hint']}"


def test_debug_shows_the_traceback_wherever_it_stands(here):
    for arguments in (["--debug", "history", "gone"], ["history", "gone", "--debug"]):
        process = curator(here, *arguments)
        assert process.returncode == 2
        assert "Traceback" in process.stderr
        assert "InputError: gone does not exist" in process.stderr
        assert process.stderr.splitlines()[-1].startswith("curator: gone does not exist")


def test_a_reader_that_goes_away_is_no_error(here):
    values_of(curator(here, "ingest", "lake", "--json"))
    query = "SELECT a.text FROM samples a, samples b, samples c LIMIT 60000"
    pipeline = f"{sys.executable} -m curator sql lake '{query}' | head -1"
    done = subprocess.run(["bash", "-c", pipeline], cwd=here, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["text"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_lake_whose_files_changed_learns_from_what_is_there_now(here):
    arguments = ["learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--json"]
    first = values_of(curator(here, *arguments))
    shutil.rmtree(here / "lake" / "_curator" / "tokens")
    (here / "lake" / "east.parquet").unlink()
    write_lake(here / "more", domains=("north",))
    shutil.move(here / "more" / "north.parquet", here / "lake" / "north-2.parquet")
    write_target(here / "target.parquet", "south")
    second = values_of(curator(here, *arguments))
    assert first["domain_weights"].keys() == LANGUAGES.keys()
    assert second["domain_weights"].keys() == {"north", "south"}
    assert max(second["domain_weights"], key=second["domain_weights"].get) == "south"
    history = values_of(curator(here, "history", "lake", "--json"))
    assert len({run["snapshot_id"] for run in history["runs"]}) == 2
    published = values_of(curator(here, "publish", "lake", "--run", first["run_id"], "--json"))
    assert published["num_unweighted"] == 24  # north-2 repeats north's rows, which makes them rows of their own
    copy = next((here / "lake" / "_curator" / "data").rglob("north-2.parquet"))
    assert (
        pq.read_table(copy)["sample_weight"].null_count
        + pq.read_table(copy.with_name("north.parquet"))["sample_weight"].null_count
        == 24
    )
