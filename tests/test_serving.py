"""What stands beside exported files, and llama.cpp's own server under the very flags that are written there."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.engines.checks.gguf_template import conversations
from ssd_lite.engines.gguf.read import open_gguf
from ssd_lite.engines.sampling.choice import open_sampler
from ssd_lite.engines.sampling.sampler import Request, SamplerOptions
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import Prompt
from ssd_lite.stages.exports.serving import Served, guide, preset, server_flags, server_line, write_serving

pytest.importorskip("llama_cpp")
LAW = Decoding(temperature=0.6, top_k=20, top_p=0.8)


def served(**changes: Any) -> Served:
    body = {"name": "My run", "files": {"q4_k_m": "r-q4_k_m.gguf"}, "decoding": LAW, "stops": ["<|im_end|>"]}
    return Served(**{**body, "context": 8192, **changes})


def test_the_line_for_llama_server_has_the_whole_law_in_its_order() -> None:
    flags = server_flags(served())
    assert shlex.split(server_line(served())) == ["llama-server", *flags]
    pairs = _pairs(flags)
    assert pairs["--samplers"] == "top_k;temperature;top_p"
    assert {key: pairs[key] for key in ("--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty")} == {
        "--temp": "0.6",
        "--top-k": "20",
        "--top-p": "0.8",
        "--min-p": "0",
        "--repeat-penalty": "1",
    }
    assert "'top_k;temperature;top_p'" in server_line(served()), "a shell would take ; for the end of a command"
    with_min_p = _pairs(server_flags(served(decoding=Decoding(temperature=1.1, min_p=0.05))))
    assert with_min_p["--samplers"] == "top_k;temperature;top_p;min_p"
    assert with_min_p["--min-p"] == "0.05"
    thinking = _pairs(server_flags(served(enable_thinking=False)))
    assert json.loads(thinking["--chat-template-kwargs"]) == {"enable_thinking": False}


def _pairs(flags: list[str]) -> dict[str, str]:
    """Flag → value; --jinja has none."""
    words = [word for word in flags if word != "--jinja"]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_without_a_known_decoding_nothing_is_made_up() -> None:
    flags = _pairs(server_flags(served(decoding=None)))
    assert "--temp" not in flags
    assert flags["--samplers"] == "top_k;temperature;top_p"
    assert {field["key"] for field in preset(served(decoding=None))["operation"]["fields"]} == {
        "llm.prediction.minPSampling",
        "llm.prediction.repeatPenalty",
        "llm.prediction.stopStrings",
    }
    assert "No decoding is known" in guide(served(decoding=None), "p.json")


def test_the_preset_of_lm_studio() -> None:
    value = preset(served())
    assert value["identifier"] == "@local:my-run"
    assert value["name"] == "My run"
    fields = {field["key"].removeprefix("llm.prediction."): field["value"] for field in value["operation"]["fields"]}
    assert fields == {
        "temperature": 0.6,
        "topKSampling": 20,
        "topPSampling": {"checked": True, "value": 0.8},
        "minPSampling": {"checked": True, "value": 0.0},
        "repeatPenalty": {"checked": True, "value": 1},
        "stopStrings": ["<|im_end|>"],
    }


def test_the_guide_names_every_way(tmp_path: Path) -> None:
    text = guide(served(), "My-run.preset.json")
    for words in ("- `r-q4_k_m.gguf` (q4_k_m)", server_line(served()), "ollama create", "`My-run.preset.json`", "T"):
        assert words in text


@pytest.fixture(scope="module")
def exported(packaged_model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The packaged model as Q8_0 with a decoding inside, and what is written beside it."""
    from ssd_lite.engines.gguf.set import write_gguf_set

    out = tmp_path_factory.mktemp("gguf")
    paths = {"q8_0": out / "quick-q8_0.gguf"}
    write_gguf_set(packaged_model.folder, paths, decoding=LAW, threads=1)
    written = write_serving(packaged_model.folder, paths, "quick", decoding=LAW, max_new_tokens=200)
    return {**written, "gguf": paths["q8_0"], "folder": packaged_model.folder}


