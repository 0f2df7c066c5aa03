"""Parts of a step are added up until they are read."""

from sft.clock import Clock


def test_parts_are_means_of_the_steps_and_the_total_is_of_all() -> None:
    clock = Clock()
    for _ in range(2):
        for name in ("data", "forward", "data"):
            with clock.part(name):
                pass
        clock.step_is_done()
    total, parts = clock.read()
    assert list(parts) == ["data", "forward"] and min(parts.values()) > 0
    assert abs(2 * sum(parts.values()) - total) < 1e-9
    assert clock.read() == (0.0, {})
