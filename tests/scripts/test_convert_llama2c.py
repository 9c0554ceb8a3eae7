"""The converter of llama2.c files against an independent forward pass and an independent tokenizer."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.convert_llama2c import main

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 24, 40, 2, 4, 2, 32
WORDS = [" ", "t", "h", "e", "a", "n", "d", "é", ".", " t", "he", " the", " a", "nd", " and", "the", "an", "a\n"]
TOKENS = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), *(w.encode() for w in WORDS)]
SCORES = [0.0] * 259 + [-1.0 * ((7 * i) % len(WORDS)) for i in range(len(WORDS))]
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)


def shapes(tied: bool) -> list[tuple[int, ...]]:
    head, kv, vocab = DIM // HEADS, KV_HEADS * DIM // HEADS, len(TOKENS)
    blocks = [(DIM,), (DIM, DIM), (kv, DIM), (kv, DIM), (DIM, DIM), (DIM,), (HIDDEN, DIM), (DIM, HIDDEN), (HIDDEN, DIM)]
    ends = [(DIM,), (CONTEXT, head // 2), (CONTEXT, head // 2)]
    return [(vocab, DIM), *((LAYERS, *block) for block in blocks), *ends, *([] if tied else [(vocab, DIM)])]


def write_files(folder: Path, tied: bool) -> tuple[Path, Path, list[np.ndarray]]:
    """A random model and a small vocabulary in llama2.c's format; also the tensors, in the order of the file."""
    rng = np.random.default_rng(0)
    tensors = [rng.normal(0, 0.3, shape).astype("<f4") for shape in shapes(tied)]
    vocab = len(TOKENS) if tied else -len(TOKENS)
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, vocab, CONTEXT)
    (folder / "model.bin").write_bytes(header + b"".join(tensor.tobytes() for tensor in tensors))
    rows = (struct.pack("<fi", s, len(t)) + t for t, s in zip(TOKENS, SCORES, strict=True))
    (folder / "tokens.bin").write_bytes(struct.pack("<i", 8) + b"".join(rows))
    return folder / "model.bin", folder / "tokens.bin", tensors


