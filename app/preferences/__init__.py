"""Preference datasets: immutable snapshots of what annotators said, split by prompt, and ways in and out."""
