"""Floor 2: the life of a request, one file a phase; never imports aiohttp."""
