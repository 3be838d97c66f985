"""Counters of one worker, in the text format that Prometheus reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by route and status with their seconds, and counts of anything else by name."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[str, list[float]] = {}  # route: counts within each bound, count, sum
        self.counts: Counter[str] = Counter()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests[method, route, status] += 1
        row = self.seconds.setdefault(route, [0.0] * (len(BOUNDS) + 2))
        for place, bound in enumerate(BOUNDS):
            row[place] += seconds <= bound
        row[-2] += 1
        row[-1] += seconds

    def text(self, gauges: Mapping[str, float], labels: Mapping[str, str]) -> str:
        """All of it; `gauges` are values of now, `labels` say what is served."""
        lines = ["# TYPE hllm_requests_total counter"]
        for (method, route, status), count in sorted(self.requests.items()):
            of = _labels({"method": method, "route": route, "status": str(status)})
            lines.append(f"hllm_requests_total{of} {count}")
        lines.append("# TYPE hllm_request_seconds histogram")
        for route, row in sorted(self.seconds.items()):
            for bound, n in zip((*BOUNDS, "+Inf"), row[:-1], strict=True):
                of = _labels({"route": route, "le": str(bound)})
                lines.append(f"hllm_request_seconds_bucket{of} {n:g}")
            lines.append(f"hllm_request_seconds_count{_labels({'route': route})} {row[-2]:g}")
            lines.append(f"hllm_request_seconds_sum{_labels({'route': route})} {row[-1]:.6f}")
        for name, count in sorted(self.counts.items()):
            lines += [f"# TYPE hllm_{name}_total counter", f"hllm_{name}_total {count}"]
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE hllm_{name} gauge", f"hllm_{name} {value:g}"]
        lines += ["# TYPE hllm_run_info gauge", f"hllm_run_info{_labels(labels)} 1"]
        return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
