"""What can be compared, and what is said of what cannot."""

import json

import numpy as np
import pytest
from lake_cases import LANGUAGES, write_lake

import curator
from curator.errors import ConfigError, InputError, NotFoundError
from curator.mixtures import mixtures
from curator.tokens import TokenCache

DOMAINS = sorted(LANGUAGES)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    with curator.open_lake(str(write_lake(tmp_path_factory.mktemp("mixtures") / "lake"))) as opened:
        yield opened


def named(lake, *specs, **options):
    return {mixture.name: mixture for mixture in mixtures(lake, DOMAINS, specs, **options)}


def cache(*tokens_of_domains):
    targets = np.array(tokens_of_domains, dtype=np.int64)
    count = len(targets)
    return TokenCache(
        folder=None,
        tokens=np.zeros(0),
        start=np.zeros(count, np.int64),
        num_targets=targets,
        domain=np.arange(count, dtype=np.int32),
        domains=tuple(f"d{i}" for i in range(count)),
        vocab_size=9,
    )


def test_uniform_comes_first_asked_for_or_not(lake):
    for specs in ([], ["natural"], ["natural", "uniform", "oracle"]):
        found = mixtures(lake, DOMAINS, specs)
        assert found[0].name == "uniform"
        assert found[0].weights == (1 / 3, 1 / 3, 1 / 3)
        assert [mixture.name for mixture in found[1:]] == [spec for spec in specs if spec != "uniform"]


def test_natural_is_in_proportion_to_the_tokens(lake):
    assert named(lake, "natural")["natural"].weights_on(cache(10, 30, 60)) == (0.1, 0.3, 0.6)


def test_the_oracle_has_no_weights_of_the_lake(lake):
    oracle = named(lake, "oracle")["oracle"]
    assert oracle.is_oracle
    assert oracle.weights_on(cache(50)) == (1.0,)


def test_every_domain_alone(lake):
    found = named(lake, each_domain=True)
    assert list(found) == ["uniform", "domain:east", "domain:north", "domain:south"]
    assert found["domain:north"].weights == (0.0, 1.0, 0.0)


def test_every_domain_alone_whatever_it_is_called(lake):
    odd = ["a=b", "c:d=e.json", "x/y"]
    found = mixtures(lake, odd, [], each_domain=True)
    assert [mixture.weights for mixture in found[1:]] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert mixtures(lake, odd, ["domain:a=b"])[1].weights == (1, 0, 0)
    assert mixtures(lake, odd, ["mine=domain:c:d=e.json"])[1].name == "mine"


def test_names_can_be_given(lake, tmp_path):
    path = tmp_path / "a=b.json"
    path.write_text('{"north": 3, "south": 1}')
    found = named(lake, "n=natural", "again=uniform", "bound=oracle", f"file={path}", str(path))
    assert list(found) == ["uniform", "n", "again", "bound", "file", "a=b"]
    assert found["file"].weights == found["a=b"].weights == (0.0, 0.75, 0.25)


