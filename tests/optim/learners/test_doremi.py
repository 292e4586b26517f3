"""DoReMi's whole run against a numpy program of its own, on the quadratic problem."""

import numpy as np
import torch
from quadratic_cases import CENTRES, NUM_DOMAINS, OneRowEach, QuadraticBackend

from optim.blocks import BlockSchedule
from optim.data_weights import DataWeightSettings
from optim.learners.doremi import DoReMi
from optim.schedules import LearningRate
from optim.solver import SolverSettings, solve

PRIOR = np.array([0.6, 0.3, 0.1])
REFERENCE, STEPS, RATE, ETA = 20, 60, 0.1, 0.2


def doremi():
    """Algorithm 1 of arXiv 2305.10429 with a single token a row; the weights after each step."""
    centres = CENTRES.numpy()

    def losses(point):
        return 0.5 * ((point - centres) ** 2).sum(axis=1)

    reference, proxy, weights, history = np.zeros(2), np.zeros(2), PRIOR, []
    for step in range(STEPS):
        if step < REFERENCE:
            reference = reference - RATE * PRIOR @ (reference - centres)
        else:
            excess = np.maximum(losses(proxy) - losses(reference), 0)
            proxy = proxy - RATE * weights @ (proxy - centres)
            weights = weights * np.exp(ETA * excess)
            weights = weights / weights.sum()
        history.append(weights)
    return np.array(history)


def test_a_run_is_the_algorithm_of_the_paper():
    settings = SolverSettings(
        num_steps=STEPS,
        warmup_steps=REFERENCE,
        learner=DoReMi(reference_steps=REFERENCE),
        blocks=BlockSchedule(num_layers=4),
        learning_rate=LearningRate(peak=RATE, num_steps=STEPS, shape="constant"),
        data_weights=DataWeightSettings(learning_rate=ETA),
        average_share=1.0,
    )
    solution = solve(QuadraticBackend(), OneRowEach(), torch.from_numpy(PRIOR), settings)
    expected = doremi()
    assert np.abs(expected[-1] - PRIOR).max() > 0.05
    np.testing.assert_allclose([r.weights for r in solution.records], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(solution.weights_D, expected[REFERENCE:].mean(axis=0), rtol=0, atol=1e-6)
    assert expected.shape[1] == NUM_DOMAINS
