"""`task=few_spike`: reproduce the paper's table of ANNs and their few-spike SNNs: accuracy, size, spikes, latency."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from snnexp.analysis import few_spike as drawn
from snnexp.conversion import slots
from snnexp.conversion.measure import LayerError
from snnexp.conversion.network import Decoded
from snnexp.errors import InvalidValue, UserError, integer, told
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.convert import layers_figure
from snnexp.task.converting import Conversion, Converting
from snnexp.training import Metrics

COLUMNS = (  # of `Account` or its `more`
    *("parameters", "layers", "neurons", "spikes", "spikes_per_neuron"),
    *("at_most_two", "latency", "interval", "energy_nj", "ann_energy_nj"),
)
MANY = 100  # classes from which on the top-5 accuracy is reported as well
Row = dict[str, Any]


class FewSpikeTable(Converting):
    """Make a row for each of `depths` of a residual network (None: the configured model only). Each network is trained
    unless there is a `checkpoint`, and converted for K = timesteps. Spikes are counted on `layer_images` validation
    images.

    Writes tables/few_spike.csv, tables/layers.csv, coefficients and figures. Raises InvalidValue; `run` raises
    UserError.
    """

    def __init__(self, depths: int | list[int] | None, test_images: int | None, layer_images: int) -> None:
        super().__init__(None, test_images, layer_images)
        self.depths = [depths] if isinstance(depths, int) else depths
        if depths == []:
            raise InvalidValue("depths", depths, "a list of depths, or null")

    def objectives(self, session: Session) -> list[str]:
        return []

    def run(self, session: Session, record: Record) -> Metrics:
        with told():
            integer("timesteps", session.config["timesteps"], at_least=1)
        conversions = {name: self.conversion(each, record) for name, each in self._networks(session).items()}
        if any(not issubclass(conversion.method.neuron.network, Decoded) for conversion in conversions.values()):
            raise UserError(f"task=few_spike needs conversion=few_spike, not {session.choices['conversion']}")
        return record.tracked(lambda: _measured(conversions, record))

    def _networks(self, session: Session) -> dict[str, Session]:
        """Return the session of each network by the network's name."""
        model, choice = session.config["model"], session.choices["model"]
        if self.depths is None:
            return {choice: session}
        if "depth" not in model:
            raise UserError(f"task.depths={self.depths}: model={choice} has no depth; leave it null")
        if len(self.depths) > 1 and session.config["checkpoint"]:
            raise UserError("checkpoint= is for one network: give one depth in task.depths, or null")
        name = choice.rstrip("0123456789")
        return {f"{name}{depth}": session.derived(model=model | {"depth": depth}) for depth in self.depths}


def _measured(conversions: dict[str, Conversion], record: Record) -> Metrics:
    rows, layers, last = list[Row](), list[Row](), list[LayerError]()
    tables, shares = dict[str, list[Row]](), dict[str, Tensor]()
    for name, conversion in conversions.items():
        (K,) = conversion.steps
        conversion.load_ann()
        snn, source, _ = conversion.converted(K, calibrated=True)
        assert isinstance(snn, Decoded)
        last, account = snn.examine(source, conversion.seen(), K)
        layers += [{"network": name, **asdict(error)} for error in last]
        shares[name] = slots.counts(snn, conversion.seen())
        tables |= {f"{table}_{name}": of_it for table, of_it in snn.tables().items()}
        cost = {name: account.more[name] if name in account.more else getattr(account, name) for name in COLUMNS}
        rows.append({"network": name, **_accuracies(conversion, snn), **cost})
    figures = {"spikes": drawn.counts_figure(shares), "layers": layers_figure(last)}
    record.write({"few_spike": rows, "layers": layers, **tables}, figures)
    record.show(f"few-spike conversion, K = {K}", [{k.replace("_", " "): v for k, v in row.items()} for row in rows])
    result = {}
    for row in rows:
        for key in [key for key in row if key != "network"]:
            result[f"{'test/' * ('top' in key)}{key}_{row['network']}"] = float(row[key])
    record.metrics(result, step=K)
    return result


def _accuracies(conversion: Conversion, snn: Decoded) -> dict[str, float]:
    """Return top-1, and with many classes top-5, test accuracies of ANN and SNN."""
    ranks = (1, 5) if len(conversion.source.data.classes) >= MANY else (1,)
    size, split = conversion.session.trainer.eval_batch_size, conversion.splits["test"]
    found = dict[str, float]()
    for what, network in (("ann", conversion.ann), ("snn", snn)):
        top = slots.top(network, split, ranks, size, conversion.device, conversion.limits["test"])
        found |= {f"{what}_top{rank}": top[rank] for rank in ranks}
    return found
