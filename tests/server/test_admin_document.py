"""The admin API's OpenAPI document: valid, and true. Every operation in it is answered as it says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]  # the package has no types
from openapi_spec_validator import OpenAPIV31SpecValidator

from proxy.config.changes import Changes
from tests.fakes.admin import TOKEN, Operator, operated, watched
from tests.fakes.client import RecordingClient
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    import pytest

    from tests.fakes.client import Answer

METHODS = ("get", "post", "patch", "delete")


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): row for path, rows in document["paths"].items() for method, row in rows.items()}


def assert_as_told(document: dict[str, Any], operation: dict[str, Any], answer: Answer) -> None:
    """The status is one that the document names, and the body has the form that it gives for it."""
    schema = operation["responses"][str(answer.status)]["content"]["application/json"]["schema"]
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(answer.json)


async def test_the_document_is_valid_openapi() -> None:
    async with operated() as (_, _, operator):
        document = await operator.get("/admin/openapi.json")
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    ids = [row["operationId"] for row in operations(document).values()]
    assert len(set(ids)) == len(ids)
    assert {tuple(sorted(rows)) for rows in document["paths"].values()} <= {
        ("get",),
        ("post",),
        ("delete",),
        ("get", "post"),
        ("delete", "get", "patch"),
    }


async def ask_everything(operator: Operator, exchange_id: str) -> dict[tuple[str, str], Answer]:
    """Each operation, with what makes it succeed."""
    key, usage = "/admin/keys/{id}", "by=key&by=day&since=1d&until=2199-01-01&key=a&model=m"
    asked: list[tuple[str, str, str, dict[str, Any] | None]] = [
        ("POST", "/admin/keys", "", {"id": "b", "limits": {"tokens": ["1/day"]}, "expires": "2199-01-01T00:00:00Z"}),
        ("GET", "/admin/keys", "?limit=5&after=a&revoked=true", None),
        ("GET", key, "", None),
        ("PATCH", key, "", {"plan": None, "limits": None, "expires": None}),
        ("POST", f"{key}/rotate", "", {"grace": "1h"}),
        ("DELETE", key, "", None),
        ("GET", "/admin/usage", f"?{usage}", None),
        ("GET", "/admin/exchanges", "?limit=5", None),
        ("GET", "/admin/upstreams", "", None),
        ("POST", "/admin/upstreams/{name}/drain", "", {"drain": True}),
        ("DELETE", "/admin/exchanges/{id}", "", None),
        ("POST", "/admin/reload", "", None),
        ("GET", "/admin/openapi.json", "", None),
    ]
    answers = {}
    for method, path, query, body in asked:
        filled = path.format(id=exchange_id if "exchanges" in path else "b", name="up")
        answers[method, path] = await operator.ask(method, filled + query, body)
    return answers


async def test_every_operation_is_answered_as_the_document_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reload() -> Changes:
        return Changes(["plans"], [])

    async with watched() as (there, operator):
        monkeypatch.setattr(there.proxy.worker, "reload", reload)
        document = await operator.get("/admin/openapi.json")
        table = operations(document)
        peer, _ = await there.begun()
        exchange_id = (await operator.get("/admin/exchanges"))["exchanges"][0]["id"]
        answers = await ask_everything(operator, exchange_id)
        await asyncio.wait_for(peer.ended(), LONG_S)
        assert answers.keys() == table.keys()
        for row, answer in answers.items():
            assert 200 <= answer.status < 300, (row, answer.body)
            assert_as_told(document, table[row], answer)


async def test_every_operation_refuses_as_the_document_says() -> None:
    async with operated() as (_, _, operator):
        document = await operator.get("/admin/openapi.json")
        for (method, path), operation in operations(document).items():
            filled = path.format(id="team-a", name="nobody")
            refused = [await operator.ask(method, filled, token="wrong"), await operator.ask(method, f"{filled}?x=1")]
            if "requestBody" in operation:
                refused += [await operator.ask(method, filled, body) for body in (b"{", b" " * 70_000)]
            if method != "GET":  # of the file, unknown, not in flight, without a file, or without what is needed
                body = {"drain": True} if "upstreams" in path else {"plan": None} if method == "PATCH" else None
                refused.append(await operator.ask(method, filled, body))
            for answer in refused:
                assert answer.status >= 400, (method, path, answer.body)
                assert_as_told(document, operation, answer)


async def test_required_and_optional_members_are_told_apart() -> None:
    async with operated() as (_, proxy, operator), await RecordingClient.connect(proxy.ops_port) as client:
        document = (await client.ask("GET", "/admin/openapi.json", key=TOKEN)).json
        schemas = document["components"]["schemas"]
        assert schemas["KeyWanted"]["required"] == ["id"]
        assert schemas["KeyWanted"]["additionalProperties"] is False
        assert schemas["KeyChange"]["required"] == []
        table = operations(document)
        bodies = {row: told["requestBody"]["required"] for row, told in table.items() if "requestBody" in told}
        assert bodies == {
            ("POST", "/admin/keys"): True,
            ("PATCH", "/admin/keys/{id}"): False,
            ("POST", "/admin/keys/{id}/rotate"): False,
            ("POST", "/admin/upstreams/{name}/drain"): True,
        }
        assert await operator.get("/admin/openapi.json") == document
