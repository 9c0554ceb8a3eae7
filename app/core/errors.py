"""One family of errors for everything a person or a program did that cannot be done.

Domain code raises these and knows nothing of HTTP; `app.web.errors` turns them into a page or into
`application/problem+json`, the CLI into one line and an exit status.
"""


class TiebreakError(Exception):
    """Something was asked that cannot be done. The message says what is wrong and how to mend it."""

    status = 400
    title = "Bad request"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class Invalid(TiebreakError):
    """The input does not make sense; `field` names the form field or JSON key to mend."""

    status = 422
    title = "Invalid input"

    def __init__(self, message: str, field: str | None = None, **details: object) -> None:
        super().__init__(message, **({"field": field} if field else {}), **details)
        self.field = field


class NotSignedIn(TiebreakError):
    status = 401
    title = "Not signed in"


class Forbidden(TiebreakError):
    status = 403
    title = "Not allowed"


class NotFound(TiebreakError):
    """The thing does not exist, or the caller may not know that it does: the two look the same."""

    status = 404
    title = "Not found"


class Conflict(TiebreakError):
    """Somebody else was there first, or the thing is in a state in which this cannot be done."""

    status = 409
    title = "Conflict"


class TooLarge(TiebreakError):
    status = 413
    title = "Too large"


class TooMany(TiebreakError):
    """Throttled. `retry_after` is in seconds."""

    status = 429
    title = "Too many requests"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, retry_after=retry_after)
        self.retry_after = retry_after
