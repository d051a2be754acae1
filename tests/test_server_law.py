"""What is known of a server's law where tokens tie at its edge: targets without bias, and what it cannot have drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from vllm_stand_in import law, logits, told_of

from ssd_lite.engines.sampling.server_api import _arrays
from ssd_lite.engines.sampling.server_law import told_law
from ssd_lite.records import SamplingSettings

TIES = ["keep", "exact", "whole"]
TIED = SamplingSettings(1.6, 12, 0.8, 0.0, 24)


def body_of(settings: SamplingSettings) -> dict[str, float]:
    return {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p", "min_p")}


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        (TIED, 20),
        (SamplingSettings(1.6, 20, 0.8, 0.0, 1), 20),  # what ties with the k-th is not told
        (SamplingSettings(1.6, 12, 1.0, 0.0, 1), 20),
        (SamplingSettings(1.6, 12, 1.0, 0.0, 1), 12),
        (SamplingSettings(1.0, 12, 1.0, 0.1, 1), 20),
        (SamplingSettings(1.6, 100, 0.8, 0.0, 1), 100),  # the whole vocabulary
    ],
)
@pytest.mark.parametrize("ties", TIES)
def test_the_mean_target_is_the_servers_law_whichever_ties_it_keeps(
    ties: str, settings: SamplingSettings, asked: int
) -> None:
    """In exact expectation over the token drawn, in each of 64 contexts; no sampling in the test."""
    doubt = refused = 0.0
    for last in range(64):
        values = logits(last, ties)
        exact, mean = law(values, body_of(settings), "", ties), Counter[int]()
        for token in range(64):
            told = [(int(name[9:]), value) for name, value in told_of(values, token, asked).items()]
            best = _arrays(told)
            assert best is not None
            found = told_law(best, settings, asked)
            if token not in exact:
                assert found.chance(token) == 0
                refused += not found.allows(token)
                continue
            assert found.allows(token)
            doubt += exact[token] * (found.chance(token) == 0)
            ids, probs = found.target(token)
            assert (np.diff(probs) <= 0).all()
            for i, prob in zip(ids.tolist(), probs.tolist(), strict=True):
                mean[i] += exact[token] * prob
        assert {token: prob for token, prob in mean.items() if prob} == pytest.approx(exact, abs=1e-9)
    assert 0 <= doubt / 64 < 0.15
    assert doubt > 0 or settings.min_p or settings.top_k == 100
    assert refused / 64 > (5 if settings.top_k < 64 else 1), "what it cannot have drawn is known"


def server_law(row: npt.NDArray[np.float64], settings: SamplingSettings, ties: str) -> dict[int, float]:
    """The law of one row of logits, ties parted as the stand-in's docstring says."""
    scaled = row / settings.temperature
    order = np.lexsort((np.arange(len(row)) * 7919 % len(row), -scaled))
    tied = order[scaled[order] >= scaled[order[settings.top_k - 1]]]
    order = order[: settings.top_k] if ties == "exact" else tied
    probs = np.exp(scaled[order] - scaled[order[0]])
    probs /= probs.sum()
    last = int((np.cumsum(probs) - probs < settings.top_p).sum())
    if ties == "whole":
        last = int((probs >= probs[last - 1]).sum())
    probs = probs[:last] / probs[:last].sum()
    return dict(zip(order[:last].tolist(), probs.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("ties", TIES)
def test_the_packaged_model_in_bfloat16(ties: str, packaged_model) -> None:
    """1,200 places: nothing that a server draws lies outside, and what is sure of the law is its law."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ssd_lite.engines.tokenizer import ChatTokenizer

    text = (Path(__file__).parents[1] / "README.md").read_text()
    ids = ChatTokenizer.load(packaged_model.folder).encode_text(text)[:1200]
    assert len(ids) == 1200
    model = transformers.AutoModelForCausalLM.from_pretrained(packaged_model.folder, dtype=torch.bfloat16)
    settings, outside, doubt, worst = SamplingSettings(1.6, 20, 0.8, 0.0, 1), 0.0, 0.0, 0.0
    for start in range(0, 1200, 300):
        with torch.inference_mode():
            part = model(input_ids=torch.tensor([ids[start : start + 300]])).logits[0].float()
            told, best = torch.topk(part.log_softmax(-1), 20)
        for row, values, tokens in zip(part.double().numpy(), told.double().numpy(), best.numpy(), strict=True):
            exact = server_law(row, settings, ties)
            found = told_law((tokens, values), settings, 20)
            sure = {token: found.chance(token) for token in found.ids.tolist() if found.chance(token)}
            mass = sum(exact[token] for token in sure)  # KeyError: a sure token that did not survive
            worst = max([worst, *(abs(exact[token] / mass - chance) for token, chance in sure.items())])
            doubt += 1 - mass
            # One that is not told ties with the k-th, or was drawn wrongly; the server would tell it beside.
            outside += sum(
                prob
                for token, prob in exact.items()
                if not (found.allows(token) if token in tokens else row[token] == row[tokens[-1]])
            )
    print(f"{ties}: {doubt / 1200:.2%} of the mass hangs on a tie, {outside / 1200:.2%} lies outside")
    assert outside == 0
    assert 0.01 < doubt / 1200 < 0.06
    assert worst < 1e-6
