"""Floor 3: the HTTP server we are, on aiohttp."""
