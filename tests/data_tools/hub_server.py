"""A small hub on loopback: what huggingface_hub and datasets ask of `HF_ENDPOINT`, answered from memory over HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """One repository: its commits, oldest first; `main` is the last, tags name others."""

    commits: dict[str, dict[str, bytes]]
    """Commit → path → content."""
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        names = {"main": list(self.commits)[-1], **self.tags, **{commit: commit for commit in self.commits}}
        return names.get(revision)


@dataclass
class Hub:
    """What the server has, and what it was asked."""

    repositories: dict[str, Repository]
    """`datasets/owner/name` or `models/owner/name` → repository."""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """`METHOD /path` of every request."""
    breaks_after: int | None = None
    """Bytes after which every download of a longer file breaks off."""


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve until the end of the block."""
    hub = Hub(repositories)

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        self.served.asked.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4:
            kind, name, rest = parts[1], "/".join(parts[2:4]), parts[4:]
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.served.repositories.get(f"{kind}/{name}")
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        elif (commit := repository.commit(rest[1] if len(rest) > 1 else "main")) is None:
            self._refuse(404, "RevisionNotFound")
        elif rest[:1] == ["resolve"]:
            self._send_file(commit, repository.commits[commit].get("/".join(rest[2:])))
        elif rest[:1] == ["tree"]:
            self._send_json(
                _tree(repository.commits[commit], "/".join(rest[2:]), "recursive=true" in self.path.lower())
            )
        elif rest[:1] == ["paths-info"]:
            self._send_json(_paths_info(repository.commits[commit], body))
        else:
            files = [{"rfilename": path} for path in sorted(repository.commits[commit])]
            facts = {"id": name, "sha": commit, "siblings": files, "private": False, "gated": False, "tags": []}
            self._send_json({**facts, "downloads": 0, "likes": 0, "disabled": False})

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, commit: str, content: bytes | None) -> None:
        if content is None:
            self._refuse(404, "EntryNotFound", commit)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            limit = self.served.breaks_after
            if limit is not None and len(content) > limit:
                self.wfile.write(content[start : start + limit])
                self.wfile.flush()
                self.connection.close()  # in the middle of the body
                self.close_connection = True
            else:
                self.wfile.write(content[start:])

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(path: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {"type": "directory", "oid": _oid(path.encode()), "size": 0, "path": path}
    return {"type": "file", "oid": _oid(content), "size": len(content), "path": path}


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, bytes | None] = {}
    for path, content in sorted(files.items()):
        if path.startswith(prefix):
            inner = path.removeprefix(prefix).split("/")
            folders = [prefix + "/".join(inner[:depth]) for depth in range(1, len(inner))]
            entries.update(dict.fromkeys(folders if recursive else folders[:1]))
            if recursive or len(inner) == 1:
                entries[path] = content
    return [_entry(path, content) for path, content in entries.items()]


def _paths_info(files: dict[str, bytes], body: bytes) -> list[dict[str, Any]]:
    try:
        paths = json.loads(body)["paths"]
    except ValueError:
        paths = parse_qs(body.decode()).get("paths", [])
    wanted = [path.strip("/") for path in ([paths] if isinstance(paths, str) else paths)]
    folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
    return [_entry(path, files.get(path)) for path in wanted if path in files or path in folders]
