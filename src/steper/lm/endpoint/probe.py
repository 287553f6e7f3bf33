"""Which form of asking a server takes: two or three tiny calls find out.

Many servers ignore parameters they do not know. So the same messages, ending in an assistant's one,
are sent with and without those that have it continued: a server that continues it counts fewer
prompt tokens, because it does not close that message and open another.

>>> await find_form(caller, "llama")  # doctest: +SKIP
'chat-prefix'
"""

from __future__ import annotations

from steper.lm.endpoint.caller import Caller
from steper.lm.endpoint.faults import GaveUp, Refusal
from steper.lm.endpoint.forms import Form, Payload, Reply

QUESTION = {"role": "user", "content": "Name a color."}
BEGUN = {"role": "assistant", "content": "The color is"}


async def find_form(caller: Caller, model: str) -> Form:
    """The best form that the server takes.

    Raises:
        SteperError: if it takes none.
    """
    common: Payload = {"model": model, "max_tokens": 1, "temperature": 0.0}
    begun = common | {"messages": [QUESTION, BEGUN]}
    continued = await _chat(caller, begun | {"form": "chat-prefix"})
    plain = await _chat(caller, begun | {"form": "chat"})
    if isinstance(continued, Reply):
        if isinstance(plain, Reply):
            told = continued.counted and plain.counted
            differs = continued.usage.prompt_tokens != plain.usage.prompt_tokens
            return "chat-prefix" if told and differs else "chat"
        return "chat-prefix"  # without the parameters it refuses: so they do something
    asked: Payload = common | {"messages": [QUESTION], "form": "chat"}
    if isinstance(plain, Reply) or isinstance(await _chat(caller, asked), Reply):
        return "chat"
    # No chat at all: a model without a chat template, or a server without that address.
    prompt: Payload = common | {"prompt": QUESTION["content"], "form": "completions"}
    try:
        await caller.ask(prompt)
    except (Refusal, GaveUp) as error:
        raise await caller.explained(error, prompt) from None
    return "completions"


async def _chat(caller: Caller, payload: Payload) -> Reply | None:
    """The answer, or ``None`` if the server cannot do this.

    Raises:
        SteperError: if it cannot do anything.
    """
    try:
        try:
            return await caller.ask(payload, retries=2)
        except GaveUp as gave_up:
            reasons = {fault.reason for fault in gave_up.faults}
            if "500" in reasons <= {"500", "dropped"}:
                return None  # how some servers say that the model has no chat template
        return await caller.ask(payload)
    except GaveUp as gave_up:
        raise await caller.explained(gave_up, payload) from None
    except Refusal as refusal:
        offered = await caller.models() if refusal.status == 404 else []
        if offered and caller.endpoint.model not in offered:
            raise await caller.explained(refusal, payload) from None
        return None
