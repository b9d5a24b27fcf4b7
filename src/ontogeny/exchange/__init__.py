"""Crosscoders in other libraries' formats, both ways. docs/exchange.md says what is exact."""
