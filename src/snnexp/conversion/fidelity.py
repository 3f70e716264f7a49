"""The error of a converted network on its calibration images, told to the user."""

import logging

from snnexp.conversion.walk import Method, Records

log = logging.getLogger(__name__)
LIMIT = 0.3  # relative error of the output above which a warning is given
WORST = 3  # layers that are named


def tell(records: Records, method: Method, T: int, images: int) -> None:
    """Log the relative errors of the output and of the worst layers on `images` calibration images; above `LIMIT` as a
    warning with ways out."""
    if records.error is None:
        return
    layers = sorted((record for record in records if record.name != "output"), key=lambda record: -record.error)
    worst = ", ".join(f"{record.name} {_percent(record.error)}" for record in layers[:WORST])
    said = (
        f"T = {T}: on {images} calibration images the output of the SNN differs from that of the ANN by "
        f"{_percent(records.error)} in relative norm; largest errors of layers: {worst}"
    )
    if records.error <= LIMIT:
        log.info("%s", said)
    else:
        way = method.neuron.advice
        log.warning("%s. Above %s, check the accuracy before you trust it. Ways out: %s", said, _percent(LIMIT), way)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
