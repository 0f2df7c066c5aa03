"""The profile of a site, below the `cluster` section of a run.

~/.config/shardtune/clusters/NAME.yaml     a user's own, found first
configs/clusters/NAME.yaml                 shipped examples
"""

import os
from pathlib import Path
from typing import Any

import yaml

from data_tools.errors import UserError

SHIPPED = Path(__file__).parent.parent / "configs" / "clusters"


def with_profile(section: Any, where: str) -> Any:
    """A `cluster` section with what its profile says of all that it does not say itself.

    Args:
        section: as it stands in the YAML.
        where: the file of the section, for messages.

    Raises:
        UserError: there is no such profile, or profiles inherit from each other in a circle.
    """
    seen: list[str] = []
    while isinstance(section, dict) and (name := section.get("profile")) is not None:
        if name in seen:
            raise UserError(f"cluster.profile: {' → '.join([*seen, name])} go in a circle")
        seen.append(name)
        path = find_profile(str(name), where)
        profile = read_profile(path)
        section = over({key: value for key, value in section.items() if key != "profile"}, profile)
    return section


def find_profile(name: str, where: str = "cluster.profile") -> Path:
    """The file of a profile.

    Raises:
        UserError: there is none.
    """
    folders = [user_profiles(), SHIPPED]
    candidates = [Path(name)] if name.endswith((".yaml", ".yml")) else [folder / f"{name}.yaml" for folder in folders]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"{where}: there is no cluster profile {name}; known are {', '.join(known)}; "
        f"write {folders[0] / (Path(name).stem + '.yaml')}"
    )


def user_profiles() -> Path:
    """The folder of a user's own profiles."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "shardtune" / "clusters"


def over(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    """`upper` where it says something, `lower` where not; sections are merged, lists are replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        merged[key] = over(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def read_profile(path: Path) -> dict[str, Any]:
    """A profile as it stands in its file.

    Raises:
        UserError: it is no YAML of settings.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings of a cluster, such as `partition: gpu`")
    return values