@pytest.mark.parametrize(
    "values",
    [
        {"north": 3, "south": 1},
        {"north": np.float32(0.75), "south": np.float64(0.25)},
        {"north": 1.5e308, "south": 5e307},
    ],
)
def test_weights_are_scaled_to_sum_to_one(lake, values):
    found = named(lake, ("mine", values))["mine"]
    assert found.weights == pytest.approx((0.0, 0.75, 0.25))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nort": 1}, "mixture 'mine' names domain 'nort', which the lake does not have; did you mean 'north'?"),
        ({"zz": 1}, "mixture 'mine' names domain 'zz', which the lake does not have; domains are 'east', 'north', "),
        ({5: 1}, "mixture 'mine' names domain 5, which the lake does not have; "),
        ({"north": -0.1}, "mixture 'mine' gives domain 'north' the weight -0.1; it must be a number of at least 0"),
        ({"north": float("nan")}, "gives domain 'north' the weight nan; it must be a number of at least 0"),
        ({"north": float("inf")}, "gives domain 'north' the weight inf; "),
        ({"north": 10**400}, "; it must be a number of at least 0"),
        ({"north": "1"}, "gives domain 'north' the weight '1'; "),
        ({"north": True}, "gives domain 'north' the weight True; "),
        ({"north": None}, "gives domain 'north' the weight None; "),
        ({"north": 0}, "mixture 'mine' gives no domain a weight above 0"),
        ({}, "mixture 'mine' gives no domain a weight above 0"),
    ],
)
def test_weights_that_are_none_are_refused(lake, values, said):
    with pytest.raises(ConfigError) as caught:
        named(lake, ("mine", values))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", " cannot be read as JSON ("),
        (b'{"north": 1', " cannot be read as JSON ("),
        (b"\xff\xfe", " cannot be read as JSON ("),
        (b"[" * 100_000, " cannot be read as JSON ("),
        (b'{"north": 1, "north": 0}', " cannot be read as JSON ('north' stands in it twice); "),
        (b"[1, 2]", " holds a list; it must be an object {domain: weight}"),
        (b'{"north": NaN}', " gives domain 'north' the weight nan; it must be a number of at least 0"),
        (b'{"north": {"share": 1}}', " gives domain 'north' the weight {'share': 1}; "),
    ],
)
def test_a_damaged_file_is_named(lake, tmp_path, content, said):
    path = tmp_path / "mix.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        named(lake, str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_of_a_windows_editor_is_read(lake, tmp_path):
    path = tmp_path / "mix.json"
    path.write_text('{"north": 1}', encoding="utf-8-sig")
    assert named(lake, str(path))["mix"].weights == (0.0, 1.0, 0.0)


def test_a_run_that_is_named_for_two_seeds_is_refused(learned):
    with curator.open_lake(str(learned.lake)) as lake, pytest.raises(ConfigError) as caught:
        named(lake, f"mine=latest,{learned.run_id}")
    assert f"names run {learned.run_id} twice; each seed needs a run of its own" in str(caught.value)


def test_a_file_that_is_not_there_is_named(lake, tmp_path):
    with pytest.raises(ConfigError) as caught:
        named(lake, str(tmp_path / "gone.json"))
    assert str(caught.value) == f"mixture file {tmp_path / 'gone.json'} cannot be read: No such file or directory"


@pytest.mark.parametrize("spec", ["unifrom", "latest", "20260101T000000-abcdef", "mine=nothing", "=", ""])
def test_what_is_no_mixture_and_no_run_is_refused(lake, spec):
    with pytest.raises(NotFoundError, match=r"is neither uniform, natural, .*, a file of mixtures \(.*\) nor a run: "):
        named(lake, spec)


@pytest.mark.parametrize(
    "specs",
    [["natural", "natural"], ["uniform=natural"], ["a=natural", "a=oracle"], ["latest=natural", "latest=oracle"]],
)
def test_two_mixtures_of_one_name_are_refused(lake, specs):
    with pytest.raises(ConfigError, match=r"two mixtures are named '\w+'; name one of them otherwise, as NAME=SPEC"):
        named(lake, *specs)


