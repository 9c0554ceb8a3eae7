"""Rounds: one turn of the loop each, from the frozen labels to a promoted policy and its next batch."""
