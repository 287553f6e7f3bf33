"""What can go wrong with a call, sorted by what to do about it.

A ``Fault`` passes: the call is made again. A ``Refusal`` is the server's considered answer to this
request. Whatever no call can get past is a ``SteperError`` at once.

>>> wait_s({"retry-after": "1.5"}, now=0.0)
1.5
>>> wait_s({"retry-after": "Thu, 01 Jan 1970 00:00:20 GMT"}, now=5.0)
15.0
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import openai

from steper.errors import SteperError

RETRIED = {408, 409, 425, 429}
CONGESTED = {429, 503}
LONGEST_WAIT_S = 600.0


class Fault(Exception):
    """A failure that may be gone next time.

    Attributes:
        reason: one word for the summary.
        wait_s: how long the server asked to wait, in seconds.
        sick: whether it speaks against the server rather than against the moment.
        congested: whether the server has too much to do.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        wait_s: float = 0.0,
        sick: bool = False,
        congested: bool = False,
    ) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.wait_s, self.sick, self.congested = reason, wait_s, sick, congested


class Refusal(Exception):
    """The server will not answer this request: too long, unknown model, unknown parameter."""

    def __init__(self, status: int, message: str, url: str) -> None:
        super().__init__(message)
        self.status, self.message, self.url = status, message, url


class GaveUp(Exception):
    """Every attempt of a call ended in a fault."""

    def __init__(self, faults: list[Fault], url: str) -> None:
        super().__init__(str(faults[-1]))
        self.faults, self.url = faults, url


def judge(error: Exception, *, url: str, key_env: str, secrets: tuple[str, ...]) -> Exception:
    """What a failed attempt means.

    Args:
        error: what the client raised.
        url: the server's address, without login.
        key_env: the environment variable that the key is read from.
        secrets: what must not be shown, even if the server says it.

    Returns:
        A ``Fault``, ``Refusal`` or ``SteperError``, to be raised.
    """
    match error:
        case openai.APIStatusError():
            message = without(_message(error), secrets)
            return _judge_status(error, message, url=url, key_env=key_env)
        case openai.APITimeoutError() | TimeoutError():
            return Fault("time-out", sick=True)
        case openai.APIConnectionError() if "Connect" in type(error.__cause__).__name__:
            return Fault("no connection", sick=True)
        case openai.APIConnectionError():
            return Fault("dropped", type(error.__cause__).__name__, sick=True)
        case _:
            # The client passes on some errors of the layers below it, for bytes no server should
            # send; the exceptions differ between its versions.
            return Fault("broken answer", type(error).__name__)


def _judge_status(
    error: openai.APIStatusError, message: str, *, url: str, key_env: str
) -> Exception:
    status = error.status_code
    if status in (401, 403):
        return SteperError(
            f"the server does not let us in (HTTP {status}): {message}",
            where=url,
            fix=f"The key is read from the environment variable {key_env} (--api-key-env).",
        )
    if status == 402 or (status == 429 and error.code == "insufficient_quota"):
        return SteperError(
            f"the account has no money left (HTTP {status}): {message}",
            where=url,
            fix="Top it up and run the same command: it goes on where it stopped.",
        )
    if status in RETRIED or status >= 500:
        return Fault(
            str(status),
            message,
            wait_s=wait_s(error.response.headers),
            sick=status >= 500,
            congested=status in CONGESTED,
        )
    return Refusal(status, message, url)


def _message(error: openai.APIStatusError) -> str:
    """The server's own words, one line of at most 300 characters."""
    found: object = error.body
    for field in ("error", "message", "detail"):  # OpenAI, vLLM, FastAPI: nested or not
        if isinstance(found, dict) and field in found:
            found = found[field]
    if isinstance(found, dict | list):
        found = json.dumps(found, ensure_ascii=False)
    line = " ".join(str(found or "").split())
    return line if len(line) <= 300 else f"{line[:300]}…"


def without(text: str, secrets: tuple[str, ...]) -> str:
    """The text with every secret blackened."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "•••")
    return text


def wait_s(headers: Mapping[str, str], *, now: float | None = None) -> float:
    """The wait that a server asks for, in seconds; 0 where it asks for none.

    Args:
        headers: of its answer, looked up in small letters.
        now: seconds since 1970, for dates; the clock's by default.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            asked = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if math.isfinite(asked):
            return min(max(asked, 0.0), LONGEST_WAIT_S)
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        asked = date.timestamp() - (time.time() if now is None else now)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(asked, 0.0), LONGEST_WAIT_S)
