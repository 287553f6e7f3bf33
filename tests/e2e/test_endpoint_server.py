"""The endpoint LM against ``transformers serve``: real server, real (tiny) model, real faults."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from faults import FaultProxy
from models import save_tiny_model
from steper.accounts import Prices, Purse
from steper.lm.calls import CallCache
from steper.lm.endpoint import Api, Endpoint, EndpointLM
from steper.protocols import Completion, Request, Sampling, Turn
from steper.types import Question

pytest.importorskip("uvicorn", reason="transformers serve needs uvicorn")
pytest.importorskip("fastapi", reason="transformers serve needs fastapi")

TEXT = "Roy Clark hosted the country variety show Hee Haw. So the answer is: Hee Haw.\n"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SHORT = Sampling(max_tokens=8)


@dataclass(frozen=True)
class Served:
    """One model of the server."""

    model: Path
    url: str

    def lm(self, api: Api, sampling: Sampling = SHORT) -> EndpointLM:
        endpoint = Endpoint(str(self.model), (self.url,), api=api, backoff_s=0.01)
        return EndpointLM(endpoint, sampling)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``transformers serve``, which loads the model that a call names."""
    folder = tmp_path_factory.mktemp("serve")
    hub = folder / "hub"
    hub.mkdir()  # an empty one, which the server may list
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command, "--port", port, "--device", "cpu"],
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def plain(url: str, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model that reads text only."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "plain", [TEXT * 3])
    # This server draws only from a model that says so itself; ``temperature`` alone does nothing.
    GenerationConfig(do_sample=True, pad_token_id=0, eos_token_id=1).save_pretrained(folder)
    return Served(folder, url)


@pytest.fixture(scope="session")
def chat(url: str, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model with a chat template."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "chat", [TEXT * 3])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return Served(folder, url)


def request(number: int, *, candidate: int = 0) -> Request:
    """Prompts end in different words, because this model sees little but the last ones."""
    written = f"Person {chr(97 + number % 26)}{chr(97 + number // 26)}"
    return Request(
        turns=(
            Turn("system", "Reason.\n"),
            Turn("user", "Question: What did he host?\nReasoning:\n"),
            Turn("assistant", written),
        ),
        question=Question(f"q{number}", "?", "Hee Haw"),
        steps=(),
        passages=(),
        final=False,
        nudge="Go on.",
        candidate=candidate,
    )


def complete(lm: EndpointLM, requests: Sequence[Request]) -> list[Completion]:
    async def main() -> list[Completion]:
        return list(await asyncio.gather(*(lm.complete(r) for r in requests)))

    return asyncio.run(main())


def in_process(folder: Path, prompt: str, max_tokens: int) -> str:
    """What ``generate`` says, greedily, to the end of the line."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    encoded = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(
            encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            stop_strings=["\n"],
            tokenizer=tokenizer,
        )
    new = output[0, encoded["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def test_greedy_completions_are_what_the_model_says_in_process(plain: Served) -> None:
    requests = [request(number) for number in range(6)]
    answers = complete(plain.lm("completions"), requests)
    expected = [in_process(plain.model, r.prompt, SHORT.max_tokens) for r in requests]
    assert [answer.text for answer in answers] == expected
    assert len(set(expected)) > 1
    tokenizer = AutoTokenizer.from_pretrained(plain.model)
    tokens = [len(tokenizer(r.prompt)["input_ids"]) for r in requests]
    assert [answer.usage.prompt_tokens for answer in answers] == tokens
    assert all(0 < answer.usage.completion_tokens <= 8 for answer in answers)


def test_a_conversation_is_answered_through_the_chat_template(chat: Served) -> None:
    (answer,) = complete(chat.lm("chat"), [request(1)])
    prompt = (
        "<system> Reason.\n<user> Question: What did he host?\nReasoning:\n"
        "<assistant> Person ba\n<user> Go on.\n<assistant> "
    )
    tokenizer = AutoTokenizer.from_pretrained(chat.model)
    assert answer.usage.prompt_tokens == len(tokenizer(prompt)["input_ids"])
    assert answer.text


def test_auto_takes_what_each_model_can(plain: Served, chat: Served) -> None:
    """This server continues no prefix and refuses the parameters; without template it crashes."""
    for server, form in ((plain, "completions"), (chat, "chat")):
        lm = server.lm("auto")
        assert complete(lm, [request(1)])[0].usage.completion_tokens > 0
        assert lm.form == form


def test_seeded_sampling_is_repeated_by_its_seed(plain: Served) -> None:
    warm = replace(SHORT, temperature=1.0)
    requests = [request(1, candidate=n) for n in range(4)]
    first, second = (
        # One after the other: this server seeds one generator for all calls under way.
        [complete(plain.lm("completions", warm), [r])[0].text for r in requests]
        for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 1


def test_two_thousand_calls_through_a_bad_network(plain: Served, tmp_path: Path) -> None:
    """30 of 100 calls fail in six ways; each of 2,000 answers is had, stored and paid just once.

    The proxy asks the real server once per prompt (200 of them) and gives its answer to all ten
    candidates; their seeds make them 2,000 different calls for the client and its cache.
    """
    requests = [request(n, candidate=c) for c in range(10) for n in range(200)]
    warm = replace(SHORT, temperature=1.0)
    cache, purse = CallCache(tmp_path / "calls.sqlite"), Purse(1e6)
    with FaultProxy(plain.url, seed=1, slow_s=0.5) as proxy:
        endpoint = Endpoint(
            str(plain.model),
            (proxy.url,),
            api="completions",
            timeout_s=0.3,
            retries=30,
            concurrency=8,
            backoff_s=0.002,
        )
        patient, others = replace(endpoint, timeout_s=60.0), replace(warm, seed=1)
        complete(EndpointLM(patient, others), requests[:200])  # the model's time is no fault
        proxy.calls.clear()
        proxy.spoiled.clear()
        lm = EndpointLM(endpoint, warm, cache=cache, prices=Prices(completion=1e6), purse=purse)
        answers = complete(lm, requests)
        made = len(proxy.calls)
        later = EndpointLM(endpoint, warm, cache=cache, purse=Purse(0.0))
        replayed = complete(later, requests)

    assert len(proxy.calls) == made, "the second pass called the server"
    distinct = len({call.body for call in proxy.calls})
    assert distinct >= 2000  # a blank line of the model makes a second call, without ``stop``
    assert 200 <= len(proxy.known) < 400
    assert [a.text for a in replayed] == [a.text for a in answers]
    assert all(a.replayed for a in replayed)
    for number in range(200):  # no answer went to another question
        assert len({a.text for a in answers[number::200]}) == 1
    assert len({a.text for a in answers[:200]}) > 20

    tokens = sum(answer.usage.completion_tokens for answer in answers)
    assert cache.count() == lm.tally.made == distinct
    assert sum(answer.usage.completion_tokens for answer in replayed) == tokens
    assert purse.spent == tokens
    assert (lm.tally.replayed, later.tally.made, later.tally.replayed) == (0, 0, distinct)

    spoiled, retried = proxy.spoiled, lm.tally.retried
    assert min(spoiled.values()) > 50
    spoiled["dropped"] += spoiled.pop("truncated")
    spoiled["time-out"] = spoiled.pop("slow")
    del spoiled[""]
    assert spoiled.keys() == retried.keys()
    # Each fault is counted as what it was, once. A busy machine may add time-outs: calls that the
    # proxy answered too late, whatever it answered, or never saw.
    late = retried["time-out"] - spoiled.pop("time-out")
    otherwise = {reason: count - retried[reason] for reason, count in spoiled.items()}
    unseen = lm.tally.retries + distinct - made
    assert min(otherwise.values()) >= 0
    assert unseen >= 0
    assert sum(otherwise.values()) + unseen <= late
