"""What the endpoint LM makes of failures, hostile bytes and secrets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asking import closed_port, complete, endpoint, lm, numbered, refused, request
from fakes import ListRetriever
from faults import DROP, Call, Stub, http, said
from steper.accounts import Prices, Purse
from steper.driver import run
from steper.errors import BudgetSpent, CompletionError, SteperError
from steper.lm.calls import CallCache
from steper.lm.endpoint import EndpointLM
from steper.lm.endpoint.address import split_login
from steper.lm.endpoint.faults import wait_s
from steper.protocols import Sampling
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Question


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CallCache]:
    made = CallCache(tmp_path / "calls.sqlite")
    yield made
    made.close()


# ---- what goes wrong -------------------------------------------------------------------------

LONG = http(200, {"choices": []})
FAULTY = {
    "408": refused(408, "slow"),
    "409": refused(409, "conflict"),
    "429": refused(429, "later"),
    "500": http(500, b"<html>"),
    "503": refused(503, "full"),
    "dropped": DROP,
    "not JSON": http(200, b"It works!"),
    "no choices": LONG,
    "broken answer": http(200, {"choices": [{"text": 5}]}),
}


@pytest.mark.parametrize("reason", [*FAULTY, "time-out", "truncated"])
def test_a_fault_is_retried_and_counted(reason: str) -> None:
    turn = count()

    async def answer(call: Call) -> bytes:
        if next(turn) >= 2:
            return said("x")
        if reason == "time-out":
            await asyncio.sleep(1)
        return said("x")[:-5] if reason == "truncated" else FAULTY.get(reason, b"")

    with Stub(answer) as stub:
        model = lm(stub.url, timeout_s=0.1 if reason == "time-out" else 5.0)
        (completion,) = complete(model, request())
    assert completion.text == "x"
    assert model.tally.retried == {"dropped" if reason == "truncated" else reason: 2}
    assert (model.tally.made, model.tally.retries) == (1, 2)


def test_the_last_failure_is_told_with_address_and_attempts() -> None:
    with Stub(lambda call: refused(500, "out of luck")) as stub:
        model = lm(stub.url, retries=3)
        with pytest.raises(CompletionError) as error:
            complete(model, request())
    assert len(stub.calls) == 4
    for part in (stub.url, "4 attempts", "500", "out of luck"):
        assert part in str(error.value)


def test_a_refused_request_fails_alone() -> None:
    message = "This model's maximum context length is 4096 tokens."
    with Stub(lambda call: refused(400, message)) as stub:
        with pytest.raises(CompletionError, match="maximum context length is 4096"):
            complete(lm(stub.url), request())
        assert len(stub.calls) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused(401, "bad key"), "STEPER_TEST_KEY"),
        (refused(403, "not yours"), "STEPER_TEST_KEY"),
        (refused(402, "pay first"), "no money"),
        (http(429, {"error": {"message": "quota", "code": "insufficient_quota"}}), "no money"),
    ],
)
def test_what_no_call_gets_past_stops_the_run(answer: bytes, words: str) -> None:
    with Stub(lambda call: answer) as stub:
        with pytest.raises(SteperError, match=words) as error:
            complete(lm(stub.url, api_key_env="STEPER_TEST_KEY"), request())
        assert not isinstance(error.value, CompletionError)
        assert len(stub.calls) == 1


def test_an_unknown_model_is_told_with_what_there_is() -> None:
    def answer(call: Call) -> bytes:
        if call.path == "/v1/models":
            return http(200, {"data": [{"id": "llama-3"}, {"id": "mm"}]})
        return refused(404, "no such model")

    with Stub(answer) as stub, pytest.raises(SteperError) as error:
        complete(lm(stub.url), request())
    assert "llama-3, mm" in str(error.value)
    assert error.value.fix == "Did you mean mm?"


def test_a_wrong_path_is_told_as_such() -> None:
    with (
        Stub(lambda call: refused(404, "Not Found")) as stub,
        pytest.raises(SteperError, match="/v1") as error,
    ):
        complete(lm(stub.url, api="auto"), request())
    assert not isinstance(error.value, CompletionError)


@pytest.mark.parametrize("api", ["auto", "chat"])
def test_no_server_at_all_stops_the_run(api: str) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(SteperError, match="no server answers") as error:
        complete(lm(url, api=api, retries=3), request())
    assert url in str(error.value)
    assert not isinstance(error.value, CompletionError)


def test_a_server_that_went_away_fails_the_request_only() -> None:
    with Stub(lambda call: said("x")) as stub:
        model = lm(stub.url, retries=2)
        complete(model, numbered(1))
    with pytest.raises(CompletionError, match="no connection"):
        complete(model, numbered(2))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://h:port/v1"])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(SteperError, match="--base-url"):
        lm(url)
    with pytest.raises(SteperError, match="--base-url"):
        lm()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "250", "retry-after": "2"}, 0.25),
        ({"retry-after": formatdate(1030, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(900, usegmt=True)}, 0.0),
        ({"retry-after": "1e308"}, 600.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_wait_asked_for(headers: dict[str, str], seconds: float) -> None:
    assert wait_s(headers, now=1000.0) == seconds


def test_the_wait_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    turn = count()
    answers = [http(429, {}, {"retry-after": "7"}), *[http(500, {})] * 12, said("x")]
    with Stub(lambda call: answers[next(turn)]) as stub:
        monkeypatch.setattr("steper.lm.endpoint.caller.asyncio.sleep", noted)
        complete(lm(stub.url, retries=20, backoff_s=0.5), request())
    assert 7.0 <= waits[0] <= 7.5
    assert all(wait <= min(60.0, 0.5 * 2**n) for n, wait in enumerate(waits) if n)
    assert len(set(waits)) == 13  # jitter
    assert max(waits[7:]) > 7.5


# ---- secrets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_the_key_is_nowhere(
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key, login = "sk-very-secret", "pass-phrase"
    monkeypatch.setenv("STEPER_TEST_KEY", key)
    caplog.set_level(logging.DEBUG)
    cache = CallCache(tmp_path / "calls.sqlite")

    def answer(call: Call) -> bytes:
        sent.append(call.headers["authorization"])
        if call.path == "/v1/models":
            return http(200, {"data": [{"id": f"named after {key}"}]})
        secret = login if call.headers["authorization"].startswith("Basic") else key
        shown = f"{secret} {call.headers['authorization']}"
        return said("x") if status == 200 else refused(status, shown)

    sent: list[str] = []
    errors = []
    with Stub(answer) as stub:
        plain = endpoint(stub.url, api_key_env="STEPER_TEST_KEY", retries=1)
        address = stub.url.replace("//", f"//me:{login}@")
        behind_login = replace(plain, base_urls=(address,))
        for number, given_endpoint in enumerate((plain, behind_login)):
            model = EndpointLM(given_endpoint, Sampling(), cache=cache)
            try:
                complete(model, numbered(number))
            except SteperError as error:
                errors.append(f"{error} {error!r} {error.__cause__!r} {error.__context__!r}")
            errors.append(f"{given_endpoint!r} {model!r} {vars(model)}")
    cache.close()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    seen = "\n".join([*errors, caplog.text, files.decode("latin-1")])
    assert sent[0] == f"Bearer {key}"
    assert sent[-1].startswith("Basic ")
    for secret in (key, login, sent[-1].removeprefix("Basic ")):
        assert secret not in seen
    assert (status == 200) == (len(errors) == 2)


def test_a_missing_key_is_sent_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEPER_TEST_KEY", raising=False)
    with Stub(lambda call: said("x")) as stub:
        complete(lm(stub.url, api_key_env="STEPER_TEST_KEY"), request())
    assert stub.calls[0].headers["authorization"] == "Bearer none"


def test_an_ipv6_address_keeps_its_brackets() -> None:
    assert split_login("https://a%40b:c@[::1]:8/v1") == ("https://[::1]:8/v1", ("a@b", "c"))


# ---- any bytes -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NEAR = st.fixed_dictionaries(
    {},
    optional={
        "choices": JSON
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "text": JSON,
                    "message": JSON | st.fixed_dictionaries({"content": JSON}),
                    "finish_reason": JSON,
                },
            ),
            max_size=2,
        ),
        "usage": JSON | st.fixed_dictionaries({"prompt_tokens": JSON, "completion_tokens": JSON}),
        "model": JSON,
        "error": JSON,
    },
)
BODIES = st.one_of(
    st.binary(max_size=60),
    NEAR,
    JSON,
)
HOSTILE = [
    b"[" * 100_000,
    b'{"choices": [{"text": "\\ud800", "message": {"content": "\\ud800"}}]}',
    b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": 1e999}}',
    b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    b'\xff\xfe{\x00"\x00',
    b'{"choices": [{"text": "x"}]}{}',
]
HEADERS = st.sampled_from(
    [
        {},
        {"content-type": "text/html; charset=nonsense"},
        {"content-encoding": "gzip"},
        {"content-length": "-1"},
        {"content-length": "3"},
        {"transfer-encoding": "chunked"},
        {"location": "http://[nonsense"},
        {"retry-after": "\x01"},
    ]
)
STATUSES = st.sampled_from([200, 200, 200, 204, 302, 304, 400, 404, 418, 422, 451, 500, 599, 999])


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_bodies_made_to_break_readers_do_not(body: bytes, api: str, cache: CallCache) -> None:
    with Stub(lambda call: http(200, body)) as stub:
        try:
            (completion,) = complete(lm(stub.url, api=api, retries=0, cache=cache), request())
        except CompletionError as error:
            assert "1 attempt;" in str(error)
        else:
            assert completion.text.encode() in ("�".encode(), b"x")
            assert completion.usage.prompt_tokens == 0


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(status=STATUSES, body=BODIES, headers=HEADERS, api=st.sampled_from(["completions", "chat"]))
def test_whatever_a_server_sends_is_an_answer_or_an_error_we_know(
    status: int, body: Any, headers: dict[str, str], api: str, cache: CallCache
) -> None:
    raw = http(status, body, headers)
    with Stub(lambda call: raw) as stub:
        model = lm(stub.url, api=api, retries=1, timeout_s=0.1, cache=cache)
        try:
            (completion,) = complete(model, numbered(cache.count()))
        except SteperError as error:
            assert str(error)
        else:
            completion.text.encode()


@pytest.mark.parametrize(
    "raw", [b"\x00", b"HTTP/9.9 OK\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\r\n" * 9]
)
def test_what_is_not_even_http_is_a_fault(raw: bytes) -> None:
    with Stub(lambda call: raw) as stub, pytest.raises(CompletionError, match="2 attempts"):
        complete(lm(stub.url, retries=1, timeout_s=0.2), request())


# ---- what reviews found ----------------------------------------------------------------------


def test_a_renamed_limit_fails_no_call_that_was_under_way() -> None:
    async def answer(call: Call) -> bytes:
        await asyncio.sleep(0.02)
        if "max_tokens" in call.asked:
            return refused(400, "use 'max_completion_tokens' instead of 'max_tokens'")
        return said("x")

    with Stub(answer) as stub:
        answers = complete(lm(stub.url, api="chat"), *map(numbered, range(12)))
    assert [a.text for a in answers] == ["x"] * 12


def test_the_budget_holds_for_tokens_as_short_as_bytes_and_for_servers_that_do_not_count() -> None:
    def dense(call: Call) -> bytes:
        return said("x", prompt_tokens=len(call.asked["prompt"].encode()))

    def silent(_: Call) -> bytes:
        return http(200, {"choices": [{"text": "x", "finish_reason": "stop"}]})

    for answer in (dense, silent):
        purse = Purse(0.1)
        with Stub(answer) as stub:
            model = lm(stub.url, prices=Prices(prompt=1000.0), purse=purse, concurrency=8)
            with pytest.raises(BudgetSpent):
                complete(model, *map(numbered, range(64)))
        assert 0 < purse.spent <= 0.1


def test_paid_answers_are_kept_when_something_else_stops_the_run(cache: CallCache) -> None:
    async def answer(call: Call) -> bytes:
        if "Who 0?" in call.asked["prompt"]:
            return refused(401, "who are you?")
        await asyncio.sleep(0.1)
        return said("So the answer is: x.")

    questions = [Question(f"q{number}", f"Who {number}?", "x") for number in range(8)]
    setting = Setting("closed-book", load_template("world"), k=1, max_steps=3)
    with Stub(answer) as stub:
        model = lm(stub.url, cache=cache)
        with pytest.raises(SteperError, match="does not let us in"):
            list(run(questions, setting=setting, retriever=ListRetriever([]), lm=model))
        assert cache.count() == len(stub.calls) - 1 == 7


def test_the_form_a_run_was_begun_with_is_kept(tmp_path: Path) -> None:
    pin = tmp_path / "api.txt"
    with Stub(lambda _: said("x")) as stub:
        begun = EndpointLM(endpoint(stub.url, api="chat"), Sampling(), pin=pin)
        complete(begun, numbered(1))
        assert pin.read_text() == "chat\n"
        other = EndpointLM(endpoint(stub.url, api="completions"), Sampling(), pin=pin)
        with pytest.raises(SteperError, match=r"begun with --api chat, and this is completions"):
            complete(other, numbered(2))


def test_finding_out_the_form_fails_once_for_all_who_wait() -> None:
    with Stub(lambda _: refused(500, "out of luck")) as stub:
        model = lm(stub.url, api="auto", retries=1)

        async def main() -> list[object]:
            requests = map(numbered, range(30))
            asked = (model.complete(request) for request in requests)
            return list(await asyncio.gather(*asked, return_exceptions=True))

        assert all(isinstance(error, SteperError) for error in asyncio.run(main()))
        assert len(stub.calls) < 20, "not a search for each request"
