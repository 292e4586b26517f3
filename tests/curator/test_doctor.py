import json
import os
import subprocess
import sys

import pytest
from lake_cases import curator, refusal

from curator.doctor import diagnose


def by_name(checks):
    return {check.name: check for check in checks}


def test_a_complete_installation_has_no_failure():
    checks = diagnose()
    assert [check for check in checks if check.outcome == "failed"] == []
    found = by_name(checks)
    assert found["Python"].found.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {"duckdb", "pyarrow", "polars", "extra [train]", "extra [s3]", "machine"} <= found.keys()
    assert "CPU cores" in found["machine"].found


def test_what_is_missing_comes_with_the_command_that_installs_it():
    for check in diagnose():
        assert bool(check.fix) == (check.outcome != "ok")
        if check.name.startswith("extra") and check.outcome == "missing":
            assert check.fix == f"pip install 'lake-curator[{check.name[7:-1]}]'"
            assert "not installed" in check.found


@pytest.mark.parametrize("place", ["lake", "lake/*.parquet"])
def test_a_destination_is_written_to_and_cleaned_up(tmp_path, place):
    (tmp_path / "lake").mkdir()
    check = by_name(diagnose(str(tmp_path / place)))["destination"]
    assert (check.outcome, check.found) == ("ok", f"{tmp_path / 'lake'} can be written and keeps create-if-absent")
    assert list(tmp_path.rglob("*")) == [tmp_path / "lake"]


def test_a_lake_that_is_not_there_fails_and_is_not_made(tmp_path):
    check = by_name(diagnose(str(tmp_path / "typo")))["destination"]
    assert (check.outcome, check.found) == ("failed", f"{tmp_path / 'typo'} does not exist")
    assert check.fix.startswith("check the address")
    assert list(tmp_path.iterdir()) == []


def test_without_an_address_the_settings_here_name_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "destination" not in by_name(diagnose())
    settings = tmp_path / "curator.toml"
    settings.write_text('[lake]\nurl = "typo"')
    assert by_name(diagnose())["destination"].found == f"{tmp_path / 'typo'} does not exist"
    settings.write_text('[lake]\nurl = "."')
    assert by_name(diagnose())["destination"].found.startswith(f"{tmp_path} can be written")
    settings.write_text('[lake]\nurl = "delta:."\ndestination = "new"')
    assert by_name(diagnose())["destination"].found == f"{tmp_path / 'new'} will be made when it is needed"
    settings.write_text('[lake]\nuri = "."')
    assert "did you mean 'url'?" in by_name(diagnose())["settings"].found
    assert list(tmp_path.iterdir()) == [settings]


@pytest.mark.parametrize("place", ["/sys/nowhere", "file/below", "foo://bar"])
def test_a_destination_that_cannot_be_written_fails(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    check = by_name(diagnose(place))["destination"]
    assert check.outcome == "failed"
    assert check.fix.endswith("choose another --destination")
    assert place.split("://")[0] in check.found


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An environment without a credential anywhere."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_", "STORAGE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_credentials_are_named_but_not_shown(bare, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-very-secret")
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "token-very-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:very-secret@127.0.0.1:9000")
    checks = diagnose()
    assert by_name(checks)["S3 credentials"].found == "from AWS_ACCESS_KEY_ID (values not shown)"
    assert by_name(checks)["GCS credentials"].found == "from FSSPEC_GCS_TOKEN (values not shown)"
    assert "127.0.0.1:9000" in by_name(checks)["endpoint"].found
    assert "very-secret" not in repr(checks)


def test_credentials_in_files_are_found_where_the_packages_look(bare, monkeypatch):
    files = {
        ".aws/credentials": "[default]\naws_secret_access_key = very-secret\n",
        ".config/gcloud/application_default_credentials.json": '{"refresh_token": "very-secret"}',
        ".config/fsspec/conf.json": '{"abfs": {"account_key": "very-secret"}}',
        "elsewhere": "[work]\n",
    }
    for name, text in files.items():
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        (bare / name).write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(bare / "elsewhere"))
    checks = diagnose()
    found = by_name(checks)
    assert found["S3 credentials"].found == f"from {bare}/.aws/credentials, {bare}/elsewhere (values not shown)"
    assert found["GCS credentials"].found == f"from {bare / list(files)[1]} (values not shown)"
    assert found["Azure credentials"].found == f"from {bare / list(files)[2]} (values not shown)"
    assert "very-secret" not in repr(checks)


