"""The run as a whole: one YAML, strict, with overrides from the command line."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from data_tools.config import DataConfig, Location, Section
from data_tools.errors import UserError
from data_tools.files import is_data_file, is_hub_id, is_remote
from data_tools.mirror import local_folder
from data_tools.store import MANIFEST, write_text
from launcher.cluster import ClusterConfig
from launcher.mistakes import explain
from launcher.profiles import find_profile, over, with_profile
from sft.config import TrainConfig
from sft.config_model import ModelConfig
from sft.config_watch import CheckpointConfig, EvaluateConfig, TrackConfig

RUN_FILE = "run.yaml"
_PROFILE = "cluster.profile="


class RunConfig(Section):
    """One run: what is learnt from what, and how."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["my-run"])
    """The run's folder is `runs/NAME`: letters, digits, `.`, `_`, `-`."""
    runs: Location = "runs"
    """The folder of all runs."""
    model: ModelConfig = ModelConfig()
    """Needed from `train` on."""
    data: DataConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = ()
    """Where metrics go besides metrics.jsonl: wandb, trackio, tensorboard, mlflow."""
    cluster: ClusterConfig = ClusterConfig()
    """Where `launch` runs it."""

    @property
    def folder(self) -> Path:
        """`runs/NAME`."""
        return Path(self.runs) / self.name

    @property
    def store(self) -> Path:
        """The folder of the token store; for one in an object store, of its copy here."""
        return local_folder(self.data.store) if self.data.store else self.folder / "tokens"


def load_run(name: str, overrides: list[str]) -> RunConfig:
    """Load a YAML file, or the `run.yaml` of a run's folder, with `section.key=value` overrides.

    Raises:
        UserError: a line that names the file, the key, and the nearest valid one.
    """
    path = _find(name)
    values = _read_yaml(path)
    if Path(name).is_dir() or not Path(name).exists():
        # The folder of a run: it may have been moved since, and its store with it.
        values |= {"runs": str(path.parent.parent), "name": path.parent.name}
        values["data"]["store"] = values["data"]["store"] or str(path.parent / "tokens")
        # All is said there, so that below it a profile would change nothing: one that is asked for now is above it.
        for override in (override for override in overrides if override.startswith(_PROFILE)):
            above = with_profile({"profile": override.removeprefix(_PROFILE)}, override)
            values["cluster"] = over(above, values.get("cluster") or {})
        overrides = [override for override in overrides if not override.startswith(_PROFILE)]
    for override in overrides:
        _apply(values, override)
    if "cluster" in values:
        values["cluster"] = with_profile(values["cluster"], f"{path}: cluster.profile")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, values, RunConfig)}") from None


def is_run(name: str) -> bool:
    """Whether a name is that of a run, or of its YAML file, and not that of a cluster profile."""
    return any((Path(folder) / name / RUN_FILE).is_file() for folder in ("", "runs")) or (
        Path(name).is_file() and "data" in _read_yaml(Path(name))
    )


def load_profile(name: str, overrides: list[str]) -> ClusterConfig:
    """The cluster that a profile describes; overrides are written as for a run, `cluster.nodes=4`.

    Raises:
        UserError: a line that names the file, the key, and the nearest valid one.
    """
    values: dict[str, Any] = {"cluster": {"profile": name}}
    for override in overrides:
        _apply(values, override)
    cluster = with_profile(values["cluster"], "PROFILE")
    try:
        return ClusterConfig.model_validate(cluster)
    except ValidationError as error:
        raise UserError(f"{find_profile(name)}: {explain(error, cluster, ClusterConfig)}") from None


def find_store(name: str, overrides: list[str]) -> Path:
    """The token store that a name means: its own folder or URI, or the store of a run or of a YAML file.

    Raises:
        UserError: the name is none of these, or overrides are given to a store itself, which they cannot change.
    """
    if is_remote(name):
        return local_folder(name)
    # A run that is only prepared has a store, but no run.yaml yet.
    unplanned = [run / "tokens" for run in (Path(name), Path("runs") / name) if not (run / RUN_FILE).exists()]
    for folder in (Path(name), *unplanned):
        if (folder / MANIFEST).exists() or (folder / "shards").is_dir():  # finished or not: reading it will tell
            if overrides:
                raise UserError(f"{overrides[0]}: {folder} is a token store, which no override changes; leave it out")
            return folder
    if Path(name).is_dir() and not (Path(name) / RUN_FILE).exists():
        raise UserError(
            f"{name} is no finished token store ({MANIFEST}) and no run ({RUN_FILE}); see shardtune prepare"
        )
    return load_run(name, overrides).store


def save_run(config: RunConfig) -> None:
    """Write the fully resolved configuration into the run's folder: paths are absolute, so it loads from anywhere."""
    config.folder.mkdir(parents=True, exist_ok=True)
    values = config.model_dump(mode="json")
    values["runs"] = str(Path(config.runs).absolute())
    inside = config.store.absolute() == (config.folder / "tokens").absolute()
    if not is_remote(config.data.store or ""):
        values["data"]["store"] = None if inside else str(config.store.absolute())
    for section, key in (("model", "path"), ("data", "tokenizer"), ("data", "chat_template")):
        values[section][key] = _absolute(values[section][key])
    if lora := values["model"]["lora"]:
        lora["start_from"] = _absolute(lora["start_from"], always=True)
    copies = values["checkpoint"]["copy_to"]
    values["checkpoint"]["copy_to"] = _absolute(copies, always=not is_remote(copies or ""))
    for source in values["data"]["sources"]:
        source["path"] = _absolute(source["path"], always=not _is_elsewhere(source["path"]))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(config.folder / RUN_FILE, text)  # whole or not at all: a run with checkpoints needs it


def _absolute(value: Any, always: bool = False) -> Any:
    """Local paths become absolute; what does not exist here may be the id of a hub."""
    return str(Path(value).absolute()) if isinstance(value, str) and (always or Path(value).exists()) else value


def _is_elsewhere(value: str | None) -> bool:
    """A URI, or what can only be a data set on the hub."""
    return value is not None and (is_remote(value) or is_hub_id(value))


def _find(name: str) -> Path:
    for path in (Path(name), Path(name) / RUN_FILE, Path("runs") / name / RUN_FILE):
        if path.is_file():
            return path
    raise UserError(f"{name} is neither a configuration file nor the folder of a run (with {RUN_FILE})")


def _read_yaml(path: Path) -> dict[str, Any]:
    if _has_rows(path):
        raise UserError(
            f"{path} is a file of rows, not a configuration; name it in `data.sources` of a YAML file, and give that"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UserError(f"{path}: line {line}: {error.problem}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text; give the YAML file of a run, or a run's folder") from None
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as `model:` and `data:`")
    return values


def _has_rows(path: Path) -> bool:
    """Whether it is a data file, given in place of the file that names it; a configuration may be one JSON object."""
    if path.suffix != ".json":
        return is_data_file(path.name)
    try:
        return not isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except ValueError:
        return True


class _StrictLoader(yaml.SafeLoader):
    """A key given twice is an error: YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value`; numbers in the path count list items from 0."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"{override}: overrides look like section.key=value")
    *parents, last = path.split(".")
    place: Any = values
    try:
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        if isinstance(place, list):
            place[int(last)] = yaml.safe_load(text)
        else:
            place[last] = yaml.safe_load(text)
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UserError(f"{override}: there is no place {path} in this configuration") from None
    except yaml.YAMLError:
        raise UserError(f"{override}: {text} is not a YAML value; quote it") from None
