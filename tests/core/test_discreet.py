"""What a struct says of itself is all that anybody is shown of it."""

import importlib
import pkgutil

import msgspec
import pytest
from rich.pretty import pretty_repr

import proxy
from proxy.upstream.attempt import UpstreamRequest


def _structs() -> list[type]:
    for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            importlib.import_module(module.name)
    return [struct for struct in _below(msgspec.Struct) if struct.__module__.startswith("proxy.")]


def _below(base: type) -> list[type]:
    found: list[type] = base.__subclasses__()
    return found + [inner for one in found for inner in _below(one)]


@pytest.mark.parametrize("struct", _structs())
def test_who_says_what_may_be_shown_says_it_to_rich_as_well(struct: type) -> None:
    assert "__repr__" not in vars(struct) or "__rich_repr__" in vars(struct)


def test_rich_is_shown_no_more() -> None:
    request = UpstreamRequest(b"POST", b"/v1?key=SECRET", [(b"Authorization", b"Bearer SECRET")], b"SECRET")
    assert "SECRET" not in pretty_repr(request)
