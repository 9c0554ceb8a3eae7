"""One seam for both ways of drawing: a policy in this process, and servers that speak OpenAI's protocol, vLLM's kind
(token ids, unknown fields welcome) and a plain one, both played by a small HTTP server with the same tiny policy."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.workers.training.nets_in_memory import Recorder, policy, toy_prompts, write_jsonl
from workers.training import evaluate, sample, samplers, sampling
from workers.training.choosing import Rule
from workers.training.errors import DataError, ModelError, ServerError
from workers.training.nets import Policy, load_policy
from workers.training.recipes import EvaluateRecipe, SampleRecipe
from workers.training.samplers import InProcess, Server, Settings

HOW = Settings(8, 64, Rule(), batch_size=4)
PROMPTS = ["say a", "say bb", "say a", "tell me"]
SEEDS = [1, 2, 3, 4]
CHAT = [[{"role": "user", "content": text}] for text in PROMPTS]


class Endpoint(ThreadingHTTPServer):
    """Serves `policy` as "tiny". `trouble` holds statuses to answer first; `plain` servers tell no token ids."""

    daemon_threads = True

    def __init__(self, served: Policy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy, self.plain, self.name, self.key = served, False, "tiny", ""
        self.trouble: list[int] = []
        self.seen: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.seen.append({"path": path} | body)
        if self.trouble:
            return self.trouble.pop(0), {"error": "busy"}
        if path == "/v1/models":
            return 200, {"data": [{"id": self.name}]}
        if self.plain and "return_token_ids" in body:
            return 400, {"error": {"message": "Unrecognized request argument"}}
        codec, asked = self.policy.codec, body.get("prompt", body.get("messages"))
        ids = asked if isinstance(asked, list) and isinstance(asked[0], int) else codec.encode_prompt(asked)
        [drawn] = sampling.generate(
            self.policy, [ids], [body["seed"]], max_new_tokens=body["max_tokens"], temperature=body["temperature"],
            top_k=body.get("top_k", 0), stop=body.get("stop", []),
        )  # fmt: skip
        text = codec.decode(drawn.tokens)
        reason = "stop" if drawn.ended else "length"
        choice: dict[str, Any] = {"finish_reason": reason}
        if path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": text}
            choice["logprobs"] = {"content": [{"logprob": value} for value in drawn.log_probs]}
        else:
            choice |= {"text": text, "logprobs": {"token_logprobs": drawn.log_probs}}
        if not self.plain:
            choice["token_ids"] = drawn.tokens
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(drawn.tokens)}}


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_GET(self) -> None:  # noqa: N802
        self._reply(*self.server.answer(self.path, {}))

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self._reply(401, {"error": "no"})
        with self.server.lock:
            return self._reply(*self.server.answer(self.path, body))

    def _reply(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint(policy())
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def ask(endpoint: Endpoint, settings: Settings = HOW, **options: Any) -> Server:
    server = Server(endpoint.url, endpoint.name, settings, **options)
    server.pause = 0.001
    return server


@pytest.mark.parametrize("prompts", [PROMPTS, CHAT])
@pytest.mark.parametrize("with_codec", [True, False])
def test_a_server_with_the_same_policy_draws_what_is_drawn_here(
    endpoint: Endpoint, prompts: list[Any], with_codec: bool
) -> None:
    here = InProcess(endpoint.policy, HOW).draw(prompts, SEEDS)
    there = ask(endpoint, codec=endpoint.policy.codec if with_codec else None).draw(prompts, SEEDS)
    assert [(d.text, d.length, d.ended, d.tokens) for d in there] == [
        (d.text, d.length, d.ended, d.tokens) for d in here
    ]
    for one, other in zip(there, here, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert not with_codec or one.prompt == other.prompt
    messages = prompts is CHAT and not with_codec
    assert {call["path"] for call in endpoint.seen} == {"/v1/chat/completions" if messages else "/v1/completions"}


def test_a_plain_server_is_asked_without_foreign_fields_and_its_text_is_tokenised(endpoint: Endpoint) -> None:
    endpoint.plain = True
    server = ask(endpoint, codec=endpoint.policy.codec)
    drawn, here = server.draw(PROMPTS, SEEDS), InProcess(endpoint.policy, HOW).draw(PROMPTS, SEEDS)
    for one, other in zip(drawn, here, strict=True):
        assert one.text == other.text and one.ended == other.ended
        assert one.tokens[-1] == 1 if one.ended else 1 not in one.tokens
    assert "return_token_ids" not in endpoint.seen[-1]
    assert {"top_k", "min_p", "repetition_penalty", "top_p"}.isdisjoint(endpoint.seen[0])


def test_what_the_recipe_asks_for_is_sent_and_log_probs_at_another_temperature_are_not_believed(
    endpoint: Endpoint,
) -> None:
    server = ask(endpoint, Settings(8, 64, Rule(temperature=0.5, top_k=3), stop=("a",), batch_size=2))
    drawn = server.draw(PROMPTS, [2**62 + 5] * 4)
    assert all(call["top_k"] == 3 and call["temperature"] == 0.5 and call["stop"] == ["a"] for call in endpoint.seen)
    assert all(0 <= call["seed"] < 2**31 for call in endpoint.seen)
    assert all(d.log_probs == [] and "a" not in d.text for d in drawn)


def test_passing_trouble_is_waited_out_and_lasting_trouble_named(endpoint: Endpoint) -> None:
    endpoint.trouble = [503, 429]
    assert len(ask(endpoint).draw(PROMPTS, SEEDS)) == 4
    endpoint.trouble = [500] * 100
    with pytest.raises(ServerError, match=r"does not answer after 6 attempts \(status 500"):
        ask(endpoint).draw(PROMPTS[:1], SEEDS[:1])
    endpoint.trouble = [404]
    with pytest.raises(ModelError, match=r"refuses the request \(404\).*busy"):
        ask(endpoint).draw(PROMPTS[:1], SEEDS[:1])


def test_nobody_there_and_no_server_of_this_kind(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Server("http://127.0.0.1:9/v1", "tiny", HOW)
    nobody.pause = 0.001
    with pytest.raises(ServerError, match="ConnectError"):
        nobody.draw(PROMPTS[:1], SEEDS[:1])
    monkeypatch.setattr(Endpoint, "answer", lambda *_: (200, {"hello": "world"}))
    with pytest.raises(ServerError, match="holds no text"):
        ask(endpoint).draw(PROMPTS[:1], SEEDS[:1])


def test_the_key_comes_from_the_environment_alone(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.key = "secret-key"
    with pytest.raises(ModelError, match=samplers.KEY) as failure:
        ask(endpoint).draw(PROMPTS[:1], SEEDS[:1])
    monkeypatch.setenv(samplers.KEY, "secret-key")
    assert len(ask(endpoint).draw(PROMPTS, SEEDS)) == 4
    assert "secret" not in str(failure.value) and "secret" not in json.dumps(endpoint.seen)


def test_the_sample_stage_writes_the_same_file_from_a_server(
    endpoint: Endpoint, tmp_path: Path, llama_dir: Path
) -> None:
    endpoint.policy = load_policy(str(llama_dir))
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(3))
    recipe = SampleRecipe(n=2, max_new_tokens=6, temperature=0, log_probs=True)
    sample.train(recipe, prompts, tmp_path / "here", Recorder(), model=str(llama_dir))
    sample.train(recipe, prompts, tmp_path / "there", Recorder(), model="tiny", server=endpoint.url)
    here, there = (
        [json.loads(line) for line in (tmp_path / place / "completions.jsonl").read_text().splitlines()]
        for place in ("here", "there")
    )
    assert len(here) == 3 and len(here[0]["completions"][0]["log_probs"]) == here[0]["completions"][0]["tokens"]
    names = ("text", "tokens", "token_ids", "ended")
    for one, other in zip(here, there, strict=True):
        assert one["prompt"] == other["prompt"] and one["id"] == other["id"]
        for mine, theirs in zip(one["completions"], other["completions"], strict=True):
            assert [mine[n] for n in names] == [theirs[n] for n in names]


def test_the_evaluate_stage_draws_the_policies_that_the_server_has_and_loads_the_other(
    endpoint: Endpoint, tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.policy, endpoint.name = load_policy(str(llama_dir)), "tiny"
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(3))
    recipe = EvaluateRecipe(max_new_tokens=6, max_length=64, batch_size=4)

    def run(out: str, **options: Any) -> dict[str, float]:
        return evaluate.train(
            recipe, prompts, tmp_path / out, Recorder(), model=str(llama_dir), baseline=str(llama_dir), **options
        )

    with pytest.raises(DataError, match="serves tiny: neither --model nor --baseline"):
        run("refused", server=endpoint.url)
    endpoint.name = str(llama_dir)
    here, there = run("here"), run("there", server=endpoint.url)
    assert sum(call["path"] == "/v1/completions" for call in endpoint.seen) == 6
    assert here.keys() == there.keys() and there["kl"] == 0.0
    assert run("half", server=endpoint.url, initial=str(llama_dir))["kl_initial"] == 0.0
