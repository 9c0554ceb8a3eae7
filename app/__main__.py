"""`python -m app` is `tiebreak`."""

from app.cli import main

main()
