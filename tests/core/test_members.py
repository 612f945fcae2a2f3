"""Members are told of what programs write, and of nothing that could hide one; the rest is walked (test_body)."""

from __future__ import annotations

import pytest

from proxy.core.members import MAX_MEMBERS, compact_members


def test_the_members_of_what_a_program_wrote() -> None:
    values = compact_members('{"a":"\u00e9 \\n","b":{"a":[1, 2]},"":-0.5e3}'.encode())
    assert values is not None
    assert {name: bytes(value) for name, value in values.items()} == {
        "a": '"\u00e9 \\n"'.encode(),
        "b": b'{"a":[1, 2]}',
        "": b"-0.5e3",
    }


def test_no_more_members_than_are_allowed() -> None:
    def body(count: int) -> bytes:
        return b"{" + b",".join(b'"%d":1' % number for number in range(count)) + b"}"

    assert len(compact_members(body(MAX_MEMBERS)) or ()) == MAX_MEMBERS
    assert compact_members(body(MAX_MEMBERS + 1)) is None


@pytest.mark.parametrize(
    "body", [b'{"a":1, "b":2}', b'{"a":1,"a":2}', b'{"\\u0061":1}', b'{"a":1}\n', b'{"a":1,}', b"{", b"1", b'["a"]']
)
def test_members_are_not_told_of_what_is_not_compact(body: bytes) -> None:
    assert compact_members(body) is None


def test_a_second_value_is_not_hidden_behind_the_room_that_white_space_takes() -> None:
    """Of two values the parser shows the last; the first must not pass for anything else."""
    for extra in range(40):
        padding = b",".join(b'"%d":1' % number for number in range(10, 10 + extra))
        body = b'{"model":"a","model":"b"' + (b"," + padding if padding else b"") + b"}"
        assert compact_members(body) is None
