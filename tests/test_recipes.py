"""Every configuration that is shipped loads."""

from pathlib import Path

import pytest

from launcher.config import load_profile, load_run

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted((CONFIGS / "recipes").rglob("*.yaml"))
PROFILES = sorted((CONFIGS / "clusters").rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 2 and len(PROFILES) >= 4
    assert len(RECIPES) + len(PROFILES) == len(list(CONFIGS.rglob("*.yaml")))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_named_after_its_file(path: Path) -> None:
    assert load_run(str(path), []).name == path.stem.replace("_", "-")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_loads(path: Path) -> None:
    assert load_profile(path.stem, []).time.count(":") == 2
