"""What annotators write beside an answer or a skip."""

from app.core.errors import Invalid

MAX_COMMENT = 10_000


def check(comment: str) -> str:
    """The comment without the white space around it; raises `Invalid` for one that cannot be stored."""
    if len(comment) > MAX_COMMENT:
        raise Invalid(f"The comment is {len(comment):,} characters long; at most {MAX_COMMENT:,}.", "comment")
    if "\x00" in comment:
        raise Invalid("The comment contains a NUL character; remove it.", "comment")
    return comment.strip()
