"""What a server says of itself: a line of JSON a request on stderr, and figures for Prometheus.

Neither holds headers, queries or bodies, so no secret gets into them.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lorareg.cli.web.decoded import DecodedFiles

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class JsonLines(logging.Formatter):
    """A record as one line of JSON; what is given as `extra={"told": {...}}` becomes its fields."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class Figures:
    """The figures of one server."""

    def __init__(self, decoded: DecodedFiles) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("lorareg_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "lorareg_request_seconds", "Time to the last byte.", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.sent = Counter("lorareg_sent_bytes", "Bytes of bodies sent.", registry=self.registry)
        self.under_way = Gauge("lorareg_requests_under_way", "Requests being answered.", registry=self.registry)
        self.uploads = Counter(
            "lorareg_uploads", "Uploads by what became of them.", ("outcome",), registry=self.registry
        )
        for name, meaning, read in (
            ("lorareg_decoded_bytes", "Bytes of decoded files kept.", lambda: decoded.size_bytes),
            ("lorareg_decoded_hits", "Files that were there when they were asked for.", lambda: decoded.hits),
            ("lorareg_decoded_misses", "Files that had to be decoded.", lambda: decoded.misses),
        ):
            Gauge(name, meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)
