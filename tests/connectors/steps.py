"""Work counted instead of timed: how much Python a piece of work runs, the same on every machine."""

import sys


def num_steps(work, limit=sys.maxsize):
    """Lines of Python that `work` runs, those of loops as often as they go round; the test fails beyond `limit`."""
    steps = 0

    def count(_frame, event, _argument):
        nonlocal steps
        steps += event == "line"
        assert steps <= limit, f"more than {limit:,} lines of Python"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps
