"""The commands about versions, as `main` runs them; other commands are tested as processes in tests/integration."""

import json
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import refusal, sentences, values_of, write_rows, write_settings

from curator.cli import main


@pytest.fixture
def call(monkeypatch, capsys):
    """`call("sql", lake, …)` is the finished command, run in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["curator", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return subprocess.CompletedProcess(sys.argv, end.value.code or 0, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_the_life_of_versions_in_commands(learned, call):
    run, state = learned.run_id, learned.state
    assert values_of(call("publish", learned.lake, "--json"))["version"] == 1
    (learned.lake / "east.parquet").unlink()
    assert call("publish", learned.lake).stdout.startswith("version 2: 2 files, 48 rows")

    count = "SELECT count(*) FROM samples"
    for arguments, rows in (((), 48), (("--version", 1), 72), (("--as-of", "2100-01-01"), 48)):
        assert values_of(call("sql", learned.lake, count, *arguments, "--json"))["rows"] == [[rows]]
    assert "no version 3; there are 1 to 2" in refusal(call("sql", learned.lake, count, "--version", 3), 2)
    assert "is not an ISO date" in refusal(call("sql", learned.lake, count, "--as-of", "noon"), 2)

    views = values_of(call("views", learned.lake, "--json"))
    assert (views["version"], views["views"]) == (2, str(state / "curator.duckdb"))
    shown = call("rollback", learned.lake, 1, "--dry-run").stdout
    assert shown == f"would make version 3 with the content of version 1, of run {run}; nothing was written\n"
    done = values_of(call("rollback", learned.lake, 1, "--json"))
    assert (done["version"], done["restores"], done["replaces"], done["created"]) == (3, 1, 2, True)
    assert call("rollback", learned.lake, 1).stdout.startswith("version 3 is the newest and has the content of ver")
    again = call("publish", learned.lake).stdout
    assert "the newest is version 3; `curator rollback` goes back to version 2" in again
    history = values_of(call("history", learned.lake, "--json"))["versions"]
    assert [(version["version"], version["restores"]) for version in history] == [(1, None), (2, None), (3, 1)]

    sound = call("verify", learned.lake, "--deep")
    assert (sound.returncode, "version 3 is what was published: 3 files, 72 rows" in sound.stdout) == (0, True)
    assert "note" in sound.stdout  # east.parquet has left the lake
    left = state / "data" / f"{run}-{'0' * 12}" / "left.parquet"
    left.parent.mkdir()
    left.write_bytes(b"12345")
    assert call("gc", learned.lake).stdout.startswith("removed 0 items")
    planned = values_of(call("gc", learned.lake, "--grace", "0s", "--dry-run", "--json"))
    removed = values_of(call("gc", learned.lake, "--grace", "0s", "--json"))
    assert (planned["dry_run"], removed["dry_run"], removed["size_bytes"]) == (True, False, 5)
    assert [item["path"] for item in removed["items"]] == [f"data/{run}-{'0' * 12}/left.parquet"]
    assert planned["items"] == removed["items"]
    assert not left.exists()
    planned = call("gc", learned.lake, "--keep", 1, "--dry-run").stdout
    assert planned.startswith(
        "would let go version(s) 2\nversion 1 stays, since version 3 restores it\n"
        "files younger than 24h would stay until a later collection (--grace)\n"
    )
    assert "keep 0 would let go the newest" in refusal(call("gc", learned.lake, "--keep", 0), 2)

    damaged = next((state / "data").rglob("east.parquet"))
    damaged.write_bytes(b"x")
    unsound = call("verify", learned.lake, "--json")
    assert unsound.returncode == 1
    values = json.loads(unsound.stdout.splitlines()[-1])
    assert values["status"] == "failed"
    assert [f["path"] for f in values["findings"] if f["level"] == "error"] == [damaged.relative_to(state).as_posix()]
    assert values_of(call("verify", learned.lake, "--version", 2, "--json"))["status"] == "ok"


def test_ranks_within_domains_are_told_to_be_arbitrary_where_domains_alone_were_weighed(learned, call, tmp_path):
    call("publish", learned.lake)
    said = f"note: run {learned.run_id} weighed domains alone, so all rows of a domain weigh the same"
    place = ("--out", tmp_path / "out", "--dry-run")
    for command in (("export", "--quantiles", 2), ("materialize", "--top-k", 0.5), ("materialize", "--quantiles", 2)):
        shown = call(command[0], learned.lake, *command[1:], *place)
        assert (shown.returncode, said in " ".join(shown.stderr.split())) == (0, True)
        (told,) = values_of(call(command[0], learned.lake, *command[1:], *place, "--json"))["notes"]
        assert "is arbitrary" in told
    for command in (("export",), ("materialize", "--repeats", 1)):
        assert values_of(call(command[0], learned.lake, *command[1:], *place, "--json"))["notes"] == []


def test_a_lake_is_refreshed_in_commands(learned, call):
    settings = write_settings(learned.folder / "fast.toml")
    with settings.open("a") as file:
        file.write("[refresh]\nverdicts = []\nmax_share_change = 1.0\n")
    refresh = ("refresh", learned.lake, "--target", learned.target, "--config", settings)
    refused = call(*refresh)
    assert refused.returncode == 3
    assert "REFUSED verdict: the verdict on run" in refused.stdout
    assert "passed identities: the weights add up" in refused.stdout
    assert f"curator publish {learned.lake} --run {learned.run_id}" in refused.stdout
    mailed = call(*refresh, "--json", "--quiet")
    values = json.loads(mailed.stdout)
    assert (values["status"], values["outcome"], values["version"]) == ("refused", "refused", None)
    said = f"curator: nothing was published; verdict: the verdict on run {learned.run_id} is"
    assert (mailed.stderr.startswith(said), mailed.stderr.count("\n")) == (True, 1)
    planned = call(*refresh, "--dry-run")
    assert planned.returncode == 3
    assert planned.stdout.endswith(
        f"would be refused: the weights of run {learned.run_id} for the lake as it is now; nothing was written\n"
    )

    settings.write_text(
        settings.read_text().replace("[]\nmax", '["converged", "not converged", "no gain", "unstable"]\nmax')
    )
    assert call(*refresh, "--dry-run").stdout.endswith(
        f"would publish the weights of run {learned.run_id} for the lake as it is now; nothing was written\n"
    )
    shown = call("status", *refresh[1:]).stdout
    assert "Version   none" in shown
    assert f"Refresh   would publish the weights of run {learned.run_id}" in shown
    values = values_of(call(*refresh, "--json"))
    assert (values["outcome"], values["version"], values["rows_written"]) == ("published", 1, 72)
    assert {
        "status",
        "run_id",
        "snapshot_in",
        "snapshot_out",
        "rows_read",
        "weights_changed",
        "table",
        "duration_s",
    } <= (values.keys())
    shown, quiet = call(*refresh), call(*refresh, "--quiet")
    assert shown.stdout.startswith("nothing to do: version 1 has the weights of run")
    assert (quiet.stdout, bool(shown.stderr), quiet.stderr) == (shown.stdout, True, "")
    assert call(*refresh, "--skip-exit-code").returncode == 99

    write_rows(learned.lake / "new.parquet", text=sentences("pqr", 9), domain=["pqr"] * 9)
    planned = call(*refresh, "--dry-run").stdout
    assert planned.startswith(
        "learn: 11.1% of the rows are in domains without a weight (pqr), more than refresh.new_dom"
    )
    assert planned.endswith("would learn, then publish; nothing was written\n")
    shown = call("status", *refresh[1:]).stdout
    assert "Files     1 without weights, 0 changed, 0 gone since that version" in shown
    assert "          without: new.parquet\nDomains   without weights: pqr\n" in shown
    for i in range(6):
        write_rows(learned.lake / f"new-{i}.parquet", text=sentences("pqr", 1, i), domain=["pqr"])
    (learned.lake / "south.parquet").unlink()
    shown = call("status", *refresh[1:]).stdout
    assert "without: new-0.parquet, new-1.parquet, new-2.parquet, new-3.parquet, new-4.parquet, and 2 more\n" in shown
    assert "          gone: south.parquet\n" in shown
    listed = values_of(call("status", *refresh[1:], "--json"))["changes"]
    assert listed["files_added"] == [*(f"new-{i}.parquet" for i in range(6)), "new.parquet"]
    assert listed["files_removed"] == ["south.parquet"]
    assert "Refresh   would learn" in shown
    assert "no target was named" in refusal(call("refresh", learned.lake), 2)


def test_sql_answers_as_csv_json_and_parquet(learned, call, tmp_path):
    query = "SELECT domain, count(*) AS n FROM samples GROUP BY ALL ORDER BY ALL"
    asked = ("sql", learned.lake, query)
    table = call(*asked).stdout
    assert call(*asked, "--format", "table").stdout == table
    assert call(*asked, "--format", "csv").stdout == '"domain","n"\n"east",24\n"north",24\n"south",24\n'
    assert json.loads(call(*asked, "--format", "json").stdout)[0] == {"domain": "east", "n": 24}
    assert values_of(call(*asked, "--json"))["rows"][0] == ["east", 24]
    out = tmp_path / "x.parquet"
    saved = values_of(call(*asked, "--out", out, "--json"))
    assert (saved["format"], saved["num_rows"], saved["location"]) == ("parquet", 3, str(out))
    assert pq.read_table(out)["n"].to_pylist() == [24, 24, 24]
    assert call(*asked, "--out", tmp_path / "y", "--format", "csv").stdout.startswith("wrote 3 rows, 45 B of csv to ")
    assert "is there already; name another file" in refusal(call(*asked, "--out", out), 2)
    assert call(*asked, "--out", out, "--overwrite").returncode == 0
    for options, said in (
        (("--format", "parquet"), "Parquet is not written to the terminal or a pipe; pass --out FILE"),
        (("--format", "xml"), "format 'xml' is unknown; pass --format table, csv, json, parquet"),
        (("--format", "table", "--out", out), "no file can be written in format 'table'; pass --format csv, json or"),
        (("--format", "csv", "--json"), "leave one of them out, or write the answer with --out FILE"),
        (("--out", tmp_path / "gone" / "x.csv"), "its folder does not exist"),
    ):
        assert said in refusal(call(*asked, *options), 2)


def test_a_settings_file_here_is_read_for_its_own_lake(call, tmp_path, monkeypatch):
    """Whether the lake is left out or named; another lake's file is not, nor one that is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("lake", "other"):
        write_rows(tmp_path / name / "a.parquet", body=sentences("north", 30), source=["a", "b", "c"] * 10)
    settings = tmp_path / "curator.toml"
    settings.write_text('[lake]\nurl = "lake"\ntext = "body"\ndomain = "source"\n')
    for lake in ((), ("lake",), (tmp_path / "lake",), ("./lake/",)):
        assert "30 rows" in call("ingest", *lake).stdout
    assert "has no column 'text'" in refusal(call("ingest", "other"), 2)
    assert values_of(call("sql", "SELECT count(*) FROM samples", "--json"))["rows"] == [[30]]
    assert "no published version yet" in refusal(call("rollback", 1), 2)
    settings.write_text("[lake\n")
    assert "has no column 'text'" in refusal(call("ingest", "other"), 2)


