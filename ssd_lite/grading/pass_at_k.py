"""Unbiased pass@k."""

from __future__ import annotations


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold at least one of the c right ones.

    1 - C(n-c, k) / C(n, k), as a product (Chen et al., arXiv 2107.03374, section 2.1). Raises ValueError where n < k:
    the estimate needs at least k samples.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n, got n={n}, c={c}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, there are {n}")
    fail = 1.0
    for i in range(n - c + 1, n + 1):
        fail *= max(0.0, 1.0 - k / i)
    return 1.0 - fail
