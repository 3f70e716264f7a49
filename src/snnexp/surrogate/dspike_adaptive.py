"""Dspike whose temperature is chosen during training: of b - db, b and b + db, the one whose surrogate gradient is best
aligned with the finite difference gradient (Li et al., NeurIPS 2021). `snnexp.analysis.temperature` chooses."""

from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.errors import InvalidValue, choice, integer_or_none, require
from snnexp.surrogate.dspike import Dspike


class Choice(NamedTuple):
    """The last choice of a temperature: the cosine similarities of the surrogate gradient at b - db, b and b + db to
    the finite difference gradient, the standard error of the chosen one, the share of finite differences that are not
    zero, and the seconds that choices have taken in this epoch."""

    lower: float = 0.0
    same: float = 0.0
    higher: float = 0.0
    error: float = 0.0
    nonzero: float = 0.0
    seconds: float = 0.0


class AdaptiveDspike(Dspike):
    """Dspike that starts at temperature `b` and moves by `db` within `low` <= b <= `high`.

    `temperature`: shared by all sites, or per_layer. `every`: steps between two choices (None: once per epoch);
    `moves`: most moves per choice (the paper's number is one). `layer`: the layer whose weights are moved (None: the
    first); `subset`: random (`weights` of them) or all; `batch`: training samples; `eps`: how far a weight is moved.
    Temperature and last choice are part of the state, so that a resumed run goes on as before. `site` names the neuron
    in what is logged per layer. Raises `InvalidValue`.
    """

    db: float
    low: float
    high: float
    moves: int
    weights: int
    batch: int
    eps: float

    def __init__(
        self,
        b: float,
        db: float,
        low: float,
        high: float,
        temperature: str,
        every: int | None,
        moves: int,
        layer: str | int | None,
        subset: str,
        weights: int,
        batch: int,
        eps: float,
        spiking: bool = True,
    ) -> None:
        super().__init__(
            b=b, spiking=spiking, db=db, low=low, high=high, moves=moves, weights=weights, batch=batch, eps=eps
        )
        require(low <= b <= high, "b", b, f"a number from low={low} to high={high}")
        self.temperature = choice("temperature", temperature, ("shared", "per_layer"))
        self.subset = choice("subset", subset, ("random", "all"))
        self.every = integer_or_none("every", every, at_least=1)
        if isinstance(layer, bool) or not isinstance(layer, str | int | None):
            raise InvalidValue("layer", layer, "the name of a layer, or null for the first")
        self.layer = None if layer is None else str(layer)  # layers of a Sequential are named by numbers
        self.choice, self.site = Choice(), ""

    @property
    def candidates(self) -> tuple[float, float, float]:
        return max(self.low, self.b - self.db), self.b, min(self.high, self.b + self.db)

    def epoch_metrics(self) -> dict[str, float]:
        place = f"/{self.site}" if self.temperature == "per_layer" else ""
        said = {f"fdg_{name}{place}": value for name, value in self.choice._asdict().items()}
        self.choice = self.choice._replace(seconds=0.0)
        return {f"b{place}": self.b, **said}

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.b, *self.choice], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.b, *choice = state.tolist()
        self.choice = Choice(*choice)
