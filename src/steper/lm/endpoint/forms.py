r"""The three forms of asking a server for the next sentence, and reading what it answers.

- *completions*: the plain prompt; the model goes on where it ends.
- *chat-prefix*: a conversation that ends in an assistant's message under way, which the server
  continues. The model sees its own format and still writes just one more sentence.
- *chat*: a conversation that ends in a user's message asking for the next sentence: for servers
  that cannot continue a message.

Everything here is pure: a request becomes a payload, bytes become a reply.

>>> turns = (Turn("user", "Question: Who?\n"), Turn("assistant", "Roy sang.\n"))
>>> messages(turns, "chat", nudge="Go on.")[-1]
{'role': 'user', 'content': 'Go on.'}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from steper.lm.endpoint.faults import Fault
from steper.protocols import Request, Sampling, Turn, Usage

Form = Literal["chat", "chat-prefix", "completions"]
Payload = dict[str, Any]

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


def payload(request: Request, form: Form, *, model: str, sampling: Sampling) -> Payload:
    """Everything that changes the answer, and nothing else; ``wire`` makes the call of it."""
    asked: Payload = {"form": form, "model": model}
    if form == "completions":
        asked["prompt"] = clean(request.prompt)
    else:
        asked["messages"] = messages(request.turns, form, nudge=request.nudge, cue=cue(request))
    if form != "chat":
        asked["stop"] = ["\n"]  # a newline ends a sentence; in a conversation the turn's end does
    asked |= {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.temperature > 0:
        asked |= {"top_p": sampling.top_p, "seed": request.seed(sampling.seed)}
    return asked


def messages(
    turns: tuple[Turn, ...], form: Form, *, nudge: str, cue: str = ""
) -> list[dict[str, str]]:
    """The turns as messages; in the form *chat* without ``cue``, with the user's ``nudge``."""
    last = turns[-1].text
    asked = [(turn.role, turn.text.strip()) for turn in turns[:-1]]
    if form == "chat-prefix":
        asked.append(("assistant", last))  # not stripped: the model goes on right after it
    else:
        written = last.removesuffix(cue).strip()
        if not written and asked and asked[-1][0] == "user":
            # Templates want users and assistants to take turns.
            asked[-1] = ("user", f"{asked[-1][1]}\n\n{nudge}".strip())
        else:
            asked += [("assistant", written), ("user", nudge)]
    return [{"role": role, "content": clean(text)} for role, text in asked if text]


def cue(request: Request) -> str:
    """The answer cue, which ends the last turn once the answer is asked for."""
    return request.answer_cue if request.final else ""


def wire(payload: Payload, *, limit: str = "max_tokens") -> dict[str, Any]:
    """The arguments of the client's ``create``.

    Args:
        payload: what is asked.
        limit: what this server calls the limit of tokens.
    """
    call = {name: value for name, value in payload.items() if name != "form"}
    call[limit] = call.pop("max_tokens")
    if payload["form"] == "chat-prefix" and payload["messages"][-1]["role"] == "assistant":
        call["extra_body"] = CONTINUE
    return call


def size(payload: Payload) -> int:
    """Bytes of the prompt, in UTF-8."""
    if "prompt" in payload:
        return len(payload["prompt"].encode())
    return sum(len(message["content"].encode()) for message in payload["messages"])


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered.

    Attributes:
        text: the model's words as they came; ``None`` where there were none.
        usage: tokens, zeros where the server does not say.
        finish: why it stopped: "stop", "length", …
        model: what the server calls the model.
        counted: whether the server told its usage.
    """

    text: str | None
    usage: Usage
    finish: str
    model: str
    counted: bool


def read(body: bytes, form: Form) -> Reply:
    """Read the body of an answer with status 200.

    Raises:
        Fault: if it is anything but an answer.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise Fault("not JSON", f"{len(body)} bytes") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Fault("no choices")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    holder = choice if form == "completions" else choice.get("message")
    name = "text" if form == "completions" else "content"
    if not isinstance(holder, dict) or not isinstance(holder.get(name), str | None):
        raise Fault("broken answer", f"no {name}")
    text = holder.get(name)
    usage = _usage(answer.get("usage"))
    return Reply(
        text=None if text is None else clean(text),
        usage=usage,
        finish=str(choice.get("finish_reason")),
        model=clean(str(answer.get("model", ""))),
        counted=usage.prompt_tokens > 0,
    )


def _usage(told: object) -> Usage:
    if not isinstance(told, dict):
        return Usage()
    details = told.get("prompt_tokens_details")
    prompt = _count(told, "prompt_tokens")
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=min(prompt, _count(details, "cached_tokens")),
        completion_tokens=_count(told, "completion_tokens"),
    )


def _count(counts: object, name: str) -> int:
    value = counts.get(name) if isinstance(counts, Mapping) else None
    sound = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if sound and isinstance(value, int) else 0


def spoken(text: str, *, form: Form, cue: str = "") -> str:
    """The words that follow the prompt: without thoughts, and without a repeated answer cue.

    >>> spoken("<think>Hm.</think>So the answer is: Hee Haw.", form="chat", cue="So the answer is:")
    ' Hee Haw.'
    """
    if form == "completions":
        return text
    # Some templates open the block in the prompt, so that only its end comes back.
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    if form == "chat" and cue and text.lstrip().lower().startswith(cue.lower()):
        return text.lstrip()[len(cue) :]
    return text


def clean(text: str) -> str:
    """A text that can be written as UTF-8; half characters (lone surrogates) are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
