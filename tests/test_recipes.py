"""Every configuration that is shipped loads."""

from pathlib import Path

import pytest

from launcher.config import load_run

RECIPES = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_named_after_its_file(path: Path) -> None:
    assert load_run(str(path), []).name == path.stem.replace("_", "-")
