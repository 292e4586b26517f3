import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from optim.errors import LayoutError, MissingExtraError, WorkerError
from optim.launch import device_count, launch

pytestmark = pytest.mark.timeout(120)


def run(function, payload=None, *, world_size=2, **options):
    return launch(f"launch_targets:{function}", payload, world_size=world_size, **options)


def test_results_come_back_by_rank_and_ranks_can_talk():
    assert run("add_up", 10, world_size=3, threads=1) == [(rank, 33.0, 1) for rank in range(3)]


def test_cores_are_shared_out_by_default():
    (result,) = run("add_up", 1, world_size=1)
    assert result == (0, 1.0, device_count("cpu"))


def test_ranks_may_end_at_different_times():
    assert len(set(run("leave_early", world_size=2))) == 2


def test_output_goes_to_the_log(tmp_path, capfd):
    log = tmp_path / "workers.log"
    log.write_text("before\n")
    run("greet", "hello", log=log)
    lines = log.read_text().splitlines()
    assert lines[0] == "before"
    assert {"rank 0 says hello", "rank 1 says hello"} <= set(lines)
    assert "says" not in "".join(capfd.readouterr())


def test_the_caller_is_polled_meanwhile():
    calls = []
    run("leave_early", on_poll=lambda: calls.append(time.monotonic()), poll_seconds=0.05)
    assert len(calls) > 3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "worker 1 of 3 failed: ValueError: first line"),
        ("exit", "worker 1 of 3 failed: ended with status 0 without returning a result"),
        ("exit 3", "worker 1 of 3 failed: ended with status 3 without returning a result"),
        ("kill", "worker 1 of 3 failed: killed by SIGKILL (out of memory?)"),
    ],
)
def test_the_rank_that_failed_first_is_the_error_and_nobody_waits_for_it(how, message):
    with pytest.raises(WorkerError) as caught:
        run("fail_on_rank_one", how, world_size=3)
    assert str(caught.value) == message
    assert caught.value.rank == 1
    assert ("second line" in caught.value.traceback) == (how == "raise")


def test_an_error_of_this_distribution_is_raised_as_itself():
    with pytest.raises(LayoutError, match=r"^cannot be split$") as caught:
        run("fail_on_rank_one", "raise ours")
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerError)
    assert "launch_targets.py" in cause.traceback


def test_a_result_that_cannot_be_pickled_is_an_error():
    with pytest.raises(WorkerError, match="the result, a function, cannot be sent back"):
        run("return_what_cannot_be_pickled")


def test_a_payload_that_cannot_be_pickled_is_an_error_before_anything_starts():
    with pytest.raises(TypeError, match="payload for launch_targets:add_up cannot be sent"):
        run("add_up", lambda: 0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("launch_targets:nothing", "has no attribute 'nothing'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
    ],
)
def test_a_target_that_does_not_exist_is_an_error(target, message):
    with pytest.raises(WorkerError, match=f"the workers could not start: .*{message}"):
        launch(target, None, world_size=2)


def test_a_missing_package_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(MissingExtraError, match=r"'torch'.*pip install 'lake-curator\[train\]'"):
        run("add_up", 1)


@pytest.mark.parametrize("wait", ["wait_for_a_peer_that_hangs", "wait_on_a_tensor_parallel_peer"])
def test_a_rank_that_waits_too_long_for_a_peer_says_so(tmp_path, wait):
    started = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        run(wait, tmp_path, collective_timeout=2.0, threads=1)
    assert str(caught.value) == (
        "worker 0 of 2 failed: a collective waited 2 seconds for its peers; one of them hangs or went another way"
    )
    assert time.monotonic() - started < 30
    if wait == "wait_for_a_peer_that_hangs":
        wait_until_gone(processes_started(tmp_path, 2))


class StopPollingError(Exception):
    pass


def processes_started(folder, count):
    """Pids of the ranks and of their helper, once all ranks have written them down; None before."""
    files = [folder / f"pid{rank}" for rank in range(count)]
    texts = [file.read_text() for file in files if file.exists()]
    return {int(pid) for text in texts for pid in text.split()} if len(texts) == count and all(texts) else None


def wait_until_gone(pids):
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlived their caller"
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_error_in_the_callers_poll_ends_all_workers(tmp_path):
    def stop():
        if processes_started(tmp_path, 2):
            raise StopPollingError

    with pytest.raises(StopPollingError):
        run("note_pid_and_wait", tmp_path, on_poll=stop)
    wait_until_gone(processes_started(tmp_path, 2))


@pytest.fixture
def _interruptible():
    """A process that a shell started in the background has SIGINT ignored, and Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_ends_all_workers_and_is_raised(tmp_path):
    def interrupt_when_started():
        while not processes_started(tmp_path, 2):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_when_started)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run("note_pid_and_wait", tmp_path)
    thread.join()
    wait_until_gone(processes_started(tmp_path, 2))


@pytest.mark.parametrize("victim", ["caller", "helper"])
def test_no_worker_outlives_the_death_of_the_caller_or_the_helper(tmp_path, victim):
    program = (
        "import pathlib, sys; from optim.launch import launch; "
        f"launch('launch_targets:note_pid_and_wait', pathlib.Path({str(tmp_path)!r}), world_size=2)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL) as caller:
        while not (pids := processes_started(tmp_path, 2)):
            assert caller.poll() is None
            time.sleep(0.05)
        (helper,) = {int((tmp_path / f"pid{rank}").read_text().split()[1]) for rank in range(2)}
        os.kill(caller.pid if victim == "caller" else helper, signal.SIGKILL)
        wait_until_gone(pids)
        assert caller.wait(20) != 0
