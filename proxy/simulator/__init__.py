"""The simulator: an OpenAI-compatible upstream with no model, for demonstrations, development and tests."""
