"""Weights written for trainers: the units mean what they say, and the trainers' own parsers read the files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from export_replays import REPLAYS, replay
from hypothesis import given
from hypothesis import strategies as st
from lake_cases import curator as command
from lake_cases import refusal, values_of

import curator
from curator.errors import ConfigError
from curator.export import FORMATS, export
from curator.export.shares import shares


class _Lake:
    url = "lake"


def a_run(**weights):
    """A run of a lake whose domains have 10, 20, 30 … rows of 7, 49, 343 … tokens."""
    domains = [
        {
            "domain": name,
            "domain_weight": weight,
            "num_samples": 10 * (d + 1),
            "num_tokens": 10 * (d + 1) * 7 ** (d + 1),
        }
        for d, (name, weight) in enumerate(weights.items())
    ]
    return curator.Run(_Lake(), {"run_id": "r1", "domains": domains})


RUN = a_run(news=0.25, code=0.5, mail=0.0, books=0.25)
by_weight = st.lists(st.integers(1, 1000), min_size=1, max_size=6)


def written(tmp_path, format_, run=RUN, **settings):
    return export(run, format_, tmp_path / "out", **settings), (tmp_path / "out").read_text()


@given(by_weight)
def test_every_unit_gives_the_weights_as_shares_of_tokens(counts):
    total = sum(counts)
    run = a_run(**{f"d{i}": count / total for i, count in enumerate(counts)})
    sizes = {row["domain"]: (row["num_samples"], row["num_tokens"]) for row in run.record["domains"]}
    found = shares(run.record["domains"])
    wanted = np.array([share.tokens for share in found])
    drawn = np.array([s.rows * sizes[s.domain][1] / sizes[s.domain][0] for s in found])  # rows drawn × their tokens
    kept = np.array([s.kept * sizes[s.domain][1] for s in found])
    np.testing.assert_allclose(drawn / drawn.sum(), wanted, rtol=1e-12)
    np.testing.assert_allclose(kept / kept.sum(), wanted, rtol=1e-12)
    assert sum(share.rows for share in found) == pytest.approx(1)
    weighted = np.array([s.row_weight * sizes[s.domain][1] for s in found])
    np.testing.assert_allclose(weighted / weighted.sum(), wanted, rtol=1e-12)
    assert np.average([s.row_weight for s in found], weights=[s.num_rows for s in found]) == pytest.approx(1)
    assert max(share.kept for share in found) == 1
    epochs = np.array([share.epochs(10**6) * share.num_tokens for share in found])
    np.testing.assert_allclose(epochs, wanted * 10**6, rtol=1e-12)


def test_megatron_reads_its_blend(tmp_path):
    parser = pytest.importorskip("megatron.core.datasets.utils", reason="needs the extra [train]").get_blend_from_list
    done, text = written(tmp_path, "megatron", places="data/{domain}_text_document")
    prefixes, weights = parser(text.split())
    assert prefixes == [f"data/{domain}_text_document" for domain in ("code", "news", "books")]
    assert weights == [0.5, 0.25, 0.25]
    assert done.left_out == ["mail"]
    assert done.unit == "share of sequences, which is the share of tokens"


@pytest.mark.parametrize(
    "domain",
    [
        "no",
        "a: b",
        "#x",
        "{d}",
        "é 'q' \"z\"",
        "- 1",
        "back\\slash",
        "null",
        "1e3",
        "a\nb",
        "😀",
        "a\u2028b",
        "\x85",
        "\ufeffx",
    ],
)
def test_yaml_keeps_every_name(tmp_path, domain):
    run = a_run(**{domain: 0.75, "other": 0.25})
    _, text = written(tmp_path, "levanter", run)
    assert yaml.safe_load(text) == {
        "data": {"train_weights": {domain: 0.75, "other": 0.25}, "stop_strategy": "restart"}
    }
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "energon", run)
    blend = yaml.safe_load(text)["splits"]["train"]["blend"]
    assert [entry["path"] for entry in blend] == [domain, "other"]
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "data-juicer", run)
    entries = yaml.safe_load(text)["dataset"]["configs"]
    assert [entry["path"] for entry in entries] == [domain, "other"]
    for format_, keep in [("trl", "fraction"), ("axolotl", "split")]:
        (tmp_path / "out").unlink()
        _, text = written(tmp_path, format_, run)
        entries = yaml.safe_load(text)["datasets"]
        assert [(entry["path"], set(entry)) for entry in entries] == [(d, {"path", keep}) for d in (domain, "other")]
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "olmo-core", run)
    sources = yaml.safe_load(text)["sources"]
    assert [(each["source_name"], each["paths"]) for each in sources] == [(d, [d]) for d in (domain, "other")]
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "streaming", run)
    assert yaml.safe_load(text)["streams"] == {
        name: {"local": name, "proportion": weight} for name, weight in [(domain, 0.75), ("other", 0.25)]
    }
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "nanotron", run)
    values = yaml.safe_load(text)["data_stages"][0]["data"]["dataset"]
    assert values == {"dataset_folder": [domain, "other"], "dataset_weights": [0.75, 0.25]}
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "torchtitan", run)
    names = {}
    exec(text, names)
    assert names["WEIGHTS"] == {domain: 0.75, "other": 0.25}
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "torch", run)
    assert list(json.loads(text)["row_weights"]) == [domain, "other"]


@pytest.mark.parametrize("replayed", REPLAYS, ids=lambda case: "-".join(filter(None, case)))
def test_what_a_trainer_draws_by_a_file_has_the_learned_shares_of_tokens(tmp_path, replayed):
    format_, unit = replayed
    done = replay(format_, tmp_path, unit=unit)
    assert done.is_right, done
    assert done.shares["spam"] == 0


def test_weights_in_a_wrong_unit_would_not_have_them(tmp_path):
    for format_, unit, reader in [
        ("datasets", "sequences", ("datasets", None)),
        ("streaming", None, ("streaming", "rows")),
        ("torchtitan", "rows", ("torchtitan", None)),
    ]:
        done = replay(format_, tmp_path, unit=unit, as_=reader)
        assert not done.is_right
        assert done.difference > 0.1


def test_the_splits_of_megatron_are_told_apart_by_their_places(tmp_path):
    parser = pytest.importorskip("megatron.core.datasets.utils", reason="needs the extra [train]").get_blend_from_list
    _, text = written(tmp_path, "megatron-splits", places="data/{split}/{domain}")
    splits = json.loads(text)
    assert list(splits) == ["train", "valid", "test"]
    for split, blend in splits.items():
        assert parser(blend) == ([f"data/{split}/{domain}" for domain in ("code", "news", "books")], [0.5, 0.25, 0.25])
    (tmp_path / "out").unlink()
    _, text = written(tmp_path, "megatron-splits", places="data/{domain}")
    assert [parser(blend) is None for blend in json.loads(text).values()] == [False, True, True]


def test_domains_without_weight_are_left_out_unless_the_reader_has_to_know_of_them(tmp_path):
    for format_ in FORMATS:
        done, text = written(tmp_path, format_, overwrite=True)
        assert done.left_out == ([] if format_ == "torch" else ["mail"])
        assert ("mail" in text) == (format_ == "torch")
    assert done.weights.keys() == {"news", "code", "books"}


def test_streams_are_local_folders_or_remote_ones(tmp_path):
    _, text = written(tmp_path, "streaming", places={"news": "s3://b/n", "code": "/data/c", "books": "gs://b/k"})
    streams = yaml.safe_load(text)["streams"]
    assert {name: next(iter(values)) for name, values in streams.items()} == {
        "news": "remote",
        "code": "local",
        "books": "remote",
    }


@given(by_weight)
def test_probabilities_are_ones_that_numpy_takes(tmp_path_factory, counts):
    run = a_run(**{f"d{i}": count / sum(counts) for i, count in enumerate(counts)})
    folder = tmp_path_factory.mktemp("probabilities")
    _, text = written(folder, "datasets", run)
    values = json.loads(text)
    drawn = np.random.default_rng(0).choice(values["datasets"], size=3, p=values["probabilities"])
    assert len(drawn) == 3
    (folder / "out").unlink()
    _, text = written(folder, "llama-factory", run)
    settings = yaml.safe_load(text)
    probabilities = [float(part) for part in settings["interleave_probs"].split(",")]
    assert len(settings["dataset"].split(",")) == len(probabilities) == len(counts)
    assert sum(probabilities) == pytest.approx(1, abs=1e-8)


def test_no_probability_is_below_zero_where_a_weight_is_next_to_nothing(tmp_path):
    """Six of nine digits rounded up leave less than nothing to the last."""
    shares = [0.16666666683] * 5 + [1 - 5 * 0.16666666683 - 5e-10, 5e-10]
    _, text = written(tmp_path, "datasets", a_run(**{f"d{i}": share for i, share in enumerate(shares)}))
    probabilities = json.loads(text)["probabilities"]
    assert min(probabilities) > 0
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)


def test_a_budget_tells_how_often_a_domain_is_repeated(tmp_path):
    done, _ = written(tmp_path, "megatron", budget_tokens=1000)
    assert done.epochs["news"] == pytest.approx(0.25 * 1000 / 70)
    assert done.epochs["code"] == pytest.approx(0.5 * 1000 / 980)
    assert done.repeated == []
    assert export(RUN, "megatron", tmp_path / "more", budget_tokens=10_000).repeated == ["code", "news"]


@pytest.mark.parametrize(
    ("format_", "settings", "sentence"),
    [
        ("megatrn", {}, "no export format 'megatrn'; did you mean 'megatron'?"),
        ("xyz", {}, f"no export format 'xyz'; there are {', '.join(FORMATS)}, croissant"),
        ("croisant", {}, "no export format 'croisant'; did you mean 'croissant'?"),
        ("croissant", {}, "croissant describes a published version and is not made of a run; call Lake.describe"),
        ("megatron", {"places": "my data/{domain}"}, "the prefix 'my data/code' has white space or is empty"),
        ("megatron", {"places": "{domain}.bin"}, "the prefix 'code.bin' must not end in .bin or .idx"),
        ("megatron", {"places": "data"}, "the places 'data' have no {domain} in them"),
        ("megatron", {"places": {"code": "a"}}, "no place was named for domain 'news'"),
        ("megatron", {"places": {"code": "a", "news": "a", "books": "b"}}, "the place 'a' was named for two domains"),
        ("llama-factory", {"places": "a,{domain}"}, "the dataset name 'a,code' has a comma"),
        ("megatron-splits", {"places": "{domain}.{split}.bin"}, "the prefix 'code.train.bin' must not end in .bin"),
        ("megatron", {"unit": "rows"}, "the format megatron has no unit 'rows'; its weights are sequences"),
        ("energon", {"unit": "x"}, "the format energon has no unit 'x'; its weights are rows or sequences"),
        ("megatron", {"budget_tokens": 0}, "budget_tokens=0: it must be at least 1"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is(tmp_path, format_, settings, sentence):
    with pytest.raises(ConfigError) as caught:
        export(RUN, format_, tmp_path / "out", **settings)
    assert str(caught.value).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_it_may_go(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export(RUN, "megatron", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    written(tmp_path, "megatron", overwrite=True)
    with pytest.raises(ConfigError, match="its folder does not exist"):
        export(RUN, "megatron", tmp_path / "nowhere" / "out")


def test_the_command_writes_a_runs_weights(learned, tmp_path):
    (tmp_path / "places.json").write_text(json.dumps({"north": "n", "south": "s", "east": "e"}))
    asked = ["export", learned.lake, "--out", tmp_path / "blend", "--places", tmp_path / "places.json"]
    told = command(tmp_path, "export", "--help", COLUMNS="400").stdout
    assert all(name in told for name in FORMATS)
    dry = values_of(command(tmp_path, *asked, "--dry-run", "--json"))
    assert not (tmp_path / "blend").exists()
    done = values_of(command(tmp_path, *asked, "--budget-tokens", "1000", "--json"))
    assert (tmp_path / "blend").read_text() == done["text"] == dry["text"]
    with curator.open_lake(str(learned.lake)) as lake:
        weights = {row["domain"]: row["domain_weight"] for row in lake.run(learned.run_id).record["domains"]}
    assert done["weights"] == weights
    shown = command(tmp_path, *asked, "--overwrite")
    assert "for Megatron-LM and Megatron-Bridge, --data-args-path FILE" in shown.stdout
    rows = values_of(command(tmp_path, *asked, "--format", "energon", "--unit", "sequences", "--overwrite", "--json"))
    assert rows["unit"] == "share of sequences, which is the share of tokens"
    assert refusal(command(tmp_path, "export", learned.lake), 2) == "no file was named; pass --out FILE"
    assert "is there already" in refusal(command(tmp_path, *asked), 2)
    assert "places file" in refusal(command(tmp_path, *asked[:-1], "gone.json"), 2)
