"""The one error that users see as a single line."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do next."""


class RowError(Exception):
    """One row that cannot become a document; the message is the reason written to rejects.jsonl."""
