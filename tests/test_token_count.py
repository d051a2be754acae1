"""What samplers tell the progress line: drawn tokens alone, and a word within a long prompt so that a stop is heard."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_tiny

from ssd_lite.engines.model_source import gguf_file
from ssd_lite.engines.sampling.choice import open_sampler
from ssd_lite.engines.sampling.sampler import Engine, Request, SamplerOptions
from ssd_lite.records import Prompt, SamplingSettings

LAW = SamplingSettings(1.0, 20, 0.9, 0.0, 12)


def _requests(length: int, samples: int = 3) -> list[Request]:
    ids = tuple(5 + index % 50 for index in range(length))
    return [Request(Prompt("p", "", ids), index, 10 + index) for index in range(samples)]


@pytest.mark.parametrize("engine", ["hf", "llama_cpp"])
def test_the_count_is_that_of_the_drawn_tokens(engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp" if engine == "llama_cpp" else "transformers")
    folder = save_tiny(tmp_path / "m", initializer_range=0.4)
    model = gguf_file(folder, "f32", tmp_path / "m.gguf") if engine == "llama_cpp" else folder
    # Half the vocabulary ends a completion, so that some end early: their last token counts as well.
    sampler = open_sampler(engine, model, SamplerOptions(2, 1, tuple(range(0, 400, 2)), 0))
    told: list[int] = []
    done = list(sampler.sample(_requests(40), LAW, told.append))
    sampler.close()
    assert sum(told) == sum(len(completion.ids) for completion in done) > 0
    assert {"stop"} <= {completion.finish_reason for completion in done}


def test_a_stop_is_heard_inside_a_long_prompt(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = save_tiny(tmp_path / "m", max_position_embeddings=4096)
    sampler = open_sampler("llama_cpp", gguf_file(folder, "f32", tmp_path / "m.gguf"), SamplerOptions(1, 1, (1,), 0))
    told: list[int] = []
    next(sampler.sample(_requests(1700, 1), LAW, told.append))
    sampler.close()
    assert told[:4] == [0, 0, 0, 0], "each 512 tokens of the prompt"
    assert told[4] == 1
