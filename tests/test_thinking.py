"""Models that think: the switch reaches every prompt, thinking is trained on and never graded, long budgets warn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from click.testing import CliRunner
from test_curate import sample as make_sample
from tiny_models import save_tiny, write_small_tokenizer

from ssd_lite.cli import main
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import UserError
from ssd_lite.grading.extract import extract_program, opens_thinking, without_thinking
from ssd_lite.grading.submissions import submission
from ssd_lite.journal import Journal
from ssd_lite.problem_tests import ScriptTest
from ssd_lite.recipe import Recipe
from ssd_lite.records import Grade, Problem, Prompt, SamplingSettings, sample_from_json, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import chat as chat_stage
from ssd_lite.stages.answers import Answering, answer, read_samples
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.chat import ChatOptions, Conversation, open_model
from ssd_lite.stages.curate import curate
from ssd_lite.stages.cut_off import cap_warnings, dropped_warnings
from ssd_lite.stages.diagnose import diagnose_model
from ssd_lite.stages.distilling import Student
from ssd_lite.stages.evaluation.arm_report import arm_numbers
from ssd_lite.stages.sample import sample
from ssd_lite.stages.train_grpo import PassReward

# As Qwen3's: thinking is the default, and switched off by an empty thought in the prompt.
SWITCH = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
# As Qwen3-Thinking-2507's: the prompt opens the thinking.
OPENED = SWITCH.partition("{% if")[0] + "{{ '<think>\\n' }}"
PROBLEM = Problem("p", ({"role": "user", "content": "Write f."},), ScriptTest("assert f() == 1\n"))
FENCE = "```python\ndef f():\n    return 1\n```\n"


def with_template(folder: Path, template: str) -> Path:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(save_tiny(tmp_path_factory.mktemp("thinker")), SWITCH)


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(save_tiny(tmp_path_factory.mktemp("opener")), OPENED)


def answering(folder: Path, **changes: Any) -> Answering:
    law = SamplingSettings(1.0, 20, 0.8, 0.0, 4)
    return dataclasses.replace(Answering("hf", folder, folder, "h", law, 1, 0, 2, 1), **changes)


# -- the switch --------------------------------------------------------------------------------------------------------


def test_the_switch_reaches_the_template_and_null_passes_nothing(thinker: Path) -> None:
    texts = {v: ChatTokenizer.load(thinker, v).render(PROBLEM.messages)[0] for v in (None, True, False)}
    assert texts[None] == texts[True]
    assert texts[False] == texts[None] + "<think>\n\n</think>\n\n"


def test_null_leaves_the_name_undefined(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    with_template(tmp_path, "{{ 'set' if enable_thinking is defined else 'not set' }}")
    assert ChatTokenizer.load(tmp_path).render(PROBLEM.messages)[0] == "not set"
    assert ChatTokenizer.load(tmp_path, False).render(PROBLEM.messages)[0] == "set"


def test_a_template_without_the_switch_is_refused_where_the_key_is_set(opener: Path) -> None:
    for value in (True, False):
        with pytest.raises(UserError, match="does not mention enable_thinking") as error:
            ChatTokenizer.load(opener, value)
        assert error.value.where == "model.enable_thinking"
    assert ChatTokenizer.load(opener, True, lenient=True).render(PROBLEM.messages)[0].endswith("<think>\n")


def test_samples_of_another_value_are_refused_by_name(thinker: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    answer([PROBLEM], answering(thinker), file, "sample")
    answer([PROBLEM], answering(thinker, enable_thinking=True), file, "sample")  # the same prompt: the same samples
    with pytest.raises(UserError, match=r"other prompts \(.*model\.enable_thinking"):
        answer([PROBLEM], answering(thinker, enable_thinking=False), file, "sample")


def recipe_for(folder: Path, **model: Any) -> Recipe:
    value = {
        "name": "r",
        "threads": 1,
        "model": {"name": str(folder), **model},
        "problems": {"train_limit": 2},
        "sample": {"engine": "hf", "max_new_tokens": 4},
    }
    return Recipe.model_validate(value)


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_cache")
def test_a_run_samples_diagnoses_and_chats_with_its_value(thinker: Path, tmp_path: Path) -> None:
    recipe = recipe_for(thinker, enable_thinking=False)
    run = RunFolder.create(tmp_path / "run", recipe)
    summary = sample(run)
    off = ChatTokenizer.load(thinker).encode("<think>\n\n</think>\n\n")
    assert all(list(s.prompt_ids[-len(off) :]) == off for s in read_samples(run.samples))
    assert "2 of 2 samples (100.0 %) were cut off at 4 tokens: raise sample.max_new_tokens" in summary["warnings"][-1]
    shown = CliRunner().invoke(main, ["sample", str(run.path)]).output
    assert "Warning: 2 of 2 samples" in shown
    out = tmp_path / "diagnosis"
    out.mkdir()
    diagnose_model(recipe, out, 1)
    assert list(read_samples(out / "samples.jsonl")[0].prompt_ids[-len(off) :]) == off
    with pytest.raises(UserError, match=r"model\.enable_thinking: False → None"):
        RunFolder.create(tmp_path / "run", recipe_for(thinker))


@pytest.mark.usefixtures("_cache")
def test_chat_takes_the_runs_value_or_the_option(thinker: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    run = RunFolder.create(tmp_path / "run", recipe_for(thinker, enable_thinking=False))
    assert open_model(run.path, ChatOptions(base=True)).enable_thinking is False
    assert open_model(run.path, ChatOptions(base=True, enable_thinking=True)).enable_thinking is True
    assert open_model(thinker, ChatOptions()).enable_thinking is None


@pytest.mark.usefixtures("_cache")
def test_chat_renders_with_it(thinker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    seen: list[str] = []

    def reply(self: Conversation, text: str, *_: object) -> Sequence[str]:
        seen.append(self._tokenizer.render([{"role": "user", "content": text}])[0])
        return ["ok"]

    monkeypatch.setattr(chat_stage.Conversation, "reply", reply)
    for words in ([], ["--enable-thinking"], ["--disable-thinking"]):
        result = CliRunner().invoke(main, ["chat", str(thinker), "--prompt", "Hi", "--threads", "1", *words])
        assert result.exit_code == 0, result.output
    assert [text.endswith("</think>\n\n") for text in seen] == [False, False, True]


def test_a_teacher_gets_it_only_where_it_knows_it(thinker: Path, opener: Path, tmp_path: Path) -> None:
    how = answering(opener, student=thinker, enable_thinking=False)
    answer([PROBLEM], how, tmp_path / "s.jsonl", "sample")
    (taught,) = read_samples(tmp_path / "s.jsonl")
    assert taught.prompt_ids == tuple(ChatTokenizer.load(thinker, False).render(PROBLEM.messages)[1])
    assert taught.opened_thinking  # what the teacher wrote starts inside its thinking
    with pytest.raises(UserError, match="does not mention"):
        Student(opener, ChatTokenizer.load(thinker), [PROBLEM], True)


# -- never graded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "opened", "program"),
    [
        (f"<think>{FENCE}</think>Done.", False, None),
        (f"<think>\nshort\n</think>\n\n{FENCE}", False, "def f():\n    return 1\n"),
        (f"<think>\n{FENCE}and so on", False, None),
        (f"{FENCE}</think>\nnothing", True, None),
        (f"first I thi\n</think>\n{FENCE}", True, "def f():\n    return 1\n"),
        (f"{FENCE}and then, at the cap", True, None),
        (f"{FENCE}and then, at the cap", False, "def f():\n    return 1\n"),
        (f"a</think>{FENCE}</think>\nb", True, None),
    ],
)
def test_the_program_stands_behind_the_thinking(completion: str, opened: bool, program: str | None) -> None:
    assert extract_program(completion, opened_thinking=opened).program == program
    assert submission(PROBLEM, 0, completion, block="last", opened_thinking=opened).program == program


def test_without_thinking_of_an_opened_prompt() -> None:
    assert without_thinking("all of it is thought", opened=True) == ""
    assert without_thinking("a</think> b", opened=True) == without_thinking("<think>a</think> b") == " b"
    assert extract_program("x = 1", block="whole", opened_thinking=True).program is None


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("assistant\n<think>\n", True),
        ("assistant<think>", True),
        ("<thinking>\n\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("What does <think> mean?<|im_end|>\nassistant\n", False),
        ("", False),
    ],
)
def test_a_prompt_that_opens_the_thinking(prompt: str, opened: bool) -> None:
    assert opens_thinking(prompt) is opened


def test_a_sample_knows_that_its_prompt_opened_the_thinking(opener: Path, thinker: Path, tmp_path: Path) -> None:
    for folder, opened in ((opener, True), (thinker, False)):
        answer([PROBLEM], answering(folder), tmp_path / f"{opened}.jsonl", "sample")
        (made,) = read_samples(tmp_path / f"{opened}.jsonl")
        assert made.opened_thinking is opened
        assert sample_from_json(to_json(made)) == made
        old = {key: value for key, value in to_json(made).items() if key != "opened_thinking"}
        assert sample_from_json(old).opened_thinking is False


def test_a_fence_left_open_in_thinking_is_no_open_block() -> None:
    for opened, rate in ((True, 0.0), (False, 1.0)):
        made = make_sample(text="```python\nx", opened_thinking=opened, ids=(7, 8))
        numbers = arm_numbers([PROBLEM], [made], [Grade("p", 0, "no_code")], ks=[1], seed=0, block="last")
        assert numbers["unclosed_rate"] == rate


def test_a_reward_is_not_earned_by_thinking() -> None:
    class Seen:
        programs: list[str | None]

        def grade(self, items: Any) -> Any:
            self.programs = [item.program for item in items]
            return iter(())

    seen = Seen()
    reward = PassReward(seen, [PROBLEM], "last")  # type: ignore[arg-type]
    reward(["p"], [FENCE])
    assert seen.programs == ["def f():\n    return 1\n"]
    reward.note_prompts([Prompt("p", "assistant\n<think>\n", (1,))])
    assert reward(["p"], [FENCE]) == [0.0]
    assert seen.programs == [None]


def test_tags_that_a_model_calls_special_stay_in_the_text(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    plain = ChatTokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    value = json.loads(file.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    value["added_tokens"] += [
        {"id": 1000 + n, "content": tag, **flags} for n, tag in enumerate(("<think>", "</think>"))
    ]
    file.write_text(json.dumps(value))
    tokenizer = ChatTokenizer.load(tmp_path)
    ids = [1000, *plain.encode("why é?"), 1001, *plain.encode(" so"), *tokenizer.end_ids[:1]]
    assert tokenizer.decode(ids, skip_special=True) == "<think>why é?</think> so"
    assert without_thinking(tokenizer.decode(ids, skip_special=True)) == " so"
    assert tokenizer.decode(ids) == f"<think>why é?</think> so{plain.decode(plain.end_ids[:1])}"


# -- kept in training --------------------------------------------------------------------------------------------------


def test_thinking_is_trained_on_as_it_was_sampled(thinker: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(thinker)
    text = "<think>\nfirst this,\nthen that\n</think>\n\n" + FENCE
    ids = (*tokenizer.encode(text), tokenizer.end_id)
    run = RunFolder.create(tmp_path / "run", recipe_for(thinker))
    base_model(run)
    made = [make_sample(n, ids, text, prompt_ids=tuple(tokenizer.encode("Hi")), problem_id=f"p{n}") for n in range(3)]
    cut_off = make_sample(3, ids[:-1], text, prompt_ids=(5,), problem_id="p3")
    with Journal(run.samples, key=lambda record: record["problem_id"]) as journal:
        journal.append([to_json(one) for one in (*made, cut_off)])
    run.finish("sample", {"samples": 4}, 0.0)
    summary = curate(run)
    rows = [json.loads(line) for line in run.train_rows.read_text().splitlines()]
    assert [tuple(row["completion_ids"]) for row in rows] == [ids] * 3
    assert tokenizer.decode(rows[0]["completion_ids"]).startswith("<think>\nfirst this")
    assert summary["warnings"] == []  # a quarter is not more than a quarter


# -- long budgets ------------------------------------------------------------------------------------------------------


def test_many_cut_off_completions_warn_and_few_do_not() -> None:
    assert cap_warnings("samples", 5, 100, 8192, "sample.max_new_tokens") == []
    (warning,) = cap_warnings("samples", 6, 100, 8192, "sample.max_new_tokens")
    assert warning.startswith("6 of 100 samples (6.0 %) were cut off at 8,192 tokens: raise sample.max_new_tokens")
    assert dropped_warnings(25, 100) == []
    (warning,) = dropped_warnings(26, 100)
    assert "26 of 100 samples (26.0 %) were dropped" in warning
    assert "Raise sample.max_new_tokens" in warning


def test_a_long_reply_is_not_decoded_again_for_each_token() -> None:
    """The work of a chat grows with its length and not with the square of it."""

    class Counting:
        end_ids, context_length, decoded = (0,), 10_000, 0

        def render(self, messages: Any) -> tuple[str, list[int]]:
            return "", [1]

        def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
            self.decoded += len(ids)
            return bytes(ids).decode(errors="replace")

        def stream(self, *_: object) -> Sequence[int]:
            return [*("zwölf 🚀 " * 100).encode(), 0]

    model = Counting()
    talk = Conversation(model, model, SamplingSettings(1.0, 0, 1.0, 0.0, 2000), 0)  # type: ignore[arg-type]
    assert "".join(talk.reply("x")) == "zwölf 🚀 " * 100 == talk.messages[-1]["content"]
    assert model.decoded < 20 * len(("zwölf 🚀 " * 100).encode())
