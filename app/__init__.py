"""Tiebreak: collect human preferences over language-model completions, and train on them."""

__version__ = "0.1.0"
