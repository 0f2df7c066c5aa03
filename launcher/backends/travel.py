"""What travels with a run to machines that do not share its folder."""

from pathlib import Path
from shlex import join

import yaml

from data_tools.errors import UserError
from data_tools.lock import LOCK_FILE
from launcher.config import RUN_FILE
from launcher.jobs import Chain


def files_of(chain: Chain) -> dict[str, Path]:
    """The run's YAML and lock, and the modules of its functions: name there → file here."""
    files = {name: chain.folder / name for name in (RUN_FILE, LOCK_FILE)}
    sources = yaml.safe_load((chain.folder / RUN_FILE).read_text("utf-8"))["data"]["sources"]
    for module in {source["function"].partition(":")[0] for source in sources if source["function"]}:
        files[f"{module}.py"] = chain.working_folder / f"{module}.py"
    # A module that is no file here is part of a package, which the machines must have.
    return {name: path for name, path in files.items() if path.exists()}


def driver(chain: Chain, python: str, config: str, runs: str | None) -> str:
    """The command that does all stages there, for a shell.

    Args:
        config: the run's YAML there.
        runs: the folder of runs there; None: each machine has its own.

    Raises:
        UserError: a sweep is asked for.
    """
    one_run(chain)
    stages = ",".join(job.stage for job in chain.jobs)
    where = ["--runs", runs] if runs else []
    return join([python, "-m", "launcher.ray_driver", config, *where, "--stages", stages])


def one_run(chain: Chain) -> None:
    """Where one job does everything, it is for one run.

    Raises:
        UserError: a sweep is asked for.
    """
    if len(chain.runs) > 1:
        raise UserError("--sweep needs a scheduler with arrays (--on slurm); launch each run with name=NAME")
