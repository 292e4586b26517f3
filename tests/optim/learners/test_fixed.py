import numpy as np

from optim.learners.fixed import proportional, uniform, with_floor


def test_mixtures_that_need_no_learning():
    np.testing.assert_allclose(uniform(4), [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(proportional(np.array([1, 3, 4])), [0.125, 0.375, 0.5])


def test_a_floor_leaves_a_mixture():
    np.testing.assert_allclose(with_floor(np.array([1.0, 0.0, 0.0]), 0.1), [0.8, 0.1, 0.1])
