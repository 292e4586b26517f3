import pytest

from curator.config import LearnConfig, TargetConfig, load_config, override
from curator.errors import ConfigError


def load(path, text, **environ):
    path.write_text(text)
    return load_config(path, environ=environ)


def refused(path, text, **environ):
    with pytest.raises(ConfigError) as caught:
        load(path, text, **environ)
    return str(caught.value)


def test_an_unknown_key_is_refused_with_file_key_and_nearest_name(tmp_path):
    path = tmp_path / "c.toml"
    message = refused(path, "[learn]\nstepps = 3\n")
    assert message == f"{path}: learn.stepps is not a known key; did you mean 'steps'?"


def test_an_unknown_key_near_nothing_lists_the_known_ones(tmp_path):
    assert "known keys are leaks, text, url" in refused(tmp_path / "c.toml", "[target]\nzzzz = 3\n")


def test_an_unknown_section_and_a_nested_key_are_found(tmp_path):
    message = refused(tmp_path / "c.toml", "[lern]\nsteps = 3\n[learn.blocks]\nsise = 1\n")
    assert "lern is not a known key; did you mean 'learn'?" in message
    assert "learn.blocks.sise is not a known key; did you mean 'size'?" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("steps = 0", "learn.steps=0: input should be greater than or equal to 1"),
        ("steps = 'many'", "learn.steps='many': input should be a valid integer"),
        ("dtype = 'float16'", "learn.dtype='float16': input should be 'float32' or 'bfloat16'"),
        ("penalty = -1.0", "learn.penalty=-1.0: input should be greater than 0"),
        ("weights = 3", "learn.weights=3: "),
    ],
)
def test_a_value_that_is_not_allowed_names_file_key_value_and_bound(tmp_path, line, said):
    path = tmp_path / "c.toml"
    assert f"{path}: {said}" in refused(path, f"[learn]\n{line}\n")


def test_several_mistakes_are_told_at_once(tmp_path):
    message = refused(tmp_path / "c.toml", "[learn]\nsteps = 0\nsede = 1\n")
    assert "learn.steps" in message
    assert "did you mean 'seed'?" in message


def test_later_sources_win_key_by_key(tmp_path):
    text = "[learn]\nsteps = 2\nseed = 2\n[learn.weights]\nfloor = 0.01\n"
    config = load(tmp_path / "c.toml", text, CURATOR__LEARN__SEED="3", CURATOR__LEARN__WEIGHTS__PRIOR="natural")
    chosen = override(config.learn, seed=None, penalty=4.0)
    assert (chosen.steps, chosen.seed, chosen.penalty) == (2, 3, 4.0)
    assert (chosen.weights.floor, chosen.weights.prior) == (0.01, "natural")
    assert chosen.rows_per_domain == LearnConfig().rows_per_domain
    assert override(chosen, seed=5).seed == 5


def test_an_override_keeps_the_neighbours_of_a_nested_value():
    base = LearnConfig(blocks={"size": 2, "period": 7})
    assert override(base, blocks={"size": 1}).blocks.model_dump() == {
        "size": 1,
        "period": 7,
        "edges": "always",
        "moments": "drop",
    }


def test_toml_and_yaml_say_the_same(tmp_path):
    pytest.importorskip("yaml")
    toml = load(tmp_path / "c.toml", '[lake]\nurl = "a"\n[lake.storage_options]\nkey = "k"\n[learn]\nsteps = 5\n')
    yaml = load(tmp_path / "c.yaml", "lake:\n  url: a\n  storage_options: {key: k}\nlearn: {steps: 5}\n")
    assert toml == yaml
    assert toml.learn.steps == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.toml", "[learn\n"), ("c.toml", "\udcff"), ("c.yaml", "a: [1\n"), ("c.yaml", "- a\n"), ("c.yml", "just text")],
)
def test_a_file_that_is_not_configuration_is_named(tmp_path, name, text):
    if name.endswith("l") and name != "c.toml":
        pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match="cannot be read as configuration") as caught:
        load_config(path, environ={})
    assert str(path) in str(caught.value)


