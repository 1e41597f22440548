"""Servers on 127.0.0.1 that answer as the hub, Cloud Storage and S3 do, as far as we use them.

The real client libraries talk to them; what they asked for is the oracle of `test_hub.py` and
`test_remote.py`. They run in threads of the test process and keep everything in memory. `FOLDER` is
what they hold: the golden model and files beside it.
"""

import contextlib
import dataclasses
import email.utils
import hashlib
import http.server
import json
import re
import socket
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

import fsspec
import jax
import numpy as np
import pytest
from etils.epath import backend
from fsspec.registry import _registry

from jax_mdlm import conversion

GOLDEN = Path(__file__).parent.parent / "data" / "llada_random_mha"
WEIGHTS = {path.name: path.read_bytes() for path in GOLDEN.glob("*.safetensors")}
KEPT = {
    "config.json": (GOLDEN / "config.json").read_bytes(),
    "tokenizer.json": b'{"kept": true}',
    "tokenizer_config.json": b"{}",
    "modeling_llada.py": b"raise SystemExit('never run')\n",
    "LICENSE": b"MIT",
}
INDEX = {"model.safetensors.index.json": (GOLDEN / "model.safetensors.index.json").read_bytes()}
FOLDER = WEIGHTS | KEPT | INDEX

_MODIFIED = 1_700_000_000  # seconds; of every object


def assert_golden(path: str) -> None:
    """The parameters that `path` holds are those of the golden folder, bit by bit."""
    (params, config), (wanted, same) = conversion.load(path), conversion.load(GOLDEN)
    assert config == same
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asked for.

    Attributes:
      method: GET, HEAD, PUT, POST or DELETE.
      path: Decoded, without the query.
      query: Decoded.
      headers: Names in lower case.
      body: Sent with it.
      span: First byte and the one behind the last, where a range was asked for.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    span: tuple[int, int | None] | None


@dataclasses.dataclass(frozen=True)
class Reply:
    """A status, a body, and headers beside its length."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Server:
    """Answers requests through `answer` and keeps them in `log`, in order."""

    def __init__(self) -> None:
        self.log: list[Request] = []
        self.url = ""

    def answer(self, request: Request) -> Reply:
        raise NotImplementedError

    def asked(self, method: str, name: str) -> list[Request]:
        """Requests of a method whose path ends so."""
        return [seen for seen in self.log if seen.method == method and seen.path.endswith(name)]


_Served = TypeVar("_Served", bound=Server)


@contextlib.contextmanager
def serving(server: _Served) -> Iterator[_Served]:
    """Runs a server on a free port of 127.0.0.1; its address is `server.url`."""
    connections: set[socket.socket] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as real servers keep them
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            connections.add(self.connection)

        def finish(self) -> None:
            connections.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

        def handle_any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            path, _, query = self.path.partition("?")
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(
                self.command,
                urllib.parse.unquote(path),
                dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
                headers,
                self.rfile.read(size),
                _span(headers.get("range")),
            )
            server.log.append(request)
            reply = server.answer(request)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Listener(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Clients may close a connection before they have read the answer."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    with Listener(("127.0.0.1", 0), Handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
            for connection in list(connections):  # else clients go on talking to a closed server
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _span(header: str | None) -> tuple[int, int | None] | None:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    return (int(found[1]), int(found[2]) + 1 if found[2] else None) if found else None


def _content(request: Request, content: bytes, headers: Mapping[str, str]) -> Reply:
    """The object, or the range of it that is asked for."""
    if request.span is None:
        return Reply(200, content, headers)
    first, last = request.span[0], min(request.span[1] or len(content), len(content))
    if first >= len(content):
        return Reply(416, headers={"Content-Range": f"bytes */{len(content)}"})
    shown = {"Content-Range": f"bytes {first}-{last - 1}/{len(content)}"}
    return Reply(206, content[first:last], {**headers, **shown})


def _json(value: object, status: int = 200, **headers: str) -> Reply:
    return Reply(
        status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers}
    )


class Hub(Server):
    """The hub with one repository, of models or datasets: a description, its tree, its files."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(
        self, name: str, revisions: set[str], files: Mapping[str, bytes], kind: str = "models"
    ) -> None:
        super().__init__()
        self.kind = kind
        self.name, self.revisions, self.files = name, {*revisions, self.commit}, files

    def answer(self, request: Request) -> Reply:
        described = f"/api/{self.kind}/{self.name}/"
        if request.path.startswith(described):
            kind, revision = request.path.removeprefix(described).split("/")
            if revision not in self.revisions:
                return self._error("RevisionNotFound", f"Invalid rev id: {revision}")
            if kind == "tree":
                return _json([self._entry(path) for path in self.files])
            siblings = [{"rfilename": path} for path in self.files]
            return _json({"id": self.name, "sha": self.commit, "siblings": siblings})
        folder = "" if self.kind == "models" else f"/{self.kind}"
        start = f"{folder}/{self.name}/resolve/{self.commit}/"
        content = self.files.get(request.path.removeprefix(start))
        if content is None:
            return self._error("RepoNotFound", "Repository not found")
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return _content(request, content, {"ETag": etag, "X-Repo-Commit": self.commit})

    def _entry(self, path: str) -> dict[str, object]:
        content = self.files[path]
        digest = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": digest}

    def _error(self, code: str, text: str) -> Reply:
        return _json({"error": text}, 404, **{"X-Error-Code": code, "X-Error-Message": text})


