"""What an experiment costs, and whether it fits, before it runs (docs/cost.md)."""
