"""The one error of this package."""

from rml.errors import UserError


class DataError(UserError):
    """Data that cannot be used as given; the message says what is wrong and what would do."""