def forward(tensors: list[np.ndarray], ids: list[int]) -> np.ndarray:
    """llama2.c's forward pass in numpy, one position after the other; logits of every position."""
    emb, rms1, wq, wk, wv, wo, rms2, w1, w2, w3, rms3, _, _, *own = tensors
    head = DIM // HEADS

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    def rotate(x: np.ndarray, position: int) -> np.ndarray:
        turned = x.copy().reshape(-1, head // 2, 2)
        for pair in range(head // 2):
            angle = position * 10000.0 ** (-2 * pair / head)
            even, odd = x.reshape(-1, head // 2, 2)[:, pair].T
            turned[:, pair, 0] = even * np.cos(angle) - odd * np.sin(angle)
            turned[:, pair, 1] = even * np.sin(angle) + odd * np.cos(angle)
        return turned.reshape(-1, head)

    keys: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    values: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    logits = []
    for position, token in enumerate(ids):
        x = emb[token].astype(np.float64)
        for i in range(LAYERS):
            y = norm(x, rms1[i])
            query = rotate(wq[i] @ y, position)
            keys[i].append(rotate(wk[i] @ y, position))
            values[i].append((wv[i] @ y).reshape(-1, head))
            heads = []
            for h in range(HEADS):
                group = h // (HEADS // KV_HEADS)
                score = np.array([query[h] @ k[group] for k in keys[i]]) / np.sqrt(head)
                weight = np.exp(score - score.max())
                heads.append((weight / weight.sum()) @ np.array([v[group] for v in values[i]]))
            x = x + wo[i] @ np.concatenate(heads)
            y = norm(x, rms2[i])
            gate = w1[i] @ y
            x = x + w2[i] @ (gate / (1 + np.exp(-gate)) * (w3[i] @ y))
        logits.append((own[0] if own else emb) @ norm(x, rms3))
    return np.array(logits)


def encode(text: str) -> list[int]:
    """llama2.c's `encode`: the best-scoring neighbours are merged until none is left."""
    ids: list[int] = []
    for char in f" {text}" if text else "":
        raw = char.encode()
        ids += [TOKENS.index(raw, 259)] if raw in TOKENS[259:] else [byte + 3 for byte in raw]
    while True:
        joined = [(TOKENS[a] + TOKENS[b], place) for place, (a, b) in enumerate(zip(ids, ids[1:], strict=False))]
        known = [(SCORES[TOKENS.index(t)], -place) for t, place in joined if t in TOKENS[259:]]
        if not known:
            return ids
        place = -max(known)[1]
        ids[place : place + 2] = [TOKENS.index(joined[place][0])]


@pytest.mark.parametrize("tied", [True, False])
def test_converted_model_gives_the_logits_of_llama2c(tmp_path: Path, tied: bool) -> None:
    model, tokens, tensors = write_files(tmp_path, tied)
    assert main([str(model), str(tokens), str(tmp_path / "out")]) == 0
    ids = [1, 262, 7, 270, 259, 261, 261, 12, 3, 270]
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = converted(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits, forward(tensors, ids), atol=2e-4)
    assert list(converted.generation_config.eos_token_id) == [2, 1]


@pytest.mark.parametrize(
    "text",
    ["the and the", " the", "", "at hand.", "thethe  a", "née\n", "a\nand <0x41>", "日", "ttthhhee aaand", "aan"],
)
def test_converted_tokenizer_cuts_text_as_llama2c_does(tmp_path: Path, text: str) -> None:
    model, tokens, _ = write_files(tmp_path, True)
    main([str(model), str(tokens), str(tmp_path / "out")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(text)["input_ids"] == encode(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_lets_a_completion_continue_its_prompt(tmp_path: Path) -> None:
    model, tokens, _ = write_files(tmp_path, True)
    main([str(model), str(tokens), str(tmp_path / "out")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    def render(*contents: str, ask: bool = False) -> str:
        roles = ("user", "assistant")
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))

    assert render("the hand", ask=True) == "<s>the hand"
    assert render("the hand", "and the") == "<s>the hand and the</s>"
    assert render("the hand", ". The") == "<s>the hand. The</s>"
    asked, whole = (tokenizer(text)["input_ids"] for text in (render("the", ask=True), render("the", "and")))
    assert whole[: len(asked)] == asked and whole[0] == 1 and whole[-1] == 2


@pytest.mark.parametrize(("cut", "complaint"), [(20, "too short"), (4000, "holds"), (0, "does not begin")])
def test_file_that_is_no_model_is_refused_in_one_sentence(tmp_path: Path, capsys, cut: int, complaint: str) -> None:
    model, tokens, _ = write_files(tmp_path, True)
    model.write_bytes(model.read_bytes()[:cut] if cut else bytes(1000))
    assert main([str(model), str(tokens), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert complaint in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_vocabulary_that_ends_early_is_refused(tmp_path: Path, capsys) -> None:
    model, tokens, _ = write_files(tmp_path, True)
    tokens.write_bytes(tokens.read_bytes()[:1500])
    assert main([str(model), str(tokens), str(tmp_path / "out")]) == 2
    assert "ends before" in capsys.readouterr().err


REAL = Path(os.environ.get("TIEBREAK_STORY_MODEL") or Path(__file__).parents[3] / "shared" / "data" / "g_weights")
if (REAL / "stories260K.bin").exists() or "TIEBREAK_STORY_MODEL" in os.environ:

    def test_real_story_model_tells_the_published_story(tmp_path: Path) -> None:
        assert main([str(REAL / "stories260K.bin"), str(REAL / "tok512.bin"), str(tmp_path / "out")]) == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        start = torch.tensor([[tokenizer.bos_token_id]])
        told = model.generate(start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=100)
        assert tokenizer.decode(told[0], skip_special_tokens=True).startswith(STORY)
