"""What stands beside exported GGUFs so that servers decode as the evaluation did: Modelfile, preset, command line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_json, write_text
from ssd_lite.recipe_section import Decoding
from ssd_lite.stages.exports.modelfile import learn_format, modelfile

GUIDE = "SERVING.md"
# Where no run says how long its completions are. A server's memory grows with it.
PLAIN_CONTEXT = 8192
_PROMPT_ROOM = 2048


@dataclass(frozen=True)
class Served:
    """What serving needs to know of the files: names by type, decoding if known, end tokens, context in tokens."""

    name: str
    files: Mapping[str, str]
    decoding: Decoding | None
    stops: Sequence[str]
    context: int
    enable_thinking: bool | None = None

    @property
    def first(self) -> str:
        """The file that the commands name."""
        return next(iter(self.files.values()))


def write_serving(
    folder: Path,
    paths: Mapping[str, Path],
    name: str,
    *,
    decoding: Decoding | None,
    enable_thinking: bool | None = None,
    max_new_tokens: int | None = None,
) -> dict[str, Any]:
    """Write Modelfile, NAME.preset.json and SERVING.md beside the GGUFs of `paths` (type → file).

    `folder` has the model's tokenizer files and config.json. The result has the three paths, `template`: whether
    Ollama's was written, and `server`: the line for llama-server.
    """
    from ssd_lite.engines.gguf.vocabulary import read_vocabulary
    from ssd_lite.engines.tokenizer import ChatTokenizer
    from ssd_lite.engines.weights.model_folder import read_json

    out = next(iter(paths.values())).parent
    config = read_json(folder / "config.json")
    vocabulary = read_vocabulary(folder, config)
    tokenizer = ChatTokenizer.load(folder, enable_thinking, lenient=True)
    bos = vocabulary.tokens[vocabulary.special["bos"]] if vocabulary.add_bos else None
    form = learn_format(lambda messages: tokenizer.render(messages)[0], bos)
    longest = int((config.get("text_config") or config).get("max_position_embeddings") or PLAIN_CONTEXT)
    served = Served(
        name=name,
        files={gguf_type: path.name for gguf_type, path in paths.items()},
        decoding=decoding,
        stops=[vocabulary.tokens[index] for index in vocabulary.end_ids],
        context=min(longest, max(PLAIN_CONTEXT, (max_new_tokens or 0) + _PROMPT_ROOM)),
        enable_thinking=enable_thinking,
    )
    preset_file = out / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.preset.json"
    write_text(out / "Modelfile", modelfile(served.first, form, served.stops, decoding, served.context))
    write_json(preset_file, preset(served))
    write_text(out / GUIDE, guide(served, preset_file.name))
    return {
        "modelfile": str(out / "Modelfile"),
        "preset": str(preset_file),
        "guide": str(out / GUIDE),
        "server": server_line(served),
        "template": form is not None,
    }


def server_flags(served: Served) -> list[str]:
    """The arguments of llama-server: the model, its context, and the whole law of decoding in its order."""
    flags = ["--model", served.first, "--ctx-size", str(served.context), "--jinja"]
    if served.enable_thinking is not None:
        flags += ["--chat-template-kwargs", json.dumps({"enable_thinking": served.enable_thinking})]
    law = served.decoding
    # Without a known law the order and what is off still are the paper's.
    flags += ["--samplers", "top_k;temperature;top_p" if law is None else law.samplers()]
    if law is not None:
        flags += ["--temp", f"{law.temperature:g}", "--top-k", str(law.top_k), "--top-p", f"{law.top_p:g}"]
    return [*flags, "--min-p", f"{law.min_p:g}" if law is not None else "0", "--repeat-penalty", "1"]


def server_line(served: Served) -> str:
    """The command for a shell in the folder of the GGUFs."""
    return shlex.join(["llama-server", *server_flags(served)])


def preset(served: Served) -> dict[str, Any]:
    """A preset that LM Studio imports.

    Keys and kinds of values are those of the schema that LM Studio publishes (github.com/lmstudio-ai/lmstudio-js,
    packages/lms-kv-config/src/schema.ts). Its own defaults are min-p 0.05 and a repeat penalty of 1.1.
    """
    law = served.decoding

    def checked(value: float) -> dict[str, Any]:
        return {"checked": True, "value": value}

    fields: dict[str, Any] = {}
    if law is not None:
        fields |= {"temperature": law.temperature, "topKSampling": law.top_k, "topPSampling": checked(law.top_p)}
    fields |= {
        "minPSampling": checked(0 if law is None else law.min_p),
        "repeatPenalty": checked(1),
        "stopStrings": list(served.stops),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", served.name.lower()).strip("-") or "model"
    return {
        "identifier": f"@local:{slug}",
        "name": served.name,
        "changed": False,
        "operation": {"fields": [{"key": f"llm.prediction.{key}", "value": value} for key, value in fields.items()]},
        "load": {"fields": []},
    }


def served_files(file: Path) -> list[str] | None:
    """The GGUFs that a guide lists; None where there is none."""
    if not file.is_file():
        return None
    return re.findall(r"^- `(.+)` \(", file.read_text(encoding="utf-8"), re.MULTILINE)


def guide(served: Served, preset_name: str) -> str:
    """How to serve the files, with the decoding they were evaluated under."""
    law = served.decoding
    decoded = (
        f"Decoding: {law.words()}, in this order, no penalties. It stands in each GGUF as `general.sampling.*` too, "
        "which llama.cpp takes as its defaults. Other settings are another model."
        if law is not None
        else "No decoding is known for this model: set temperature, top-k and top-p yourself."
    )
    rows = "\n".join(f"- `{file}` ({gguf_type})" for gguf_type, file in served.files.items())
    quoted = shlex.quote(served.first)
    return f"""# {served.name} as GGUF

{rows}

{decoded}

## llama.cpp

    {server_line(served)}

llama.cpp's default chain takes the temperature last, after top-p, which is another law: hence `--samplers`.

## Ollama

    ollama create {shlex.quote(served.name.lower())} -f Modelfile
    ollama run {shlex.quote(served.name.lower())}

The Modelfile names `{served.first}`; change its first line for another type. A Modelfile cannot set the order of
samplers: Ollama's own engine has this one, its runner on llama.cpp takes the temperature last.

## LM Studio

Import `{preset_name}` under Presets. A preset cannot set the order of samplers either.

## ssd-lite

    ssd-lite chat {quoted}

It takes the decoding out of the file; where none stands there, temperature 0.7, top-k 20, top-p 0.8.
"""
