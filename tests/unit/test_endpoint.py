"""The endpoint LM against servers that say what the test wants: forms, money, once only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asking import CUE, SYSTEM, USER, closed_port, complete, lm, numbered, refused, request
from faults import Call, Stub, http, said
from steper.accounts import Prices, Purse
from steper.errors import BudgetSpent, CompletionError
from steper.lm.calls import CallCache
from steper.lm.endpoint import EndpointLM
from steper.lm.endpoint.forms import messages, payload, spoken
from steper.protocols import Sampling, Turn


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CallCache]:
    made = CallCache(tmp_path / "calls.sqlite")
    yield made
    made.close()


# ---- what is asked, and what is read ---------------------------------------------------------


def test_completions_send_the_plain_prompt() -> None:
    with Stub(lambda call: said(" He hosted it.")) as stub:
        (completion,) = complete(lm(stub.url), request("He sang.\n"))
    assert completion.text == " He hosted it."
    assert stub.calls[0].path == "/v1/completions"
    assert stub.calls[0].asked == {
        "model": "m",
        "prompt": "Reason.\nQuestion: What show?\nReasoning:\nHe sang.\n",
        "stop": ["\n"],
        "max_tokens": 128,
        "temperature": 0.0,
    }
    usage = completion.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (7, 0, 3)
    assert usage.seconds > 0


def test_a_prefix_is_sent_as_it_is_to_be_continued() -> None:
    with Stub(lambda call: said("x")) as stub:
        complete(lm(stub.url, api="chat-prefix"), request("He sang.\n"))
        complete(lm(stub.url, api="chat-prefix"), request())
    prefix, bare = (call.asked for call in stub.calls)
    opening = [
        {"role": "system", "content": "Reason."},
        {"role": "user", "content": "Question: What show?\nReasoning:"},
    ]
    assert prefix["messages"] == [*opening, {"role": "assistant", "content": "He sang.\n"}]
    assert (prefix["continue_final_message"], prefix["add_generation_prompt"]) == (True, False)
    assert prefix["stop"] == ["\n"]
    assert bare["messages"] == opening
    assert "continue_final_message" not in bare


def test_a_conversation_ends_in_the_nudge_and_leaves_the_cue_to_the_model() -> None:
    with Stub(lambda call: said(f"<think>Hm.\n</think>\n{CUE.lower()} Hee Haw.")) as stub:
        chat = lm(stub.url, api="chat")
        (final,) = complete(chat, request(f"He sang.\n{CUE}", final=True))
        complete(chat, request())
    assert final.text == " Hee Haw."
    asked, first = (call.asked["messages"] for call in stub.calls)
    assert [m["content"] for m in asked[2:]] == ["He sang.", "Go on."]
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "user"]
    assert [m["role"] for m in first] == ["system", "user"]
    assert first[1]["content"] == "Question: What show?\nReasoning:\n\nGo on."
    assert "stop" not in stub.calls[0].asked


def test_a_conversation_of_several_turns_alternates() -> None:
    turns = (SYSTEM, USER, Turn("assistant", "He sang.\n"), USER, Turn("assistant", ""))
    shown = messages(turns, "chat", nudge="Go on.")
    assert [m["role"] for m in shown] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        ("plain", "plain"),
        ("<think>a\nb</think>\n\nHe sang.", "\n\nHe sang."),
        ("thought in the prompt</think>He sang.", "He sang."),
        ("<think>cut off", ""),
        ("He sang.<think>again", "He sang."),
    ],
)
def test_thoughts_are_taken_out(raw: str, left: str) -> None:
    assert spoken(raw, form="chat") == left
    assert spoken(raw, form="chat-prefix") == left
    assert spoken(raw, form="completions") == raw


def test_the_key_of_a_call_is_what_changes_the_answer() -> None:
    def asked(sampling: Sampling, candidate: int = 0) -> dict[str, Any]:
        return payload(request(candidate=candidate), "chat", model="m", sampling=sampling)

    greedy, warm = Sampling(), Sampling(temperature=0.7, top_p=0.9)
    assert asked(greedy) == asked(replace(greedy, seed=5, top_p=0.3), candidate=4)
    assert asked(warm) != asked(replace(warm, seed=5))
    assert asked(warm) != asked(warm, candidate=1)
    assert asked(warm)["top_p"] == 0.9
    assert asked(warm)["seed"] == request().seed(0)
    assert not {"base_urls", "timeout_s", "concurrency"} & asked(warm).keys()


def test_a_sentence_that_begins_with_a_newline_is_asked_for_once_more(cache: CallCache) -> None:
    """A template that trims has the model write the newline first, which ``stop`` would end at."""
    with Stub(lambda call: said("" if "stop" in call.asked else "\nHe sang.\nMore.")) as stub:
        first = complete(lm(stub.url, api="chat-prefix", cache=cache), request("Roy.\n"))[0]
        again = complete(lm(stub.url, api="chat-prefix", cache=cache), request("Roy.\n"))[0]
    assert len(stub.calls) == 2
    assert first.text == again.text == "\nHe sang.\nMore."
    assert first.usage.prompt_tokens == 14
    assert (first.replayed, again.replayed) == (False, True)


def test_an_empty_sentence_is_an_answer() -> None:
    with Stub(lambda call: said("")) as stub:
        assert complete(lm(stub.url), request())[0].text == ""


def test_a_model_that_only_thought_is_paid_and_not_kept(cache: CallCache) -> None:
    purse = Purse()
    with Stub(lambda call: said("<think>Hm", finish="length")) as stub:
        model = lm(stub.url, api="chat", cache=cache, prices=Prices(prompt=1e6), purse=purse)
        with pytest.raises(CompletionError, match="--max-tokens"):
            complete(model, request())
    assert purse.spent == 7
    assert cache.count() == 0


def test_a_renamed_limit_is_followed() -> None:
    def answer(call: Call) -> bytes:
        if "max_tokens" in call.asked:
            text = "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead."
            return http(400, {"error": {"message": text}})
        return said("x")

    with Stub(answer) as stub:
        complete(lm(stub.url, api="chat"), numbered(1))
        complete(lm(stub.url, api="chat"), numbered(2))
    assert [call.asked.get("max_completion_tokens") for call in stub.calls] == [None, 128] * 2


# ---- auto ------------------------------------------------------------------------------------


def server(kind: str) -> Any:
    """Servers as ``auto`` meets them."""

    def answer(call: Call) -> bytes:
        chat = call.path.endswith("/chat/completions")
        if call.path.endswith("/models"):
            return http(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
        continued = "continue_final_message" in call.asked
        last = call.asked["messages"][-1]["role"] if chat else ""
        match kind:
            case "continues":
                return said("x", prompt_tokens=9 if continued else 13)
            case "ignores":
                return said("x", prompt_tokens=13)
            case "silent":
                return http(200, {"choices": [{"text": "x", "message": {"content": "x"}}]})
            case "strict" if continued:
                return refused(422, "Unexpected fields")
            case "users only" if last == "assistant":
                return refused(400, "last message must be the user's")
            case "no such address" if chat:
                return refused(404, "Not Found")
            case "no template" if chat:
                return refused(400, "the tokenizer has no chat template")
            case "crashes without template" if chat:
                return http(500, b"Internal Server Error")
        return said("x")

    return answer


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("continues", "chat-prefix"),
        ("ignores", "chat"),
        ("silent", "chat"),
        ("strict", "chat"),
        ("users only", "chat"),
        ("no such address", "completions"),
        ("no template", "completions"),
        ("crashes without template", "completions"),
    ],
)
def test_auto_finds_the_form_once(kind: str, form: str, cache: CallCache) -> None:
    with Stub(server(kind)) as stub:
        model = lm(stub.url, api="auto", cache=cache)
        complete(model, *(numbered(n) for n in range(5)))
        assert model.form == form
        calls = len(stub.calls)
        later = lm(stub.url, api="auto", cache=cache)
        complete(later, *(numbered(n) for n in range(5)))
        assert later.form == form
        assert len(stub.calls) == calls
    probes = [c for c in stub.calls if c.body and c.asked.get("max_tokens") == 1]
    assert len(probes) <= 10  # a crashing server is tried three times in each of three ways
    assert later.tally.made == 0


# ---- once only -------------------------------------------------------------------------------


def test_what_is_asked_at_the_same_time_is_paid_once(cache: CallCache) -> None:
    async def answer(call: Call) -> bytes:
        await asyncio.sleep(0.05)
        return said("x")

    for kept in (cache, None):
        with Stub(answer) as stub:
            purse = Purse()
            model = lm(stub.url, cache=kept, prices=Prices(prompt=1e6), purse=purse)
            done = complete(model, *[request()] * 10)
            assert len(stub.calls) == 1
            assert sorted(c.replayed for c in done) == [False, *[True] * 9]
            assert purse.spent == 7
            assert (model.tally.made, model.tally.replayed) == (1, 9)


def test_a_replay_calls_nobody_and_costs_nothing(cache: CallCache) -> None:
    with Stub(lambda call: said("x", prompt_tokens_details={"cached_tokens": 4})) as stub:
        (first,) = complete(lm(stub.url, cache=cache), request())
    purse = Purse(0.0)
    prices = Prices(prompt=1e6, cached=5e5)
    gone = lm(f"http://127.0.0.1:{closed_port()}/v1", cache=cache, prices=prices, purse=purse)
    (again,) = complete(gone, request())
    assert again == replace(first, usage=replace(first.usage, cost=5.0), replayed=True)
    assert again.usage.cached_tokens == 4
    assert purse.spent == 0
    assert gone.tally.replayed == 1


def test_an_error_is_not_kept(cache: CallCache) -> None:
    with Stub(lambda call: refused(400, "too long")) as stub:
        for _ in range(2):
            with pytest.raises(CompletionError):
                complete(lm(stub.url, cache=cache), request())
        assert len(stub.calls) == 2
    assert cache.count() == 0


def test_an_answer_nobody_waits_for_is_kept(cache: CallCache) -> None:
    async def answer(call: Call) -> bytes:
        await asyncio.sleep(0.1)
        return said("x")

    async def main(model: EndpointLM) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.complete(request()), 0.03)
        await asyncio.sleep(0.3)

    with Stub(answer) as stub:
        asyncio.run(main(lm(stub.url, cache=cache)))
    assert cache.count() == 1


def test_one_loop_after_another_and_connections_are_closed() -> None:
    with Stub(lambda call: said("x")) as stub:
        model = lm(stub.url)
        for number in range(3):
            complete(model, numbered(number))
            clients = list(model._caller._clients.values())
            assert all(client.is_closed() for client in clients)
        assert len(stub.calls) == 3


# ---- money -----------------------------------------------------------------------------------


def test_the_budget_is_never_overdrawn() -> None:
    prices = Prices(prompt=1e6, completion=1e6)  # 1 a token; a call costs 10
    with Stub(lambda call: said("x")) as stub:
        purse = Purse(100.0)
        model = lm(
            stub.url, sampling=Sampling(max_tokens=20), prices=prices, purse=purse, concurrency=4
        )
        with pytest.raises(BudgetSpent):
            complete(model, *(numbered(n) for n in range(40)))
    assert 60 <= purse.spent <= 100
    assert purse.spent == 10 * len(stub.calls)


def test_the_most_a_call_can_cost_follows_the_tokens_seen() -> None:
    with Stub(lambda call: said("x", prompt_tokens=len(call.asked["prompt"]) // 2)) as stub:
        model = lm(stub.url, prices=Prices(prompt=3e6))

        async def main() -> list[float]:
            await model.complete(numbered(1))
            asked = {"form": "completions", "prompt": "x" * 600, "max_tokens": 5}
            return [model._caller._most(asked)]

        (most,) = asyncio.run(main())
    assert most == pytest.approx(600 / 2 * 3, rel=0.1)


def test_missing_usage_is_counted_not_guessed() -> None:
    bare = http(200, {"choices": [{"text": "x", "finish_reason": "stop"}]})
    with Stub(lambda call: bare) as stub:
        model = lm(stub.url)
        usage = complete(model, request())[0].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (0, 0)
    assert model.tally.without_usage == 1
