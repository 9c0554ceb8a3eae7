"""Campaigns: one preference-collection effort each, with its guidelines and prompts."""
