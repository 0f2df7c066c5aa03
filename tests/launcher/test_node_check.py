"""Nodes that meet, one process each: who is missing or out of reach is named by those who are there."""

import multiprocessing

import pytest

from launcher.attempts import free_port
from launcher.doctor import _clocks
from launcher.node_check import meet


def all_meet(hosts: list[str], come: int) -> list[list[str]]:
    """What each of the first `come` nodes says is wrong."""
    port = free_port(job=13, restarts=0)
    with multiprocessing.get_context("spawn").Pool(come) as pool:
        return pool.starmap(meet, [(rank, hosts, "127.0.0.1", port, 5.0) for rank in range(come)])


def test_nodes_that_are_well_have_nothing_to_say() -> None:
    assert all_meet(["localhost", "127.0.0.1"], come=2) == [[], []]


def test_a_node_that_does_not_come_is_named_by_the_others() -> None:
    for said in all_meet(["127.0.0.1", "localhost", "node-3"], come=2):
        (line,) = said
        assert line.startswith("node-3 did not come to 127.0.0.1:")


def test_a_node_whose_name_leads_nowhere_is_named() -> None:
    first, _ = all_meet(["127.0.0.1", "no-such-node.invalid"], come=2)
    assert first[0].startswith("127.0.0.1 cannot reach no-such-node.invalid: ")


@pytest.mark.parametrize(("clock", "good"), [(0.2, True), (-9.0, False)])
def test_a_clock_that_is_wrong_is_named(clock: float, good: bool) -> None:
    found = _clocks({"a": 0.1, "b": clock, "c": 0.0})
    assert found.good is good
    assert ("that of b is furthest" in found.said) is not good
