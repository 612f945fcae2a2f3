"""The prices of a configuration, over those of the bundled table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from proxy.core.pricing import Price, PriceList

if TYPE_CHECKING:
    from proxy.config.settings import Config


def prices_of(config: Config) -> PriceList:
    """What models cost."""
    return PriceList(
        {
            pattern: None if model.price is None else Price.of(**structs.asdict(model.price))
            for pattern, model in config.models.items()
        }
    )
