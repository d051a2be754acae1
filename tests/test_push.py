"""Pushing through the real client to a stand-in of the Hub: what arrives, what is not sent again, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from evaluated_run import make_run as make_evaluated_run
from hub_server import TOKEN, USER, Hub, running
from trained_run import make_trained_run

from ssd_lite.atomic import write_json
from ssd_lite.cli import main
from ssd_lite.errors import UserError
from ssd_lite.journal import Journal
from ssd_lite.records import Sample, SamplingSettings, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.merge import merge
from ssd_lite.stages.push import repositories
from ssd_lite.stages.report import report
from ssd_lite.stages.upload.cards import model_text
from ssd_lite.stages.upload.files import MARK, Piece
from ssd_lite.stages.upload.hub import COMMIT_BYTES, COMMIT_FILES, commit_groups
from ssd_lite.stages.upload.privacy import Privacy

pytest.importorskip("huggingface_hub", reason="needs the extra data")
pytest.importorskip("peft")

CODE = "from ssd_lite.cli import main; main({!r})"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub()) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that is trained and merged, on a base of four shards with a licence."""
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    made = make_trained_run(tmp_path, "lora", shard_size="200KB", merge={"check_prompts": 0})
    base = Path(made.recipe.model.name)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: tiny licence\nlicense_link: LICENSE\n---\n")
    (base / "LICENSE").write_text("You may.\n")
    merge(made)
    return made


def start(hub: Hub, run: RunFolder, *words: str, token: str | None = TOKEN) -> subprocess.Popen[str]:
    """A push in a process of its own: the client reads its endpoint at import."""
    command = [sys.executable, "-c", CODE.format(["push", str(run.path), *words])]
    environment = hub.environment(run.path.parent / "hf", token)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def push(hub: Hub, run: RunFolder, *words: str, token: str | None = TOKEN) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, in none of which the token may stand."""
    process = start(hub, run, *words, token=token)
    out, err = process.communicate(timeout=120)
    assert TOKEN not in out + err
    return process.returncode, out, err


def pushed(hub: Hub, run: RunFolder, *words: str) -> list[dict[str, Any]]:
    code, out, err = push(hub, run, *words, "--json")
    assert code == 0, err
    return list(json.loads(out)["pushed"])


def front_of(card: bytes | str) -> dict[str, Any]:
    text = card.decode() if isinstance(card, bytes) else card
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_what_arrives_are_the_files_and_a_second_push_sends_nothing(hub: Hub, run: RunFolder) -> None:
    entry = pushed(hub, run, "--what", "merged")[0]
    name = f"{USER}/tiny"
    assert (entry["repo"], entry["visibility"]) == (name, "private")
    assert hub.repositories["model", name].private is True
    arrived = hub.files_of(name)
    here = {path.name: path for path in run.merged.iterdir()}
    shards = [file for file in here if file.endswith(".safetensors")]
    assert len(shards) > 2
    same = {
        *shards,
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "model.safetensors.index.json",
        "LICENSE",
    }
    for file in same:
        assert arrived[file] == here[file].read_bytes(), file
    assert set(arrived) == same | {MARK, "README.md", "recipe.yaml", "ssd_lite_merge.json"} | {
        file for file in here if file.endswith((".jinja", "config.json"))
    }
    assert len(hub.uploads) == len(shards)
    assert entry["url"] == f"{hub.endpoint}/{name}"
    commits, uploads = len(hub.repositories["model", name].commits), len(hub.uploads)
    again = pushed(hub, run, "--what", "merged")[0]
    assert (again["sent"], again["commit"]) == ([], None)
    assert len(again["unchanged"]) == len(arrived)
    assert (len(hub.repositories["model", name].commits), len(hub.uploads)) == (commits, uploads)
    assert "nothing to send" in push(hub, run, "--what", "merged")[1]
    assert "push: merged" in run.log_file.read_text()


def test_the_adapter_goes_with_its_licence_and_names_no_place(hub: Hub, run: RunFolder, tmp_path: Path) -> None:
    pushed(hub, run, "--what", "adapter", "--repo-id", "team/mine")
    arrived = hub.files_of("team/mine")
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    assert arrived["adapter_model.safetensors"] == weights
    assert arrived["LICENSE"] == b"You may.\n"
    assert json.loads(arrived["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert json.loads(arrived["ssd_lite_base.json"])["name"] == "base"
    assert yaml.safe_load(arrived["recipe.yaml"])["model"]["name"] == "base"
    for file, content in arrived.items():
        assert str(tmp_path).encode() not in content, file
    front = front_of(arrived["README.md"])
    assert (front["license"], front["license_name"]) == ("other", "tiny licence")
    assert front["library_name"] == "peft"
    assert "base_model" not in front, "a local folder is no base on the Hub"


def test_several_kinds_go_into_repositories_of_their_own_and_name_each_other(hub: Hub, run: RunFolder) -> None:
    write_samples(run)
    entries = pushed(hub, run, "--what", "merged", "--what", "samples", "--repo-id", "team/x", "--public")
    assert [entry["repo"] for entry in entries] == ["team/x", "team/x-samples"]
    assert set(hub.repositories) == {("model", "team/x"), ("dataset", "team/x-samples")}
    assert not any(repository.private for repository in hub.repositories.values())
    assert front_of(hub.files_of("team/x")["README.md"])["datasets"] == ["team/x-samples"]


def write_samples(run: RunFolder) -> None:
    """Ten samples of the starter set's prompts, of which eight were trained on."""
    law = SamplingSettings(0.9, 20, 0.8, 0.0, 64)
    samples = [
        Sample(f"p/{n}", 0, (5, 6, 7), (8, 9, 2), f"x = {n}", "stop", 0.5, n, law, "hf", "ab" * 32) for n in range(10)
    ]
    with Journal(run.samples, lambda record: (record["problem_id"], record["index"])) as journal:
        journal.append(to_json(sample) for sample in reversed(samples))
    rows = [{"problem_id": f"p/{n}", "index": 0, "prompt_ids": [5], "completion_ids": [8]} for n in range(8)]
    run.train_rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = {"name": "starter", "count": 10, "sha256": "ab" * 32, "note": "starter set, train: 10 problems"}
    run.finish("sample", {"samples": 10, "tokens": 30, "problems": problems}, 1.0)
    run.finish("curate", {"rows": 8}, 1.0)


