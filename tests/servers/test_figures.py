"""Several workers' figures as one."""

from __future__ import annotations

import io

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from authz.cache import CacheStats
from authz.clients.authenticate import ProviderStatus
from authz.model import Allow
from authz.observe import Observer, Timing
from authz.servers.figures import GAUGES, Ledger

TIMING = Timing(received_ns=0, parsed_ns=1_000, generation=3)
TIMING.answered = 70_000


def observer(*, keys_age_s: float, healthy: bool, entries: int) -> Observer:
    made = Observer(stream=io.StringIO())
    status = ProviderStatus(
        name="shop", healthy=healthy, tried=True, keys=2, keys_age_s=keys_age_s, last_error="", breaker="closed"
    )
    stats = CacheStats(entries=entries, bytes=100, hits=5, misses=1)
    made.watch(statuses=lambda: [status], cache=lambda: stats)
    return made


def read(text: bytes) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}"
            assert key not in found
            found[key] = sample.value
    return found


def test_sums_and_worsts() -> None:
    ledger = Ledger()
    for number, (made, checks) in enumerate(
        ((observer(keys_age_s=10, healthy=True, entries=3), 2), (observer(keys_age_s=90, healthy=False, entries=4), 3))
    ):
        for _ in range(checks):
            made.record(None, Allow(rule="public"), TIMING)
        made.reload_event(ok=number == 0, generation=4 - number, detail="")
        ledger.note(number, made.render_metrics().decode())
    seen = read(ledger.render(CollectorRegistry()))
    assert seen["authz_decisions_total{decision=allow,reason=,rule=public}"] == 5
    assert seen["authz_check_seconds_bucket{decision=allow,le=0.0001}"] == 5
    assert seen["authz_check_seconds_count{decision=allow}"] == 5
    assert seen["authz_provider_healthy{provider=shop}"] == 0
    assert seen["authz_provider_keys_age_seconds{provider=shop}"] == 90
    assert seen["authz_cache_entries{}"] == 7
    assert seen["authz_policy_generation{}"] == 3
    assert seen["authz_last_reload_successful{}"] == 0


def test_the_counts_of_a_worker_that_is_gone_stay() -> None:
    ledger = Ledger()
    for turn in range(1, 4):
        made = observer(keys_age_s=1, healthy=True, entries=3)
        made.record(None, Allow(rule="public"), TIMING)
        ledger.note(0, made.render_metrics().decode())
        ledger.note(0, made.render_metrics().decode())
        seen = read(ledger.render(CollectorRegistry()))
        assert seen["authz_decisions_total{decision=allow,reason=,rule=public}"] == turn
        assert seen["authz_cache_entries{}"] == 3
        ledger.retire(0)
    seen = read(ledger.render(CollectorRegistry()))
    assert seen["authz_check_seconds_count{decision=allow}"] == 3
    assert "authz_cache_entries{}" not in seen
    ledger.retire(7)


def test_every_gauge_has_its_meaning() -> None:
    text = observer(keys_age_s=1, healthy=True, entries=1).render_metrics().decode()
    gauges = {family.name for family in text_string_to_metric_families(text) if family.type == "gauge"}
    assert gauges == GAUGES.keys()