def test_an_empty_yaml_file_is_all_defaults(tmp_path):
    pytest.importorskip("yaml")
    assert load(tmp_path / "c.yaml", "") == load_config(None, environ={})


def test_a_missing_file_or_a_folder_is_named_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file .*gone\.toml; `curator init LAKE_URL` writes one"):
        load_config(tmp_path / "gone.toml", environ={})
    with pytest.raises(ConfigError, match="cannot be read as configuration"):
        load_config(tmp_path, environ={})


def test_a_mistake_in_the_environment_names_the_variable_not_the_file(tmp_path):
    message = refused(tmp_path / "c.toml", "[learn]\nsteps = 2\n", CURATOR__LEARN__SEED="-1")
    assert "environment variable CURATOR__LEARN__SEED: learn.seed='-1'" in message
    assert "c.toml" not in message
    with pytest.raises(ConfigError, match=r"CURATOR__LEARN__STEPPS.*did you mean 'steps'"):
        load_config(None, environ={"CURATOR__LEARN__STEPPS": "1"})


def test_a_variable_that_is_both_a_value_and_a_section_is_refused():
    environ = {"CURATOR__LEARN": "1", "CURATOR__LEARN__STEPS": "2"}
    with pytest.raises(ConfigError, match="CURATOR__LEARN is a section, not a value; set CURATOR__LEARN__KEY"):
        load_config(None, environ=environ)


def test_other_variables_are_not_ours():
    assert load_config(None, environ={"CURATOR_HOME": "/x", "curator__learn__steps": "3"}) == load_config(
        None, environ={}
    )


def test_storage_options_are_never_shown(tmp_path):
    config = load(tmp_path / "c.toml", '[lake.storage_options]\nsecret = "hush-hush"\n')
    assert config.lake.storage_options == {"secret": "hush-hush"}
    assert "hush" not in repr(config) + str(config)
    assert "hush" not in refused(tmp_path / "c.toml", '[lake]\nstorage_options = "hush-hush"\n')


def test_settings_cannot_be_changed_after_they_were_checked():
    with pytest.raises(ValueError, match="frozen"):
        TargetConfig().url = "elsewhere"


def test_a_section_made_by_its_name_tells_of_mistakes_as_the_others_do():
    with pytest.raises(ConfigError, match=r"^the arguments: stepps is not a known key; did you mean 'steps'\?$"):
        LearnConfig(stepps=3)
    with pytest.raises(ConfigError, match=r"^the arguments: blocks\.perod is not a known key; did you mean 'period'"):
        LearnConfig(blocks={"perod": 2})


def test_an_argument_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match=r"the arguments: stps is not a known key; did you mean 'steps'\?"):
        override(LearnConfig(), stps=3)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("context_parallel", "context parallelism"),
        ("expert_parallel", "expert parallelism"),
        ("virtual_pipeline_parallel", "virtual pipeline parallelism"),
        # as Megatron-Core names them
        ("context_parallel_size", "context parallelism"),
        ("expert_model_parallel_size", "expert parallelism"),
        ("virtual_pipeline_model_parallel_size", "virtual pipeline parallelism"),
    ],
)
def test_parallelism_that_is_not_supported_is_refused_by_name(key, name):
    with pytest.raises(ConfigError, match=f"{name} is not supported; split a model with tensor_parallel"):
        override(LearnConfig(), **{key: 2})


@pytest.mark.parametrize("values", [{"fp8": True}, {"dtype": "fp8"}])
def test_fp8_is_refused_with_the_formats_that_there_are(values):
    with pytest.raises(ConfigError, match=r": fp8 is not supported; dtype may be float32 or bfloat16$"):
        override(LearnConfig(), **values)


@pytest.mark.parametrize("value", ["inf", "nan", float("inf")])
def test_settings_are_finite_numbers(value):
    with pytest.raises(
        ConfigError, match=r"the arguments: learning_rate=.*: input should be (a finite number|greater)"
    ):
        override(LearnConfig(), learning_rate=value)
