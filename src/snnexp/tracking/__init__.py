"""Experiment tracking: runs are reported to MLflow, or nowhere. Only this package imports mlflow, and it does so late.

`base` has the protocol of a tracker, `writer` sends runs to MLflow, `reader` reads them back, `client` connects.
"""

from snnexp.tracking.base import KEY_TAG, PARENT_TAG, STATUS_TAG, SWEEP_TAG, WEIGHTS, Nothing, Status, Tracker
from snnexp.tracking.client import ENVIRONMENT, Unreachable, for_mlflow, preload
from snnexp.tracking.reader import Store, Stored, kept
from snnexp.tracking.view import runs_address
from snnexp.tracking.writer import MLflow

__all__ = ["KEY_TAG", "PARENT_TAG", "STATUS_TAG", "SWEEP_TAG", "WEIGHTS", "Nothing", "Status", "Tracker"]
__all__ += ["ENVIRONMENT", "MLflow", "Store", "Stored", "Unreachable", "for_mlflow", "kept", "preload", "runs_address"]
