"""The server against its own OpenAPI document: schemathesis asks what nobody thought of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorareg.cli.web.app import Settings, make_app

Serve = Callable[..., TestClient]


def test_every_answer_is_described(serve: Serve) -> None:
    document = serve().get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert ("/{namespace}/{task}/resolve/{revision}/{path}", "get") in operations
    for path, method in operations:
        told = document["paths"][path][method]
        assert told["summary"].endswith((".", "is", "narrow")) or told["summary"]
        assert {"200", "401", "404", "429", "503"} <= set(told["responses"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # schemathesis's own
def test_schemathesis(settings: Settings, tokens: Any, tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as hypothesis_settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    @schemathesis.serializer("application/x-ndjson")
    def as_lines(context: Any, value: Any) -> bytes:
        return str(value).encode("utf-8", "replace")

    app = make_app(settings)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    headers = {**tokens.headers("team-write"), "Host": "localhost"}
    calm = hypothesis_settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    asked = 0
    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()

        @calm
        @given(case=strategy)
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            answer = case.call(headers=headers)
            # What a commit may hold no schema of its lines' types says.
            left_out = [positive_data_acceptance] if case.operation.path.endswith("/commit/{revision}") else []
            case.validate_response(answer, excluded_checks=left_out)

        ask()
    assert asked > 300
