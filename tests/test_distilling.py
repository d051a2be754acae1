"""Another teacher: its answers under its own tokenizer become samples of the student; resumed, held to, trainable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tiny_models import save_tiny
from transformers import AutoModelForCausalLM

from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe import Curate, Model, Problems, Recipe
from ssd_lite.recipe import Sample as SampleSettings
from ssd_lite.records import Problem, Sample, SamplingSettings
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import answers
from ssd_lite.stages.answers import read_samples
from ssd_lite.stages.curate import curate
from ssd_lite.stages.distilling import Student
from ssd_lite.stages.sample import sample

QUESTIONS = [f"Add {number} and 1." for number in range(5)]
PROBLEMS = [Problem(f"p{n}", ({"role": "user", "content": text},)) for n, text in enumerate(QUESTIONS)]
TEXT = "def f(n):\n    return n + 1  # <think> häh? 12"
END_TEXT = "<|im_end|>"


def make_teacher(folder: Path, end: str = "<|stop|>") -> Path:
    """A random model whose tokenizer numbers the same pieces from the other end, and knows half of the merges.

    Its end token is `end`, made likely, and its template is another one.
    """
    last = 999
    save_tiny(folder, eos_token_id=last - 2, bos_token_id=last - 1, pad_token_id=last - 2)
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    names = {END_TEXT: end}
    model = value["model"]
    model["vocab"] = {names.get(token, token): last - index for token, index in model["vocab"].items()}
    model["merges"] = model["merges"][: len(model["merges"]) // 2]
    for token in value["added_tokens"]:
        token |= {"id": last - token["id"], "content": names.get(token["content"], token["content"])}
    value["added_tokens"].sort(key=lambda token: token["id"])
    file.write_text(json.dumps(value))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"eos_token": end, "pad_token": end}
    settings["chat_template"] = "{% for m in messages %}Q: {{ m['content'] }}\n{% endfor %}A:"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": last - 2}))
    return make_end_likely(folder, last - 2)


def make_end_likely(folder: Path, end: int) -> Path:
    network = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        network.lm_head.weight[end] *= 3
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the student's tokenizer."""
    folder = save_tiny(tmp_path_factory.mktemp("sibling"), initializer_range=0.5)
    return make_end_likely(folder, 2)


def answered(tokenizer: ChatTokenizer, body: list[int], end: int | None) -> Sample:
    """A sample as the teacher makes it."""
    ids = tuple(body) if end is None else (*body, end)
    reason = "length" if end is None else "stop"
    law = SamplingSettings(1.0, 20, 0.9, 0.0, 64)
    text = tokenizer.decode(ids, skip_special=True)
    return Sample("p1", 0, (5, 5), ids, text, reason, 0.5, 7, law, "hf", "teacher's")  # type: ignore[arg-type]


def recipe(folder: Path, student: Path, teacher: Path, **changes: Any) -> Recipe:
    file = folder / "problems.jsonl"
    lines = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(QUESTIONS)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Recipe(
        name="d",
        model=Model(name=str(student)),
        problems=Problems(train=str(file)),
        sample=SampleSettings(
            engine="hf",
            teacher=str(teacher),
            n=3,
            batch_size=4,
            max_new_tokens=30,
            temperature=0.9,
            top_k=20,
            top_p=0.95,
        ),
        **changes,
    )


def test_text_of_another_vocabulary_is_tokenised_anew_with_the_students_end(student: Path, teacher: Path) -> None:
    theirs, own = ChatTokenizer.load(teacher), ChatTokenizer.load(student)
    pupil = Student(student, theirs, PROBLEMS)
    assert not pupil.same_vocabulary
    before = answered(theirs, theirs.encode(TEXT), 997)
    after = pupil.learns(before)
    assert after.completion_ids == (*own.encode(TEXT), 2)
    assert own.decode(after.completion_ids, skip_special=True) == before.completion == TEXT
    assert after.prompt_ids == tuple(own.render(PROBLEMS[1].messages)[1])
    unchanged = {"prompt_ids": before.prompt_ids, "completion_ids": before.completion_ids}
    assert dataclasses.replace(after, **unchanged) == before  # type: ignore[arg-type]


def test_a_completion_that_was_cut_off_gets_no_end(student: Path, teacher: Path) -> None:
    theirs, own = ChatTokenizer.load(teacher), ChatTokenizer.load(student)
    after = Student(student, theirs, PROBLEMS).learns(answered(theirs, theirs.encode(TEXT), None))
    assert after.completion_ids == tuple(own.encode(TEXT))
    assert after.finish_reason == "length"


def test_the_name_of_the_students_end_token_in_a_text_is_mere_text(student: Path, teacher: Path) -> None:
    theirs, own = ChatTokenizer.load(teacher), ChatTokenizer.load(student)
    text = f"Chat turns end with {END_TEXT} in this format."
    after = Student(student, theirs, PROBLEMS).learns(answered(theirs, theirs.encode(text), 997))
    assert after.completion_ids.count(2) == 1
    assert own.decode(after.completion_ids[:-1]) == text
    assert 2 not in own.encode_text(text)
    assert 2 in own.encode(text)  # as the renderer reads it, and does again after encode_text