def test_samples_are_a_data_set_with_their_law_and_the_prompts_licence(hub: Hub, run: RunFolder) -> None:
    write_samples(run)
    entry = pushed(hub, run, "--what", "samples")[0]
    assert (entry["type"], entry["repo"]) == ("dataset", f"{USER}/tiny-samples")
    arrived = hub.files_of(entry["repo"], "dataset")
    rows = [json.loads(line) for line in arrived["samples.jsonl"].splitlines()]
    assert [row["problem_id"] for row in rows] == [f"p/{n}" for n in range(10)]
    assert [row["kept"] for row in rows] == [True] * 8 + [False] * 2
    assert (rows[0]["temperature"], rows[0]["top_k"], rows[0]["completion_ids"]) == (0.9, 20, [8, 9, 2])
    assert isinstance(rows[0]["prompt"], str)
    assert "crc" not in rows[0]
    card = arrived["README.md"].decode()
    front = front_of(card)
    assert front["license"] == "apache-2.0"
    assert front["configs"][0]["data_files"][0]["path"] == "samples.jsonl"
    assert front["size_categories"] == ["n<1K"]
    for words in (
        "temperature 1.6, top-k 20, top-p 0.8",
        "Nothing was checked",
        "8 that were trained on",
        "tiny licence",
    ):
        assert words in card, words
    assert pushed(hub, run, "--what", "samples")[0]["sent"] == []


@pytest.mark.slow
def test_a_killed_push_goes_on_without_sending_again_what_was_sent(hub: Hub, run: RunFolder) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold(number: int) -> int | None:
        if number == 3:
            reached.set()
            go_on.wait(60)
            return 500
        return None

    hub.on_upload = hold
    process = start(hub, run, "--what", "merged")
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    go_on.set()
    before = list(hub.uploads)
    assert len(before) == 2
    assert hub.files_of(f"{USER}/tiny") == {}
    hub.on_upload = lambda number: None
    pushed(hub, run, "--what", "merged")
    shards = list(run.merged.glob("*.safetensors"))
    assert hub.uploads[:2] == before
    assert len(hub.uploads) == len(set(hub.uploads)) == len(shards), (
        "what was uploaded before the kill is not sent again"
    )


