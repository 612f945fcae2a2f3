"""What settings are made of: sections, and kinds of values with their bounds and what is said when they are not so."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

_YEAR_S: Final = 366 * 86400
# `unit` tells the reader, the dump and the schema that numbers of this kind may be written in words
_WORDS: Final[dict[str, Any]] = {
    "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$|\$\{",
    "examples": ["250ms", "5s", "2m", "1h"],
}
_UNIT: Final = {"unit": "s"}
_HOST: Final = {"must": "be a host name or an address, without scheme, port or brackets"}
_NAME: Final = {"must": "be 1 to 128 letters, digits or . _ : @ / + -, the first a letter, a digit or _"}
_GLOB: Final = {"must": "be a name or a pattern with * and ?, without spaces or brackets"}


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections have in common: unknown settings are errors, and nothing changes after loading."""


Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1, le=2**53)]
Bytes = Annotated[int, Meta(ge=1, le=2**53)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1_000_000)]
Usd = Annotated[float, Meta(ge=0, le=1_000_000)]
Duration = Annotated[float, Meta(gt=0, le=_YEAR_S, extra=_UNIT, extra_json_schema=_WORDS)]
Retention = Annotated[float, Meta(ge=3600, le=100 * _YEAR_S, extra=_UNIT, extra_json_schema=_WORDS)]
Pause = Annotated[float, Meta(ge=0, le=_YEAR_S, extra=_UNIT, extra_json_schema=_WORDS)]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:%-]{1,255}$", extra=_HOST)]
Filename = Annotated[str, Meta(min_length=1, max_length=4096)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:@/+-]{0,127}$", extra=_NAME)]  # a label of metrics, too
Glob = Annotated[str, Meta(pattern=r"^[^\s\[\]]{1,256}$", extra=_GLOB)]
UrlPath = Annotated[str, Meta(pattern=r"^/[!-~]{0,1024}$", extra={"must": "be a path that begins with a slash"})]
Limit = Annotated[str, Meta(examples=["60/minute", "10000/day"])]
