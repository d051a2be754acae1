"""The recipe's section for an inference server: a program that the stages of engine `server` start, ask and end."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping

from pydantic import field_validator

from ssd_lite.recipe_section import Positive, Section

PLACES = ("model", "gguf", "port", "context", "batch", "total")


class Server(Section):
    """What a stage of engine server starts and ends before the next stage: vLLM or llama.cpp's server."""

    command: str | None = None
    """How it is started, without a shell. {model} becomes the model's folder, {gguf} its GGUF in model.gguf_type,
    {port} a free port, {context} the tokens of the longest prompt and completion, {batch} the batch_size, {total} both
    multiplied."""
    start_limit_s: Positive = 1800
    """Seconds that it may take to load the model."""

    def check_for(self, engines: Mapping[str, str]) -> None:
        """Raise ValueError where a key's engine is server and there is no command."""
        for key, engine in engines.items():
            if engine == "server" and self.command is None:
                raise ValueError(f"{key} server needs server.command: how the server is started")

    def takes_gguf(self, engine: str) -> bool:
        """Whether an engine takes a GGUF instead of a folder: llama.cpp always, a server as its command says."""
        return engine == "llama_cpp" or (engine == "server" and "{gguf}" in (self.command or ""))

    @field_validator("command")
    @classmethod
    def _names_what_it_serves(cls, command: str | None) -> str | None:
        if command is None:
            return None
        try:
            words = shlex.split(command)
            places = {name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None}
        except ValueError as error:
            raise ValueError(f"cannot be read as words of a command: {error}") from None
        unknown = sorted(places - set(PLACES))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in PLACES)
            raise ValueError(f"{{{unknown[0]}}} is no place; there are {known} (a brace itself is written twice)")
        if "port" not in places or len(places & {"model", "gguf"}) != 1:
            raise ValueError("needs {port}, and either {model} (a folder) or {gguf} (a file)")
        return command

    def words(self, values: dict[str, str]) -> list[str]:
        """The command's words with `values` in their places. Raises ValueError without a command."""
        if self.command is None:
            raise ValueError("there is no command")
        return [word.format_map(values) for word in shlex.split(self.command)]
