"""Annotating: who gets which comparison for how long, in which order it is shown, and what came back."""
