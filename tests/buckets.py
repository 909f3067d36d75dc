"""A fake Google Cloud Storage: the part of its JSON API that gcsfs, TensorStore and Google's client use.

Objects are in memory. Names and conditions are as in https://cloud.google.com/storage/docs/json_api/v1.
"""

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

# Variables that point clients to this server without an account: gcsfs and Google's client; TensorStore.
SETTINGS = {
    "STORAGE_EMULATOR_HOST": "{address}",
    "FSSPEC_GCS_TOKEN": "anon",
    "TENSORSTORE_GCS_HTTP_URL": "{address}",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody's",
}


class Object(NamedTuple):
    data: bytes
    generation: int


class Storage(ThreadingHTTPServer):
    """A server with one bucket, named `bucket`.

    Attributes:
      objects: the bucket's objects by name.
      refusing: whether it answers 403 to every request.
      requests: the method and path of each request so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.refusing = False
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.generation = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close a connection, as a process does when it exits."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def settings(self) -> dict[str, str]:
        """Return the environment variables that make a process use this server."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {name: value.format(address=address) for name, value in SETTINGS.items()}

    def put(self, name: str, data: bytes) -> Object:
        self.generation += 1
        self.objects[name] = Object(data, self.generation)
        return self.objects[name]


@contextlib.contextmanager
def serving() -> Iterator[Storage]:
    storage = Storage()
    thread = threading.Thread(target=storage.serve_forever, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        storage.shutdown()
        storage.server_close()
        thread.join()


class _Refused(Exception):
    """An error response."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send each response in one piece: in two, the second waits 40 ms for the client
    disable_nagle_algorithm = True
    server: Storage

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = re.fullmatch(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", address.path)
        with self.server.lock:
            self.server.requests.append(f"{self.command} {address.path}")
            try:
                if found is None:
                    raise _Refused(400, f"no such call: {self.command} {self.path}")
                if self.server.refusing:
                    raise _Refused(403, "nobody does not have storage access to the bucket.")
                if unquote(found[2]) != "bucket":
                    raise _Refused(404, "The specified bucket does not exist.")
                if "/o" not in address.path:
                    return self.answer({"kind": "storage#bucket", "name": "bucket", "id": "bucket"})
                if found[1] == "upload":
                    return self.upload(query, body)
                if found[3] is None:
                    return self.listing(query)
                return self.one(found[3], query)
            except _Refused as refused:
                code, message = refused.args
                self.answer({"error": {"code": code, "message": message}}, code)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def answer(self, content: Any, code: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(data)

    def conditions(self, name: str, query: dict[str, str]) -> None:
        there = self.server.objects.get(name)
        generation = str(there.generation if there else 0)
        if query.get("ifGenerationMatch", generation) != generation:
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if query.get("ifGenerationNotMatch") == generation:
            raise _Refused(304, "")

    def metadata(self, name: str) -> dict[str, Any]:
        there = self.server.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(there.data)),
            "generation": str(there.generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def listing(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.add(prefix + head + found)
            else:
                items.append(self.metadata(name))
        self.answer({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def one(self, path: str, query: dict[str, str]) -> None:
        """Read, move, copy or delete an object."""
        source, verb, target = re.fullmatch(r"([^/]+)(?:/(moveTo|rewriteTo/b/bucket)/o/([^/]+))?", path).groups()
        name = unquote(source)
        if name not in self.server.objects:
            raise _Refused(404, f"No such object: bucket/{name}")
        self.conditions(name, query)
        there = self.server.objects[name]
        if verb:
            self.server.put(unquote(target), there.data)
            if verb == "moveTo":
                del self.server.objects[name]
                return self.answer(self.metadata(unquote(target)))
            return self.answer({"done": True, "resource": self.metadata(unquote(target))})
        if self.command == "DELETE":
            del self.server.objects[name]
            return self.answer(b"", 204)
        if query.get("alt") != "media":
            return self.answer(self.metadata(name))
        given = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if given is None:
            return self.answer(there.data, x_goog_generation=str(there.generation))
        size = len(there.data)
        first = int(given[1]) if given[1] else max(0, size - int(given[2]))
        last = min(size - 1, int(given[2])) if given[1] and given[2] else size - 1
        if first > last:
            raise _Refused(416, "The requested range cannot be satisfied.")
        self.answer(
            there.data[first : last + 1],
            206,
            Content_Range=f"bytes {first}-{last}/{size}",
            x_goog_generation=str(there.generation),
        )

    def upload(self, query: dict[str, str], body: bytes) -> None:
        """Write an object: in one request, with its metadata, or in several parts."""
        kind, name = query.get("uploadType"), query.get("name")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            metadata, content = message_from_bytes(head + body).get_payload()
            name = json.loads(metadata.get_payload())["name"]
            # The bytes between the second header and the boundary.
            boundary = b"\n--" + message_from_bytes(head).get_boundary().encode()
            body = body.split(boundary)[1].split(b"\n\n", 1)[1]
        elif kind == "resumable" and "upload_id" not in query:
            self.conditions(name, query)
            number = str(len(self.server.uploads))
            self.server.uploads[number] = name, b""
            place = f"{self.server.settings['STORAGE_EMULATOR_HOST']}{self.path}&upload_id={number}"
            return self.answer({}, Location=place)
        elif kind == "resumable":
            name, before = self.server.uploads[query["upload_id"]]
            body = before + body
            self.server.uploads[query["upload_id"]] = name, body
            if self.headers["Content-Range"].endswith("/*"):
                return self.answer({}, 308, Range=f"bytes=0-{len(body) - 1}")
            if int(self.headers["Content-Range"].rpartition("/")[2]) > len(body):
                return self.answer({}, 308, Range=f"bytes=0-{len(body) - 1}")
        self.conditions(name, query)
        self.server.put(name, body)
        self.answer(self.metadata(name))
