"""Counts and latencies of the service, as Prometheus reads them."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from newsrec.serving.http_metrics import BUCKETS, FASTEST, Gauge, Metrics, bucket_of, quantile_of

ROUTES = [("GET", "/news"), ("POST", "/news")]
NOW = 1.7e9


def samples(text):
    """Return what Prometheus' own parser reads: name and labels to value."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def requests(found, method, route, status):
    labels = (("method", method), ("route", route), ("status", status))
    return found[("newsrec_requests_total", *labels)]


def latency(found, what, *labels):
    labels = (("method", "GET"), *labels, ("route", "/news"))
    return found[(f"newsrec_request_seconds{what}", *labels)]


def test_prometheus_reads_what_was_counted():
    metrics = Metrics(ROUTES)
    for status in (200, 200, 404, 500):
        metrics.add(("GET", "/news"), status, 0.25, NOW)
    metrics.add(("POST", "/news"), 201, 0.5, NOW)
    metrics.add(("GET", "/nothing"), 404, 0.5, NOW)
    found = samples(metrics.text([Gauge("newsrec_news", "News.", 12)], NOW))
    counts = [requests(found, "GET", "/news", status) for status in ("2xx", "4xx", "5xx")]
    assert counts == [2, 1, 1]
    assert requests(found, "POST", "/news", "2xx") == 1
    assert requests(found, "*", "other", "4xx") == 1
    assert latency(found, "_sum") == 1
    assert latency(found, "_count") == 4
    assert latency(found, "", ("quantile", "0.5")) == pytest.approx(0.25, rel=0.05)
    assert found[("newsrec_news",)] == 12


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_a_quantile_is_right_to_five_percent(quantile):
    seconds = np.random.default_rng(0).lognormal(-5, 1.5, 20_000)
    counts = np.bincount([bucket_of(s) for s in seconds], minlength=BUCKETS)
    exact = np.quantile(seconds, quantile, method="inverted_cdf")
    assert quantile_of(counts, quantile) == pytest.approx(exact, rel=0.05)


def test_any_latency_has_a_bucket():
    assert [bucket_of(s) for s in (0, FASTEST, 1e9)] == [0, 0, BUCKETS - 1]
    assert np.isnan(quantile_of(np.zeros(BUCKETS, int), 0.5))


def test_quantiles_forget_and_counters_do_not():
    metrics = Metrics(ROUTES)
    metrics.add(("GET", "/news"), 200, 8.0, NOW)
    metrics.add(("GET", "/news"), 200, 0.5, NOW + 240)
    metrics.add(("GET", "/news"), 200, 0.5, NOW + 240)
    soon, late, gone = (samples(metrics.text(now=NOW + s)) for s in (240, 400, 4000))
    assert latency(soon, "", ("quantile", "0.99")) == pytest.approx(8, rel=0.05)
    assert latency(late, "", ("quantile", "0.99")) == pytest.approx(0.5, rel=0.05)
    assert np.isnan(latency(gone, "", ("quantile", "0.99")))
    assert latency(gone, "_count") == 3


def test_workers_are_summed_even_after_one_has_ended(tmp_path):
    first, second = Metrics(ROUTES, tmp_path), Metrics(ROUTES, tmp_path)
    first.add(("GET", "/news"), 200, 0.1, NOW)
    second.add(("GET", "/news"), 200, 0.4, NOW)
    second.add(("GET", "/news"), 503, 0.4, NOW)
    del second
    found = samples(first.text(now=NOW))
    assert requests(found, "GET", "/news", "2xx") == 2
    assert requests(found, "GET", "/news", "5xx") == 1
    assert latency(found, "", ("quantile", "0.95")) == pytest.approx(0.4, rel=0.05)