def test_ids_of_the_same_vocabulary_stay_as_sampled(student: Path, sibling: Path) -> None:
    tokenizer = ChatTokenizer.load(sibling)
    pupil = Student(student, tokenizer, PROBLEMS)
    assert pupil.same_vocabulary
    spelled = [token for char in TEXT for token in tokenizer.encode(char)]
    assert spelled != tokenizer.encode(TEXT)  # what a model may sample need not be how a tokenizer would cut it
    assert pupil.learns(answered(tokenizer, spelled, 2)).completion_ids == (*spelled, 2)
    assert pupil.learns(answered(tokenizer, spelled, 0)).completion_ids == (*spelled, 0)  # an end token of both
    assert pupil.learns(answered(tokenizer, spelled, None)).completion_ids == tuple(spelled)


def test_an_end_that_only_the_teacher_has_is_replaced(student: Path, sibling: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((sibling / name).read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    tokenizer = ChatTokenizer.load(tmp_path)
    pupil = Student(student, tokenizer, PROBLEMS)
    assert pupil.learns(answered(tokenizer, [40, 41], 1)).completion_ids == (40, 41, 2)
    # 0 ends a turn of the student, not of this teacher: in the middle of an answer it would be trained as an end.
    assert pupil.learns(answered(tokenizer, [40, 0, 41], 2)).completion_ids == (40, 41, 2)


def test_an_end_of_the_same_name_is_found_under_its_other_id(student: Path, tmp_path: Path) -> None:
    theirs = ChatTokenizer.load(make_teacher(tmp_path, end=END_TEXT))
    after = Student(student, theirs, PROBLEMS).learns(answered(theirs, theirs.encode("Yes."), 997))
    assert after.completion_ids[-1] == 2


@pytest.mark.parametrize("kind", ["teacher", "sibling"])
def test_the_stage_records_samples_that_the_student_can_be_trained_on(
    kind: str, student: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    answers_by: Path = request.getfixturevalue(kind)
    rules = Curate(drop_stubs=False, deduplicate=False)
    run = RunFolder.create(tmp_path / "run", recipe(tmp_path, student, answers_by, curate=rules))
    summary = sample(run)
    own, theirs = ChatTokenizer.load(student), ChatTokenizer.load(answers_by)
    samples = read_samples(run.samples)
    assert summary["same_vocabulary"] is (kind == "sibling")
    assert "distillation, not SSD" in summary["warnings"][0]
    assert len(samples) == 15
    assert {item.finish_reason for item in samples} == {"stop", "length"}
    manifest = run.manifest()
    assert manifest["teacher"]["name"] == str(answers_by)
    assert manifest["model"]["name"] == str(student)
    for item in samples:
        assert item.model_hash == manifest["teacher"]["weights_sha256"] != manifest["model"]["weights_sha256"]
        assert item.prompt_ids == tuple(own.render(PROBLEMS[int(item.problem_id[1])].messages)[1])
        assert (item.completion_ids[-1] in own.end_ids) == (item.finish_reason == "stop")
        if kind == "teacher":
            assert item.prompt_ids != tuple(theirs.render(PROBLEMS[int(item.problem_id[1])].messages)[1])
            body = [token for token in item.completion_ids if token not in own.end_ids]
            assert own.decode(body) == item.completion
    counted = curate(run)
    assert counted["rows"] == sum(item.finish_reason == "stop" and bool(item.completion.strip()) for item in samples)


def test_a_stop_and_a_torn_line_change_no_sample(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RunFolder.create(tmp_path / "whole", recipe(tmp_path, student, teacher))
    sample(whole)
    run = RunFolder.create(tmp_path / "run", recipe(tmp_path, student, teacher))
    looks = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(answers, "stop_requested", lambda: next(looks) > 45)
        with pytest.raises(Stopped):
            sample(run)
    first = run.samples.read_bytes()
    assert 0 < first.count(b"\n") < 15
    with run.samples.open("ab") as torn:
        torn.write(b'{"problem_id":"p4","ind')
    sample(run)
    assert run.samples.read_bytes().startswith(first)
    by_key = {item.key: item for item in read_samples(whole.samples)}
    again = {item.key: item for item in read_samples(run.samples)}
    assert again.keys() == by_key.keys()
    for key, item in again.items():
        assert item.completion_ids == by_key[key].completion_ids
        assert item.seed == by_key[key].seed


def test_a_teacher_whose_weights_changed_is_refused(student: Path, tmp_path: Path) -> None:
    folder = make_teacher(tmp_path / "teacher")
    run = RunFolder.create(tmp_path / "run", recipe(tmp_path, student, folder))
    sample(run)
    run.samples.unlink()
    make_end_likely(folder, 3)
    with pytest.raises(UserError, match=r"the weights of .*teacher are not those this run started with"):
        sample(run)


def test_samples_of_the_teacher_and_of_the_base_are_not_mixed(student: Path, teacher: Path, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", recipe(tmp_path, student, teacher))
    sample(run)
    other = RunFolder.create(tmp_path / "other", recipe(tmp_path, student, student))
    (tmp_path / "other" / "samples.jsonl").write_bytes(run.samples.read_bytes())
    with pytest.raises(UserError, match="another model"):
        sample(other)


def test_an_unknown_teacher_is_named_by_its_key(student: Path, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", recipe(tmp_path, student, Path("no-such-model")))
    with pytest.raises(UserError, match="no-such-model") as error:
        sample(run)
    assert error.value.where == "sample.teacher"
