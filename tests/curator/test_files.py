"""Small local files: the whole new one, or what was there before and nothing else."""

import numpy as np
import pytest

from curator.files import write_atomically
from curator.row_gaps import SUMS, MeasuredRows
from optim.row_gaps import RowGaps

GAPS = MeasuredRows(places=np.array([0]), gaps=RowGaps.none(1))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", lambda folder: write_atomically(folder / "a.json", "new")),
        (SUMS, GAPS.write),
    ],
)
def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path, name, write):
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    (tmp_path / name / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=name):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    write_atomically(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.json", "\ud800")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}
