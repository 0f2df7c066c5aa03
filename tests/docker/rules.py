"""What every image and every composition of containers has to keep to."""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
_SECRET = re.compile(r"\w*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE)\w*", re.IGNORECASE)
_NUMBERED = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(`RUN`, what follows) of each instruction, on one line."""
    lines = (line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def image_problems(dockerfile: str, extras: set[str]) -> Iterator[str]:
    """What is wrong with an image that is built in the root of the checkout.

    Args:
        dockerfile: its text.
        extras: those of `setup.py`.
    """
    found, stages = instructions(dockerfile), set()
    for word, rest in found:
        if word == "FROM":
            base, _, stage = rest.partition(" AS ")
            if base not in stages and not _NUMBERED.fullmatch(base):
                yield f"{base} is no version"
            stages.add(stage)
        if word in ("ARG", "ENV"):
            names = [name for name, _ in re.findall(r"(\w+)=(\S*)", rest)] or rest.split()[:1]
            yield from (f"{name} may be a secret" for name in names if is_secret(name))
        if word in ("COPY", "ADD"):
            yield from _copy_problems(rest, stages)
        if word == "RUN" and "pip install" in rest:
            if "--constraint constraints.txt" not in rest:
                yield "pip installs what it likes"
            asked = {extra for group in re.findall(r"\[([\w,-]+)\]", rest) for extra in group.split(",")}
            yield from (f"setup.py has no extra {extra}" for extra in sorted(asked - extras))
    users = [rest for word, rest in found if word == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        yield "it runs as root"
    if len(stages) < 2:
        yield "what builds it is in it"


def is_secret(name: str) -> bool:
    """Whether a variable is called like a secret; a path to one is none."""
    return bool(_SECRET.fullmatch(name)) and not name.endswith(("_PATH", "_FILE"))


def _copy_problems(rest: str, stages: set[str]) -> Iterator[str]:
    options = [word for word in rest.split() if word.startswith("--")]
    *sources, _ = (word for word in rest.split() if not word.startswith("--"))
    other = next((option.removeprefix("--from=") for option in options if option.startswith("--from=")), None)
    if other is not None:
        if other not in stages:
            yield f"there is no stage {other}"
        return
    for source in sources:
        if not (ROOT / source).exists():
            yield f"{source} is not there"
        elif not in_context(source):
            yield f".dockerignore leaves out {source}"


def in_context(source: str) -> bool:
    """Whether `.dockerignore` lets a file or folder of the checkout through."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        names = [source, *(str(parent) for parent in Path(source).parents)]
        if pattern.startswith("**/"):  # at any depth
            pattern, names = pattern.removeprefix("**/"), list(Path(source).parts)
        if any(fnmatch.fnmatch(name, pattern) for name in names if name != "."):
            kept = line.startswith("!")
    return kept


def compose_problems(composition: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a composition of a Ray cluster."""
    volumes = set(composition.get("volumes", {}))
    for name, service in composition["services"].items():
        environment = service.get("environment", {})
        if environment.get("RAY_AUTH_MODE") != "token" or not environment.get("RAY_AUTH_TOKEN_PATH"):
            yield f"{name}: anybody may use this Ray"
        yield from (f"{name}: {key} may be a secret" for key in environment if is_secret(key))
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name}: {port} is open to the network"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith((".", "/", "$")) and source not in volumes:
                yield f"{name}: there is no volume {source}"
        if service.get("privileged") or "ALL" not in service.get("cap_drop", []):
            yield f"{name}: it has more rights than it needs"
