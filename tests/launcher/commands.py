"""The command line, called as a function."""

import json
from typing import Any

import pytest

from launcher.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run a command that must succeed; what it says as JSON."""
    code = main([*map(str, arguments), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out.splitlines()[-1])


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail with one error; that error on one line."""
    assert main(list(map(str, arguments))) == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    return " ".join(said.split())
