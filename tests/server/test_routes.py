"""The route table: every URL has its row, with and without /v1, and no spelling slips past metering."""

import pytest

from proxy.core import errors
from proxy.phases.exchange import Treatment
from proxy.server import routes
from proxy.server.routes import resolve

PREFIXES = ["", "/v1", "/openai/v1", "/openai/deployments/gpt-4o", "/openai"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("method", "path", "name", "treatment"),
    [
        ("POST", "/chat/completions", "chat/completions", "metered"),
        ("POST", "/completions", "completions", "metered"),
        ("POST", "/embeddings", "embeddings", "metered"),
        ("POST", "/responses", "responses", "metered"),
        ("POST", "/moderations", "moderations", "inference"),
        ("POST", "/audio/speech", "audio/speech", "inference"),
        ("POST", "/audio/transcriptions", "audio/transcriptions", "inference"),
        ("POST", "/images/edits", "images/edits", "inference"),
        ("POST", "/images/something-new", "images/*", "inference"),
        ("GET", "/models", "models", "models"),
        ("HEAD", "/models", "models", "models"),
        ("GET", "/models/org/model%2Fname", "models", "models"),
        ("DELETE", "/models/ft:mine", "stateful", "stateful"),
        ("GET", "/files", "stateful", "stateful"),
        ("POST", "/batches", "stateful", "stateful"),
        ("GET", "/chat/completions", "stateful", "stateful"),
        ("POST", "/chat/completions/chatcmpl-1", "stateful", "stateful"),
        ("GET", "/responses/resp_1", "responses/*", "stateful"),
        ("DELETE", "/responses/resp_1", "responses/*", "stateful"),
        ("POST", "/threads/t/runs", "stateful", "stateful"),
    ],
)
def test_every_route_exists_with_and_without_prefix(
    prefix: str, method: str, path: str, name: str, treatment: Treatment
) -> None:
    endpoint, below, query = resolve(method, f"{prefix}{path}?after=x%3Fy?")
    assert (endpoint.name, endpoint.treatment) == (name, treatment)
    assert (below, query) == (path, "after=x%3Fy?")
    assert resolve(method, prefix + path) == (endpoint, path, "")


def test_a_trailing_slash_means_the_same_endpoint() -> None:
    assert resolve("POST", "/v1/chat/completions/")[0].name == "chat/completions"


def test_an_escaped_letter_does_not_hide_a_metered_path() -> None:
    assert resolve("POST", "/v1/chat/%63ompletions")[0].treatment == "metered"


@pytest.mark.parametrize("spelling", ["/v1/chat%2Fcompletions", "/v1/CHAT/completions"])
def test_no_spelling_of_a_metered_path_passes_as_another(spelling: str) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        resolve("POST", spelling)
    assert caught.value.kind in (errors.BAD_REQUEST, errors.UNKNOWN_URL)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin/keys",
        "/v1/files/..",
        "/v1/files/%2e%2e/secrets",
        "/v1//chat/completions",
        "/v1/files\\..\\x",
        "/v1/files/%00",
        "/v1/files/a%5cb",
        "/v1/files/%252e%252e",
        "/v1/models/../files",
        "/v1/models/%2e%2e/files",
    ],
)
def test_ambiguous_paths_are_refused(path: str) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        resolve("GET", path)
    assert caught.value.kind is errors.BAD_REQUEST


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", ""])
def test_the_root_is_no_endpoint(path: str) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        resolve("GET", path)
    assert caught.value.kind is errors.UNKNOWN_URL


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "BREW"])
def test_unknown_methods_are_refused(method: str) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        resolve(method, "/v1/chat/completions")
    assert caught.value.kind is errors.METHOD_NOT_SUPPORTED


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/chat/completions"), ("GET", "/v1/embeddings")])
def test_a_known_path_names_the_method_it_takes(method: str, path: str) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        resolve(method, path)
    assert caught.value.kind is errors.METHOD_NOT_SUPPORTED
    assert "POST" in caught.value.message


def test_the_usual_spellings_are_what_the_whole_way_makes_of_them() -> None:
    assert routes._USUAL
    for (method, path), found in routes._USUAL.items():
        assert (*routes._resolve(method, path), "") == found == resolve(method, path)
