"""Several runs over one token store that differ in how they train: `--sweep train.learning_rate=1e-5,2e-5`."""

import json
from itertools import product

import yaml

from data_tools.errors import UserError
from launcher.config import RunConfig, load_run

_MOST = 1000


def sweep_points(name: str, overrides: list[str], sweep: list[str]) -> list[RunConfig]:
    """The runs `NAME-0`, `NAME-1`, … of all combinations of values; the last setting changes fastest.

    Args:
        name: the configuration file.
        overrides: those of all runs.
        sweep: settings with their values, `key=value,value`.

    Raises:
        UserError: a setting is not written so, decides the tokens, or there are too many runs.
    """
    settings = [_values(each) for each in sweep]
    combinations = list(product(*settings))
    if len(combinations) > _MOST:
        raise UserError(f"--sweep: these are {len(combinations):,} runs; at most {_MOST:,} are launched at once")
    base = load_run(name, overrides)
    store = base.data.store or str(base.store.absolute())
    points = []
    for number, values in enumerate(combinations):
        own = [f"name={base.name}-{number}", f"data.store={store}"]
        points.append(load_run(name, [*overrides, *values, *own]))
        _check_same_tokens(base, points[-1], sweep)
    return points


def _values(setting: str) -> list[str]:
    key, equals, text = setting.partition("=")
    if not equals or not text:
        raise UserError(f"--sweep {setting}: it is written as section.key=value,value")
    if key in ("name", "runs", "data.store") or key.startswith("cluster"):
        raise UserError(f"--sweep {setting}: {key} is the same for all runs of a sweep")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise UserError(f"--sweep {setting}: {text} is no list of YAML values") from None
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for value in values]  # JSON is YAML, on one line


def _check_same_tokens(base: RunConfig, point: RunConfig, sweep: list[str]) -> None:
    if base.data.asked() != point.data.asked():
        raise UserError(
            f"--sweep {' '.join(sweep)}: this changes the tokens, and a sweep has one store; launch each with name=NAME"
        )
