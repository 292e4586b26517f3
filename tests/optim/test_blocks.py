from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.blocks import Block, BlockSchedule, check_block

SCHEDULES = st.integers(1, 12).flatmap(
    lambda layers: st.builds(
        BlockSchedule,
        num_layers=st.just(layers),
        size=st.integers(0, layers),
        period=st.integers(1, 7),
        edges=st.sampled_from(["always", "sampled", "frozen"]),
        seed=st.integers(0, 5),
    )
)


@given(SCHEDULES, st.integers(0, 200))
def test_a_block_is_a_function_of_the_step_and_constant_within_a_period(schedule, step):
    block = schedule.at(step)
    assert block == schedule.at(step)
    assert block == schedule.at(step // schedule.period * schedule.period)
    check_block(block, num_layers=schedule.num_layers)


@given(SCHEDULES, st.integers(0, 200))
def test_a_block_has_the_size_and_edges_asked_for(schedule, step):
    block = schedule.at(step)
    size = schedule.size or schedule.num_layers
    sampled = schedule.edges == "sampled" and size < schedule.num_layers
    assert len(block.layers) + (block.edges if sampled else 0) == size
    if not sampled:
        assert block.edges == (schedule.edges != "frozen")


def test_every_layer_gets_its_turn_about_equally_often():
    schedule = BlockSchedule(num_layers=8, size=2, period=1, edges="sampled")
    drawn = Counter()
    for step in range(1800):
        block = schedule.at(step)
        drawn.update(block.layers)
        drawn["edges"] += block.edges
    assert set(drawn) == {*range(8), "edges"}
    assert all(330 < count < 470 for count in drawn.values())  # 400 expected, standard deviation 18


@pytest.mark.parametrize("values", [{"size": 5}, {"size": -1}, {"period": 0}])
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ValueError, match="block"):
        BlockSchedule(num_layers=4, **values)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(layers=frozenset(), edges=False), "nothing to train"),
        (Block(layers=frozenset({1, 4}), edges=True), r"layer 4, .* 0\.\.3"),
    ],
)
def test_impossible_blocks_are_refused(block, message):
    with pytest.raises(ValueError, match=message):
        check_block(block, num_layers=4)
