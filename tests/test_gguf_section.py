"""The table of the quantised files in report and model card, and their lines in the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from evaluated_run import make_run

from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.gguf_arms import GGUF_FILE, run_gguf_arms
from ssd_lite.stages.pages.gguf_section import card_text, check_lines, comparison_rows, quantised, terminal_lines
from ssd_lite.stages.report import report, table
from ssd_lite.stages.report_findings import read_findings
from ssd_lite.stages.weights import Weights


def measured(kl: float, same_top: float, perplexity: float) -> dict[str, Any]:
    figures = {"positions": 900, "kl": kl, "kl_error": kl / 10, "kl_high": 5 * kl, "same_top": same_top}
    replies = {"prompts": 4, "ended": 4, "still_thinking": 0, "cut_off": []}
    return {**figures, **replies, "perplexity": perplexity, "warnings": []}


def checks(**changes: Any) -> dict[str, Any]:
    body = {
        "template": {"equal": 6, "refused": 0, "reference": "transformers 5.1", "extra_bos": ""},
        "texts": {"words": "completions of the tuned model", "count": 24, "tokens": 4000},
        "reference": {"measured": True, "words": "the model folder under transformers (float32)", "perplexity": 2.5},
        "files": {"q8_0": measured(0.0012, 0.989, 2.501), "q4_k_m": measured(0.051, 0.911, 2.612)},
        "warnings": [],
        "seconds": 9.5,
    }
    return {**body, **changes}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An evaluated run whose tuned model answered as q4_k_m too, and which was exported."""
    run = make_run(tmp_path / "r", base_rate=0.3, tuned_rate=0.5)
    with_types = run.recipe.evaluate.model_copy(update={"gguf": ["q8_0", "q4_k_m"]})
    object.__setattr__(run, "recipe", run.recipe.model_copy(update={"evaluate": with_types}))
    tuned = json.loads(run.arm("tuned").report.read_text())
    worse = json.loads(run.arm("base").report.read_text())
    asked: list[str] = []

    def evaluate_arm(name: str, weights: Weights) -> dict[str, Any]:
        asked.append(f"{name} {weights.gguf_type}")
        return {**worse, "arm": name}

    with pytest.MonkeyPatch.context() as patch:
        import ssd_lite.stages.gguf_arms as module

        patch.setattr(
            module, "tuned_gguf_weights", lambda run, kind: Weights("llama_cpp", run.path, run.path, "", kind)
        )
        entries = run_gguf_arms(run, tuned, evaluate_arm)
    assert asked == ["tuned-q4_k_m q4_k_m"], "the arm tuned ran q8_0 itself"
    run.finish("evaluate", {"verdict": "gain", "gguf": entries}, 200.0)
    files = [{"type": kind, "path": f"gguf/r1-{kind}.gguf", "bytes": size} for kind, size in (("q8_0", 145_000_000),)]
    run.finish("export", {"files": files, "server": "llama-server --model r1-q8_0.gguf", "checks": checks()}, 20.0)
    return run


def test_the_arms_are_compared_with_tuned(run: RunFolder) -> None:
    first, second = json.loads((run.path / "evaluations" / GGUF_FILE).read_text())
    assert (first["type"], first["is_tuned"], first["difference"]["1"]["mean"]) == ("q8_0", True, 0.0)
    base, tuned = (json.loads(run.arm(name).report.read_text())["pass_at_k"]["1"]["mean"] for name in ("base", "tuned"))
    assert (second["type"], second["is_tuned"]) == ("q4_k_m", False)
    assert second["difference"]["1"]["mean"] == pytest.approx(base - tuned)
    assert second["verdict"] == "loss"


def test_rows_of_base_tuned_and_each_type(run: RunFolder) -> None:
    rows = comparison_rows(read_findings(run))
    assert [row[0] for row in rows] == [
        "base (llama_cpp, q8_0)",
        "tuned (llama_cpp, q8_0)",
        "tuned as q8_0",
        "tuned as q4_k_m",
    ]
    assert rows[1][-2] == "2.500"
    assert rows[2][1:] == [*rows[1][1:3], "the arm tuned", "0.0012 ± 0.0001", "98.9 %", "2.501", "138 MiB"]
    assert rows[3][1:3] == rows[0][1:3]
    assert re.fullmatch(r"−\d+\.\d \[−\d+\.\d, −\d+\.\d\]", rows[3][3])
    assert rows[3][4:] == ["0.0510 ± 0.0051", "91.1 %", "2.612", "–"]