@pytest.mark.slow
def test_the_law_stands_in_the_file_as_llama_cpp_reads_it(exported) -> None:
    fields = open_gguf(exported["gguf"]).fields
    found = {key.removeprefix("general.sampling."): value for key, value in fields.items() if ".sampling." in key}
    assert found == {
        "sequence": "top_k;temperature;top_p",
        "temp": pytest.approx(0.6),
        "top_k": 20,
        "top_p": pytest.approx(0.8),
        "min_p": 0.0,
        "penalty_repeat": 1.0,
    }


def test_files_stand_beside_the_gguf(exported) -> None:
    folder = exported["gguf"].parent
    assert {path.name for path in folder.iterdir()} >= {"Modelfile", "SERVING.md", "quick.preset.json"}
    assert "PARAMETER num_ctx 8192" in Path(exported["modelfile"]).read_text()
    assert exported["server"] in Path(exported["guide"]).read_text()
    json.loads(Path(exported["preset"]).read_text())


# Runs in a process of its own: two builds of llama.cpp in one might take each other's symbols.
_SERVER = """
import json, shlex, sys, urllib.request
import xllamacpp

line, gguf, requests, with_flags = json.load(sys.stdin)
words = shlex.split(line)
assert words.pop(0) == "llama-server"
flags = iter(words)
params = xllamacpp.CommonParams()
params.cpuparams.n_threads = 1
params.warmup = False
for flag in flags:
    if flag == "--jinja":
        params.use_jinja = True
        continue
    value = next(flags)
    match flag:
        case "--model": params.model.path = gguf
        case "--ctx-size": params.n_ctx = 1024  # a small machine's
        case _ if not with_flags: pass
        case "--samplers": params.sampling.samplers = value
        case "--temp": params.sampling.temp = float(value)
        case "--top-k": params.sampling.top_k = int(value)
        case "--top-p": params.sampling.top_p = float(value)
        case "--min-p": params.sampling.min_p = float(value)
        case "--repeat-penalty": params.sampling.penalty_repeat = float(value)
        case _: raise SystemExit(f"the line has a flag that this test does not know: {flag}")
server = xllamacpp.Server(params)
answers = []
for path, body in requests:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
    answers.append(json.load(urllib.request.urlopen(request)))
print("ANSWERS" + json.dumps(answers))
"""


def ask_server(exported: dict[str, Any], requests: list[tuple[str, Any]], *, with_flags: bool = True) -> list[Any]:
    """Start llama.cpp's server as the line says, on a free port, and ask it by HTTP."""

    if not _has_xllamacpp():
        pytest.skip("xllamacpp is not installed")
    body = json.dumps([exported["server"], str(exported["gguf"]), requests, with_flags])
    done = subprocess.run([sys.executable, "-c", _SERVER], input=body, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))
    return list(json.loads(line.removeprefix("ANSWERS")))


def _has_xllamacpp() -> bool:
    import importlib.util

    return importlib.util.find_spec("xllamacpp") is not None


MESSAGES = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
GREEDY = {"messages": MESSAGES, "temperature": 0, "max_tokens": 48, "logprobs": True}


def answered(reply: Any) -> list[int]:
    """The token ids of an answer."""
    return [entry["id"] for entry in reply["choices"][0]["logprobs"]["content"]]


