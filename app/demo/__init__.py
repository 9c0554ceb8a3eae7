"""The demo: a small language of our own, which the policy built from scratch speaks and a hidden taste judges."""
