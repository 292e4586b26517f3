"""The time of a run is that of all processes that worked on it."""

from curator import stopwatch
from curator.progress import Progress
from curator.stopwatch import Stopwatch

TOLD = Progress(stage="learn", done=1)


def test_time_goes_on_from_what_was_noted_when_progress_was_last_told(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: clock[0])
    told = []
    first = Stopwatch(tmp_path, told.append, already=3.0)
    assert first.seconds == 3.0
    for clock[0] in (101.0, 107.0, 109.0):
        first(TOLD)
    assert told == [TOLD] * 3
    clock[0] = 500.0  # killed long before, noted at 107
    second = Stopwatch(tmp_path, told.append)
    assert second.seconds == 10.0
    clock[0] = 510.0
    assert second.seconds == 20.0


def test_a_damaged_note_counts_for_nothing(tmp_path):
    (tmp_path / "seconds").write_text("half")
    assert Stopwatch(tmp_path, lambda _: None).seconds < 1


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(stopwatch, "_SECONDS_BETWEEN_NOTES", 0.0)
    told = []
    Stopwatch(tmp_path / "gone", told.append)(TOLD)
    assert told == [TOLD]
