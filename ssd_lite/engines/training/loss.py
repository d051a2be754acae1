"""Cross-entropy against sparse targets, straight from hidden states: never all logits at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class HeadLaw:
    """How a model turns the output head's product into logits: `softcap * tanh(scale * product / softcap)`.

    `softcap` None means no cap (Gemma 2 has one; Cohere and Granite have a scale).
    """

    scale: float = 1.0
    softcap: float | None = None


PLAIN_HEAD = HeadLaw()


def target_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    probs: Tensor,
    law: HeadLaw = PLAIN_HEAD,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Sum over positions of `-sum_k probs[n, k] * log p(ids[n, k])`, and the log-probabilities `[N, k]` (no gradient).

    hidden `[N, d]` · weight `[V, d]` · bias `[V]` or None · ids `[N, k]` integers · probs `[N, k]`, each row a
    distribution (k = 1 and prob 1: the usual hard target; entries with prob 0 are padding and change nothing).
    The gradient is formed chunk by chunk in the forward pass, so that one chunk of logits (`chunk_bytes`, in float32)
    lives at a time. Log-probabilities are formed in float32, or float64 for float64 input. Under autocast the products
    run in its number format.
    """
    function: Any = _TargetLoss  # torch leaves `apply` untyped
    loss, log_probs = function.apply(hidden, weight, bias, ids, probs, law, chunk_bytes)
    return loss, log_probs


class _TargetLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        probs: Tensor,
        law: HeadLaw,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        product_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        exact = torch.promote_types(torch.float32, hidden.dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = weight.to(product_type)
        probs = probs.to(exact)
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        log_probs = torch.empty(ids.shape, dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if wants_weight else None
        grad_bias = torch.zeros(weight.shape[0], dtype=exact, device=weight.device) if wants_bias else None
        with torch.autocast(device, enabled=False):
            for part in _chunks(len(ids), weight.shape[0] * exact.itemsize, chunk_bytes):
                rows = hidden[part].to(product_type)
                logits = (rows @ head.T).to(exact)
                if bias is not None:
                    logits += bias
                squashed = _apply_law(logits, law)
                total = logits.logsumexp(dim=-1, keepdim=True)
                log_probs[part] = logits.gather(1, ids[part]) - total
                loss -= (probs[part] * log_probs[part]).sum()
                if not any((wants_hidden, wants_weight, wants_bias)):
                    continue
                slope = _logit_gradient(logits, total, ids[part], probs[part], law, squashed)
                if grad_hidden is not None:
                    grad_hidden[part] = (slope.to(product_type) @ head).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += slope.to(product_type).T @ rows
                if grad_bias is not None:
                    grad_bias += slope.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.number_formats = (weight.dtype, bias.dtype if bias is not None else exact)
        ctx.mark_non_differentiable(log_probs)
        return loss, log_probs

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        factor = slopes[0]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_type, bias_type = ctx.number_formats
        return (
            grad_hidden * factor.to(grad_hidden.dtype) if grad_hidden is not None else None,
            (grad_weight * factor).to(weight_type) if grad_weight is not None else None,
            (grad_bias * factor).to(bias_type) if grad_bias is not None else None,
            None,
            None,
            None,
            None,
        )


def _chunks(count: int, row_bytes: int, chunk_bytes: int) -> list[slice]:
    size = max(1, chunk_bytes // row_bytes)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _apply_law(logits: Tensor, law: HeadLaw) -> Tensor | None:
    """Apply scale and cap in place; returns tanh's value where there is a cap, which its slope needs."""
    logits *= law.scale
    if law.softcap is None:
        return None
    squashed = torch.tanh(logits / law.softcap)
    torch.mul(squashed, law.softcap, out=logits)
    return squashed


def _logit_gradient(
    logits: Tensor, total: Tensor, ids: Tensor, probs: Tensor, law: HeadLaw, squashed: Tensor | None
) -> Tensor:
    """Slope of the chunk's loss at the head's product, `p * sum(q) - q`, in the memory of `logits`."""
    slope = logits.sub_(total).exp_()
    slope *= probs.sum(dim=-1, keepdim=True)
    slope.scatter_add_(1, ids, -probs)
    if squashed is not None:
        slope *= 1 - squashed.square_()
    slope *= law.scale
    return slope


TERMS = ("kept", "support_compression", "reshaping", "alignment", "target_entropy", "expected_loss")


def loss_terms(log_probs: Tensor, probs: Tensor, temperature: float) -> dict[str, Tensor]:
    """The terms of arXiv 2604.01193, Eq. 4, each summed over the positions, float scalars.

    log_probs `[N, k]`: the student's log p(v) on the teacher's survivors S; probs `[N, k]`: the teacher q on S, where
    entries of prob 0 are not in S; `temperature`: T of the teacher. `support_compression` is -log Kept(S),
    `reshaping` (1-T)·H_{1/T}(p(·|S)), written as -T·log sum p(v|S)^(1/T), which has no pole at T = 1; `alignment` is
    T·KL(q ‖ p_T(·|S)), `target_entropy` T·H(q). The four add up to `expected_loss`, CE(q, p): the loss of soft targets
    and the mean of the loss of sampled ones; `kept` is the sum of Kept(S).
    """
    inside = probs > 0
    kept = log_probs.masked_fill(~inside, -torch.inf).logsumexp(dim=-1)
    within = (log_probs - kept[:, None]).masked_fill(~inside, -torch.inf)
    sharpened = (within / temperature).logsumexp(dim=-1)
    log_q = torch.where(inside, probs, 1.0).log()
    log_tempered = torch.where(inside, within / temperature - sharpened[:, None], 0.0)
    parts = (
        -kept.sum(),
        -temperature * sharpened.sum(),
        temperature * (probs * (log_q - log_tempered)).sum(),
        -temperature * (probs * log_q).sum(),
    )
    whole = -(probs * log_probs.masked_fill(~inside, 0.0)).sum()
    return dict(zip(TERMS, (kept.exp().sum(), *parts, whole), strict=True))
