import numpy as np
import pytest

from optim.learners.regmix import best_mixture, fit, random_mixtures

PRIOR = np.array([0.4, 0.3, 0.2, 0.1])
GAIN = np.array([0.5, -1.0, 0.2, 0.3])
OPTIMUM = np.array([0.2, 0.5, 0.2, 0.1])


def test_mixtures_are_a_function_of_the_seed_and_lie_around_the_prior():
    drawn = random_mixtures(PRIOR, 20_000, seed=1)
    np.testing.assert_array_equal(drawn, random_mixtures(PRIOR, 20_000, seed=1))
    assert not np.allclose(drawn, random_mixtures(PRIOR, 20_000, seed=2))
    assert (drawn >= 0).all()
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    # the mean of a Dirichlet distribution is its normalised parameter, whatever the strength
    np.testing.assert_allclose(drawn.mean(axis=0), PRIOR**0.5 / (PRIOR**0.5).sum(), atol=0.01)


def test_mixtures_of_a_strength_have_the_variance_of_a_dirichlet_distribution(monkeypatch):
    monkeypatch.setattr("optim.learners.regmix._STRENGTHS", (0.5, 0.5))
    drawn = random_mixtures(np.full(4, 0.25), 40_000, seed=0)
    # parameters of sum s: variance m(1 − m)/(s + 1)
    np.testing.assert_allclose(drawn.var(axis=0), 0.25 * 0.75 / 1.5, rtol=0.03)


def test_a_log_linear_loss_is_recovered_exactly():
    mixtures = random_mixtures(PRIOR, 24, seed=0)
    regression = fit(mixtures, np.exp(1.2 + mixtures @ GAIN))
    others = random_mixtures(PRIOR, 50, seed=1)
    np.testing.assert_allclose(regression.predict(others), np.exp(1.2 + others @ GAIN), rtol=1e-4)
    best = best_mixture(regression, PRIOR, seed=3)
    assert best.argmax() == GAIN.argmin()
    assert best.max() > 0.99  # a linear loss is least in a corner


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_an_inner_best_mixture_is_found(noise):
    rng = np.random.default_rng(0)
    mixtures = random_mixtures(PRIOR, 64, seed=0)
    losses = 3 + 2 * ((mixtures - OPTIMUM) ** 2).sum(axis=1) + noise * rng.normal(size=64)
    regression = fit(mixtures, losses)
    assert regression.quadratic
    np.testing.assert_allclose(best_mixture(regression, PRIOR, seed=3), OPTIMUM, atol=0.06)


def test_the_error_is_that_of_leaving_one_out():
    rng = np.random.default_rng(0)
    mixtures = random_mixtures(PRIOR, 12, seed=0)
    losses = np.exp(mixtures @ GAIN + 0.1 * rng.normal(size=12))
    regression = fit(mixtures, losses)
    assert not regression.quadratic

    def error_of(ridge):
        """By twelve regressions, each by the normal equations with an unpunished intercept."""
        errors = []
        for out in range(12):
            kept = np.arange(12) != out
            inputs = np.column_stack([np.ones(11), mixtures[kept]])
            # the ridge of one left-out fit punishes the same coefficients around the mean of all twelve
            system = inputs.T @ inputs + ridge * np.diag([0, 1, 1, 1, 1])
            solution = np.linalg.solve(system, inputs.T @ np.log(losses[kept]))
            errors.append(np.log(losses[out]) - np.array([1, *mixtures[out]]) @ solution)
        return np.sqrt(np.mean(np.square(errors)))

    assert regression.error == pytest.approx(min(error_of(ridge) for ridge in np.logspace(-6, 1, 15)), rel=1e-6)


def test_what_cannot_be_regressed_is_refused():
    mixtures = random_mixtures(PRIOR, 4, seed=0)
    with pytest.raises(ValueError, match="2 mixtures are too few"):
        fit(mixtures[:2], np.ones(2))
    with pytest.raises(ValueError, match="above 0"):
        fit(mixtures, np.array([1.0, 2.0, np.nan, 1.0]))
