"""A real API server of Kubernetes with etcd, on loopback, without nodes; all tests here are marked `kubernetes`."""

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
PROGRAMS = Path(os.environ.get("SHARDTUNE_KUBERNETES", "~/.cache/shardtune/kubernetes")).expanduser()
DEFINITION = HERE.parent / "launcher" / "rayjob_crd.yaml"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kubernetes)


@dataclass(frozen=True)
class Kubernetes:
    """What kubectl needs to know: of somebody who may do everything, and of one who may do nothing."""

    admin: Path
    stranger: Path

    def ctl(self, *arguments: str, given: str | dict[str, Any] | None = None) -> str:
        """Run kubectl; a resource that is given, or its text, is its standard input."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env={**os.environ, "KUBECONFIG": str(self.admin)},
            input=json.dumps(given) if isinstance(given, dict) else given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def bare_kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """Without KubeRay."""
    missing = [name for name in ("etcd", "kube-apiserver") if not (PROGRAMS / name).exists()]
    if missing or shutil.which("kubectl") is None:
        pytest.skip("no API server or no kubectl: run `make test-kubernetes`")
    folder = tmp_path_factory.mktemp("kubernetes")
    folder.chmod(0o700)
    tokens = {"admin": secrets.token_hex(16), "stranger": secrets.token_hex(16)}
    groups = {"admin": "system:masters", "stranger": ""}
    lines = [f'{token},{user},{user},"{groups[user]}"' for user, token in tokens.items()]
    (folder / "tokens.csv").write_text("\n".join(lines) + "\n", "utf-8")
    key = folder / "key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    client, peer, port = free_port(), free_port(), free_port()
    etcd = f"http://127.0.0.1:{client}"
    programs = {
        "etcd": {
            "data-dir": folder / "etcd",
            "listen-client-urls": etcd,
            "advertise-client-urls": etcd,
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
        },
        "kube-apiserver": {
            "etcd-servers": etcd,
            "bind-address": "127.0.0.1",
            "secure-port": port,
            "insecure-port": 0,
            "cert-dir": folder / "certificates",
            "token-auth-file": folder / "tokens.csv",
            "authorization-mode": "RBAC",
            "service-account-issuer": "https://test",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "service-cluster-ip-range": "10.0.0.0/24",
            "disable-admission-plugins": "ServiceAccount",  # accounts are made by a controller, which is not here
        },
    }
    processes = []
    try:
        for name, options in programs.items():
            command = [str(PROGRAMS / name), *(f"--{option}={value}" for option, value in options.items())]
            with open(folder / f"{name}.log", "wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        _wait(f"https://127.0.0.1:{port}/readyz", tokens["admin"], folder)
        yield Kubernetes(*(_config(folder / user, port, token) for user, token in tokens.items()))
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


def _wait(url: str, token: str, folder: Path) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(request, context=context, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, (folder / "kube-apiserver.log").read_text("utf-8")[-3000:]
            time.sleep(0.3)


def _config(path: Path, port: int, token: str) -> Path:
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    values = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


@pytest.fixture(scope="session")
def kubernetes(bare_kubernetes: Kubernetes) -> Kubernetes:
    """With the definition of RayJob, and a namespace that has a claim and keys."""
    ctl = bare_kubernetes.ctl
    ctl("create", "--filename", str(DEFINITION))
    deadline = time.monotonic() + 30
    while "rayjobs" not in ctl("api-resources", "--output=name", "--api-group=ray.io"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ctl("create", "namespace", "research")
    ctl("create", "--filename=-", given=claim("research"))
    ctl("create", "secret", "generic", "keys", "--namespace=research", "--from-literal=WANDB_API_KEY=planted")
    return bare_kubernetes


def claim(namespace: str) -> dict[str, Any]:
    """The claim `runs`."""
    metadata = {"name": "runs", "namespace": namespace}
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
