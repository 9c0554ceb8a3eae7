"""Checkpoints: stored weights, where they came from, and what was measured of them."""
