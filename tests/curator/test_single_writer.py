"""Storage that ignores conditional writes: refused, unless the user vouches that there is one writer at a time."""

import pytest
from s3fs import S3FileSystem
from storage_faults import requests_of
from store_cases import NEW, NUM_ROWS, OLD, open_copy, template_of, two_files

import curator
from connectors.store import open_store, put_if_absent, read_bytes
from curator.doctor import diagnose
from curator.errors import UsageError


@pytest.fixture
def careless(learned, s3_place, monkeypatch):
    """A lake with two runs on an S3 server that never hears of a condition, as some look-alikes ignore it."""
    call = S3FileSystem._call_s3

    async def without_condition(self, method, *arguments, **named):
        return await call(self, method, *arguments, **{k: v for k, v in named.items() if k != "IfNoneMatch"})

    monkeypatch.setattr(S3FileSystem, "_call_s3", without_condition)
    monkeypatch.setattr(S3FileSystem, "call_s3", S3FileSystem.call_s3)
    url = template_of(open_store(str(two_files(learned, OLD, NEW)))).copy_to(f"{s3_place.url}/lake", s3_place.options)
    store = open_store(url, s3_place.options)
    put_if_absent(store, "_curator/trial", b"first")
    put_if_absent(store, "_curator/trial", b"second")
    assert read_bytes(store, "_curator/trial") == b"second"
    return url, s3_place.options


def opened(careless, **settings):
    url, options = careless
    return curator.open_lake(url, text="text", domain="domain", storage_options=options, **settings)


def test_without_the_choice_nothing_is_published_and_the_sentence_names_it(careless):
    with open_copy(*careless) as lake:
        with pytest.raises(UsageError, match=r"two writers could publish over each other.*single_writer = true"):
            lake.publish(OLD)
        assert lake.history() == []


def test_with_it_one_writer_publishes_goes_back_and_collects(careless):
    with opened(careless, single_writer=True) as lake:
        assert [lake.publish(run).version for run in (OLD, NEW, OLD)] == [1, 2, 1]
        assert lake.rollback(1).version == 3
        assert lake.gc("0s").items == ()
    with open_copy(*careless) as lake:  # who only reads need not choose
        assert [version.run_id for version in lake.history()] == [OLD, NEW, OLD]
        seen = lake.sql("SELECT weight_run_id, count(*) FROM samples GROUP BY 1").fetchall()
        assert seen == [(OLD, NUM_ROWS)]
        with pytest.raises(UsageError, match="ignores conditional writes"):
            lake.rollback(2)


def test_it_is_chosen_in_the_settings_and_the_environment_and_never_remembered(careless, tmp_path, monkeypatch):
    from curator.config import load_config

    settings = tmp_path / "curator.toml"
    settings.write_text("[lake]\nsingle_writer = true\n")
    with opened(careless, config=load_config(settings).lake) as lake:
        assert lake.publish(OLD).created
    with opened(careless) as lake, pytest.raises(UsageError):
        lake.publish(NEW)
    monkeypatch.setenv("CURATOR__LAKE__SINGLE_WRITER", "true")
    with opened(careless, config=load_config(None).lake) as lake:
        assert lake.publish(NEW).created


def test_the_doctor_says_what_to_choose_and_then_that_it_was_chosen(careless, tmp_path, monkeypatch):
    url, options = careless
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    (check,) = [check for check in diagnose(url) if check.name == "destination"]
    assert check.outcome == "failed"
    assert "ignores conditional writes" in check.found
    assert "single_writer = true" in check.fix
    (tmp_path / "curator.toml").write_text(f'[lake]\nurl = "{url}"\nsingle_writer = true')
    (check,) = [check for check in diagnose() if check.name == "destination"]
    assert (check.outcome, check.fix) == ("ok", "")
    assert check.found.endswith("ignores create-if-absent, for one writer at a time (single_writer)")


def test_on_honest_storage_the_choice_changes_no_request(learned, s3_place):
    """The condition is asked for all the same, so that a second writer still loses where the storage can tell."""
    url = template_of(open_store(str(two_files(learned, OLD, NEW)))).copy_to(f"{s3_place.url}/lake", s3_place.options)
    with opened((url, s3_place.options), single_writer=True) as lake, requests_of("s3") as requests:
        assert lake.publish(OLD).created
    assert sum(".probe-" in name for name in requests.names) == 4
