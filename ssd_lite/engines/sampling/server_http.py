"""One request to a server and its answer as JSON, or the error that says whether asking again would help."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any


class ServerError(Exception):
    """A request that the server did not answer as it should; `lasting` where asking again would not help."""

    def __init__(self, words: str, *, lasting: bool) -> None:
        super().__init__(words)
        self.lasting = lasting


def ask(connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON of an answer. Raises ServerError."""
    data = None if body is None else json.dumps(body).encode()
    try:
        connection.request(
            "GET" if data is None else "POST", path, body=data, headers={"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise ServerError(f"{path}: {type(error).__name__}: {error}", lasting=False) from error
    if answer.status != 200:
        words = text[:500].decode("utf-8", "replace").strip()
        raise ServerError(f"{path}: status {answer.status}: {words}", lasting=400 <= answer.status < 500)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ServerError(f"{path}: no JSON: {text[:100]!r}", lasting=True) from error