@pytest.mark.slow
def test_a_refused_upload_is_one_line_and_the_same_command_goes_on(hub: Hub, run: RunFolder) -> None:
    hub.on_upload = lambda number: 403 if number == 2 else None
    code, _, err = push(hub, run, "--what", "merged")
    assert code == 2
    assert "Traceback" not in err
    assert "a token that may write" in err
    hub.on_upload = lambda number: None
    assert pushed(hub, run, "--what", "merged")[0]["commit"] is not None
    assert len(hub.uploads) == len(set(hub.uploads))


@pytest.mark.slow
def test_a_signal_ends_it_between_two_files_with_exit_75(hub: Hub, run: RunFolder) -> None:
    process: list[subprocess.Popen[str]] = []

    def stop(number: int) -> int | None:
        if number == 1:
            process[0].send_signal(signal.SIGTERM)
        return None

    hub.on_upload = stop
    process.append(start(hub, run, "--what", "merged"))
    _, err = process[0].communicate(timeout=60)
    assert process[0].returncode == 75, err
    assert "run the same command again" in err
    assert len(hub.uploads) < len(list(run.merged.glob("*.safetensors")))
    pushed(hub, run, "--what", "merged")


def test_large_files_in_parts_arrive_whole(hub: Hub, run: RunFolder) -> None:
    hub.part_bytes = 50_000
    pushed(hub, run, "--what", "adapter")
    arrived = hub.files_of(f"{USER}/tiny-adapter")["adapter_model.safetensors"]
    assert arrived == (run.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_branch_is_made_and_main_stays_as_it_was(hub: Hub, run: RunFolder) -> None:
    pushed(hub, run, "--what", "adapter", "--revision", "try-1")
    name = f"{USER}/tiny-adapter"
    assert hub.files_of(name) == {}
    assert "adapter_model.safetensors" in hub.files_of(name, branch="try-1")
    assert pushed(hub, run, "--what", "adapter", "--revision", "try-1")[0]["sent"] == []


@pytest.mark.slow
def test_a_repository_of_others_and_a_public_one_are_refused_without_force(hub: Hub, run: RunFolder) -> None:
    other = make_evaluated_run(run.path.parent / "other")
    report(other)
    pushed(hub, run, "--what", "adapter", "--repo-id", "team/a", "--public")
    code, _, err = push(hub, run, "--what", "adapter", "--repo-id", "team/a")
    assert (code, "is public, and --public was not asked for" in err) == (2, True)
    pushed(hub, run, "--what", "adapter", "--repo-id", "team/b")
    before = hub.files_of("team/b")
    code, _, err = push(hub, run, "--what", "merged", "--repo-id", "team/b")
    assert (code, "holds other files" in err) == (2, True)
    assert hub.files_of("team/b") == before
    assert push(hub, run, "--what", "merged", "--repo-id", "team/b", "--force")[0] == 0
    assert "config.json" in hub.files_of("team/b")
    _, out, err = push(hub, run, "--what", "merged", "--repo-id", "team/b", "--public")
    assert "stays so" in err
    assert "private" in out


@pytest.mark.parametrize(("token", "said"), [(None, "hf auth login"), ("hf_wrong", "a token that is valid")])
def test_without_a_token_that_counts_nothing_is_sent(hub: Hub, run: RunFolder, token: str | None, said: str) -> None:
    code, out, err = push(hub, run, "--what", "adapter", token=token)
    assert code == 2
    assert said in err
    assert "hf_wrong" not in out + err
    assert hub.repositories == {}


def test_a_namespace_without_rights_says_so(hub: Hub, run: RunFolder) -> None:
    code, _, err = push(hub, run, "--what", "adapter", "--repo-id", "strangers/x")
    assert code == 2
    assert "a token that may write there" in err


def test_a_dry_run_lists_everything_and_asks_nobody(hub: Hub, run: RunFolder) -> None:
    code, out, err = push(hub, run, "--what", "adapter", "--what", "merged", "--dry-run", token=None)
    assert code == 0, err
    assert "model YOUR_NAME/tiny-adapter, private" in out
    size = (run.adapter / "adapter_model.safetensors").stat().st_size
    assert f"{size:,}  adapter_model.safetensors" in out
    assert "Dry run: nothing was sent." in out
    assert hub.requests == []


def refusal(run: RunFolder, *words: str) -> str:
    result = CliRunner().invoke(main, ["push", str(run.path), *words, "--dry-run"])
    assert result.exit_code == 2, result.output
    return result.output


def test_what_is_not_done_or_not_whole_is_refused(run: RunFolder) -> None:
    assert "Type: ssd-lite export" in refusal(run, "--what", "gguf")
    assert "Type: ssd-lite report" in refusal(run, "--what", "merged", "--what", "report")
    assert "no repository's name" in refusal(run, "--what", "merged", "--repo-id", "a/b/c")
    (run.merged / "modeling_tiny.py").write_text("print()")
    assert "can run code" in refusal(run, "--what", "merged")
    (run.merged / "modeling_tiny.py").unlink()
    config = json.loads((run.merged / "config.json").read_text())
    write_json(run.merged / "DONE.json", {"sizes": {}})
    write_json(run.merged / "config.json", {**config, "auto_map": {"AutoModel": "x.py"}})
    assert "its own code" in refusal(run, "--what", "merged")
    write_json(run.merged / "config.json", config)
    shard = sorted(run.merged.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "not those that were merged" in refusal(run, "--what", "merged")
    shard.unlink()
    write_json(run.merged / "DONE.json", {"sizes": {shard.name: len(data)}})
    assert "missing or cut" in refusal(run, "--what", "merged")


def test_full_fine_tuning_has_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    run = make_trained_run(tmp_path, "full")
    assert "has no adapter" in refusal(run, "--what", "adapter")


def test_the_report_is_a_page_of_its_own_with_the_verdict(hub: Hub, tmp_path: Path) -> None:
    run = make_evaluated_run(tmp_path / "r1")
    sentence = report(run)["verdict"]
    entry = pushed(hub, run, "--what", "report")[0]
    repository = hub.repositories["space", f"{USER}/r1-report"]
    assert (entry["type"], repository.sdk, repository.private) == ("space", "static", True)
    arrived = hub.files_of(f"{USER}/r1-report", "space")
    assert {"report.html", "metrics.jsonl", "evaluations/tuned/report.json"} <= set(arrived)
    front = front_of(arrived["README.md"])
    assert (front["sdk"], front["app_file"]) == ("static", "report.html")
    assert sentence in arrived["README.md"].decode()


def test_the_card_says_base_revision_results_and_a_null_result_plainly(tmp_path: Path) -> None:
    run = make_evaluated_run(tmp_path / "r1", base_rate=0.3, tuned_rate=0.3)
    summary = run.require("merge")
    base = {"name": "Qwen/Qwen3-4B-Instruct-2507", "kind": "hub", "revision": "c0ffee" + "0" * 34, "note": "n"}
    base |= {"weights_sha256": "ab" * 32, "license": "apache-2.0"}
    run.finish("merge", {**summary, "base": base, "check": {"skipped": "x"}}, 1.0)
    card = model_text(run, "merged", {"merged": "me/x"})
    front = front_of(card)
    assert front["base_model"] == "Qwen/Qwen3-4B-Instruct-2507"
    assert front["base_model_relation"] == "finetune"
    assert front["license"] == "apache-2.0"
    sentence = json.loads(run.comparison.read_text())["sentence"]
    assert "No difference" in sentence or "no difference" in sentence, sentence
    for words in (
        sentence,
        "at commit `c0ffee",
        "| pass@1 |",
        "What it does not show",
        "temperature 0.6",
        "lora_r: 16",
    ):
        assert words in card, words
    adapter = front_of(model_text(run, "adapter", {"adapter": "me/x-adapter"}))
    assert (adapter["base_model_relation"], adapter["library_name"]) == ("adapter", "peft")
    run.gguf.mkdir()
    files = [{"type": kind, "path": f"gguf/x-{kind}.gguf", "bytes": 2} for kind in ("q8_0", "q6_k", "q4_0")]
    for file in files[:2]:
        (run.path / file["path"]).write_bytes(b"gg")
    run.finish("export", {"files": files[:1]}, 1.0)
    run.note("later_exports", [{"files": files[1:]}])
    text = model_text(run, "gguf", {"gguf": "me/x-gguf", "merged": "me/x"})
    assert "llama.cpp (q8_0, q6_k)" in text, "what a later export wrote is sent too, what is gone is not"
    gguf = front_of(text)
    assert (gguf["base_model"], gguf["base_model_relation"]) == ("me/x", "quantized")


def test_paths_of_this_machine_become_their_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    sections = {"problems": {"train": "data/mine.jsonl", "evaluate": "mbpp:data/mbpp:test"}}
    run = make_evaluated_run(tmp_path / "r1")
    recipe = run.recipe.model_validate({**run.recipe.model_dump(), **sections})
    privacy = Privacy(RunFolder(run.path, recipe))
    cases = {
        "train: data/mine.jsonl": "train: mine.jsonl",
        "/elsewhere/bob/data/mine.jsonl: 5 problems": "mine.jsonl: 5 problems",
        "mbpp:data/mbpp:test": "mbpp:mbpp:test",
        f'"{Path.home()}/models/x"': '"x"',
        f"{run.path}/report.html": "report.html",
        "/data/alice/models/y,": "y,",
        "Qwen/Qwen3-4B at https://huggingface.co/Qwen/Qwen3-4B": "Qwen/Qwen3-4B at https://huggingface.co/Qwen/Qwen3-4B",
        "a/b and 1/2": "a/b and 1/2",
    }
    assert {text: privacy.clean(text) for text in cases} == cases
    asked = "/mnt/lcb:release_v6:2025-02-01.."
    value = {**recipe.model_dump(), "problems": {"evaluate": f"livecodebench:{asked}"}}
    privacy = Privacy(RunFolder(run.path, recipe.model_validate(value)))
    cleaned = privacy.clean(f"livecodebench:{asked}2025-05-31 of /mnt/lcb")
    assert cleaned == "livecodebench:lcb:release_v6:2025-02-01..2025-05-31 of lcb"


def test_names_of_repositories(tmp_path: Path) -> None:
    run = make_evaluated_run(tmp_path / "r1")

    def names(kinds: list[str], repo_id: str | None) -> dict[str, str]:
        return repositories(run, kinds, repo_id, lambda: "me")

    assert names(["adapter"], None) == {"adapter": "me/r1-adapter"}
    assert names(["adapter"], "o/n") == {"adapter": "o/n"}
    assert names(["merged", "gguf", "report"], "o/n") == {"merged": "o/n", "gguf": "o/n-gguf", "report": "o/n-report"}
    for bad in ("x", "o/n/m", "o/../n", "o/-n", "o/n m"):
        with pytest.raises(UserError):
            names(["merged"], bad)


def test_commits_are_of_bounded_size() -> None:
    class Large(Piece):
        size = COMMIT_BYTES // 2  # type: ignore[assignment]

    groups = commit_groups([Large(f"{n}", b"") for n in range(5)])
    assert [len(group) for group in groups] == [2, 2, 1]
    small = commit_groups([Piece(f"{n}", b"x") for n in range(COMMIT_FILES + 1)])
    assert [len(group) for group in small] == [COMMIT_FILES, 1]


@pytest.mark.slow
def test_gguf_files_arrive_with_their_modelfile(hub: Hub, run: RunFolder) -> None:
    pytest.importorskip("llama_cpp")
    from ssd_lite.stages.export import export

    export(run)
    pushed(hub, run, "--what", "gguf")
    arrived = hub.files_of(f"{USER}/tiny-gguf")
    summary = run.require("export")
    beside = [Path(summary[key]).name for key in ("modelfile", "preset", "guide") if key in summary]
    for file in ("tiny-q8_0.gguf", "tiny-q4_k_m.gguf", *beside):
        assert arrived[file] == (run.gguf / file).read_bytes(), file
    assert not any(str(run.path.parent).encode() in content for content in arrived.values())