@pytest.mark.slow
def test_the_server_answers_as_our_sampler_does(exported, packaged_model) -> None:
    """Greedy through HTTP on the F16 file, token by token; prompts and templates are ours, its default law is ours."""
    templates = [("/apply-template", {"messages": list(c.messages)}) for c in conversations()[:4]]
    requests = [("/props", None), ("/v1/chat/completions", GREEDY), *templates]
    props, reply, *rendered = ask_server({**exported, "gguf": packaged_model.gguf}, requests)
    tokenizer = ChatTokenizer.load(exported["folder"])
    text, ids = tokenizer.render(MESSAGES)
    sampler = open_sampler("llama_cpp", packaged_model.gguf, SamplerOptions(1, 1, tokenizer.end_ids, tokenizer.pad_id))
    greedy = Decoding(temperature=1.0, top_k=1, top_p=1.0).settings(48)
    (ours,) = sampler.sample([Request(Prompt("p", text, tuple(ids)), 0, 0)], greedy, lambda _: None)
    sampler.close()
    assert answered(reply) == [token for token in ours.ids if token not in tokenizer.end_ids]
    assert reply["choices"][0]["message"]["content"] == tokenizer.decode(ours.ids, skip_special=True)
    assert reply["usage"]["prompt_tokens"] == len(ids)
    assert_law(props)
    for conversation, printed in zip(conversations(), rendered, strict=False):
        assert printed["prompt"] == tokenizer.render(conversation.messages)[0], conversation.name


@pytest.mark.slow
def test_the_server_has_our_law_on_a_quantised_file_too(exported) -> None:
    """Every token of its greedy answer is our likeliest, but for ties within what two builds differ by."""
    import numpy as np

    from ssd_lite.engines.scoring.score import score
    from ssd_lite.engines.scoring.scorer import Text

    (reply,) = ask_server(exported, [("/v1/chat/completions", GREEDY)])
    ids, prompt = answered(reply), ChatTokenizer.load(exported["folder"]).render(MESSAGES)[1]
    assert len(ids) >= 20
    text = Text(tuple(prompt), tuple(ids), np.arange(len(ids)))
    ((_, facts),) = score("llama_cpp", exported["gguf"], [text], [LAW.settings(1)], lambda _: None, 1)
    theirs = [entry["logprob"] for entry in reply["choices"][0]["logprobs"]["content"]]
    assert (facts.top[:, 0] - facts.drawn).max() < 0.2
    assert (facts.drawn_rank == 1).mean() > 0.9
    assert np.abs(facts.drawn - np.array(theirs)).max() < 0.4
    assert np.abs(facts.drawn - np.array(theirs)).mean() < 0.05


@pytest.mark.slow
def test_the_file_alone_gives_the_server_our_law(exported) -> None:
    """Without a flag: what stands in general.sampling.* is what llama.cpp takes."""
    (props,) = ask_server(exported, [("/props", None)], with_flags=False)
    assert_law(props)


def assert_law(props: Any) -> None:
    law = props["default_generation_settings"]["params"]
    assert law["samplers"] == ["top_k", "temperature", "top_p"]
    assert (law["top_k"], law["min_p"], law["repeat_penalty"]) == (20, 0.0, 1.0)
    assert (law["temperature"], law["top_p"]) == (pytest.approx(0.6), pytest.approx(0.8))
    off = ("presence_penalty", "frequency_penalty", "dry_multiplier", "xtc_probability", "mirostat")
    assert all(law[name] == 0 for name in off)


def test_every_flag_is_one_of_llama_cpps_own() -> None:
    """Names of flags as they stand in the library that holds llama.cpp's parser."""
    import importlib.util

    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        pytest.skip("xllamacpp is not installed")
    library = b"".join(path.read_bytes() for path in Path(found.origin).parent.glob("*.so"))
    for flag in server_flags(served(enable_thinking=True)):
        if flag.startswith("--"):
            assert f"\0{flag}\0".encode() in library, flag


def test_a_folder_without_a_chat_template_has_no_ollama_template(tmp_path: Path) -> None:
    from tiny_models import save_tiny

    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    written = write_serving(folder, {"f16": tmp_path / "m.gguf"}, "m", decoding=None)
    assert written["template"] is False
    with pytest.raises(UserError):
        ChatTokenizer.load(folder).render([{"role": "user", "content": "?"}])
