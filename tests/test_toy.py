"""The toy of the method: exact odds. Training on the truncated teacher beats every decoding of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssd_lite.engines.training.loss import target_loss

TOKENS = 16
STATES = {
    "root": ([0.200, 0.190, 0.329, 0.126], 0.50),
    "fork": ([0.148, 0.280, 0.140, 0.144], 0.50),
    "lock": ([0.750, 0.055, 0.050, 0.037], 0.70),
}


def teacher() -> np.ndarray:
    """`[3, 16]`: root, fork, lock; four named tokens and a geometric tail that takes the rest of the mass."""
    rows = []
    for head, ratio in STATES.values():
        tail = ratio ** np.arange(TOKENS - len(head))
        rows.append(np.concatenate([head, tail / tail.sum() * (1 - sum(head))]))
    return np.array(rows)


def decode(p: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Temperature, then the smallest nucleus of mass top_p, renormalised; row by row."""
    q = p ** (1 / temperature)
    q /= q.sum(axis=1, keepdims=True)
    result = np.zeros_like(q)
    for row, out in zip(q, result, strict=True):
        order = np.argsort(-row, kind="stable")
        count = int(np.searchsorted(np.cumsum(row[order]), top_p)) + 1
        out[order[:count]] = row[order[:count]]
    return result / result.sum(axis=1, keepdims=True)


def success(p: np.ndarray) -> float:
    """A run is right with root a or b, the right token at the fork, and three right locks."""
    return float((p[0, 0] + p[0, 1]) * p[1, 0] * p[2, 0] ** 3)


def best(p: np.ndarray, top_p: float) -> tuple[float, float]:
    return max((success(decode(p, t, top_p)), t) for t in np.arange(0.05, 4.0, 0.001))


def student(q: np.ndarray) -> np.ndarray:
    """Logits trained on the soft target q with the product's loss, until the gradient is gone."""
    logits = torch.zeros(3, TOKENS, dtype=torch.float64, requires_grad=True)
    one_hot_head = torch.eye(TOKENS, dtype=torch.float64)
    ids = torch.arange(TOKENS).expand(3, TOKENS)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss, _ = target_loss(logits, one_hot_head, None, ids, torch.from_numpy(q))
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().softmax(dim=-1).numpy()


def test_the_best_decoding_of_the_teacher() -> None:
    rate, temperature = best(teacher(), 0.80)
    assert rate == pytest.approx(0.0833, abs=5e-5)
    assert temperature == pytest.approx(0.639, abs=0.01)


def test_the_student_trained_on_soft_targets_beats_it() -> None:
    q = decode(teacher(), 0.9, 0.85)
    assert q[2, :2] == pytest.approx([0.948, 0.052], abs=5e-4)
    assert np.sort(q[1])[::-1][:5] == pytest.approx([0.344, 0.169, 0.164, 0.164, 0.159], abs=1e-3)
    learned = student(q)
    assert np.abs(learned - q).max() < 1e-3
    rate, temperature = best(learned, 0.80)
    assert rate == pytest.approx(0.1377, abs=3e-4)
    assert temperature == pytest.approx(2.09, abs=0.05)
