"""The fused loss against torch's own, its memory, and the identity of Eq. 4."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssd_lite.engines.training.loss import HeadLaw, loss_terms, target_loss


def problem(
    number_format: torch.dtype, k: int = 1, count: int = 37, width: int = 16, vocabulary: int = 101
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias, ids `[N, k]` without repeats in a row, probs `[N, k]`."""
    torch.manual_seed(0)
    hidden = torch.randn(count, width, dtype=number_format, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=number_format, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=number_format, requires_grad=True)
    ids = torch.stack([torch.randperm(vocabulary)[:k] for _ in range(count)])
    probs = (
        torch.rand(count, k, dtype=number_format).softmax(dim=-1)
        if k > 1
        else torch.ones(count, 1, dtype=number_format)
    )
    return hidden, weight, bias, ids, probs


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, probs: Tensor, law: HeadLaw) -> Tensor:
    """The same loss with all logits at once, by torch."""
    logits = (hidden @ weight.T + bias) * law.scale
    if law.softcap is not None:
        logits = law.softcap * torch.tanh(logits / law.softcap)
    target = torch.zeros_like(logits).scatter(1, ids, probs.to(logits.dtype))
    return torch.nn.functional.cross_entropy(logits, target, reduction="sum")


@pytest.mark.parametrize("law", [HeadLaw(), HeadLaw(scale=0.25), HeadLaw(scale=0.5, softcap=3.0)])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("number_format", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_value_and_gradients_equal_torch(number_format: torch.dtype, bound: float, k: int, law: HeadLaw) -> None:
    hidden, weight, bias, ids, probs = problem(number_format, k)
    expected = plain(hidden, weight, bias, ids, probs, law)
    wanted = torch.autograd.grad(expected * 0.7, (hidden, weight, bias))
    loss, log_probs = target_loss(hidden, weight, bias, ids, probs, law, chunk_bytes=10 * 101 * 8)
    got = torch.autograd.grad(loss * 0.7, (hidden, weight, bias))
    assert abs(loss.item() - expected.item()) <= bound * abs(expected.item())
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() <= bound * max(1.0, theirs.abs().max().item())
    assert not log_probs.requires_grad


def test_gradcheck() -> None:
    hidden, weight, bias, ids, probs = problem(torch.float64, 3, count=4, width=3, vocabulary=7)
    assert torch.autograd.gradcheck(
        lambda h, w, b: target_loss(h, w, b, ids, probs, HeadLaw(softcap=5.0))[0], (hidden, weight, bias)
    )


def test_bfloat16_products_keep_a_float32_loss() -> None:
    hidden, weight, _, ids, probs = problem(torch.float32)
    small_hidden, small_weight = (t.detach().bfloat16().requires_grad_() for t in (hidden, weight))
    loss, _ = target_loss(small_hidden, small_weight, None, ids, probs)
    exact = plain(hidden, weight, torch.zeros(101), ids, probs, HeadLaw())
    loss.backward()
    assert loss.dtype == torch.float32
    assert small_hidden.grad is not None
    assert small_hidden.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


def test_autocast_gives_weight_gradients_in_the_weights_format() -> None:
    hidden, weight, _, ids, probs = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = target_loss(hidden, weight, None, ids, probs)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(plain(hidden, weight, torch.zeros(101), ids, probs, HeadLaw()).item(), rel=1e-2)


def test_no_positions_is_a_zero_loss_with_zero_gradient() -> None:
    hidden, weight, bias, ids, probs = problem(torch.float32)
    loss, _ = target_loss(hidden[:0], weight, bias, ids[:0], probs[:0])
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_the_backward_pass_keeps_no_logits() -> None:
    """What is saved for backward grows with N * d, never with N * V."""
    count, width, vocabulary = 400, 8, 5000
    hidden, weight, _, ids, probs = problem(torch.float32, 1, count, width, vocabulary)
    weight = weight.detach()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        target_loss(hidden, weight, None, ids, probs)[0].backward()
    assert 0 < sum(saved) <= count * width


def test_no_tensor_of_all_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    count, width, vocabulary, chunk = 400, 8, 5000, 20
    hidden, weight, _, ids, probs = problem(torch.float32, 1, count, width, vocabulary)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        target_loss(hidden, weight, None, ids, probs, chunk_bytes=chunk * vocabulary * 4)[0].backward()
    assert largest == chunk * vocabulary


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_eq_4_terms_add_up_to_the_loss(temperature: float) -> None:
    hidden, weight, bias, ids, probs = problem(torch.float64, 5)
    probs[:, 3:] = 0
    probs /= probs.sum(dim=-1, keepdim=True)
    loss, log_probs = target_loss(hidden, weight, bias, ids, probs)
    terms = loss_terms(log_probs, probs, temperature)
    parts = ("support_compression", "reshaping", "alignment", "target_entropy")
    assert sum(terms[name].item() for name in parts) == pytest.approx(loss.item(), abs=1e-6)
    kept = (hidden @ weight.T + bias).softmax(dim=-1).gather(1, ids[:, :3]).sum()
    assert terms["kept"].item() == pytest.approx(kept.item(), abs=1e-9)


def test_alignment_is_zero_for_the_teacher_at_its_temperature() -> None:
    """Where the student is the base itself, q = p_T(.|S): nothing is left to align (method.md, section 3)."""
    torch.manual_seed(0)
    logits = torch.randn(9, 30, dtype=torch.float64)
    top = logits.topk(6, dim=-1)
    q = (top.values / 1.6).softmax(dim=-1)
    terms = loss_terms(logits.log_softmax(dim=-1).gather(1, top.indices), q, 1.6)
    assert terms["alignment"].item() == pytest.approx(0, abs=1e-12)
    assert terms["support_compression"].item() > 0
    assert terms["reshaping"].item() < 0


def test_mean_gradient_of_sampled_targets_is_the_soft_gradient() -> None:
    hidden, weight, _, ids, probs = problem(torch.float64, 4, count=3)
    weight = weight.detach()
    soft = torch.autograd.grad(target_loss(hidden, weight, None, ids, probs)[0], hidden)[0]
    draws = 20_000
    counts = torch.stack([torch.bincount(row.multinomial(draws, replacement=True), minlength=4) for row in probs])
    sampled = torch.zeros_like(soft)
    one = torch.ones(3, 1, dtype=torch.float64)
    for column in range(4):
        loss = [
            target_loss(hidden[n : n + 1], weight, None, ids[n : n + 1, column : column + 1], one[:1])[0]
            for n in range(3)
        ]
        for n in range(3):
            sampled += torch.autograd.grad(loss[n], hidden)[0] * counts[n, column] / draws
    assert (sampled - soft).abs().max() < 0.05 * soft.abs().max()
