"""What is trained on: each rule, in its order, counted; ids that contradict their record are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.errors import UserError
from ssd_lite.journal import Journal
from ssd_lite.recipe import Curate, Model, Recipe, Train
from ssd_lite.records import Sample, SamplingSettings, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import curate as stage
from ssd_lite.stages.curate import check_ids, choose, show, visible

END, BOS = 2, 1
LAW = SamplingSettings(1.6, 20, 0.8, 0.0, 64)


class Words:
    """The part of a tokenizer that the stage uses, on a vocabulary of its own."""

    bos_id, end_ids = BOS, (END,)

    def decode(self, ids: list[int]) -> str:
        names = {BOS: "<bos>", END: "<end>", 10: "line\n", 11: "\x1b[31m"}
        return "".join(names.get(token, f"w{token}") for token in ids)


def sample(index: int = 0, ids: tuple[int, ...] = (7, 8, END), text: str = "a\nb", **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "problem_id": "p",
        "index": index,
        "prompt_ids": (BOS, 5, 6),
        "completion_ids": ids,
        "completion": text,
        "finish_reason": "stop" if ids[-1:] == (END,) else "length",
        "entropy_nats": 0.5,
        "seed": 0,
        "settings": LAW,
        "engine": "hf",
        "model_hash": "h",
    }
    return Sample(**(values | changes))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(stage, "_tokenizer", lambda run: Words())
    return RunFolder.create(tmp_path / "run", Recipe(name="r", model=Model(name="m"), train=Train(max_length=50)))


def write(run: RunFolder, samples: list[Sample]) -> None:
    with Journal(run.samples, key=lambda record: (record["problem_id"], record["index"])) as journal:
        journal.append([to_json(item) for item in samples])
    run.finish("sample", {"samples": len(samples)}, 0.0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sample(ids=(END,), text=" \n"), "empty"),
        (sample(text="return 1\n"), "stub"),
        (sample(ids=(7, 8)), "cut_off"),
        (sample(ids=(*range(3, 60), END)), "too_long"),
        (sample(ids=(7, 8), text="one line"), "stub"),
    ],
)
def test_each_rule_drops_and_counts(bad: Sample, reason: str) -> None:
    kept, dropped = choose([bad, sample(index=1)], Curate(), 50)
    assert [item.index for item in kept] == [1]
    assert {name for name, count in dropped.items() if count} == {reason}


def test_rules_can_be_switched_off() -> None:
    samples = [sample(ids=(7, 8)), sample(1, text="stub"), sample(2, text="stub"), sample(3, ids=(END,), text="")]
    kept, dropped = choose(samples, Curate(cut_off="keep", drop_stubs=False, deduplicate=False), 50)
    assert [item.index for item in kept] == [0, 1, 2]
    assert dropped["empty"] == 1


def test_equal_completions_of_one_problem_count_once() -> None:
    samples = [sample(0), sample(1), sample(0, problem_id="other")]
    kept, dropped = choose(samples, Curate(), 50)
    assert [item.key for item in kept] == [("p", 0), ("other", 0)]
    assert dropped["duplicate"] == 1


def test_the_shortest_are_dropped_last() -> None:
    samples = [sample(n, ids=(*range(20, 21 + n), END)) for n in range(10)]
    kept, dropped = choose(samples, Curate(shortest_percent=25), 50)
    assert [item.index for item in kept] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert dropped["shortest"] == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample(prompt_ids=(BOS, BOS, 5)), "two BOS"),
        (sample(prompt_ids=()), "no token"),
        (sample(ids=(7, 8), finish_reason="stop"), "says the opposite"),
        (sample(ids=(7, END), finish_reason="length"), "says the opposite"),
    ],
)
def test_contradicting_ids_are_refused(bad: Sample, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_ids([sample(), bad], Words())  # type: ignore[arg-type]
    assert "problem 'p'" in error.value.where


def test_rows_are_the_ids_as_sampled_in_the_order_of_the_problems(run: RunFolder) -> None:
    write(run, [sample(1, problem_id="b"), sample(0, problem_id="b", text="x"), sample(0, problem_id="a")])
    summary = stage.curate(run)
    rows = [json.loads(line) for line in run.train_rows.read_text().splitlines()]
    assert [(row["problem_id"], row["index"]) for row in rows] == [("a", 0), ("b", 1)]
    assert rows[0]["prompt_ids"] == [BOS, 5, 6]
    assert rows[0]["completion_ids"] == [7, 8, END]
    assert summary["samples"] == 3
    assert summary["dropped"]["stub"] == 1
    assert run.manifest()["stages"]["curate"]["summary"] == summary
    assert (summary["prompt_tokens"], summary["trained_tokens"], summary["longest"]) == (6, 6, 6)
    run.samples.unlink()  # done is done: nothing is read again
    assert stage.curate(run) == summary


def test_no_sample_left_names_the_reasons(run: RunFolder) -> None:
    write(run, [sample(0, text="x"), sample(1, ids=(7, 8))])
    with pytest.raises(UserError, match="0 of 2 samples left: 1 stub, 1 cut_off"):
        stage.curate(run)
    assert not run.train_rows.exists()


def test_curating_before_sampling_is_refused(run: RunFolder) -> None:
    with pytest.raises(UserError, match="'sample' is not done"):
        stage.curate(run)


def test_show_marks_what_is_trained_and_obeys_no_escape(run: RunFolder) -> None:
    write(run, [sample(ids=(10, 11, 8, END)), sample(1, ids=(9, END))])
    stage.curate(run)
    lines = show(run, 1).splitlines()
    assert lines[0] == "problem p, sample 0: 3 masked + 4 trained = 7 tokens"
    assert lines[1] == "masked   <bos>|w5|w6"
    assert lines[2] == "trained  line\\n|\\x1b[31m|w8|<end>  <- end token, trained"
    assert "\x1b" not in show(run, 9)


def test_direction_marks_are_visible() -> None:
    assert visible("a\u202eb\r") == "a\\u202eb\\r"
