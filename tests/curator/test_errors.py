import errno
import pickle

import pytest

from connectors import errors as below
from curator import errors
from curator.errors import CuratorError, translated

TREE = {
    "CuratorError": ("failed", 1),
    "UsageError": ("usage", 2),
    "ConfigError": ("config", 2),
    "InputError": ("input", 2),
    "MissingExtraError": ("missing_extra", 2),
    "NotFoundError": ("not_found", 2),
    "StorageError": ("storage", 1),
    "LearningError": ("learning", 1),
    "InterruptedRunError": ("interrupted", 1),
    "TryAgainError": ("try_again", 75),
}


def classes(module):
    return {n: v for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Exception)}


def leaving(error):
    with pytest.raises(CuratorError) as caught, translated():
        raise error
    assert caught.value.__cause__ is error
    return caught.value


def test_codes_and_exit_codes_are_what_schedulers_rely_on():
    assert {name: (kind.code, kind.exit_code) for name, kind in classes(errors).items()} == TREE
    assert all(name in errors.__doc__ for name in TREE)


def test_every_error_of_the_connectors_becomes_one_of_ours_with_its_message():
    kinds = {kind for kind in classes(below).values() if issubclass(kind, below.ConnectorError)}
    found = {kind.__name__: type(leaving(kind("what it said"))).__name__ for kind in kinds}
    assert found == {
        "ConnectorError": "StorageError",
        "NotFoundError": "InputError",
        "InputError": "InputError",
        "SchemaError": "InputError",
        "CorruptFileError": "InputError",
        "BadRowsError": "InputError",
        "AccessError": "StorageError",
        "ReadOnlyError": "StorageError",
        "UnavailableError": "StorageError",
        "ConflictError": "TryAgainError",
        "UnsupportedError": "InputError",
        "MissingExtraError": "MissingExtraError",
        "BusyError": "TryAgainError",
    }
    assert str(leaving(below.SchemaError("what it said"))) == "what it said"


def test_every_error_of_the_optimizer_becomes_one_of_ours():
    from optim import errors as optim_errors

    kinds = [kind for kind in classes(optim_errors).values() if kind is not optim_errors.WorkerError]
    found = {kind.__name__: type(leaving(kind("said"))).__name__ for kind in kinds}
    found["WorkerError"] = type(leaving(optim_errors.WorkerError("said", rank=1))).__name__
    assert found == {
        "OptimError": "LearningError",
        "LayoutError": "InputError",
        "ModelError": "InputError",
        "DivergedError": "LearningError",
        "MissingExtraError": "MissingExtraError",
        "CheckpointError": "LearningError",
        "StoppedError": "InterruptedRunError",
        "WorkerError": "LearningError",
    }


def test_what_to_do_is_told_apart_from_what_is_wrong_and_survives_translation_and_processes():
    from optim import errors as optim_errors

    error = leaving(below.SchemaError("what\n is wrong", hint="what to do"))
    of_worker = pickle.loads(pickle.dumps(optim_errors.ModelError("what is wrong", hint="what to do")))
    for each in (error, pickle.loads(pickle.dumps(error)), leaving(of_worker)):
        assert (str(each), each.message, each.hint) == ("what is wrong; what to do", "what is wrong", "what to do")
        assert type(each) is errors.InputError
    alone = errors.UsageError("what is wrong")
    assert (str(alone), alone.message, alone.hint) == ("what is wrong", "what is wrong", None)
    full = leaving(OSError(errno.ENOSPC, "No space left on device", "/x"))
    assert full.hint == "free or mend the disk and try again"


def test_a_message_of_duckdb_becomes_one_line_without_the_query():
    import duckdb

    with pytest.raises(errors.StorageError) as caught, translated():
        duckdb.connect().execute("SELECT *\nFROM nowhere\nWHERE x")
    assert "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "LINE" not in str(caught.value)


def test_a_full_disk_is_a_storage_error_that_names_the_file():
    error = leaving(OSError(errno.ENOSPC, "No space left on device", "/x/tokens.npy"))
    assert isinstance(error, errors.StorageError)
    assert str(error) == "/x/tokens.npy: No space left on device; free or mend the disk and try again"


def test_defects_and_interrupts_are_left_as_they_are():
    for error in (KeyError("x"), AssertionError("x"), KeyboardInterrupt(), RuntimeError("x")):
        with pytest.raises(type(error)), translated():
            raise error


def test_an_error_of_ours_passes_unchanged():
    with pytest.raises(errors.NotFoundError, match=r"^gone$"), translated(), translated():
        raise errors.NotFoundError("gone")
