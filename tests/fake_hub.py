"""A hub on this machine, which huggingface_hub talks to with its own code."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Files = Mapping[str, bytes]


class FakeHub:
    """Repositories that are served as the hub serves them.

    Attributes:
        requests: the files that were downloaded, as "repo/name".
        gated: repositories that need a login.
        sizes: file -> the size that the hub tells, where it is not the file's own.
    """

    def __init__(self) -> None:
        self._repos: dict[str, dict[str, Files]] = {}  # "models/user/name" -> commit -> files
        self._refs: dict[str, dict[str, str]] = {}  # "models/user/name" -> branch -> commit
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self.sizes: dict[str, int] = {}

    def commit(self, repo: str, files: Files, branch: str = "main", kind: str = "models") -> str:
        """Replace a branch's files. Returns the commit."""
        told = repr((repo, sorted(files.items()), branch)).encode()
        commit = hashlib.sha1(told).hexdigest()
        self._repos.setdefault(f"{kind}/{repo}", {})[commit] = dict(files)
        self._refs.setdefault(f"{kind}/{repo}", {})[branch] = commit
        return commit

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        api = parts[0] == "api"
        kind = "datasets" if "datasets" in parts[:2] else "models"
        user, name, *rest = [part for part in parts if part not in ("api", "models", "datasets")]
        key = f"{kind}/{user}/{name}"
        if key not in self._repos:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        if f"{user}/{name}" in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b""
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self._refs[key].get(revision, revision)
        if commit not in self._repos[key]:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Revision not found"}, b""
        files = self._repos[key][commit]
        if api:
            return 200, {"Content-Type": "application/json"}, json.dumps(self._info(user, name, commit, files)).encode()
        file = "/".join(rest[2:])
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"'}, files[file]

    def _info(self, user: str, name: str, commit: str, files: Files) -> dict[str, Any]:
        siblings = [
            {"rfilename": file, "size": self.sizes.get(file, len(data)), "blobId": hashlib.sha1(data).hexdigest()}
            for file, data in files.items()
        ]
        return {"_id": "0", "id": f"{user}/{name}", "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}


@contextmanager
def serving(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake hub that this process's huggingface_hub asks, with an empty cache of its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import reset_sessions

    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            if self.command == "GET" and "/resolve/" in self.path:
                hub.requests.append(
                    unquote(self.path).replace(f"/resolve/{headers.get('X-Repo-Commit')}", "").strip("/")
                )
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    with going_online(monkeypatch):
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
    reset_sessions()


@contextmanager
def going_online(monkeypatch: pytest.MonkeyPatch, online: bool = True) -> Iterator[None]:
    """HF_HUB_OFFLINE as if it had been set to 0 (or 1) before huggingface_hub was imported."""
    from huggingface_hub import constants
    from huggingface_hub.utils import reset_sessions

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", not online)
        reset_sessions()
        yield
    reset_sessions()
