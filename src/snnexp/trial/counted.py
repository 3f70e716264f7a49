"""Which trials of a study count toward `n_trials`."""

from optuna.trial import FrozenTrial

REPLACED, TAKEN = "replaced", "taken over"  # attributes of a trial: it is repeated; it comes from elsewhere


def counts(trial: FrozenTrial) -> bool:
    """Return whether the trial counts: it is not repeated, and was not taken over from another study or from MLflow."""
    return REPLACED not in trial.user_attrs and TAKEN not in trial.user_attrs


def source(trial: FrozenTrial) -> str:
    """Return where the trial was taken over from; "" for a trial of the study itself."""
    return str(trial.user_attrs.get(TAKEN, {}).get("from", ""))