def test_credentials_that_are_nowhere_come_with_what_to_set(bare):
    found = by_name(diagnose())
    assert (found["S3 credentials"].outcome, "AWS_ACCESS_KEY_ID" in found["S3 credentials"].fix) == ("missing", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_work_folder_that_cannot_be_written_fails(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir(mode=0o500)
    monkeypatch.setenv("CURATOR_HOME", str(tmp_path / "shut" / "new"))
    assert by_name(diagnose())["work folder"].outcome == "failed"


def test_a_work_folder_below_a_file_fails(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CURATOR_HOME", str(tmp_path / "file" / "new"))
    check = by_name(diagnose())["work folder"]
    assert (check.outcome, check.fix) == ("failed", "set CURATOR_HOME to a folder that can")
    assert f"{tmp_path / 'file'} cannot be written" in check.found


def diagnosed_with(folder, program=""):
    """The checks of a process that finds the distributions of `folder` first."""
    code = (
        f"import sys, json, dataclasses\nimport curator.doctor\nsys.path.insert(0, {str(folder)!r})\n{program}\n"
        "print(json.dumps([dataclasses.asdict(c) for c in curator.doctor.diagnose()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {check["name"]: check for check in json.loads(done.stdout)}


def test_versions_outside_the_bounds_fail_with_what_to_install(tmp_path):
    for name, version in {"duckdb": "1.3.2", "polars": "1.30", "s3fs": "2024.1.0"}.items():
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    found = diagnosed_with(tmp_path)
    assert found["duckdb"]["outcome"] == "failed"
    assert found["duckdb"]["found"].startswith("1.3.2, outside ")
    assert found["duckdb"]["fix"].startswith("pip install 'duckdb")
    assert found["polars"]["outcome"] == "ok"
    assert found["extra [s3]"]["outcome"] == "failed"
    assert found["extra [s3]"]["fix"] == "pip install 'lake-curator[s3]'"


def test_a_torch_that_cannot_be_loaded_is_a_failure_and_no_traceback(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    check = diagnosed_with(tmp_path)["machine"]
    assert check["outcome"] == "failed"
    assert "libcudart.so.13" in check["found"]
    assert "pytorch.org" in check["fix"]


def test_a_distribution_that_installs_our_names_is_an_intruder(tmp_path):
    info = tmp_path / "elasticsearch_curator-8.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elasticsearch-curator\nVersion: 8.0\n")
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "__init__.py").write_text("")
    program = (
        f"import sys, json, dataclasses\nimport curator.doctor\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "print(json.dumps([dataclasses.asdict(c) for c in curator.doctor.diagnose() if c.name == 'intruder']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    installed, found = json.loads(done.stdout)
    assert "elasticsearch-curator 8.0 installs a package of our name" in installed["found"]
    assert "pip uninstall elasticsearch-curator" in installed["fix"]
    assert f"package 'optim' is found in {tmp_path}" in found["found"]


def test_the_command_fails_when_a_check_does(tmp_path):
    assert curator(tmp_path, "doctor").returncode == 0
    process = curator(tmp_path, "doctor", "/sys/nowhere", "--json")
    assert process.returncode == 1
    (line,) = process.stdout.splitlines()
    values = json.loads(line)
    assert values["status"] == "failed"
    assert {check["outcome"] for check in values["checks"] if check["name"] == "destination"} == {"failed"}
    assert "Traceback" not in process.stderr


def test_an_argument_too_many_is_refused(tmp_path):
    assert "see `curator doctor --help`" in refusal(curator(tmp_path, "doctor", "a", "b"), 2)
