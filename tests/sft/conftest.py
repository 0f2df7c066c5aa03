"""A plan over the small store, and a model that fits it."""

from pathlib import Path

import pytest

from data_tools.plan import PackPlan, PlanSettings, make_plan
from data_tools.store import TokenStore


@pytest.fixture(scope="session")
def plan(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> PackPlan:
    """Steps of six packs, the last one of an epoch incomplete."""
    plan = make_plan(store, PlanSettings(256, "drop", 0.1, 6, 1), tmp_path_factory.mktemp("plan"))
    assert len(plan.train) % 6, "the last step must leave some rank without a pack in some micro-step"
    return plan


@pytest.fixture(scope="session")
def folders(store: TokenStore, plan: PackPlan) -> dict[str, str]:
    """Arguments for functions that run on ranks."""
    return {"store": str(Path(store.folder)), "plan": str(Path(plan.folder))}
