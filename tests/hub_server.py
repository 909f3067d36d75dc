"""A fake Hugging Face Hub in a thread: the part of its HTTP API that downloads and pushes use.

It is written after the requests and responses of the Hub's client (https://huggingface.co/docs/hub/api), which the
tests use.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "Secret0123456789" * 2
LARGE = (".npz", ".safetensors", ".bin")  # the files that new repositories store in Git LFS


class Repository:
    """The files of each commit by path; a branch is the hash of its last commit."""

    def __init__(self, private: bool = False):
        self.private, self.gated = private, False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {".gitattributes": b"*.npz filter=lfs\n"}, "initial commit")

    def commit(self, branch: str, changed: dict[str, bytes | None], message: str = "") -> str:
        """Add files to the existing ones; None deletes a file."""
        files = self.commits.get(self.branches.get(branch, ""), {}) | changed
        sha = hashlib.sha1(f"{len(self.commits)}{message}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = {name: content for name, content in files.items() if content is not None}
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        sha = self.find(revision)
        assert sha is not None
        return self.commits[sha]


class Hub:
    """The server's repositories, the requests it received, and its faults.

    Attributes:
      address: the URL of the Hub.
      storage: the URL of its large files, another host for the client.
      users: the names of the accounts by their tokens.
      asked: the method, path and token of each request.
      fetched: the paths of the files whose content was downloaded.
      refuse: the answer to all requests: a status, a text that is HTML or JSON or is put into JSON, and headers.
      claimed: wrong sizes to report in lists of files; None reports no size.
      truncate: whether files end too early.
    """

    def __init__(self) -> None:
        self.address = self.storage = ""
        self.users = {TOKEN: "me"}
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.fetched: list[str] = []
        self.refuse: tuple[int, str, dict[str, str]] | None = None
        self.claimed: dict[str, int | None] = {}
        self.truncate = False

    def of_files(self, name: str, files: dict[str, bytes], branch: str = "main") -> Repository:
        repository = self.repositories.setdefault(name, Repository())
        repository.commit(branch, dict(files))
        return repository


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address, hub.storage = (f"http://{host}:{server.server_address[1]}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, text: str, **headers: str):
        self.status, self.text, self.headers = status, text, headers


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.asked.append((self.command, self.path, token))
        self.user = self.hub.users.get(token or "")
        try:
            if self.hub.refuse is not None:
                status, text, headers = self.hub.refuse
                raise _Refused(status, text, **headers)
            if token is not None and self.user is None:
                raise _Refused(401, "Invalid credentials in Authorization header")
            self._answer(urlsplit(self.path).path, body)
        except _Refused as refused:
            about = {"X-Error-Message": refused.text, **{k.replace("_", "-"): v for k, v in refused.headers.items()}}
            text = refused.text if refused.text.startswith(("<", "[", "{")) else json.dumps({"error": refused.text})
            self._send(refused.status, text.encode(), about)

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, size: int = -1) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content) if size < 0 else size), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        if 0 <= len(content) < size:
            self.close_connection = True

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, path: str, body: bytes) -> None:
        match [unquote(part) for part in path.split("/")[1:]]:
            case ["api", "models", user, name]:
                self._describe(f"{user}/{name}", "main")
            case ["api", "models", user, name, "revision", revision]:
                self._describe(f"{user}/{name}", revision)
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", user, name, "branch", branch]:
                repository = self._repository(f"{user}/{name}", writing=True)
                repository.branches[branch] = repository.branches["main"]
                self._json({})
            case ["api", "models", user, name, "preupload", _]:
                self._repository(f"{user}/{name}", writing=True)
                modes = [
                    {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                    for file in json.loads(body)["files"]
                ]
                self._json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
            case ["api", "models", user, name, "commit", branch]:
                self._commit(f"{user}/{name}", branch, [json.loads(line) for line in body.splitlines()])
            case [user, name, "info", "lfs", "objects", "batch"]:
                self._repository(f"{user}/{name.removesuffix('.git')}", writing=True)
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.hub.storage}/large/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self._json({"transfer": "basic", "objects": objects})
            case ["large", sha]:
                assert hashlib.sha256(body).hexdigest() == sha
                self.hub.large[sha] = body
                self._send(200)
            case ["large", sha, *file]:
                self._send_file("/".join(file), self.hub.large[sha])
            case [user, name, "resolve", revision, *file]:
                self._resolve(f"{user}/{name}", revision, "/".join(file))
            case _:
                raise _Refused(404, f"no such address: {path}")

    def _repository(self, name: str, *, reading: bool = False, writing: bool = False) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or found.private and self.user is None:
            raise _Refused(401 if self.user is None else 404, "Repository not found", X_Error_Code="RepoNotFound")
        if reading and found.gated:
            raise _Refused(403, "Access is restricted", X_Error_Code="GatedRepo")
        if writing and self.user != name.split("/")[0]:
            raise _Refused(403, f"{self.user} has not the right to write to {name}")
        return found

    def _commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.find(revision)
        if sha is None:
            raise _Refused(404, f"Invalid rev id: {revision}", X_Error_Code="RevisionNotFound")
        return sha

    def _describe(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        sha = self._commit_of(repository, revision)
        assert parse_qs(urlsplit(self.path).query).get("blobs") == ["true"]  # otherwise the answer has no sizes
        files = [
            {"rfilename": file, "size": self.hub.claimed.get(file, len(content))}
            for file, content in repository.commits[sha].items()
        ]
        self._json({"id": name, "sha": sha, "private": repository.private, "siblings": files})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or self.user}/{asked['name']}"
        if self.user is None:
            raise _Refused(401, "Invalid username or password.")
        if not name.startswith(f"{self.user}/"):
            raise _Refused(403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
        if name in self.hub.repositories:
            raise _Refused(409, "You already created this model repo")
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        self._json({"url": f"{self.hub.address}/{name}"})

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        repository = self._repository(name, writing=True)
        if branch not in repository.branches:
            raise _Refused(404, f"Invalid rev id: {branch}", X_Error_Code="RevisionNotFound")
        changed: dict[str, bytes | None] = {}
        message = ""
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
                        raise _Refused(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    changed[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    changed[value["path"]] = None
        sha = repository.commit(branch, changed, message)
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{sha}", "commitOid": sha})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name, reading=True)
        sha = self._commit_of(repository, revision)
        if file not in repository.commits[sha]:
            raise _Refused(404, f"{file} does not exist", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        content = repository.commits[sha][file]
        etag = hashlib.sha256(content).hexdigest()
        if not file.endswith(LARGE):
            return self._send_file(file, content, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'})
        self.hub.large[etag] = content
        about = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        self._send(302, b"", {**about, "Location": f"{self.hub.storage}/large/{etag}/{file}"})

    def _send_file(self, file: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.hub.fetched += [file] if self.command == "GET" else []
        sent = content[: len(content) // 2] if self.hub.truncate else content
        self._send(200, sent, headers, size=len(content))