def test_a_terminal_gets_the_first_rows_of_a_long_answer_and_a_pipe_all(call, learned, monkeypatch):
    query = "SELECT sample_id FROM samples"
    assert len(call("sql", learned.lake, query).stdout.splitlines()) == 73
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    shown = call("sql", learned.lake, query)
    assert len(shown.stdout.splitlines()) == 61
    assert "12 more rows: add LIMIT" in shown.stderr


def test_the_lake_of_a_settings_file_is_asked_and_taken_back(call, learned, tmp_path):
    call("publish", learned.lake)
    (tmp_path / "corpus.toml").write_text(f'[lake]\nurl = "{learned.lake}"\n')
    named = ("--config", tmp_path / "corpus.toml")
    asked = values_of(call("sql", "SELECT count(sample_weight) FROM samples", *named, "--json"))
    assert asked["rows"] == [[72]]
    assert values_of(call("sql", learned.lake, "SELECT 1 AS one", *named, "--json"))["rows"] == [[1]]
    assert values_of(call("rollback", "1", *named, "--json"))["created"] is False
    (tmp_path / "empty.toml").write_text("[learn]\nsteps = 5\n")
    assert "no lake was named" in refusal(call("sql", "SELECT 1", "--config", tmp_path / "empty.toml"), 2)


