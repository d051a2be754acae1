"""A causal language model that answers with its training loss, from the hidden states at the targets only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssd_lite.engines.training.loss import HeadLaw, target_loss
from ssd_lite.errors import UserError

PROBE_TOKENS = 8
# Relative error of logits that two roundings of the same product may differ by.
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 4e-2, torch.float16: 1e-2}


class LossModel(nn.Module):
    """Wraps `network` (a transformers causal model, or a PeftModel around one); its forward pass gives the loss.

    It is the module that the Trainer and its distributed wrappers see, so that their hooks hold.
    """

    accepts_loss_kwargs = True

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        causal: Any = network.get_base_model() if hasattr(network, "get_base_model") else network
        self.law = head_law(causal.config)
        # Held outside the module tree: they are parts of `network` already.
        self._parts = (causal, getattr(causal, causal.base_model_prefix), causal.get_output_embeddings())

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        target_ids: Tensor,
        target_probs: Tensor,
        step_tokens: Tensor,
        attention: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Loss of one micro-batch divided by `step_tokens`; shapes as in `batching.collate`.

        Returns `loss` (scalar) and `log_probs` `[N, k]`, the model's log-probabilities of the targets. `attention`
        goes to the model's body as it is (position ids of packed rows).
        """
        _, body, head = self._parts
        hidden = body(input_ids=input_ids, use_cache=False, **(attention or {})).last_hidden_state
        chosen = hidden.reshape(-1, hidden.shape[-1])[positions]
        loss, log_probs = target_loss(chosen, head.weight, head.bias, target_ids, target_probs, self.law)
        return {"loss": loss / step_tokens, "log_probs": log_probs}

    @torch.no_grad()
    def check_head(self) -> None:
        """Compare with the model's own logits on a few tokens; UserError where its head does more than we know.

        In the number formats of training: a base in bfloat16 trains under autocast, without which a head in bfloat16
        refuses what norms in float32 (of a 4-bit base) give it.
        """
        causal, body, head = self._parts
        training = causal.training
        causal.eval()
        mixed = head.weight.dtype == torch.bfloat16
        ids = (
            torch.arange(1, PROBE_TOKENS + 1, device=head.weight.device)[None]
            % causal.config.get_text_config().vocab_size
        )
        with torch.autocast(head.weight.device.type, torch.bfloat16, enabled=mixed):
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state[0]
            own = causal(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1)
        every = torch.arange(own.shape[-1], device=own.device).expand_as(own)
        _, log_probs = target_loss(hidden, head.weight, head.bias, every, torch.zeros_like(own), self.law)
        causal.train(training)
        worst = (log_probs - own).abs().max().item()
        bound = AGREEMENT.get(head.weight.dtype, 4e-2) * max(1.0, own.abs().max().item())
        if not worst <= bound:
            raise UserError(
                f"this model's output head ({type(causal).__name__}) does more than a product, a scale and a cap: "
                f"log-probabilities differ by {worst:.2g}, so the loss would be wrong.",
                where="model.name",
                next_step="Take a model of a supported family (llama, qwen2, qwen3, mistral, gemma, granite, cohere).",
            )


def head_law(config: Any) -> HeadLaw:
    """Scale and cap that a model's configuration asks for, under the names that transformers' models use."""
    text = config.get_text_config()
    scale = 1.0
    if getattr(text, "logit_scale", None):
        scale = float(text.logit_scale)
    elif getattr(text, "logits_scaling", None):
        scale = 1.0 / float(text.logits_scaling)
    cap = getattr(text, "final_logit_softcapping", None)
    return HeadLaw(scale, float(cap) if cap else None)
