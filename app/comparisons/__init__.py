"""Comparisons: a prompt and two or more completions to be ordered, and the batches that they come in."""