def test_a_question_about_weights_that_there_are_not_is_told(call, learned):
    note = "note: nothing was published yet, so that no row has a weight"
    assert note in call("sql", learned.lake, "FROM curated(1.0)").stderr
    assert note not in call("sql", learned.lake, "SELECT count(*) FROM samples").stderr
    call("publish", learned.lake)
    assert note not in call("sql", learned.lake, "FROM curated(1.0)").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("history", "gone"), "input", "gone does not exist", "give a folder, file or glob of Parquet files, or a URL"),
        (
            ("sql", "gone"),
            "usage",
            "'gone' was given alone",
            "name the lake, too: LAKE_URL QUERY, or its settings file by --config, or go to",
        ),
        (("rollback", "x", "one"), "usage", "'one' is no number of a version", "`curator history` lists them"),
        (
            ("publish", "x", "--mode", "y"),
            "usage",
            "Invalid value for '--mode': 'y' is not one of 'copy', 'sidecar'",
            "see `",
        ),
        (("materialize", "gone"), "config", "no place was named", "pass --out FOLDER"),
        (("ingest", "nope://x"), "input", "unknown storage nope://", "a lake may be a local path or one of "),
        (
            ("plan", "--model", "tiny", "--pipeline-parallel", 3),
            "input",
            "pipeline_parallel=3 cannot split 4 layers into equal stages",
            "this model allows 1, 2, 4",
        ),
    ],
)
def test_an_error_in_json_says_apart_what_is_wrong_and_what_to_do(call, tmp_path, arguments, code, message, hint):
    done = call(*arguments, "--json")
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert (error["code"], error["message"]) == (code, message)
    assert error["hint"].startswith(hint)
    assert refusal(done, 2) == f"{message}; {error['hint']}"


def test_an_error_without_advice_has_an_empty_hint(learned, call):
    error = json.loads(call("sql", learned.lake, "SELECT nothing FROM samples", "--json").stdout)["error"]
    assert (error["code"], error["hint"]) == ("usage", None)
    assert "nothing" in error["message"]


def test_an_ingest_of_no_rows_says_so(call, tmp_path):
    write_rows(tmp_path / "lake" / "a.parquet", text=pa.array([], pa.string()), domain=pa.array([], pa.string()))
    done = call("ingest", tmp_path / "lake", "--text", "text", "--domain", "domain")
    assert done.returncode == 0
    assert "note: no row can be used: the files hold none" in done.stderr
    assert values_of(call("ingest", tmp_path / "lake", "--json"))["num_rows"] == 0
