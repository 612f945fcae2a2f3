"""Floor 0: pure logic. No I/O, no clock (the time is an argument), no asyncio."""
