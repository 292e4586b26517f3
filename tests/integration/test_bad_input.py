"""Every kind of bad input: one sentence, the exit code, and nothing half-written.

All of these are refused before a model is built; what happens to a run that is under way is in test_interruptions.py.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import (
    LANGUAGES,
    REPOSITORY,
    command,
    curator,
    environment,
    refusal,
    sentences,
    tree,
    values_of,
    write_rows,
)

pytest.importorskip("megatron.core", reason="needs the extra [train]")


def refused(here, *arguments, exit_code=2, **variables):
    """The sentence of a call that is refused and leaves every file as it was."""
    before = tree(here)
    message = refusal(curator(here, *arguments, **variables), exit_code)
    assert tree(here) == before
    state = here / "lake" / "_curator"
    assert not (state / "log").exists()
    assert not list(state.glob("runs/*/*")) if state.exists() else True
    return message


def learn(here, *arguments, **options):
    return refused(here, "learn", *arguments, "--config", "fast.toml", **options)


def learn_lake(here, *arguments, **options):
    return learn(here, "lake", "--target", "target.parquet", *arguments, **options)


def ingest(here, *arguments):
    """What `learn` does first, without loading torch."""
    return refused(here, "ingest", "lake", *arguments)


# the lake ---------------------------------------------------------------------------------------------------------


def test_a_missing_column(here):
    message = learn_lake(here, "--text", "txt")
    assert message == (
        "target.parquet has no column 'txt', which is to be the text column; did you mean 'text'? (a target's by "
        "--target-text or target.text)"
    )
    message = ingest(here, "--domain", "domian")
    assert message == "east.parquet has no column 'domian', which is to be the domain column; did you mean 'domain'?"
    message = ingest(here, "--key", "uuid")
    assert message == (
        "east.parquet has no column 'uuid', which is to be the key column; there is 'domain', 'score', 'text': "
        "name one of these"
    )


def test_a_text_column_that_is_no_text(here):
    message = ingest(here, "--text", "score")
    assert (
        message
        == "column 'score' of east.parquet is float, which cannot be the text column; a string is allowed: name "
        "another column"
    )


def test_an_empty_folder(here):
    (here / "empty").mkdir()
    message = learn(here, "empty", "--target", "target.parquet")
    assert (
        message
        == "there is nothing at empty; names starting with '_' or '.' are passed over: give a folder of Parquet files"
    )


def test_a_folder_without_parquet(here):
    (here / "texts").mkdir()
    (here / "texts" / "a.csv").write_text("text\nx\n")
    message = learn(here, "texts", "--target", "target.parquet")
    assert "no Parquet file matches texts" in message
    assert "a.csv" in message
    assert ".parquet" in message


def test_a_lake_that_is_not_there(here):
    message = learn(here, "lakee", "--target", "target.parquet")
    assert message == "lakee does not exist; give a folder, file or glob of Parquet files, or a URL such as s3://…"
    assert "does not exist" in refused(here, "publish", "lakee")
    assert "does not exist" in refused(here, "sql", "lakee", "SELECT 1")
    assert "does not exist" in refused(here, "init", "lakee")


def test_an_unknown_scheme_and_a_password_in_the_address(here):
    message = learn(here, "ftp://host/lake", "--target", "target.parquet")
    assert message.startswith("unknown storage ftp://; a lake may be a local path or one of file://, ")
    message = learn(here, "s3://me:hush-hush@bucket/lake", "--target", "target.parquet")
    assert "give credentials in storage_options instead" in message
    assert "hush" not in message


def test_one_domain_only(here):
    (here / "lake" / "south.parquet").unlink()
    (here / "lake" / "east.parquet").unlink()
    message = learn_lake(here)
    assert message == (
        f"column 'domain' of {here / 'lake'} holds one domain only, 'north'; weights are learned between at least two: "
        "name another column with --domain, or weigh its rows with --granularity sample"
    )


def test_a_domain_of_three_rows(here):
    write_rows(here / "lake" / "west.parquet", text=sentences("north", 3), domain=["west"] * 3)
    message = learn_lake(here)
    assert message == (
        f"domain 'west' of {here / 'lake'} has 3 usable rows, fewer than min_domain_rows=8; merge it into another "
        "domain, add rows, or lower --min-domain-rows"
    )


def test_mixed_schemas(here):
    write_rows(here / "lake" / "west.parquet", text=sentences("north", 9), domain=["west"] * 9, score=["high"] * 9)
    message = ingest(here)
    assert message == (
        "column 'score' is float in east.parquet but string in west.parquet; a column has one type in the whole lake: "
        "write one of the files again"
    )


def test_a_corrupt_file(here):
    (here / "lake" / "west.parquet").write_bytes(b"this was never Parquet")
    message = learn_lake(here)
    assert message == (
        f"{here / 'lake' / 'west.parquet'} is not a Parquet file or was cut short; remove it or write it again"
    )


def test_a_file_that_was_cut_short(here):
    data = (here / "lake" / "north.parquet").read_bytes()
    (here / "lake" / "north.parquet").write_bytes(data[: len(data) // 2])
    assert "north.parquet is not a Parquet file or was cut short" in ingest(here)


def test_a_file_with_damaged_pages(here):
    data = bytearray((here / "lake" / "north.parquet").read_bytes())
    data[4:300] = bytes(i * 37 % 256 for i in range(296))
    (here / "lake" / "north.parquet").write_bytes(data)
    message = ingest(here)
    assert f"{here / 'lake' / 'north.parquet'} is damaged: " in message
    assert message.endswith("; write it again")


def test_null_and_empty_texts_and_domains(here):
    write_rows(here / "lake" / "west.parquet", text=["fine", None, "", " \n"] * 3, domain=["west"] * 11 + [None])
    message = ingest(here)
    assert message == (
        f"{here / 'lake' / 'west.parquet'} has 9 row(s) with no text in column 'text' (null, empty or only spaces), "
        "first row 1 and 1 row(s) with no domain in 'domain' (null or empty), first row 11; correct them, or leave "
        "such rows out with --skip-bad-rows"
    )


def not_utf8(values):
    return pa.array(values, pa.binary()).view(pa.string())


def test_texts_that_are_not_utf8(here):
    write_rows(here / "lake" / "west.parquet", text=not_utf8([b"fine", b"caf\xe9"] * 5), domain=["west"] * 10)
    message = ingest(here)
    assert "column 'text' of" in message
    assert "west.parquet is not valid UTF-8 in row 1" in message
    assert message.endswith("write the text as UTF-8")


def test_repeated_and_null_keys(here):
    for path in (here / "lake").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("id", [list(range(len(table)))]), path)
    message = ingest(here, "--key", "id")
    assert message.startswith("key column 'id' has the value '0' 3 times, first in row 0 of ")
    assert "remove the repetitions, or configure no key" in message
    table = pq.read_table(here / "lake" / "east.parquet")
    keys = pa.array([None, *range(100, 123)])
    pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", keys), here / "lake" / "east.parquet")
    assert "key column 'id' of" in ingest(here, "--key", "id")


def test_one_column_for_text_and_domain(here):
    message = ingest(here, "--text", "domain")
    assert message.startswith("column 'domain' is named both as the text and as the domain; a row needs two columns")


# the target -------------------------------------------------------------------------------------------------------


def test_no_target(here):
    assert learn(here, "lake") == (
        "no target was named, a few hundred rows of what the model should be good at; pass --target URL or set "
        "target.url"
    )


def test_a_target_that_is_not_there(here):
    assert learn(here, "lake", "--target", "gone.parquet") == (
        "gone.parquet does not exist; give a folder, file or glob of Parquet files"
    )


def test_a_target_without_usable_text(here):
    write_rows(here / "blank.parquet", text=[None, "", "  "])
    message = learn(here, "lake", "--target", "blank.parquet")
    assert message == (
        f"column 'text' of target {here / 'blank.parquet'} has no row with text; "
        "the target needs rows of the kind the model should be good at"
    )


def test_a_target_that_is_not_utf8(here):
    write_rows(here / "latin.parquet", text=not_utf8([b"caf\xe9"] * 9))
    message = learn(here, "lake", "--target", "latin.parquet")
    assert message == f"column 'text' of target {here / 'latin.parquet'} is not valid UTF-8; write the text as UTF-8"


def test_a_target_with_another_column(here):
    write_rows(here / "other.parquet", body=sentences("north", 9))
    message = learn(here, "lake", "--target", "other.parquet")
    assert message == (
        "other.parquet has no column 'text', which is to be the text column; there is 'body': name one of these "
        "(a target's by --target-text or target.text)"
    )
    message = learn(here, "lake", "--target", "other.parquet", "--target-text", "bodi")
    assert "did you mean 'body'?" in message


def test_a_target_inside_the_lake(here):
    message = learn(here, "lake", "--target", "lake/north.parquet")
    assert message == (
        f"target file 'north.parquet' is also a file of the lake {here / 'lake'}; weights would reward copies of the "
        "target: keep it outside the lake"
    )


def test_a_corrupt_target(here):
    (here / "bad.parquet").write_bytes(b"PAR1")
    assert "bad.parquet is not a Parquet file or was cut short" in learn(here, "lake", "--target", "bad.parquet")


# model, layout, machine -------------------------------------------------------------------------------------------


def test_a_layout_that_the_model_cannot_have(here):
    message = learn_lake(here, "--tensor-parallel", 3)
    assert message == (
        "tensor_parallel=3 cannot split a model with 4 attention heads, 2 key-value heads and a feed-forward width of "
        "256; this model allows 1, 2, 4"
    )
    message = learn_lake(here, "--pipeline-parallel", 3)
    assert message == "pipeline_parallel=3 cannot split 4 layers into equal stages; this model allows 1, 2, 4"


def test_more_workers_than_the_machine_can_run(here):
    message = learn_lake(here, "--tensor-parallel", 4, "--pipeline-parallel", 4, "--data-parallel", 100)
    assert message.startswith("TP=4 PP=4 DP=100 needs 1600 workers, but this machine has ")
    assert "choose sizes whose product is at most" in message


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--steps", 0], "the arguments: steps=0: input should be greater than or equal to 1"),
        (["--tensor-parallel", 0], "the arguments: tensor_parallel=0: input should be greater than or equal to 1"),
        (["--seed", -1], "the arguments: seed=-1: input should be greater than or equal to 0"),
        (["--block-size", -1], "the arguments: blocks.size=-1: input should be greater than or equal to 0"),
        (["--min-domain-rows", 0], "the arguments: min_domain_rows=0: input should be greater than or equal to 1"),
        (["--steps", "many"], "Invalid value for '--steps': "),
        (["--stepps", 3], "No such option: --stepps"),
    ],
)
def test_values_that_are_not_allowed(here, option, said):
    assert learn_lake(here, *option).startswith(said)


def test_a_block_larger_than_the_model(here):
    assert "5" in learn_lake(here, "--block-size", 5)


def test_a_model_that_is_neither_preset_nor_folder(here):
    (here / "model").mkdir()
    for name, missing in (("huge", "huge/config.json"), ("model", "model/config.json")):
        message = learn_lake(here, "--model", name)
        assert message == (
            f"model {name!r} is neither a preset (tiny, small) nor a Hugging Face model folder: "
            f"{missing} cannot be read (FileNotFoundError)"
        )


# settings ---------------------------------------------------------------------------------------------------------


def test_an_unknown_key_in_the_settings(here):
    (here / "typo.toml").write_text("[learn]\nstepps = 3\n")
    message = refused(here, "learn", "lake", "--config", "typo.toml")
    assert message == "typo.toml: learn.stepps is not a known key; did you mean 'steps'?"
    message = learn_lake(here, CURATOR__LEARN__SEDE="3")
    assert message == "environment variable CURATOR__LEARN__SEDE: learn.sede is not a known key; did you mean 'seed'?"


def test_settings_that_are_not_there(here):
    assert refused(here, "learn", "lake", "--config", "no.toml").startswith("no configuration file no.toml; ")
    message = refused(here, "learn")
    assert message == "no LAKE_URL was given and there is no curator.toml here; `curator init LAKE_URL` writes one"


def test_a_run_folder_inside_the_lake(here):
    message = learn_lake(here, "--run-dir", "lake/run-1")
    assert message.startswith("run folder lake/run-1 lies inside the lake")
    assert not (here / "lake" / "run-1").exists()


def test_a_destination_inside_the_lake(here):
    message = learn_lake(here, "--destination", "lake/curated")
    assert "lake/curated lies inside the lake lake" in message


# where it writes --------------------------------------------------------------------------------------------------


def test_a_destination_that_cannot_be_written(here):
    message = learn_lake(here, "--destination", "target.parquet/below", exit_code=1)
    assert message.startswith(f"destination {here / 'target.parquet/below'} cannot be written")
    assert message.endswith("choose another --destination")
    message = learn_lake(here, "--destination", "/sys/curated", exit_code=1)  # which refuses root, too
    assert message.startswith("cannot write /sys/curated: ")
    assert message.endswith("let this user write there, or choose another place (--destination)")


def test_a_run_folder_that_cannot_be_made(here):
    message = learn_lake(here, "--run-dir", "target.parquet/run", exit_code=1)
    assert message.startswith("run folder target.parquet/run cannot be created (")
    assert message.endswith("choose another with --run-dir")


def test_publishing_what_is_not_there(here):
    message = refused(here, "publish", "lake", "--run", "20260101T000000-abcdef")
    assert message == (
        f"{here / 'lake'} has no run '20260101T000000-abcdef'; it has no run yet: `curator learn` makes one"
    )


def test_asking_what_cannot_be_answered(here):
    values_of(curator(here, "ingest", "lake", "--json"))
    message = refused(here, "sql", "lake", "SELECT nope\nFROM samples\nWHERE 1")
    assert message.startswith('the query cannot be run: Binder Error: Referenced column "nope" not found')


def test_a_catalog_that_another_process_holds(here):
    values_of(curator(here, "ingest", "lake", "--json"))
    program = (
        "import sys, duckdb\nconnection = duckdb.connect(sys.argv[1])\nprint('held', flush=True)\nsys.stdin.readline()"
    )
    path = here / "lake" / "_curator" / "catalog.duckdb"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, str(path)], text=True, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        message = learn_lake(here, exit_code=75)
        assert message.startswith(f"the catalog {path} is in use by process {holder.pid}")
        assert message.endswith("try again when it has finished")
        holder.stdin.write("\n")
    assert values_of(curator(here, "ingest", "lake", "--json"))["unchanged"] == 3


# missing extras ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site_without(tmp_path_factory):
    """A Python path with everything that is installed here but some packages: links to the others."""

    def build(*missing: str) -> str:
        folder = tmp_path_factory.mktemp("site")
        for place in map(Path, sys.path):
            if place.name not in ("site-packages", "dist-packages"):
                continue
            for entry in place.iterdir():
                if entry.name.partition("-")[0].partition(".")[0].lower() not in missing and entry.suffix != ".pth":
                    (folder / entry.name).symlink_to(entry)
        return f"{folder}:{REPOSITORY}"

    return build


def without(here, path, *arguments):
    """The sentence of a call in which only `path` is there to import from."""
    process = subprocess.run(
        [sys.executable, "-S", *command(*arguments)[1:]],
        cwd=here,
        env=environment(here, PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return refusal(process, 2)


@pytest.mark.parametrize(
    ("missing", "named"), [("torch", "torch"), ("megatron", "megatron.core"), ("transformers", "transformers")]
)
def test_learning_without_the_train_extra(here, site_without, missing, named):
    before = tree(here)
    message = without(
        here, site_without(missing), "learn", "lake", "--target", "target.parquet", "--config", "fast.toml"
    )
    assert message == f"training needs {named!r}: pip install 'lake-curator[train]'"
    assert tree(here) == before


def test_everything_but_learning_works_without_the_train_extra(here, site_without):
    path = site_without("torch", "megatron", "megatron_core", "transformers", "tokenizers", "safetensors", "s3fs")
    for arguments in (
        ["ingest", "lake", "--json"],
        ["sql", "lake", "SELECT 1", "--json"],
        ["history", "lake", "--json"],
    ):
        process = subprocess.run(
            [sys.executable, "-S", *command(*arguments)[1:]],
            cwd=here,
            env=environment(here, PYTHONPATH=path),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert values_of(process)["status"] == "ok"


def test_s3_without_its_extra(here, site_without):
    message = without(here, site_without("s3fs"), "ingest", "s3://bucket/lake")
    assert message == "s3:// needs an optional dependency: pip install 'lake-curator[s3]'"


def test_the_names_of_the_languages_are_those_of_the_lake(here):
    assert {path.stem for path in (here / "lake").glob("*.parquet")} == LANGUAGES.keys()
