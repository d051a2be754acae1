"""A stand-in for the Hugging Face Hub on this machine: what its client asks to read and to push, over real HTTP."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Server = TypeVar("Server", bound=ThreadingHTTPServer)
COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_standInForTests0123456789"
USER = "somebody"
LARGE = (".safetensors", ".gguf")
LFS_FROM_BYTES = 10_000_000


@dataclass
class File:
    """A file of a repository; large ones are kept under their SHA-256."""

    content: bytes
    large: bool

    @property
    def git_hash(self) -> str:
        return sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """As the Hub lists it."""
        digest = sha256(self.content).hexdigest()
        found = {"type": "file", "path": path, "rfilename": path, "size": len(self.content)}
        if not self.large:
            return {**found, "oid": self.git_hash, "blobId": self.git_hash}
        pointer = "0" * 40
        lfs = {"oid": digest, "sha256": digest, "size": len(self.content), "pointerSize": 134}
        return {**found, "oid": pointer, "blobId": pointer, "lfs": lfs}


@dataclass
class Repository:
    """A repository that was created here."""

    private: bool
    sdk: str | None = None
    branches: dict[str, dict[str, File]] = field(default_factory=lambda: {"main": {".gitattributes": File(b"", False)}})
    commits: list[list[str]] = field(default_factory=list)


class Hub(ThreadingHTTPServer):
    """`files` (path to bytes) is served, to read only, as every repository that was not created, at COMMIT.

    `sent` counts bytes that went out, `uploads` has the SHA-256 of each large file that came in, `requests` each
    request's method and path. `on_upload` is called with the number of the upload, before its bytes are kept.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.sent = files or {}, 0
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.uploads: list[str] = []
        self.requests: list[str] = []
        self.part_bytes: int | None = None
        self.writers = {USER, "team"}
        self.on_upload: Callable[[int], int | None] = lambda number: None
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files_of(self, name: str, repo_type: str = "model", branch: str = "main") -> dict[str, bytes]:
        """What a branch holds, without the Hub's own file."""
        tree = self.repositories[repo_type, name].branches[branch]
        return {path: file.content for path, file in tree.items() if path != ".gitattributes"}

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process whose client is to ask this server: it reads its endpoint once, at import."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",  # hf_xet speaks to servers of its own, which stand nowhere but at the Hub
            "NO_PROXY": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
        }


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve until the block ends."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Answer(Exception):
    """A failure as the Hub says it."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def do_PUT(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        """Find what is asked for, answer it or say why not."""
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        body = self.body()
        self.server.requests.append(f"{self.command} {url.path}")
        try:
            self.route(url.path, parts, body)
        except Answer as failure:
            headers = {"X-Error-Message": str(failure), **({"X-Error-Code": failure.code} if failure.code else {})}
            self.answer(json.dumps(failure.body).encode(), failure.status, headers)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def route(self, path: str, parts: list[str], body: bytes) -> None:
        if parts[0] == "lfs":
            self.upload(parts, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(parts, json.loads(body))
        elif parts[:2] == ["api", "whoami-v2"]:
            self.user()
            self.send({"type": "user", "name": USER, "orgs": [{"name": "team"}], "auth": {"type": "access_token"}})
        elif parts[:2] == ["api", "validate-yaml"]:
            self.validate(json.loads(body))
        elif parts[:3] == ["api", "repos", "create"]:
            self.create(json.loads(body))
        elif parts[0] == "api":
            self.api(parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:], body)
        elif "resolve" in parts:
            place = parts.index("resolve")
            kind = parts[0].removesuffix("s") if parts[0] in ("datasets", "spaces") else "model"
            self.resolve(kind, "/".join(parts[place - 2 : place]), parts[place + 1], "/".join(parts[place + 2 :]))
        else:
            raise Answer(404, "Not Found")

    def api(self, kind: str, name: str, rest: list[str], body: bytes) -> None:
        """Everything below /api/TYPEs/OWNER/NAME."""
        match rest:
            case ["preupload", branch]:
                self.preupload(self.mine(kind, name), branch, json.loads(body))
            case ["commit", branch]:
                self.commit(self.mine(kind, name), kind, name, branch, body)
            case ["branch", branch]:
                branches = self.mine(kind, name).branches
                if branch in branches:
                    raise Answer(409, "Reference already exists")
                branches[branch] = dict(branches["main"])
                self.send({})
            case ["tree", branch, *folder]:
                self.tree(kind, name, branch, "/".join(folder))
            case ["paths-info", branch]:
                tree = self.visible(kind, name, branch)
                wanted = parse_qs(body.decode())["paths"]
                self.send([tree[path].entry(path) for path in wanted if path in tree])
            case [] | ["revision", _]:
                self.info(kind, name)
            case _:
                raise Answer(404, "Not Found")

    # who asks, and for what

    def user(self) -> str:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Answer(401, "Invalid username or password.")
        return USER

    def repository(self, kind: str, name: str) -> Repository | None:
        """None where files are served as every repository. A private one is seen by its owner alone."""
        found = self.server.repositories.get((kind, name))
        if found is None and self.server.files:
            return None
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise Answer(404, "Repository not found", "RepoNotFound")
        return found

    def mine(self, kind: str, name: str) -> Repository:
        self.user()
        found = self.server.repositories.get((kind, name))
        if found is None:
            raise Answer(404, "Repository not found", "RepoNotFound")
        if name.split("/")[0] not in self.server.writers:
            raise Answer(403, "You don't have the rights to write here.")
        return found

    def visible(self, kind: str, name: str, branch: str) -> dict[str, File]:
        found = self.repository(kind, name)
        if found is None:
            return {path: File(content, True) for path, content in self.server.files.items()}
        if branch not in found.branches:
            raise Answer(404, "Invalid rev id", "RevisionNotFound")
        return found.branches[branch]

    # reading

    def info(self, kind: str, name: str) -> None:
        found = self.repository(kind, name)
        tree = self.visible(kind, name, "main")
        sha = COMMIT if found is None else f"{len(found.commits):040x}"
        private = found is not None and found.private
        siblings = [file.entry(path) for path, file in tree.items()]
        self.send({"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": [], "downloads": 0})

    def tree(self, kind: str, name: str, branch: str, folder: str) -> None:
        everything = "recursive=true" in self.path.lower()
        tree = self.visible(kind, name, branch)
        inside = [path for path in tree if everything or str(Path(path).parent) == (folder or ".")]
        self.send([tree[path].entry(path) for path in inside])

    def resolve(self, kind: str, name: str, branch: str, path: str) -> None:
        file = self.visible(kind, name, branch).get(path)
        if file is None:
            raise Answer(404, "Entry not found", "EntryNotFound")
        content, status, total = file.content, 200, len(file.content)
        digest = sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if requested := self.headers.get("Range"):
            first, _, last = requested.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else total
            content, status = content[int(first) : end], 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{total}"
        self.answer(content, status, headers)

    # pushing

    def create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or self.user()
        kind = asked.get("type") or "model"
        name = f"{owner}/{asked['name']}"
        self.user()
        if owner not in self.server.writers:
            raise Answer(403, f"You don't have the rights to create a {kind} under the namespace {owner}.")
        if (kind, name) in self.server.repositories:
            raise Answer(409, f"You already created this {kind} repo")
        private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        self.server.repositories[kind, name] = Repository(private, asked.get("sdk"))
        prefix = "" if kind == "model" else f"{kind}s/"
        self.send({"url": f"{self.server.endpoint}/{prefix}{name}", "name": name, "id": name})

    def validate(self, asked: dict[str, Any]) -> None:
        """What the Hub says of a card, as far as its documentation goes."""
        text = asked["content"]
        try:
            front = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
        except yaml.YAMLError as error:
            raise Answer(400, "Invalid YAML", errors=[{"message": str(error)}], warnings=[]) from None
        errors = [f'"{key}" must be a list' for key in ("tags", "datasets") if not isinstance(front.get(key, []), list)]
        if front.get("license") == "other" and "license_name" not in front and asked["repoType"] == "model":
            errors.append('"license_name" is missing')
        if "base_model" in front and front["base_model"].count("/") != 1:
            errors.append('"base_model" must be an id of the Hub')
        if asked["repoType"] == "space" and front.get("sdk") != "static":
            errors.append('"sdk" is missing')
        if errors:
            raise Answer(400, "Invalid metadata", errors=[{"message": one} for one in errors], warnings=[])
        self.send({"errors": [], "warnings": []})

    def preupload(self, repository: Repository, branch: str, asked: dict[str, Any]) -> None:
        if branch not in repository.branches:
            raise Answer(404, "Invalid rev id", "RevisionNotFound")
        found = []
        for file in asked["files"]:
            there = repository.branches[branch].get(file["path"])
            large = file["path"].endswith(LARGE) or file["size"] >= LFS_FROM_BYTES
            oid = None if there is None else sha256(there.content).hexdigest() if there.large else there.git_hash
            mode = "lfs" if large else "regular"
            found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send({"files": found})

    def batch(self, parts: list[str], asked: dict[str, Any]) -> None:
        kind = parts[0].removesuffix("s") if parts[0] in ("datasets", "spaces") else "model"
        names = parts[1:3] if kind != "model" else parts[:2]
        self.mine(kind, "/".join(names).removesuffix(".git"))
        objects = []
        for item in asked["objects"]:
            oid, size, step = item["oid"], item["size"], self.server.part_bytes
            if oid in self.server.large:
                objects.append({"oid": oid, "size": size})
                continue
            upload: dict[str, Any] = {"href": f"{self.server.endpoint}/lfs/{oid}"}
            if step is not None and size > step:
                count = -(-size // step)
                urls = {f"{n + 1:05}": f"{self.server.endpoint}/lfs/{oid}/{n}" for n in range(count)}
                upload = {"href": f"{self.server.endpoint}/lfs/{oid}/end", "header": {"chunk_size": str(step), **urls}}
            verify = {"href": f"{self.server.endpoint}/lfs/{oid}/verify"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        self.send({"transfer": "basic", "objects": objects})

    def upload(self, parts: list[str], body: bytes) -> None:
        oid, step = parts[1], parts[2] if len(parts) > 2 else ""
        if step == "verify":
            if oid not in self.server.large:
                raise Answer(404, "Object does not exist")
            self.send({})
            return
        if step.isdigit():
            self.server.parts.setdefault(oid, {})[int(step)] = body
            self.answer(b"", 200, {"ETag": f'"{step}"'})
            return
        if step == "end":
            pieces = self.server.parts.pop(oid)
            body = b"".join(pieces[number] for number in sorted(pieces))
        with self.server.lock:
            status = self.server.on_upload(len(self.server.uploads) + 1)
            if status is not None:
                raise Answer(status, "Upload refused")
            if sha256(body).hexdigest() != oid:
                raise Answer(400, "The content does not have this hash")
            self.server.large[oid] = body
            self.server.uploads.append(oid)
        self.send({})

    def commit(self, repository: Repository, kind: str, name: str, branch: str, body: bytes) -> None:
        tree = dict(repository.branches[branch])
        changed = []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                tree[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.server.large:
                    raise Answer(400, f"LFS object of {value['path']} was not uploaded")
                tree[value["path"]] = File(self.server.large[value["oid"]], True)
            if entry["key"] != "header":
                changed.append(value["path"])
        repository.branches[branch] = tree
        repository.commits.append(changed)
        oid = f"{len(repository.commits):040x}"
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.server.endpoint}/{prefix}{name}/commit/{oid}"
        self.send({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # answers

    def send(self, value: Any) -> None:
        self.answer(json.dumps(value).encode())

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.server.sent += len(content)
