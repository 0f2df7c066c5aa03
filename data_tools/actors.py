"""Units of work on Ray actors, on all nodes of a cluster. The only file that imports Ray.

A unit gives the same bytes wherever and however often it is made, so nothing here has to be careful: an actor that dies
starts again and repeats its unit, and when no unit is left to give out, idle actors repeat what others are still at. A
node that is gone, or one that is slow, then holds nobody up.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.documents import DocumentMaker, Making
from data_tools.errors import UserError
from data_tools.files import is_remote
from data_tools.readers import WorkUnit
from data_tools.records import UnitRecord

_TRIES = 4
"""A unit that kills its actor so often would kill the next one too."""
_ACTORS_A_UNIT = 3
"""And a unit that has so many actors lost is the reason."""
_SECONDS_TO_ANSWER = 10
_SECONDS_UNTIL_SEEN = 60
"""A shared folder may show what another node wrote a little later."""


def make_on_actors(making: Making, units: list[WorkUnit], actors: int) -> Iterator[UnitRecord]:
    """Make units on actors of the cluster at RAY_ADDRESS, or on this machine.

    Args:
        making: what a maker needs to know.
        units: the work.
        actors: at most so many; no more than there are CPUs.

    Yields:
        The record of each unit, as they are finished.

    Raises:
        UserError: Ray cannot go on, or what other nodes write is not seen here.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        # Without an address Ray would join whatever cluster was last started on this machine, dead ones too.
        address = os.environ.get("RAY_ADDRESS") or "local"
        _check_answers(address)
        # What `function` names is found from here, also on nodes where actors start in another folder.
        paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environment = {"env_vars": {"PYTHONPATH": paths}} if any(each.function for each in making.sources) else None
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
        fitting = min(actors, len(units), max(1, int(ray.cluster_resources().get("CPU", 1))))
        remote_maker = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_TRIES)(DocumentMaker)
        pool = [remote_maker.options(scheduling_strategy="SPREAD").remote(making) for _ in range(fitting)]
        for record in _share_out(ray, pool, units):
            if not is_remote(making.store):
                for name in record.blake3:
                    _wait_until_seen(Path(making.store) / name)
            yield record
    except (ray.exceptions.RayError, ConnectionError) as error:
        if isinstance(cause := getattr(error, "cause", None), UserError):
            raise cause from None
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"Ray gave up: {reason}; the same command goes on, data.actors=0 does without Ray") from error
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would try for many minutes, and hear no signal meanwhile."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset it") from None


def _share_out(ray: Any, pool: list[Any], units: list[WorkUnit]) -> Iterator[UnitRecord]:
    """Give each actor one unit at a time; yield each unit's first record."""
    waiting = deque(units)
    running: dict[Any, tuple[Any, WorkUnit]] = {}  # promised record → who makes it of what
    idle = list(pool)
    finished: set[int] = set()
    lost: list[int] = []
    while len(finished) < len(units):
        while idle and (unit := _next(waiting, running, finished)):
            actor = idle.pop()
            running[actor.make_shard.remote(unit)] = (actor, unit)
        (promise,), _ = ray.wait(list(running), num_returns=1)
        actor, unit = running.pop(promise)
        try:
            record = ray.get(promise)
        except ray.exceptions.RayActorError:
            # It did not come back, with its node perhaps. Others take the unit, unless it is the unit that kills.
            lost.append(unit.number)
            if lost.count(unit.number) == _ACTORS_A_UNIT or len(lost) == len(pool):
                raise
            waiting.append(unit)
            continue
        idle.append(actor)
        if unit.number not in finished:
            finished.add(unit.number)
            yield record
    for promise in running:
        ray.cancel(promise)  # or Ray would say on the console that it wants to try a killed unit again
    for actor in pool:
        ray.kill(actor)
    if running:  # who repeats a unit that was finished meanwhile must have stopped before the folder is tidied up
        ray.wait(list(running), num_returns=len(running), timeout=_SECONDS_UNTIL_SEEN)


def _next(waiting: deque[WorkUnit], running: dict[Any, tuple[Any, WorkUnit]], finished: set[int]) -> WorkUnit | None:
    """The next unit; when all are given out, one that only one actor is at."""
    if waiting:
        return waiting.popleft()
    at_work = [unit for _, unit in running.values() if unit.number not in finished]
    return next((unit for unit in at_work if at_work.count(unit) == 1), None)


def _wait_until_seen(shard: Path) -> None:
    deadline = time.monotonic() + _SECONDS_UNTIL_SEEN
    while not shard.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"another node wrote {shard}, but it is not here: data.store must be on a folder that all nodes share"
            )
        time.sleep(0.2)
