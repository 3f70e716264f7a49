"""`task=calibrate`: convert an ANN, correct the SNN layer by layer, and report accuracies before and after."""

from snnexp.build import build
from snnexp.calibration.base import Calibration
from snnexp.errors import UserError
from snnexp.session import Session
from snnexp.task.convert import Convert


class Calibrate(Convert):
    """Convert with the corrections of `calibration`, made for each T; `plain` metrics are of the uncorrected SNN."""

    def check_corrections(self, session: Session) -> None:
        """Raise UserError if there is nothing to correct."""
        if not build("calibration", session.config, Calibration).steps:
            raise UserError(
                "task=calibrate needs corrections: choose calibration=light, advanced or best, or a list such "
                "as 'calibration.steps=[bias,potential]' (task=convert places neurons alone)"
            )
