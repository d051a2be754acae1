"""Recipes as YAML: no value is guessed, no key is lost, and every mistake is named with its place and a mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import differences, dump_recipe, load_recipe, packaged_recipes, schema

MODEL = "model: {name: m}\n"


@pytest.fixture
def write(tmp_path: Path):
    """Write a recipe file and give its path."""

    def _write(text: str | bytes, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return _write


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "1E-5", "0.00001", "+1e-5"])
def test_every_way_to_write_a_small_number_is_a_number(write, text: str) -> None:
    assert load_recipe(write(f"{MODEL}train: {{learning_rate: {text}}}")).train.learning_rate == 1e-5


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "N"])
def test_words_that_yaml_takes_for_truth_values_are_text(write, word: str) -> None:
    assert load_recipe(write(f"model: {{name: {word}}}")).model.name == word
    with pytest.raises(UserError, match=r"sample\.null_arm") as caught:
        load_recipe(write(f"{MODEL}sample: {{null_arm: {word}}}"))
    assert repr(word) in caught.value.what


def test_true_and_false_are_truth_values(write) -> None:
    recipe = load_recipe(write(f"{MODEL}curate: {{drop_stubs: false}}\nsample: {{null_arm: True}}"))
    assert (recipe.curate.drop_stubs, recipe.sample.null_arm) == (False, True)


def test_a_whole_number_is_no_text_and_text_no_number(write) -> None:
    with pytest.raises(UserError, match=r"model\.name.*got 12"):
        load_recipe(write("model: {name: 12}"))
    with pytest.raises(UserError, match=r"sample\.temperature.*got '0\.7'"):
        load_recipe(write(f'{MODEL}sample: {{temperature: "0.7"}}'))


def floats_of(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key that takes a float, in all sections, lists and options."""
    for name, field in section.model_fields.items():
        for part in parts_of(field.annotation):
            if part is float:
                yield (*path, name)
            elif isinstance(part, type) and issubclass(part, BaseModel):
                yield from floats_of(part, (*path, name))


