"""The commands about jobs on other machines: their options, and what is called."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.errors import UserError
from launcher.config import is_run, load_profile, load_run
from launcher.jobs import STAGES

COMMANDS = {
    "launch": "submit the chain fetch, prepare, train, export to Slurm, Ray, Kubernetes, HF Jobs, or start it here",
    "status": "the jobs of a run: their states, how far they are, how long they will take",
    "logs": "the output of a run's jobs",
    "cancel": "end the jobs of a run",
    "doctor": "check this machine, and with a profile the cluster and its nodes",
}


def add_job_commands(commands: Any, epilog: str) -> None:
    """Add the commands to the parser."""
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=epilog)
        if name == "doctor":
            command.add_argument(
                "config", metavar="PROFILE|CONFIG", nargs="?", help="a cluster profile, or a YAML file"
            )
            continue
        what = "CONFIG|RUN" if name == "launch" else "RUN"
        command.add_argument("config", metavar=what, help="a YAML file, or the folder or name of a run")
    launch = commands.choices["launch"]
    launch.add_argument("--on", required=True, choices=("slurm", "ray", "local"), help="where")
    launch.add_argument("--profile", metavar="NAME", help="the cluster profile; the same as cluster.profile=NAME")
    launch.add_argument("--stages", metavar="LIST", help=f"of {','.join(STAGES)}; by default all")
    launch.add_argument(
        "--dry-run", action="store_true", help="write and show what would be submitted, and submit it not"
    )
    launch.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="a run for each value, of several settings for each combination, over one store",
    )
    logs = commands.choices["logs"]
    logs.add_argument("--stage", metavar="STAGE", help="only this one")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the jobs are over")


def run_job_command(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Do what is asked."""
    from launcher import watch

    if options.command not in ("launch", "doctor") and options.overrides:
        raise UserError(f"{options.overrides[0]}: {options.command} takes no settings")
    match options.command:
        case "status":
            return watch.status_stage(options.config, console)
        case "logs":
            return watch.logs_stage(options.config, options.stage, options.follow, console)
        case "cancel":
            return watch.cancel_stage(options.config, console)
        case "doctor":
            return _doctor(options, console)
        case _:
            return _launch(options, console)


def _launch(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    from launcher.launch import launch
    from launcher.sweep import sweep_points

    overrides = list(options.overrides)
    if options.profile:
        overrides.append(f"cluster.profile={options.profile}")
    config = load_run(options.config, overrides)
    points = sweep_points(options.config, overrides, options.sweep) if options.sweep else [config]
    stages = tuple(options.stages.split(",")) if options.stages else STAGES
    return launch(config, points, options.on, stages, options.dry_run, console)


def _doctor(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    from launcher.doctor import doctor

    name = options.config
    if name is None:
        return doctor(None, Path("runs"), console)
    if is_run(name):
        config = load_run(name, options.overrides)
        return doctor(config.cluster, Path(config.runs), console)
    return doctor(load_profile(name, options.overrides), Path("runs"), console)
