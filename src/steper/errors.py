"""The one error a user is meant to see: what happened, where, and what to do about it."""

from __future__ import annotations


class SteperError(Exception):
    """A problem with the user's input or set-up, shown without a traceback; exit code 2.

    Args:
        what: what is wrong, in one sentence.
        where: the file, line, field or option it is wrong in.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        # Another program's message may be part of it, and end anyhow.
        what = what if what.rstrip().endswith((".", "!", "?", "…", ":")) else f"{what.rstrip()}."
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(fix)
        super().__init__(" ".join(parts))


class CompletionError(SteperError):
    """One completion could not be had; its question fails, the run goes on."""


class Outage(CompletionError):
    """Every attempt at a completion failed: that speaks against the server, not the question."""


class BudgetSpent(SteperError):
    """The next call could cost more than the budget has left; the run stops, to be resumed."""
