"""The `shardtune` command: a function for each of its stages, from fetch to report, and for the quickstart."""

import argparse
import json
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from data_tools.errors import UserError
from data_tools.files import short_paths
from launcher import stages, train_stages
from launcher.backends.local import check_ranks, default_ranks
from launcher.cli_jobs import COMMANDS as JOB_COMMANDS
from launcher.cli_jobs import add_job_commands, run_job_command
from launcher.config import find_store, load_run
from launcher.environment import quiet_libraries
from launcher.pins import use_lock
from launcher.quickstart import RECIPE, quickstart
from sft.exits import STOPPED

_STAGES = {
    "fetch": "download data sets, tokenizer and model, and pin them in a lock: the rest needs no network",
    "prepare": "turn conversations into a token store",
    "plan": "pack the documents of the store into steps",
    "train": "fine-tune on this machine, one process per rank",
    "eval": "validation loss, accuracy and scores of answers of a checkpoint or a model",
    "export": "write the newest checkpoint as a Hugging Face folder",
    "generate": "answer prompts with the exported model",
    "report": "write report.html and loss.png",
}


_GOES_ON = {
    "fetch": "what was downloaded is kept, and the same command goes on",
    "prepare": "finished units of work are kept, and the same command goes on where it was",
    "train": "`shardtune train RUN --resume` goes on from the newest checkpoint, if there is one yet",
    "quickstart": "finished units of work are kept; where it has a checkpoint, `shardtune train RUN --resume` goes on",
}


def main(arguments: list[str] | None = None) -> int:
    """The `shardtune` command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parse(arguments)
    except UserError as error:
        return _failed(str(error), "--json" in arguments, exit_code=2)
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signal_number) is not signal.SIG_IGN:  # as SIGHUP below nohup
            signal.signal(signal_number, _leave)  # by an exception, so that ranks are stopped on the way out
    quiet_libraries()
    try:
        facts = _run(options, Console(stderr=options.json, soft_wrap=True))
    except train_stages.RunStopped as stopped:
        print(stopped, file=sys.stderr)
        if options.json:
            _print_json(stopped.facts)
        return STOPPED
    except KeyboardInterrupt:
        said = f"interrupted; {_GOES_ON.get(options.command, 'the same command starts again')}"
        print(said, file=sys.stderr)
        if options.json:
            _print_json({"error": said})
        return 130
    except Exception as error:  # the border to people: whatever it is, one line, and --debug for the rest
        text = str(error)
        if not isinstance(error, UserError):
            text = f"{type(error).__name__}: {' '.join(text.split())} (--debug shows where)"
        code = _failed(text, options.json, exit_code=1)
        if options.debug:
            raise
        return code
    if options.json:
        _print_json(facts)
    return 0


def _failed(text: str, as_json: bool, exit_code: int) -> int:
    """Say what is wrong, to people and, where it is asked for, to programs."""
    text = short_paths(text).encode(errors="backslashreplace").decode()  # a path or a row may have what is no UTF-8
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", style="red", markup=False, highlight=False)
    if as_json:
        _print_json({"error": text})
    return exit_code


def _print_json(facts: dict[str, Any]) -> None:
    # Half of a surrogate pair, which a reason may quote, is no UTF-8; its escape is the same in JSON.
    print(json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace").decode())


def _leave(signal_number: int, _: Any) -> None:
    sys.exit(128 + signal_number)


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    if options.command in JOB_COMMANDS:
        return run_job_command(options, console)
    if options.command == "inspect":
        store = find_store(options.config, options.overrides)
        return stages.inspect_stage(store, console, options.source, options.n, options.html)
    config = load_run(options.config, options.overrides)
    if options.command != "fetch":
        config = use_lock(config)
    match options.command:
        case "fetch":
            return stages.fetch_stage(config, console)
        case "prepare":
            if options.share is not None:
                return stages.prepare_share_stage(config, console, options.share)
            return stages.prepare_stage(config, console)
        case "plan":
            return stages.plan_stage(config, console, _ranks(options), gpu_memory=options.gpu_memory)
        case "train":
            return train_stages.train_stage(config, console, _ranks(options), options.resume)
        case "eval":
            asked = (options.model, options.best, options.step, options.answers, options.lm_eval)
            return train_stages.eval_stage(config, console, *asked)
        case "export":
            return train_stages.export_stage(config, console, options.best, options.adapter)
        case "generate":
            return train_stages.generate_stage(config, console, options.prompt)
        case "report":
            return train_stages.report_stage(config, console)
        case _:
            return quickstart(config, console, min(2, _ranks(options)))


class _Parser(argparse.ArgumentParser):
    """Leaves mistakes to `main`, which says them."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UserError(f"{message}; see {self.prog} --help")


