import pyarrow as pa
import pytest
from lake_cases import curator, refusal, sentences, values_of, write_lake, write_rows

from curator.config import load_config
from curator.errors import ConfigError, InputError, StorageError
from curator.initialize import propose, render, write_config

TEXTS = sentences("north", 40)
KINDS = ["news", "web"] * 20


def proposal(tmp_path, **columns):
    return propose(str(write_rows(tmp_path / "lake" / "a.parquet", **columns).parent))


def test_columns_are_found_by_their_names(tmp_path):
    found = proposal(tmp_path, note=["x" * 500] * 40, Content=TEXTS, lang=KINDS, other=KINDS, id=list(range(40)))
    assert (found.text, found.domain, found.key) == ("Content", "lang", "id")
    assert (found.num_files, found.num_rows) == (1, 40)


def test_columns_are_found_by_their_values(tmp_path):
    found = proposal(tmp_path, kind=pa.array(KINDS).dictionary_encode(), words=pa.array(TEXTS, pa.large_string()))
    assert (found.text, found.domain, found.key) == ("words", "kind", None)


def test_a_hive_partition_can_be_the_domain(tmp_path):
    write_rows(tmp_path / "lake" / "source=a" / "x.parquet", text=TEXTS, kind=KINDS)
    assert propose(str(tmp_path / "lake")).domain == "source"


def test_a_key_that_repeats_or_is_null_is_not_proposed(tmp_path):
    assert proposal(tmp_path, text=TEXTS, domain=KINDS, id=[1] * 40).key is None
    assert proposal(tmp_path, text=TEXTS, domain=KINDS, id=[None, *range(39)]).key is None


def test_a_name_counts_for_nothing_where_the_values_speak_against_it(tmp_path):
    """An empty `text`, a `domain` of prose and an `id` that repeats are passed over."""
    found = proposal(
        tmp_path,
        text=pa.array([None] * 30 + ["x"] * 10, pa.string()),
        domain=[f"{text} {text} {text}" for text in TEXTS],
        story=[f"{text} {text} {text} {text}" for text in TEXTS],
        same=["all"] * 40,
        shelf=KINDS,
        id=[1] * 40,
    )
    assert (found.text, found.domain, found.key) == ("story", "shelf", None)
    assert found.others == {"text": ["domain", "shelf", "same"], "domain": ["same"], "key": ["domain"]}


def test_a_domain_that_is_the_same_in_every_file_is_seen_over_many(tmp_path):
    """One file a domain, as lakes often are: rows of one file alone would show a single value."""
    for number in range(20):
        write_rows(tmp_path / "lake" / f"{number:02}.parquet", text=TEXTS, domain=[f"d{number}"] * 40)
    found = propose(str(tmp_path / "lake"))
    assert (found.domain, found.num_looked_at) == ("domain", 8 * 40)
    assert found.reasons["domain"] == "string, 0 % null, 8 distinct, mean length 2; a usual name"


def test_the_comments_say_why_a_column_was_proposed(tmp_path):
    found = proposal(tmp_path, words=[None, *TEXTS[1:]], source=KINDS, id=list(range(40)), note=["x"] * 40)
    mean = sum(map(len, TEXTS[1:])) / 39
    assert f"string, 2 % null, 39 distinct, mean length {mean:.0f}; the longest strings; or " in render(found)
    assert "string, 0 % null, 2 distinct, mean length 4; a usual name; or note." in render(found)
    assert "int64, 0 % null, 40 distinct; every row looked at has its own." in render(found)
    assert "# Columns are proposed from 40 rows" in render(found)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"number": [1, 2]},
            r"has no string column that could hold text, .*; its columns are number \(int64, 0 % null, 2 distinct\)",
        ),
        ({"text": TEXTS}, "has no column or hive partition that could name the domain"),
        ({"text": pa.array([], pa.string()), "domain": pa.array([], pa.string())}, "holds no rows"),
        ({"text": pa.array([None, None], pa.null())}, "has no string column"),
    ],
)
def test_a_lake_without_text_or_domain_is_refused(tmp_path, columns, said):
    with pytest.raises(InputError, match=said):
        proposal(tmp_path, **columns)


def test_the_file_is_read_back_as_it_was_meant(tmp_path):
    folder = tmp_path / 'a "quoted" \\ 日本 🎈 [x]'
    odd = 'te"xt\\ 🎈'
    other = {"x\n[learn]\nsteps = 1": KINDS}  # a name in a comment ends with its line
    write_rows(folder / "a.parquet", **{odd: TEXTS, "domain": KINDS, "id": list(range(40))}, **other)
    found = propose(str(folder))
    path = tmp_path / "curator.toml"
    write_config(found, path)
    lake = load_config(path, environ={}).lake
    assert (lake.url, lake.text, lake.domain, lake.key) == (str(folder), odd, "domain", "id")
    assert load_config(path, environ={}).learn == load_config(None, environ={}).learn


def test_every_commented_setting_is_one_that_exists(tmp_path):
    found = propose(str(write_lake(tmp_path / "lake")))
    lines = [line.removeprefix("# ") if " = " in line else line for line in render(found).splitlines()]
    text = "\n".join(line for line in lines if not line.startswith(("# Lake Curator", "# Columns are")))
    path = tmp_path / "all.toml"
    path.write_text(text.replace("# [", "["))
    config = load_config(path, environ={})
    assert (config.learn.tensor_parallel, config.learn.blocks.size, config.target.url) == (2, 1, "target.parquet")
    assert config.target.leaks == "keep"
    assert config.learn.line_search.places == ()
    assert config.compare == load_config(None, environ={}).compare


def test_a_file_is_not_overwritten_unless_told_to(tmp_path):
    found = propose(str(write_lake(tmp_path / "lake")))
    path = tmp_path / "curator.toml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"curator\.toml exists; name another with --out"):
        write_config(found, path)
    assert path.read_text() == "mine"
    write_config(found, path, overwrite=True)
    assert path.read_text() == render(found)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    found = propose(str(write_lake(tmp_path / "lake")))
    with pytest.raises(StorageError, match="cannot be written"):
        write_config(found, tmp_path / "no" / "such" / "folder.toml")


def test_the_command_prints_writes_and_overwrites_only_when_told(tmp_path):
    lake = write_lake(tmp_path / "lake")
    shown = curator(tmp_path, "init", lake, "--dry-run")
    assert shown.returncode == 0
    assert not (tmp_path / "curator.toml").exists()
    assert 'domain = "domain"' in shown.stdout
    values = values_of(curator(tmp_path, "init", lake, "--json"))
    assert (values["text"], values["domain"], values["key"], values["num_looked_at"]) == ("text", "domain", None, 72)
    assert (tmp_path / "curator.toml").read_text() == shown.stdout
    (tmp_path / "curator.toml").write_text("mine")
    assert "allow it to be replaced (--overwrite)" in refusal(curator(tmp_path, "init", lake), 2)
    assert (tmp_path / "curator.toml").read_text() == "mine"
    assert curator(tmp_path, "init", lake, "--overwrite").returncode == 0
    assert (tmp_path / "curator.toml").read_text() == shown.stdout


def test_the_next_commands_name_the_file_unless_it_is_the_usual_one(tmp_path):
    lake = write_lake(tmp_path / "lake")
    shown = curator(tmp_path, "init", lake, "--out", "my lake.toml").stdout
    assert "  curator ingest --config 'my lake.toml'\n  curator learn --config 'my lake.toml' --target" in shown
    assert "  curator ingest\n  curator learn --target" in curator(tmp_path, "init", lake).stdout
