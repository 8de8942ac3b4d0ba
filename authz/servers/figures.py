"""The figures of several workers, made one: counters and histograms are summed, each gauge by what it means.

A worker that has ended keeps its counts here, so that a sum never falls: a scraper would take that for a restart and
count all the others' work again. What it counted after the last look at it is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

GAUGES: Final[Mapping[str, Callable[[float, float], float]]] = {
    # The worst of all: one worker without keys turns requests away.
    "authz_provider_healthy": min,
    "authz_provider_keys": min,
    "authz_provider_keys_age_seconds": max,
    "authz_provider_breaker_open": max,
    "authz_policy_generation": min,
    "authz_last_reload_successful": min,
    # Each worker has a cache of its own.
    "authz_cache_entries": float.__add__,
    "authz_cache_bytes": float.__add__,
}
"""How two values of a gauge become one. Any other is summed."""

_SUMMED: Final = frozenset({"counter", "histogram"})

Key = tuple[str, tuple[tuple[str, str], ...]]


class Ledger:
    """What each worker last said of its figures, and the counts of those that are gone."""

    def __init__(self) -> None:
        self._last: dict[int, str] = {}
        self._gone: list[Metric] = []

    def note(self, number: int, text: str) -> None:
        """Remember a worker's figures, in Prometheus' text format."""
        self._last[number] = text

    def retire(self, number: int) -> None:
        """Keep the counts of a worker that has ended."""
        text = self._last.pop(number, "")
        counts = [its for its in text_string_to_metric_families(text) if its.type in _SUMMED]
        self._gone = merge([self._gone, counts])

    def render(self, ours: CollectorRegistry) -> bytes:
        """Return the sum of all and what the supervisor counts itself."""
        said = [list(text_string_to_metric_families(text)) for text in self._last.values()]
        return generate_latest(_whole(merge([self._gone, *said]), ours))


def merge(parts: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Make one of several workers' families; samples with the same name and labels become one."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[Key, float]] = {}
    for family in (family for part in parts for family in part):
        merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        join = GAUGES.get(family.name, float.__add__)
        found = values.setdefault(merged.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            found[key] = join(found[key], sample.value) if key in found else sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return list(families.values())


def _whole(merged: list[Metric], ours: CollectorRegistry) -> CollectorRegistry:
    whole = CollectorRegistry()
    whole.register(_Fixed([*merged, *ours.collect()]))
    return whole


class _Fixed(Collector):
    """Families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
