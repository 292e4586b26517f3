import json
import subprocess
import sys

import pytest
from lake_cases import curator, refusal, tree

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


def test_a_destination_is_written_to_and_cleaned_up(tmp_path):
    check = by_name(diagnose(str(tmp_path / "new")))["destination"]
    assert (check.outcome, check.found) == ("ok", f"{tmp_path / 'new'} can be written and keeps create-if-absent")
    assert tree(tmp_path, but=()) == {}


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/below", "foo://bar"])
def test_a_destination_that_cannot_be_written_fails(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    check = by_name(diagnose(place))["destination"]
    assert (check.outcome, check.fix) == ("failed", "choose another --destination")
    assert place.split("://")[0] in check.found


def test_credentials_are_named_but_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-very-secret")
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "token-very-secret")
    checks = diagnose()
    assert by_name(checks)["S3 credentials"].found.startswith("from AWS_ACCESS_KEY_ID")
    assert by_name(checks)["GCS credentials"].found == "from FSSPEC_GCS_TOKEN (values not shown)"
    assert "very-secret" not in repr(checks)


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
    process = curator(tmp_path, "doctor", "/proc/nowhere", "--json")
    assert process.returncode == 1
    (line,) = process.stdout.splitlines()
    values = json.loads(line)
    assert values["status"] == "failed"
    assert {check["outcome"] for check in values["checks"] if check["name"] == "destination"} == {"failed"}
    assert "Traceback" not in process.stderr


def test_an_argument_too_many_is_refused(tmp_path):
    assert "see `curator doctor --help`" in refusal(curator(tmp_path, "doctor", "a", "b"), 2)
