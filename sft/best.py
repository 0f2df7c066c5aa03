"""What the validation losses of a run say: which was the lowest, and whether more steps are worth their time."""

from collections.abc import Sequence

from sft.config_watch import EarlyStoppingConfig

Validations = Sequence[tuple[int, float]]
"""Step and validation loss of evaluations, in their order."""


def best_validation(validations: Validations) -> tuple[int, float] | None:
    """Step and loss of the lowest (the first of equal ones) after training began; None without any that is a number."""
    trained = [(loss, step) for step, loss in validations if step > 0 and loss == loss]
    return min(trained)[::-1] if trained else None


def why_no_more(validations: Validations, settings: EarlyStoppingConfig | None) -> str:
    """Why training ends early; empty: it goes on.

    A function of the progress alone, so that a resumed run ends after the same step. The untrained model's loss counts
    as the first to be better than.
    """
    if settings is None:
        return ""
    best, where, waited = float("inf"), "", 0
    for step, loss in validations:
        if loss < best - settings.min_delta:
            best, where, waited = loss, f" since {loss:.4f} after step {step}", 0
        else:
            waited += 1
    if waited < settings.patience:
        return ""
    return f"the validation loss had no new best in {waited} evaluations{where}"
