"""Circuits: tasks, attribution through the crosscoder, curves of necessity and sufficiency."""