def test_a_run_is_compared_with_the_weights_it_learned(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        found = named(lake, "latest", f"again={learned.run_id}")
        run = lake.run("latest")
    learned_weights = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
    for name in (learned.run_id, "again"):
        assert found[name].weights == pytest.approx([learned_weights[domain] for domain in DOMAINS])
        assert found[name].run_id == learned.run_id
        assert found[name].learn_seconds == run.record["seconds"] > 0


def test_runs_of_several_seeds_are_one_mixture_with_weights_for_each(learned):
    record_of = learned.state / "runs" / learned.run_id / "run.json"
    other = json.loads(record_of.read_text()) | {"run_id": "other", "seconds": 3.0, "compute_tokens": 10.0}
    for row, weight in zip(other["domains"], (0.5, 0.2, 0.3), strict=True):
        row["domain_weight"] = weight
    (learned.state / "runs" / "other").mkdir()
    (learned.state / "runs" / "other" / "run.json").write_text(json.dumps(other))
    with curator.open_lake(str(learned.lake)) as lake:
        found = named(lake, f"mine={learned.run_id},other")["mine"]
        alone = named(lake, learned.run_id, "other")
    assert found.run_id == f"{learned.run_id},other"
    assert found.weights_on(cache(1, 1, 1), 0) == alone[learned.run_id].weights
    assert found.weights_on(cache(1, 1, 1), 1) == alone["other"].weights
    both = [alone[learned.run_id].weights, alone["other"].weights]
    assert found.weights == pytest.approx(np.mean(both, axis=0))
    assert found.learn_seconds == pytest.approx((alone[learned.run_id].learn_seconds + 3.0) / 2)
    assert found.learn_tokens == pytest.approx((alone[learned.run_id].learn_tokens + 10.0) / 2)


def test_a_run_over_other_domains_is_refused(learned):
    with curator.open_lake(str(learned.lake)) as lake, pytest.raises(InputError) as caught:
        mixtures(lake, [*DOMAINS, "west"], ["latest"])
    assert str(caught.value) == (
        f"run {learned.run_id} was learned on other domains than {learned.lake} has now ('west' is on one side only); "
        "learn again"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("doremi.json", '{"train_domain_weights": {"north": 3, "south": 1}, "eval_domain_weights": {"east": 1}}'),
        ("regmix.yaml", "train:\n  train_north: 0.75\n  train_south: 0.25\nvalid:\n  valid_east: 1.0\n"),
        ("plain.yml", "train: {north: 3, south: 1}\n"),
        ("climb.txt", "0.5 data/north_text_document 0.25 data/north\n0.25 /x/south_document\n"),
        ("megatron.blend", "30 north\n10 south\n"),
    ],
)
def test_files_of_other_tools_are_read(lake, tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert named(lake, str(path))[path.stem].weights == pytest.approx((0.0, 0.75, 0.25))


def test_a_table_has_a_mixture_a_row(lake, tmp_path):
    path = tmp_path / "mix.csv"
    path.write_text("index,train_north,train_east\n1,0.75,0.25\n7,0.0,1.0\n")
    found = named(lake, str(path), f"mine={path}")
    assert {name: mixture.weights for name, mixture in found.items()} == {
        "uniform": (1 / 3, 1 / 3, 1 / 3),
        "mix-1": (0.25, 0.75, 0.0),
        "mix-7": (1.0, 0.0, 0.0),
        "mine-1": (0.25, 0.75, 0.0),
        "mine-7": (1.0, 0.0, 0.0),
    }
    path.write_text("north,south\n1,3\n")
    assert named(lake, str(path))["mix-1"].weights == (0.0, 0.25, 0.75)


def test_an_exported_blend_is_read_back(learned, tmp_path):
    with curator.open_lake(str(learned.lake)) as lake:
        run = lake.run("latest")
        run.export("megatron", tmp_path / "mine.txt", places="data/{domain}_text_document")
        found = named(lake, "latest", str(tmp_path / "mine.txt"))
    assert found["mine"].weights == pytest.approx(found[run.run_id].weights, abs=1e-8)


def test_a_prefix_is_of_the_domain_with_the_longest_name_that_it_ends_in(lake, tmp_path):
    odd = ["b", "a/b", "c_text_document"]
    path = tmp_path / "mine.txt"
    path.write_text("1 x/a/b_text_document 2 x/ab/b 1 c_text_document")
    assert mixtures(lake, odd, [str(path)])[1].weights == (0.5, 0.25, 0.25)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "train: [1]", " has no train: {train_DOMAIN: weight}, as RegMix writes it"),
        ("a.yaml", "{", " cannot be read as YAML ("),
        (
            "a.yaml",
            "train: {train_nort: 1}",
            " names domain 'nort', which the lake does not have; did you mean 'north'?",
        ),
        (
            "a.yaml",
            "train: {train_north: x}",
            " gives domain 'north' the weight 'x'; it must be a number of at least 0",
        ),
        ("a.csv", "", " is no table: it needs a line of names"),
        ("a.csv", "index,north\n1\n", " is no table: "),
        ("a.csv", "index,north\n1,x\n", " gives 'north' the weight 'x', which is no number"),
        ("a.txt", "data/north data/south data/east", " is no blend of weights: it needs a weight before every prefix"),
        ("a.txt", "data/north data/south", " gives 'data/south' the weight 'data/north', which is no number"),
        ("a.txt", "", " is no blend of weights: "),
        ("a.txt", "1 data/west_document", " names domain 'west', which the lake does not have; "),
        ("a.txt", "nan data/north", " gives domain 'north' the weight nan; "),
        ("a.blend", "\udcff", " cannot be read as UTF-8 ("),
    ],
)
def test_a_damaged_file_of_another_tool_is_named(lake, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        named(lake, str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