def test_two_files_of_one_type_are_two_rows(run: RunFolder) -> None:
    """The arm tuned ran q8_0 without a matrix; exported was another file of that name's type with one."""
    files = [{"type": "q8_0", "path": "gguf/r1-imatrix-q8_0.gguf", "bytes": 145_000_000}]
    run.finish("export", {"files": files, "checks": checks()}, 20.0)
    rows = {row[0]: row[1:] for row in comparison_rows(read_findings(run))}
    answered, read = rows["tuned as q8_0 (r1-q8_0.gguf)"], rows["tuned as q8_0 (r1-imatrix-q8_0.gguf)"]
    assert answered[2:] == ["the arm tuned", "–", "–", "–", "–"]
    assert read == ["–", "–", "–", "0.0012 ± 0.0001", "98.9 %", "2.501", "138 MiB"]
    assert "tuned as q8_0" not in rows


def test_what_is_not_finite_is_said_on_the_page(run: RunFolder) -> None:
    broken = checks(files={"q8_0": {**measured(0.1, 0.9, 2.5), "kl": None, "kl_error": None, "perplexity": None}})
    run.finish("export", {"files": [], "server": "llama-server", "checks": broken}, 20.0)
    rows = {row[0]: row for row in comparison_rows(read_findings(run))}
    assert rows["tuned as q8_0"][4:7] == ["not finite", "90.0 %", "not finite"]
    assert "| q8_0 | not finite | 90.0 % | not finite |" in card_text(run.require("export"))


def test_page_card_and_terminal_say_it(run: RunFolder) -> None:
    report(run)
    page = run.report.read_text()
    for words in ("<h2>As GGUF</h2>", "tuned as q4_k_m", "llama-server --model r1-q8_0.gguf", "0.0510 ± 0.0051"):
        assert words in page
    card = (run.merged / "README.md").read_text()
    assert "| q4_k_m | 0.0510 ± 0.0051 | 91.1 % | 2.612 |" in card
    assert "```sh\nllama-server --model r1-q8_0.gguf\n```" in card
    last = table(run).splitlines()
    assert "as q8_0 is the very file that the arm tuned ran." in last
    loss = next(line for line in last if "as q4_k_m against tuned: Loss" in line)
    assert loss == click.style(click.unstyle(loss), fg="red", bold=True)


def test_warnings_are_red_on_the_page_and_text_is_escaped(run: RunFolder) -> None:
    run.finish("export", {"files": [], "checks": checks(warnings=["q4_k_m: far <off>. Take more bits."])}, 20.0)
    page = quantised(read_findings(run))
    assert '<div class="verdict loss"><p>q4_k_m: far &lt;off&gt;. Take more bits.</p></div>' in page


def test_without_export_and_types_there_is_no_section(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    assert quantised(read_findings(run)) == ""
    assert card_text({}) == ""
    assert terminal_lines([]) == []
    assert check_lines({}) == []


def test_lines_of_a_check_that_measured_nothing() -> None:
    nothing = {"measured": False, "words": "there is no merged model, and no f32, bf16 or f16 file"}
    files = {"q8_0": {"warnings": [], "prompts": 4, "ended": 1, "still_thinking": 3, "cut_off": []}}
    lines = check_lines(checks(reference=nothing, files=files))
    assert lines == [
        "check: Chat template: 6 of 6 conversations print as under transformers 5.1, with the same tokens in "
        "llama.cpp.",
        f"check: KL and perplexity were not measured: {nothing['words']}.",
        "check: q8_0: 1 of 4 short prompts ended by themselves, 3 were still thinking.",
    ]
    alone = {key: value for key, value in checks().items() if key in ("template", "warnings", "seconds")}
    assert len(check_lines(alone)) == 1
    assert check_lines({**alone, "template": None}) == ["check: The model has no chat template."]
