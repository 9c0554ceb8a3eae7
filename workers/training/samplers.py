"""Who draws completions: a policy in this process, or a server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp).

A server is several times faster on a large model. Where it tells token ids (vLLM's `return_token_ids`), tokens are
never decoded and encoded again. Each completion is a request of its own with its own seed; the server shares the
prefill of a prompt's completions by its prefix cache. The API key comes from the environment variable
TIEBREAK_SERVER_KEY and goes nowhere but into the request's header.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from workers.training import sampling
from workers.training.choosing import Rule
from workers.training.errors import DataError, ModelError, ServerError
from workers.training.nets import Policy
from workers.training.records import Text
from workers.training.tokens import Codec

KEY = "TIEBREAK_SERVER_KEY"
_IDS = "return_token_ids"  # vLLM's
_ATTEMPTS = 6
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


@dataclass(frozen=True)
class Settings:
    """How to draw, and how many at a time."""

    max_new_tokens: int
    max_length: int
    rule: Rule
    stop: tuple[str, ...] = ()
    batch_size: int = 128


@dataclass(frozen=True)
class Drawn:
    """A completion: its text without stop string and special tokens, its length in tokens (end token included), whether
    it ended by itself; prompt, tokens and log-probabilities as far as whoever drew it tells them."""

    text: str
    length: int
    ended: bool
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


class Sampler(Protocol):
    """Something that completes prompts."""

    def draw(
        self, prompts: Sequence[Text], seeds: Sequence[int], between: Callable[[int], None] | None = None
    ) -> list[Drawn]:
        """One completion per prompt, in order; `between` is called with the number done from time to time."""
        ...


class InProcess:
    """A policy that is loaded here: exact log-probabilities, and the same draws for the same seeds."""

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self.policy, self.settings = policy, settings

    def draw(
        self, prompts: Sequence[Text], seeds: Sequence[int], between: Callable[[int], None] | None = None
    ) -> list[Drawn]:
        codec, how = self.policy.codec, self.settings
        encoded = encode(codec, prompts, how, self.policy.context_length)
        completions = sampling.generate(
            self.policy,
            encoded,
            seeds,
            max_new_tokens=how.max_new_tokens,
            temperature=how.rule.temperature,
            top_p=how.rule.top_p,
            top_k=how.rule.top_k,
            min_p=how.rule.min_p,
            repetition_penalty=how.rule.repetition_penalty,
            stop=how.stop,
            batch_size=how.batch_size,
            between=between,
        )
        return [
            Drawn(_cut(codec.decode(c.tokens), how.stop), len(c.tokens), c.ended, prompt, c.tokens, c.log_probs)
            for prompt, c in zip(encoded, completions, strict=True)
        ]


def encode(codec: Codec, prompts: Sequence[Text], settings: Settings, context: int = 1 << 30) -> list[list[int]]:
    """Prompts as token ids, cut at their start to what `max_length` and the context leave room for."""
    room = min(settings.max_length, context) - settings.max_new_tokens
    if room < 1:
        raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
    return [sampling.clip_prompt(codec.encode_prompt(prompt), room) for prompt in prompts]


class Server:
    """An OpenAI-compatible server, by its URL (`http://host:port/v1`) and the name of a model that it serves.

    With a `codec`, prompts are sent as token ids to the completions endpoint, and completions have token ids: the
    server's, or else those of its text. Without one, strings go to the completions endpoint and messages to the chat
    endpoint, where the server's own chat template puts them together. Log-probabilities are the server's: at
    temperature 1 for vLLM, hence none at any other.
    """

    def __init__(self, url: str, model: str, settings: Settings, codec: Codec | None = None) -> None:
        self.url, self.model, self.settings, self.codec = url.rstrip("/"), model, settings, codec
        self.pause = 0.5  # seconds before the second attempt; doubled for each further one
        key = os.environ.get(KEY)
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=settings.batch_size),
        )
        self._ids = True  # ask for token ids

    def names(self) -> list[str]:
        """The models that the server serves."""
        answer = self._send("GET", "/models", None)
        return [str(model.get("id")) for model in _list(answer, "data")]

    def draw(
        self, prompts: Sequence[Text], seeds: Sequence[int], between: Callable[[int], None] | None = None
    ) -> list[Drawn]:
        asked: list[Text | list[int]] = [*prompts]
        if self.codec is not None:
            asked = [*encode(self.codec, prompts, self.settings)]
        found: list[Drawn] = []
        with ThreadPoolExecutor(self.settings.batch_size) as pool:
            waiting = [pool.submit(self._one, *each) for each in zip(prompts, asked, seeds, strict=True)]
            try:
                for number, future in enumerate(waiting, start=1):
                    found.append(future.result())
                    if between and (number % self.settings.batch_size == 0 or number == len(waiting)):
                        between(number)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def _one(self, prompt: Text, asked: Text | list[int], seed: int) -> Drawn:
        chat = isinstance(asked, list) and isinstance(asked[0], dict)
        body = self._body() | {"seed": seed & 0x7FFFFFFF, ("messages" if chat else "prompt"): asked}
        body["logprobs"] = chat or 0  # a flag for chat, a number of alternatives for completions
        answer = self._send("POST", "/chat/completions" if chat else "/completions", body)
        return self._read(answer, prompt, asked)

    def _body(self) -> dict[str, Any]:
        how, rule = self.settings, self.settings.rule
        body: dict[str, Any] = {"model": self.model, "max_tokens": how.max_new_tokens, "temperature": rule.temperature}
        body |= {"stop": list(how.stop)} if how.stop else {}
        plain = Rule(temperature=rule.temperature)  # what is not asked for is not sent: not every server knows all
        names = ("top_p", "top_k", "min_p", "repetition_penalty")
        body |= {n: getattr(rule, n) for n in names if getattr(rule, n) != getattr(plain, n)}
        return body | ({_IDS: True} if self._ids else {})

    def _read(self, answer: dict[str, Any], prompt: Text, asked: Text | list[int]) -> Drawn:
        choices = _list(answer, "choices")
        choice = choices[0] if choices else {}
        text = choice.get("text", (choice.get("message") or {}).get("content"))
        if not isinstance(text, str):
            raise ServerError(f"{self.url}: the answer holds no text; is this an OpenAI-compatible server?")
        ended = choice.get("finish_reason") == "stop"
        told = choice.get("logprobs") or {}
        log_probs = told.get("token_logprobs") or [token["logprob"] for token in told.get("content") or []]
        tokens = choice.get("token_ids") or []
        ids = choice.get("prompt_token_ids") or answer.get("prompt_token_ids") or []
        if self.codec is not None:
            ids = asked
            if not tokens:
                whole = self.codec.encode(prompt, text)[0].completion
                tokens, log_probs = whole if ended and not self.settings.stop else whole[:-1], []
            text = _cut(self.codec.decode(tokens), self.settings.stop)
        length = len(tokens) or (answer.get("usage") or {}).get("completion_tokens") or len(log_probs)
        exact = self.settings.rule.temperature == 1.0 and len(log_probs) == length
        return Drawn(text, length, ended, list(ids), list(tokens), list(log_probs) if exact else [])

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """One request, again after a pause where another attempt can help; the server's own words where it cannot."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                response = self.client.request(method, self.url + path, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code in _PASSING:
                problem = f"status {response.status_code}: {response.text[:200]}"
                continue
            if body and _IDS in body and response.status_code in (400, 422):  # perhaps it does not know this field
                self._ids = False
                return self._send(method, path, {name: value for name, value in body.items() if name != _IDS})
            return self._checked(response)
        raise ServerError(f"{self.url} does not answer after {_ATTEMPTS} attempts ({problem}).")

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code in (401, 403):
            raise ModelError(f"{self.url} refuses the request: set the right API key in {KEY}.")
        if response.status_code != 200:
            raise ModelError(f"{self.url} refuses the request ({response.status_code}): {response.text[:300]}")
        try:
            answer: dict[str, Any] = response.json()
        except ValueError:
            raise ServerError(f"{self.url} does not answer in JSON; is this an OpenAI-compatible server?") from None
        return answer


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string, without white space around it."""
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))].strip()


def _list(answer: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = answer.get(name) if isinstance(answer, dict) else None
    return [value for value in values or [] if isinstance(value, dict)]
