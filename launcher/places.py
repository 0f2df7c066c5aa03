"""The folders that a run's YAML names: what a container has to be shown."""

from pathlib import Path

from data_tools.files import is_remote
from launcher.config import RunConfig
from launcher.environment import hub_cache, places_passed_on


def folders_named(config: RunConfig) -> tuple[Path, ...]:
    """The folders on this machine that the configuration names, those of variables that are passed on, and the cache of
    the hub; those that exist, absolute.

    Of a file or a glob it is the folder, of what is yet to be made the one in which it will be.
    """
    data, model = config.data, config.model
    named = [config.runs, data.store, config.checkpoint.copy_to, model.path, data.chat_template]
    named += [source.path for source in data.sources]
    named += [data.tokenizer if isinstance(data.tokenizer, str) else None]
    named += [model.lora.start_from if model.lora else None, config.train.zero.nvme_path, *places_passed_on()]
    found = [_nearest(Path(name).absolute()) for name in named if name and not is_remote(name)]
    found += [hub_cache()] if hub_cache().exists() else []
    return tuple(dict.fromkeys(folder for folder in found if folder != folder.parent))  # never the whole machine


def _nearest(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
