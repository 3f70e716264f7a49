"""`task=calibrate`: convert, then correct what was placed, layer by layer; reports before and after."""

from __future__ import annotations

from snnexp.errors import UserError
from snnexp.session import Session
from snnexp.task.convert import Conversion
from snnexp.training import Metrics


def calibrate(session: Session, val_images: int | None, test_images: int | None, layer_images: int) -> Metrics:
    """As `convert`, with the corrections of `calibration`, made anew for each T; `plain` metrics are those before.

    Raises UserError, also where there is nothing to correct.
    """
    if not session.config["calibration"]["steps"]:
        raise UserError(
            "task=calibrate needs corrections: choose calibration=light, advanced or best, or a list such "
            "as calibration.steps=[bias,potential] (task=convert places neurons alone)"
        )
    return Conversion(session, val_images, test_images, layer_images).run()