class Store(Server):
    """Objects of one bucket; subclasses speak a protocol.

    Attributes:
      objects: By key.
      written: Keys in the order in which they were written.
      refusal: What is answered to everything, if anything.
    """

    def __init__(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        super().__init__()
        self.bucket, self.objects = bucket, dict(objects)
        self.written: list[str] = []
        self.refusal: Reply | None = None

    def put(self, key: str, content: bytes) -> None:
        self.objects[key] = content
        self.written.append(key)

    def listing(self, query: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Keys under a prefix, and the common prefixes up to a delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        keys, groups = [], set()
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                groups.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        return keys, sorted(groups)


class CloudStorage(Store):
    """The JSON API of Google Cloud Storage, as gcsfs and TensorStore use it."""

    def answer(self, request: Request) -> Reply:
        if self.refusal is not None:
            return self.refusal
        found = re.fullmatch(
            r"/(?P<kind>upload/|download/)?storage/v1/b/(?P<bucket>[^/]+)(/o(/(?P<key>.+))?)?",
            request.path,
        )
        if found is None or found["bucket"] != self.bucket:
            return _json({"error": {"code": 404, "message": f"no {request.path}"}}, 404)
        if found["kind"] == "upload/":
            return self._upload(request)
        if found["key"] is None:
            return self._list(request) if request.path.endswith("/o") else _json({"kind": "bucket"})
        # Clients rename by a move, older ones by a copy.
        places = re.fullmatch(r"(.+?)(/(moveTo|rewriteTo/b/[^/]+)/o/(?P<new>.+))?", found["key"])
        assert places is not None
        source = places[1]
        if source not in self.objects:
            return _json({"error": {"code": 404, "message": f"no object {source}"}}, 404)
        if places["new"]:
            self.put(places["new"], self.objects[source])
            if places[3] == "moveTo":
                del self.objects[source]
                return _json(self._entry(places["new"]))
            return _json({"done": True, "resource": self._entry(places["new"])})
        if request.method == "DELETE":
            del self.objects[source]
            return Reply(204)
        if request.query.get("alt") == "media":
            entry = self._entry(source)
            return _content(request, self.objects[source], {"X-Goog-Generation": entry["etag"]})
        return _json(self._entry(source))

    def _entry(self, key: str) -> dict[str, str]:
        number = str(1 + self.written.count(key))
        return {
            "kind": "storage#object",
            "name": key,
            "bucket": self.bucket,
            "size": str(len(self.objects[key])),
            "generation": number,
            "metageneration": "1",
            "etag": number,
            "updated": "2024-01-01T00:00:00.000Z",
            "timeCreated": "2024-01-01T00:00:00.000Z",
        }

    def _list(self, request: Request) -> Reply:
        keys, groups = self.listing(request.query)
        return _json({"items": [self._entry(key) for key in keys], "prefixes": groups})

    def _upload(self, request: Request) -> Reply:
        kind, key = request.query.get("uploadType"), request.query.get("name", "")
        if kind == "media":
            self.put(key, request.body)
        elif "upload_id" not in request.query:
            place = f"{self.url}{request.path}?uploadType=resumable&name="
            return _json({}, Location=f"{place}{urllib.parse.quote(key)}&upload_id=1")
        else:
            self.put(key, request.body)  # nothing here is so large that it comes in parts
        return _json(self._entry(key))


class S3(Store):
    """The REST API of S3 with the bucket in the path, as s3fs uses it for small objects."""

    def answer(self, request: Request) -> Reply:
        bucket, _, key = request.path.removeprefix("/").partition("/")
        if bucket != self.bucket:
            return Reply(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        if not key:
            return Reply(200, self._list(request) if request.method == "GET" else b"")
        if request.method == "PUT":
            self.put(key, request.body)
            return Reply(200, headers={"ETag": '"1"'})
        if key not in self.objects:
            return Reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        modified = email.utils.formatdate(_MODIFIED, usegmt=True)
        return _content(request, self.objects[key], {"ETag": '"1"', "Last-Modified": modified})

    def _list(self, request: Request) -> bytes:
        keys, groups = self.listing(request.query)
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            '<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>"1"</ETag></Contents>'
            for key in keys
        )
        entries += "".join(
            f"<CommonPrefixes><Prefix>{escape(group)}</Prefix></CommonPrefixes>" for group in groups
        )
        return f"<ListBucketResult>{entries}</ListBucketResult>".encode()


# --- stores as clients find them ---


def forget_clients() -> None:
    """Clients and their listings are kept by fsspec and, under its own key, by etils."""
    for name in ("gs", "gcs", "s3"):
        if name in fsspec.registry:
            fsspec.get_filesystem_class(name).clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()


@contextlib.contextmanager
def gcs_store(
    objects: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CloudStorage]:
    """A bucket `gs://bucket`; skips the test where its client is not installed."""
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed (extra `cloud`)")
    for name in ("gs", "gcs"):  # its newer class asks Google of which kind the bucket is
        monkeypatch.setitem(_registry, name, gcsfs.core.GCSFileSystem)
    with serving(CloudStorage("bucket", objects)) as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.url)  # gcsfs
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", store.url)
        forget_clients()
        yield store
    forget_clients()


@contextlib.contextmanager
def s3_store(objects: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A bucket `s3://bucket`; skips the test where its client is not installed."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra `cloud`)")
    with serving(S3("bucket", objects)) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        forget_clients()
        yield store
    forget_clients()
