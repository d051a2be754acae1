"""A real evaluation in which quantised files of the tuned model answer too; goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trained_run import make_merged_run

from ssd_lite.errors import UserError
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.evaluate import evaluate
from ssd_lite.stages.status import status

pytest.importorskip("llama_cpp")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose merge is done; the merged model is another random one."""
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    return make_merged_run(
        tmp_path,
        {"gguf_type": "f16"},
        problems={"evaluate_limit": 3},
        evaluate={"n": 2, "k": [1], "max_new_tokens": 12, "sandbox": "none", "gguf": ["q8_0", "f16", "q4_0"]},
    )


def test_each_type_is_an_arm_of_its_own(run: RunFolder) -> None:
    done = evaluate(run)
    assert [entry["type"] for entry in done["gguf"]] == ["q8_0", "f16", "q4_0"]
    assert [entry["is_tuned"] for entry in done["gguf"]] == [False, True, False]
    assert (run.gguf / "tiny-q4_0.gguf").is_file()
    for gguf_type in ("q8_0", "q4_0"):
        report = json.loads(run.arm(f"tuned-{gguf_type}").report.read_text())
        assert (report["arm"], report["gguf_type"], report["samples"]) == (f"tuned-{gguf_type}", gguf_type, 6)
        assert report["settings"] == json.loads(run.arm("tuned").report.read_text())["settings"]
    assert not (run.path / "evaluations" / "tuned-f16").exists()
    assert set(status(run)["arms"]) == {"base", "tuned", "tuned-q8_0", "tuned-q4_0"}
    assert set(done["arms"]) == {"base", "tuned"}
    before = (run.path / "evaluations" / "tuned-q4_0" / "samples.jsonl").read_bytes()
    manifest = run.manifest()
    del manifest["stages"]["evaluate"]
    run.manifest_file.write_text(json.dumps(manifest))
    again = evaluate(run)["gguf"]
    assert [{**entry, "seconds": 0} for entry in again] == [{**entry, "seconds": 0} for entry in done["gguf"]]
    assert (run.path / "evaluations" / "tuned-q4_0" / "samples.jsonl").read_bytes() == before


def test_a_plan_counts_their_time_and_room() -> None:
    from test_plan import planned

    name = "qwen3-4b-instruct-qlora-24gb"
    without = planned(load_recipe(name))
    types = planned(load_recipe(name, ["evaluate.gguf=[q8_0, q4_k_m]"]))
    assert types.stages["evaluate"].seconds[0] == pytest.approx(2 * without.stages["evaluate"].seconds[0])
    own = planned(load_recipe(name, ["evaluate.engine=llama_cpp", "model.gguf_type=q8_0", "evaluate.gguf=[q8_0]"]))
    alone = planned(load_recipe(name, ["evaluate.engine=llama_cpp", "model.gguf_type=q8_0"]))
    assert own.stages["evaluate"].seconds == alone.stages["evaluate"].seconds
    more = planned(load_recipe(name, ["evaluate.gguf=[q6_k]"]))
    assert sum(entry.bytes for entry in more.disk) > sum(entry.bytes for entry in without.disk)


def test_an_unknown_type_is_refused_when_the_recipe_is_read() -> None:
    assert load_recipe("quickstart", ["evaluate.gguf=[q8_0, q4_k_m]"]).evaluate.gguf == ["q8_0", "q4_k_m"]
    with pytest.raises(UserError, match=r"evaluate\.gguf"):
        load_recipe("quickstart", ["evaluate.gguf=[q9]"])
