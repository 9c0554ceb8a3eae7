"""Screens and the JSON API: HTTP on top of the slices. One module per screen, each with a `router`."""
