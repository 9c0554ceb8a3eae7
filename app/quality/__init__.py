"""Quality: how far annotators agree, and how each of them answers."""
