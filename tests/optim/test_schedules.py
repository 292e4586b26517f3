import pytest

from optim.schedules import LearningRate


def test_a_restart_makes_two_trainings_with_a_schedule_each():
    whole = LearningRate(peak=1.0, num_steps=30, warmup_steps=3, restart=10)
    first = LearningRate(peak=1.0, num_steps=10, warmup_steps=3)
    second = LearningRate(peak=1.0, num_steps=20, warmup_steps=3)
    expected = [first.at(step) for step in range(10)] + [second.at(step) for step in range(20)]
    assert [whole.at(step) for step in range(30)] == pytest.approx(expected)
    assert whole.at(9) < 0.2
    assert whole.at(10) == pytest.approx(1 / 3)