def _ranks(options: argparse.Namespace) -> int:
    ranks: int = default_ranks() if options.ranks is None else options.ranks
    check_ranks(ranks)
    return ranks


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="shardtune", description="Supervised fine-tuning, from conversations to a model.")
    parser.add_argument("--version", action="version", version=f"shardtune {metadata.version('shardtune')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    first = commands.add_parser("quickstart", help="the whole way once, offline, in a few minutes", epilog=_OVERRIDES)
    first.set_defaults(config=RECIPE)
    for name, text in _STAGES.items():
        stage = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=_OVERRIDES)
        stage.add_argument("config", metavar="CONFIG|RUN", help="a YAML file, or the folder of a run")
    _add_inspect(commands)
    add_job_commands(commands, _OVERRIDES)
    for name, command in commands.choices.items():
        command.add_argument(
            "--json",
            action="store_true",
            help='print one JSON object as the last line of stdout; of a failure {"error": …}',
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name in ("quickstart", "plan", "train"):
            command.add_argument("--ranks", type=int, help="processes; by default one per GPU, without GPUs two")
    commands.choices["prepare"].add_argument(
        "--share",
        type=_share,
        metavar="I/N",
        help="every N-th unit of work only, from the I-th on (0/4 to 3/4), without Ray, while other nodes make the "
        "others; then the same command without --share finishes the store",
    )
    commands.choices["plan"].add_argument(
        "--gpu-memory",
        type=_above_zero,
        metavar="GIB",
        help="of each GPU that will train: say what fits; by default of the one here",
    )
    commands.choices["train"].add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    _add_eval_options(commands.choices["eval"])
    commands.choices["export"].add_argument(
        "--best", action="store_true", help="the checkpoint of the lowest validation loss (checkpoint.keep_best)"
    )
    commands.choices["export"].add_argument(
        "--adapter", action="store_true", help="the adapter of model.lora alone, for peft, in place of the merged model"
    )
    commands.choices["generate"].add_argument(
        "--prompt", action="append", default=[], help="may be given several times"
    )
    options, rest = parser.parse_known_args(arguments)
    options.overrides = [argument for argument in rest if not argument.startswith("-")]
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        commands.choices[options.command].error(f"unknown option {unknown[0]}")
    return options


def _add_eval_options(command: argparse.ArgumentParser) -> None:
    which = command.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="the checkpoint of the lowest validation loss")
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; by default the newest")
    which.add_argument("--model", metavar="FOLDER", help="another model, for example the one before training")
    command.add_argument(
        "--answers",
        type=_whole,
        default=0,
        metavar="N",
        help="answer N held-out conversations; scored by BLEU, ROUGE-L",
    )
    command.add_argument("--lm-eval", type=_names, default=[], metavar="TASKS", help="tasks of lm-eval: a,folder/b")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _share(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share I/N with I from 0 to N - 1, for example 0/4")
    return int(number), int(of)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _names(text: str) -> list[str]:
    if not all(names := text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def _add_inspect(commands: Any) -> None:
    text = "show a token store: totals, lengths, documents with what is learnt of them"
    command = commands.add_parser("inspect", help=text, description=text.capitalize() + ".", epilog=_OVERRIDES)
    command.add_argument("config", metavar="STORE|RUN|CONFIG", help="the folder of a store or run, or a YAML file")
    command.add_argument("--source", metavar="NAME", help="only this source")
    command.add_argument(
        "--n", type=int, default=5, metavar="N", help="documents to show, spread evenly (5); 0: totals"
    )
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")


_OVERRIDES = "Any number of section.key=value follow and replace what the file says: train.learning_rate=1e-5"
