"""Hugging Face's Jobs on loopback: what HfApi asks of `HF_ENDPOINT`, answered over HTTP; a container is a process here.

The image is this environment, a bucket is the folder of its mount path, which must be one of this machine.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).parents[2]
TOKEN = "hf_planted"
HARDWARE = [("cpu-basic", None), ("a10g-largex2", "2")]


@dataclass
class Container:
    """A job: what was asked, and the process."""

    asked: dict[str, Any]
    process: subprocess.Popen[bytes] | None
    cancelled: bool = False

    @property
    def stage(self) -> str:
        """As the hub calls it."""
        if self.cancelled:
            return "CANCELED"
        code = self.process.poll() if self.process else None
        return "RUNNING" if code is None else "ERROR" if code else "COMPLETED"


@dataclass
class Jobs:
    """What the server has, and whether it starts what it is asked for."""

    folder: Path
    runs: bool
    containers: dict[str, Container] = field(default_factory=dict)
    url: str = ""

    def start(self, asked: dict[str, Any]) -> str:
        """Start a job; returns its id."""
        name = f"{len(self.containers):024x}"
        process = None
        if self.runs:
            environment = {**asked["environment"], **asked.get("secrets", {}), "PATH": os.environ["PATH"]}
            environment |= {"PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
            for volume in asked["volumes"]:
                Path(volume["mountPath"]).mkdir(exist_ok=True)
            with open(self.folder / f"{name}.log", "wb") as log:
                command = [sys.executable, *asked["command"][1:]]
                process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self.containers[name] = Container(asked, process)
        return name


@contextmanager
def serving_jobs(folder: Path, runs: bool) -> Iterator[Jobs]:
    """Serve until the end of the block, and end what still runs then."""
    jobs = Jobs(folder, runs)

    class Handler(_Handler):
        served = jobs

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    jobs.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield jobs
    finally:
        server.shutdown()
        server.server_close()
        for container in jobs.containers.values():
            if container.process and container.process.poll() is None:
                container.process.kill()
                container.process.wait()


class _Handler(BaseHTTPRequestHandler):
    served: Jobs
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match self._parts():
            case _ if not self._is_known():
                self._send(401, {"error": "Invalid username or password."})
            case ["whoami-v2"]:
                self._send(200, {"type": "user", "name": "me"})
            case ["jobs", "hardware"]:
                self._send(200, [_hardware(*each) for each in HARDWARE])
            case ["jobs", "me"]:
                labels = dict(label.split("=", 1) for label in parse_qs(url.query).get("label", []))
                found = [
                    self._info(name)
                    for name, each in self.served.containers.items()
                    if labels.items() <= each.asked["labels"].items()
                ]
                self._send(200, found)
            case ["jobs", namespace] if namespace != "me":
                self._send(403, {"error": "You may not see these jobs"})
            case ["jobs", "me", name] if name in self.served.containers:
                self._send(200, self._info(name))
            case ["jobs", "me", name, "logs"] if name in self.served.containers:
                self._send_log(name)
            case _:
                self._send(404, {"error": "Job not found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self._parts():
            case _ if not self._is_known():
                self._send(401, {"error": "Invalid username or password."})
            case ["jobs", "me"]:
                self._send(200, self._info(self.served.start(json.loads(body))))
            case ["jobs", "me", name, "cancel"] if name in self.served.containers:
                container = self.served.containers[name]
                container.cancelled = True
                if container.process:
                    container.process.terminate()
                self._send(200, {})
            case _:
                self._send(403, {"error": "You may not start jobs here"})

    def _parts(self) -> list[str]:
        return urlsplit(self.path).path.strip("/").split("/")[1:]

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _info(self, name: str) -> dict[str, Any]:
        container = self.served.containers[name]
        shown = {key: container.asked.get(key) for key in ("command", "environment", "flavor", "labels", "volumes")}
        status = {"stage": container.stage, "message": None}
        owner = {"id": "0", "name": "me", "type": "user"}
        return {"id": name, "createdAt": "2026-01-01T00:00:00.000Z", "status": status, "owner": owner, **shown}

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_log(self, name: str) -> None:
        """All there is, as events; the hub goes on while the job runs, and the client waits no longer than it asks."""
        path = self.served.folder / f"{name}.log"
        lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z"
        events = [json.dumps({"data": line, "timestamp": now}) for line in ["===== Job started", *lines]]
        body = "".join(f"data: {event}\n\n" for event in events).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _hardware(name: str, gpus: str | None) -> dict[str, Any]:
    gpu = {"type": "gpu", "model": "A10G", "quantity": gpus, "vram": "24 GB", "manufacturer": "Nvidia"}
    price = {"unitCostMicroUSD": 100, "unitCostUSD": 0.0001, "unitLabel": "minute"}
    facts = {"name": name, "prettyName": name.upper(), "cpu": "2 vCPU", "ram": "16 GB", "ephemeralStorage": "20 GB"}
    return {**facts, **price, "accelerator": gpu if gpus else None}
