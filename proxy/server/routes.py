"""Every URL in one table, and how a request path finds its row."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from proxy.core import errors
from proxy.phases.exchange import Endpoint

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

# POST paths under the base URL
_POST: Final = {
    "/chat/completions": Endpoint("chat/completions", "metered", "chat"),
    "/completions": Endpoint("completions", "metered", "chat"),
    "/embeddings": Endpoint("embeddings", "metered", "other"),
    "/responses": Endpoint("responses", "metered", "responses"),
    "/moderations": Endpoint("moderations", "inference", "other"),
    "/audio/speech": Endpoint("audio/speech", "inference", "other"),
    "/audio/transcriptions": Endpoint("audio/transcriptions", "inference", "other"),
    "/audio/translations": Endpoint("audio/translations", "inference", "other"),
    "/images/generations": Endpoint("images/generations", "inference", "other"),
    "/images/edits": Endpoint("images/edits", "inference", "other"),
    "/images/variations": Endpoint("images/variations", "inference", "other"),
}
_UNMETERED_ENDINGS: Final = tuple(_POST)
# POST paths below these, when the table above has none: new kinds of the same
_POST_BELOW: Final = {
    "/audio/": Endpoint("audio/*", "inference", "other"),
    "/images/": Endpoint("images/*", "inference", "other"),
}
MODELS: Final = Endpoint("models", "models", "other")
# all else: state that the upstream keeps. A stored response may be streamed again (protocol.md section 1.4)
_STORED_RESPONSES: Final = Endpoint("responses/*", "stateful", "responses")
_STATEFUL: Final = Endpoint("stateful", "stateful", "other")
# what has no row: the root, a method nobody knows
UNROUTED: Final = Endpoint("unrouted", "stateful", "other")

# with and without /v1; and where Azure's SDKs put the same API, the model standing in the body as well
_PREFIX: Final = re.compile(r"(?:/openai)?(?:/v1)?(?:/deployments/[^/]+)?(?=/|$)")
# spellings by which a path could mean one thing here and another upstream
_AMBIGUOUS: Final = re.compile(
    r"//|[\\#]|/\.{1,2}(?:/|$)|%(?:2e|2f|5c|25|[01][0-9a-f]|7f)|[\x00-\x20\x7f-\xff]", re.IGNORECASE
)
_AMBIGUOUS_NAME: Final = re.compile(r"(?:^|/)\.{1,2}(?:/|$)|[\x00-\x1f\x7f]")


# how SDKs write them
_USUAL: Final = {("POST", prefix + path): (row, path, "") for path, row in _POST.items() for prefix in ("/v1", "")}


def resolve(method: str, target: str) -> tuple[Endpoint, str, str]:
    """The row for a request, its path under the base URL, and its query.

    Raises `ProxyError` 400 for an ambiguous path, 404 for none, 405 for a method the path does not have.
    """
    usual = _USUAL.get((method, target))
    if usual is not None:
        return usual
    raw_path, _, query = target.partition("?")
    return *_resolve(method, raw_path), query


def _resolve(method: str, raw_path: str) -> tuple[Endpoint, str]:
    prefix = _PREFIX.match(raw_path)
    path = raw_path[prefix.end() :] if prefix else raw_path
    if method not in _METHODS:
        raise errors.ProxyError(errors.METHOD_NOT_SUPPORTED, "This HTTP method is not supported.")
    again = _PREFIX.match(path)
    if again is not None and again.end():
        # an upstream that takes paths with and without /v1 would serve what passed unmetered here
        raise errors.ProxyError(errors.UNKNOWN_URL, "Invalid URL: its prefix is given twice.")
    if method in ("GET", "HEAD") and (path.rstrip("/") == "/models" or path.startswith("/models/")):
        return MODELS, _model_path(path)
    if _AMBIGUOUS.search(path):
        raise errors.ProxyError(errors.BAD_REQUEST, "The URL's path is not in its plain form.")
    plain = unquote(path).rstrip("/")
    if not plain.startswith("/"):
        raise errors.ProxyError(errors.UNKNOWN_URL, "Invalid URL: the API is under /v1.")
    if plain.lower() in _POST:
        return _exact(method, plain)
    if method == "POST":
        for below, endpoint in _POST_BELOW.items():
            if plain.startswith(below):
                return endpoint, path
    if method == "POST" and plain.lower().endswith(_UNMETERED_ENDINGS):
        # under another prefix, or another case of it, an upstream may take it for what is metered
        raise errors.ProxyError(errors.UNKNOWN_URL, "Invalid URL: the API is under /v1.")
    return (_STORED_RESPONSES if plain.startswith("/responses/") else _STATEFUL), path


def _exact(method: str, plain: str) -> tuple[Endpoint, str]:
    """A path of the table. Another spelling of it is no path at all, or it would pass unmetered."""
    endpoint = _POST.get(plain)
    if endpoint is None:
        raise errors.ProxyError(errors.UNKNOWN_URL, "Invalid URL: paths are in lower case.")
    if method == "POST":
        return endpoint, plain
    if plain == "/chat/completions" and method in ("GET", "HEAD"):
        return _STATEFUL, plain  # the list of stored completions
    raise errors.ProxyError(errors.METHOD_NOT_SUPPORTED, f"Not allowed to {method} on /v1{plain}. Use POST.")


def _model_path(path: str) -> str:
    """Model names may hold slashes, plain or escaped; Sluice answers itself, so no upstream reads the path."""
    if _AMBIGUOUS_NAME.search(unquote(path)):
        raise errors.ProxyError(errors.BAD_REQUEST, "The URL's path is not in its plain form.")
    return path.rstrip("/")
