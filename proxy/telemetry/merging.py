"""The metrics of several workers as one exposition, in which no counter falls when a worker is replaced.

prometheus_client has a mode for several processes; with it an increment costs five times as much (libraries.md
section 6). Here workers count as they always do, and are asked for a snapshot now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.samples import Sample

# What is one thing seen by every worker, or a property of the program, is not to be summed. A circuit that one worker
# has opened shows as open.
_GREATEST: Final = frozenset(
    {"sluice_build_info", "sluice_quota_limit", "sluice_quota_used", "sluice_upstream_circuit", "process_max_fds"}
)
_LEAST: Final = frozenset({"process_start_time_seconds"})
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_number: Final[Callable[[float | Decimal], str]] = floatToGoString  # of the nearest float
_EXACT: Final = Context(prec=1500)  # digits, of which a sum takes as many as it has: of any floats no more than these


class Family(msgspec.Struct, array_like=True, frozen=True):
    """One metric: its name, kind and meaning, and the values of its series by their full notation."""

    name: str
    kind: str
    documentation: str
    series: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Sum:
    """A family of several processes.

    What was added up is kept as decimals, exactly: floats add up to another last bit in another order, and so when a
    process ends. A counter that fell by that would look as if it had begun anew.
    """

    name: str
    kind: str
    documentation: str
    series: dict[str, float | Decimal]


_packer: Final = msgspec.msgpack.Encoder()
_unpacker: Final = msgspec.msgpack.Decoder(list[Family])


class Snapshots:
    """Makes compact copies of a registry. It remembers how each series is written: writing that anew costs most."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._written: dict[tuple[str, ...], str] = {}

    def take(self) -> list[Family]:
        """What every metric holds now. Safe to call in a thread."""
        return [
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                {self._series(sample): sample.value for sample in metric.samples},
            )
            for metric in self._registry.collect()
        ]

    def pack(self) -> bytes:
        """Likewise, for `unpack` in another process."""
        return _packer.encode(self.take())

    def _series(self, sample: Sample) -> str:
        known = sample.name, *sample.labels.values()
        series = self._written.get(known)
        if series is None:
            labels = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(sample.labels.items()))
            series = self._written[known] = f"{sample.name}{{{labels}}}" if labels else sample.name
        return series


def unpack(data: bytes) -> list[Family]:
    """What `Snapshots.pack` made. Raises `msgspec.DecodeError`."""
    return _unpacker.decode(data)


class Merged:
    """The last snapshot of each process, and the counters of those that ended.

    Counters and histograms are sums over the living and the ended; gauges speak of the living alone. `render` may run
    in a thread while snapshots are kept: it looks at one state, which is replaced as a whole.
    """

    def __init__(self) -> None:
        # of the living by their number, and the sum of the ended
        self._state: tuple[dict[int, Sequence[Family]], Sequence[_Sum]] = {}, ()

    def keep(self, process: int, snapshot: Sequence[Family]) -> None:
        """Remember what a living process last showed."""
        living, ended = self._state
        self._state = living | {process: snapshot}, ended

    def retire(self, process: int) -> None:
        """Let a process go. What it counted stays."""
        living, ended = self._state
        left = {number: snapshot for number, snapshot in living.items() if number != process}
        cumulative = [family for family in living.get(process, ()) if family.kind != "gauge"]
        self._state = left, _merge([ended, cumulative])

    def render(self, accept: str, beside: Sequence[Sequence[Family]] = ()) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that an Accept header asks for.

        `beside` are snapshots of who is asked.
        """
        living, ended = self._state
        _, content_type = choose_encoder(accept)
        is_open = content_type.startswith("application/openmetrics-text")
        families = _merge([*beside, *living.values(), ended])
        parts = [_written(family, is_open=is_open) for family in families]
        return "".join([*parts, "# EOF\n" if is_open else ""]).encode(), content_type


def _merge(snapshots: Iterable[Sequence[Family | _Sum]]) -> list[_Sum]:
    merged: dict[str, _Sum] = {}
    for snapshot in snapshots:
        for family in snapshot:
            known = merged.get(family.name)
            if known is None:
                merged[family.name] = _Sum(family.name, family.kind, family.documentation, dict(family.series))
            else:
                _add(known.series, family.series, _rule(family.name))
    return list(merged.values())


def _rule(name: str) -> Callable[[float, float], float] | None:
    """How two values of a series become one; None: by adding."""
    if name in _GREATEST:
        return max
    return min if name in _LEAST else None


def _add(
    total: dict[str, float | Decimal],
    more: Mapping[str, float | Decimal],
    rule: Callable[[float, float], float] | None,
) -> None:
    for series, value in more.items():
        before = total.get(series)
        if before is None:
            total[series] = value
        elif rule is None:
            total[series] = _EXACT.add(Decimal(before), Decimal(value))
        else:
            total[series] = rule(float(before), float(value))


def _written(family: _Sum, *, is_open: bool) -> str:
    """A family as prometheus_client writes it: in the older format a counter's name ends in `_total` everywhere."""
    name = f"{family.name}_total" if family.kind == "counter" and not is_open else family.name
    kind = "untyped" if family.kind == "unknown" and not is_open else family.kind
    documentation = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    if is_open:
        documentation = documentation.replace('"', r"\"")
    lines = [f"{series} {_number(value)}\n" for series, value in family.series.items()]
    return f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n{''.join(lines)}"
