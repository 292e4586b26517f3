"""Commands that run in the background: what they are at, which processes are theirs, how they ended."""

import subprocess
import time
from pathlib import Path


def processes_of(here):
    """pid → parent of every process whose command line names this test's folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(here) in (entry / "cmdline").read_text().replace("\0", " "):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(entry.name)] = int(parent)
        except OSError:  # it has just ended
            continue
    return found


def wait_until(condition, seconds, process=None):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def is_learning(here):
    path = here / "run" / "trajectory.jsonl"
    return path.exists() and path.read_text().count("\n") >= 2


def outcome(process, seconds=30):
    out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
