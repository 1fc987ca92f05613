"""The newest records of a run on a Prometheus endpoint."""

import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from .names import IDENTITY, METRICS, Metric, Record, lookup
from .recorder import Sink


class LatestValues(Sink, Collector):
    """A sink that keeps the newest value of every series and hands them to Prometheus.

    Totals (`samples_seen`, ...) come as totals in the records, so that reading a file twice counts nothing twice.
    """

    def __init__(self):
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {metric: {} for metric in METRICS}
        self._lock = threading.Lock()

    def write(self, record: Record) -> None:
        """Takes over the numbers of one record."""
        identity = tuple(str(record.get(key, "")) for key in IDENTITY)
        with self._lock:
            for key, value in record.items():
                if key not in IDENTITY and (found := lookup(key)):
                    metric, label = found
                    series = identity if label is None else (*identity, label)
                    self._values[metric][series] = float(value)

    def collect(self) -> Iterator[Family]:
        """One family per metric that has a value (called by prometheus_client for each scrape)."""
        with self._lock:
            values = {metric: dict(series) for metric, series in self._values.items() if series}
        for metric, series in values.items():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            labels = IDENTITY if metric.label is None else (*IDENTITY, metric.label)
            family = kind(metric.name, f"{metric.help} ({metric.unit})", labels=labels)
            for label_values, value in series.items():
                family.add_metric(label_values, value)
            yield family


class Endpoint:
    """An HTTP server with the values of a `LatestValues`; `port` 0 takes a free one."""

    def __init__(self, values: LatestValues, host: str = "127.0.0.1", port: int = 0):
        registry = CollectorRegistry()
        registry.register(values)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ValueError(
                f"metrics.port={port}: cannot listen on {host} ({error.strerror or error}); "
                "choose another port, or 0 for a free one"
            ) from None
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stops the server and frees its port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