def parts_of(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of: X of list[X], of X | None and of Annotated[X, …]."""
    inner = get_args(annotation)
    yield from (part for one in inner for part in parts_of(one)) if inner else (annotation,)


FLOATS = sorted(set(floats_of(Recipe)))


def test_the_floats_of_all_sections_are_found() -> None:
    some = {"train.weight_decay", "train.grpo.beta", "compare.grid.top_p", "compare.dev_share", "evaluate.base.min_p"}
    assert some < set(map(".".join, FLOATS))
    assert len(FLOATS) >= 20


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("path", FLOATS, ids=".".join)
def test_numbers_that_are_none_are_refused(write, path: tuple[str, ...], value: str) -> None:
    key = ".".join(path)
    in_list = path[:2] == ("compare", "grid")
    with pytest.raises(UserError) as caught:
        load_recipe(write(MODEL), [f"{key}=[{value}]" if in_list else f"{key}={value}"])
    assert f"{key}{'.0' * in_list}: Input should be" in caught.value.what
    assert re.search(r"\(got -?(inf|nan)\)", caught.value.what)


@pytest.mark.parametrize("text", ["010", "1_000", "1:30", "0x10", "0b11", "0o7", "00", "1__0", "0b_", "2026-11-24"])
def test_whole_numbers_are_plain_decimals(write, text: str) -> None:
    """YAML 1.1 reads these as 8, 1000, 90, 16, 3 and so on; 0b_ and a thirteenth month break PyYAML itself."""
    with pytest.raises(UserError) as caught:
        load_recipe(write(f"{MODEL}train: {{lora_r: {text}}}"))
    assert f"train.lora_r: Input should be a valid integer (got {text!r})." in caught.value.what
    assert "plain decimal" in caught.value.what


@pytest.mark.parametrize("text", ["1_0.5", "1:30.5", "00.5", "2026-13-41", "0b_", "190:20:30.15", "inf", "nan"])
def test_numbers_are_plain_decimals(write, text: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(f"{MODEL}sample: {{temperature: {text}}}"))
    assert f"sample.temperature: Input should be a valid number (got {text!r})." in caught.value.what


@pytest.mark.parametrize(("text", "number"), [("2", 2.0), ("+0.5", 0.5), (".5", 0.5), ("1.", 1.0), ("1E+2", 100.0)])
def test_plain_decimals_are_numbers(write, text: str, number: float) -> None:
    assert load_recipe(write(f"{MODEL}sample: {{temperature: {text}}}")).sample.temperature == number


@pytest.mark.parametrize("text", ["0123456", "2026-11-24", "1_000", "=", "12:30", "0x1f"])
def test_what_is_no_plain_decimal_is_text_without_quotes(write, text: str) -> None:
    recipe = load_recipe(write(f"model: {{name: m, revision: {text}}}"))
    assert recipe.model.revision == text
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")).model.revision == text


@pytest.mark.parametrize("opened", ["[", "{a: ", "- "])
def test_what_is_nested_without_end_is_refused(write, opened: str) -> None:
    path = write(opened * 3000)
    with pytest.raises(UserError, match="nested too deeply") as caught:
        load_recipe(path)
    assert caught.value.where == path
    with pytest.raises(UserError, match="unknown key"):
        load_recipe(write(MODEL), [f"model{'.a' * 3000}=1"])


TAGGED = ["!!int 010", "!!int ''", "!!float 1:30", "!!bool no", "!!timestamp x", "!!map x", "!!seq x", "!!str [a]"]


@pytest.mark.parametrize("value", [*TAGGED, "9" * 5000])
def test_tags_do_not_get_around_the_rules(write, value: str) -> None:
    with pytest.raises(UserError, match="is not YAML") as caught:
        load_recipe(write(f"{MODEL}sample:\n  n: {value}\n"))
    assert caught.value.where.endswith(".yaml:3")


def test_a_value_that_stands_for_more_than_memory_holds_is_named_in_short(write) -> None:
    """Each alias holds ten of the one before it: written out, they are 10^9 letters."""
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(UserError) as caught:
        load_recipe(write("\n".join([*lines, "model: {name: *x8}"])))
    assert "model.name: Input should be a valid string (got [" in caught.value.what
    assert len(caught.value.what) < 5_000


@pytest.mark.parametrize("name", ["~nosuchuser/x.yaml", "x" * 300, f"runs/{'x' * 300}.yaml"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    wanted = "no home folder is known for '~nosuchuser'" if name.startswith("~") else "File name too long"
    assert wanted in str(caught.value)


def test_a_name_that_names_no_folder_is_refused(write) -> None:
    with pytest.raises(UserError, match="name: String should have at most 128"):
        load_recipe(write(MODEL), [f"name={'x' * 300}"])


def test_a_key_that_stands_twice_is_refused_with_both_lines(write) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(f"{MODEL}sample:\n  n: 1\n  seed: 3\n  n: 2\n"))
    assert "'n' stands twice (line 3 and 5)" in str(caught.value)
    with pytest.raises(UserError, match=r"line 1 and 2"):
        load_recipe(write(MODEL + MODEL))


def test_a_byte_order_mark_is_fine(write) -> None:
    assert load_recipe(write(b"\xef\xbb\xbf" + MODEL.encode())).model.name == "m"


def test_utf_16_is_named(write) -> None:
    path = write(MODEL.encode("utf-16"))
    with pytest.raises(UserError, match="is not UTF-8") as caught:
        load_recipe(path)
    assert caught.value.where == path


def test_a_tab_is_named_with_its_line(write) -> None:
    path = write(f"{MODEL}sample:\n\tn: 2\n")
    with pytest.raises(UserError, match="is not YAML") as caught:
        load_recipe(path)
    assert caught.value.where == f"{path}:3"


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [echo]", "!custom 1"])
def test_tags_are_refused_with_their_line(write, tag: str) -> None:
    path = write(f"{MODEL}description: {tag}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "text", "12"])
def test_what_is_no_mapping_is_refused(write, text: str) -> None:
    with pytest.raises(UserError, match="mapping of sections"):
        load_recipe(write(text))


def test_two_documents_are_refused(write) -> None:
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe(write(f"{MODEL}---\n{MODEL}"))


@pytest.mark.parametrize(
    ("text", "key", "guess"),
    [
        ("sample: {temprature: 1.0}", "sample.temprature", "temperature"),
        ("smaple: {n: 1}", "smaple", "sample"),
        ("evaluate: {base: {temperature: 0.7, topk: 3}}", "evaluate.base.topk", "top_k"),
        ("train: {lora_rank: 8}", "train.lora_rank", "lora"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(write, text: str, key: str, guess: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(f"{MODEL}{text}"))
    assert f"{key}: unknown key; did you mean '{guess}" in caught.value.what
    assert "known here: " in caught.value.what


def test_all_mistakes_are_named_at_once(write) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write("sample: {temperature: 0, top_p: 2, nope: 1}"))
    for key in ("model", "sample.temperature", "sample.top_p", "sample.nope"):
        assert f"\n  {key}: " in caught.value.what


def test_a_rule_over_several_keys_reads_as_a_sentence(write) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(f"{MODEL}evaluate: {{n: 2}}"))
    assert caught.value.what == "evaluate: pass@5 needs n of at least 5 samples a problem, n is 2."


def test_a_name_that_is_nothing_gets_a_suggestion_and_the_path_that_was_tried() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("quickstrat")
    assert "did you mean 'quickstart'" in caught.value.what
    assert str(Path("quickstrat").absolute()) in caught.value.what
    assert "ssd-lite recipes" in caught.value.next_step


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_recipe(str(tmp_path))


def test_the_file_gives_the_name_unless_the_recipe_does(write) -> None:
    assert load_recipe(write(MODEL, "try-7.yaml")).name == "try-7"
    assert load_recipe(write(f"name: other\n{MODEL}", "try-8.yaml")).name == "other"


def test_settings_override_in_their_order(write) -> None:
    path = write(f"{MODEL}sample: {{n: 2, seed: 5}}")
    settings = ["sample.n=3", "sample.n=4", "train.learning_rate=1e-5", "model.name=no", "evaluate.k=[1, 2]"]
    recipe = load_recipe(path, [*settings, "evaluate.base={temperature: 0.9, top_k: 0}", "problems.train=mbpp:train"])
    assert (recipe.sample.n, recipe.sample.seed) == (4, 5)
    assert (recipe.train.learning_rate, recipe.model.name, recipe.evaluate.k) == (1e-5, "no", [1, 2])
    assert (recipe.evaluate.base.temperature, recipe.evaluate.base.top_k) == (0.9, 0)
    assert recipe.problems.train == "mbpp:train"


def test_a_setting_may_hold_an_equals_sign_and_null(write) -> None:
    recipe = load_recipe(write(f"{MODEL}problems: {{train_limit: 3}}"), ["model.name=a=b", "problems.train_limit=null"])
    assert (recipe.model.name, recipe.problems.train_limit) == ("a=b", None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sample.n", "wants a.b=value"),
        ("=3", "wants a.b=value"),
        ("sample..n=3", "wants a.b=value"),
        ("name.x=3", "name is no section"),
        ("sample.nn=3", "unknown key; did you mean 'n'"),
        ("sample.n=[", "is not YAML"),
        ("sample.n=", "sample.n"),
    ],
)
def test_a_bad_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("llama-3.1-8b-instruct-qlora-24gb", [setting])
    assert message in str(caught.value)


@pytest.mark.parametrize("name", packaged_recipes())
def test_what_is_dumped_is_read_back_equal(name: str, write) -> None:
    recipe = load_recipe(name)
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_extreme_values_are_dumped_and_read_back(write) -> None:
    settings = ["train.learning_rate=1e-300", "train.num_train_epochs=1e22", "sample.seed=9223372036854775807"]
    recipe = load_recipe("quickstart", [*settings, "description='é: # no'", "problems.train='no'"])
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("text", ["1e-5", "1234e56", "1_000", "0x1f", "010", "null", "true", "2020-01-01", "1:30", "~"])
def test_text_that_looks_like_another_type_stays_text(write, text: str) -> None:
    """A short commit may look like a number: 1234e56."""
    recipe = load_recipe("quickstart", [f"model.revision='{text}'"])
    assert load_recipe(write(dump_recipe(recipe))).model.revision == text


def test_differences_are_named_by_key() -> None:
    old, new = load_recipe("quickstart"), load_recipe("quickstart", ["sample.n=3", "description=x", "train.lora_r=4"])
    assert differences(old, new) == ["sample.n: 1 → 3", "train.lora_r: 16 → 4"]
    assert differences(old, new, ["sample"]) == ["sample.n: 1 → 3"]
    assert differences(old, old) == []


def test_the_schema_knows_every_section_and_refuses_extras() -> None:
    found = schema()
    assert found["additionalProperties"] is False
    assert {"model", "sample", "train"} <= set(found["properties"])
    assert found["$defs"]["Train"]["properties"]["lora_r"]["description"] == "Rank."


def test_packaged_recipes_are_the_files_as_they_are() -> None:
    for text in packaged_recipes().values():
        assert isinstance(yaml.safe_load(text), dict)
