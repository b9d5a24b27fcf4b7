"""Crosscoders in other people's formats, there and back. docs/exchange.md says what is exact."""
