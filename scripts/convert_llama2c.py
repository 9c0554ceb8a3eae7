"""Turn a llama2.c model into a transformers checkpoint directory.

    python scripts/convert_llama2c.py MODEL.bin TOKENIZER.bin OUT_DIR

The format is that of https://github.com/karpathy/llama2.c, `run.c` (version 0, float32): seven little-endian int32
(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len; a negative vocab_size means an output layer of
its own), then the tensors in the order of `Header.shapes`. Two things differ from transformers and are converted here:
llama2.c rotates *neighbouring* pairs of a head's dimensions where transformers rotates its two *halves*, so the rows of
wq and wk change places; and it merges tokens by score, which becomes a ranked list of merges.

The chat template only joins the messages, because such a model continues text: a completion continues its prompt.
"""

import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPACE = "▁"
"""How `tokenizers` writes a space inside a token."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    # a decoded completion has lost its leading space: put it back, unless it goes on with punctuation
    "{% if not loop.first and message['content'][:1] not in '.,;:!?\\' \\n' %}{{ ' ' }}{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


class FormatError(Exception):
    """The file is not what it should be; the message says how."""


@dataclass(frozen=True)
class Header:
    """The sizes of the model. `tied`: the output layer is the embedding."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor in the file, in its order."""
        layers, dim, kv = self.layers, self.dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocab, dim),
            "rms_attention": (layers, dim),
            "wq": (layers, dim, dim),
            "wk": (layers, kv, dim),
            "wv": (layers, kv, dim),
            "wo": (layers, dim, dim),
            "rms_ffn": (layers, dim),
            "w1": (layers, self.hidden, dim),
            "w2": (layers, dim, self.hidden),
            "w3": (layers, self.hidden, dim),
            "rms_final": (dim,),
            "rope_real": (self.context, self.head_dim // 2),  # read over: the angles follow from the sizes
            "rope_imaginary": (self.context, self.head_dim // 2),
        }
        return shapes if self.tied else shapes | {"output": (self.vocab, dim)}


def convert(model: Path, tokenizer: Path, out: Path) -> None:
    """Write a transformers directory: config, safetensors, tokenizer with chat template, generation config."""
    from transformers import GenerationConfig, LlamaForCausalLM

    header, tensors = read_model(model)
    converted = LlamaForCausalLM(_config(header))
    converted.load_state_dict(_state(header, tensors))
    # These models were trained on stories that each begin with BOS: one that emits BOS has ended its story.
    converted.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 1], pad_token_id=0)
    converted.save_pretrained(out)
    build_tokenizer(read_tokenizer(tokenizer, header.vocab), header.context).save_pretrained(out)


def read_model(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Sizes and tensors of a model file."""
    data = path.read_bytes()
    if len(data) < 28:
        raise FormatError(f"{path.name} is too short for a llama2.c header.")
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", data[:28])
    sizes = (dim, hidden, layers, heads, kv_heads, abs(vocab), context)
    if min(sizes) <= 0 or dim % heads or heads % kv_heads:
        raise FormatError(f"{path.name} does not begin with a llama2.c header.")
    header = Header(*sizes, tied=vocab > 0)
    values = np.frombuffer(data, dtype="<f4", offset=28, count=(len(data) - 28) // 4)
    expected = sum(int(np.prod(shape)) for shape in header.shapes().values())
    if len(values) != expected:
        raise FormatError(f"{path.name} holds {len(values):,} numbers; a model of its header has {expected:,}.")
    tensors, start = {}, 0
    for name, shape in header.shapes().items():
        end = start + int(np.prod(shape))
        tensors[name] = values[start:end].reshape(shape)
        start = end
    return header, tensors


def read_tokenizer(path: Path, vocab: int) -> list[tuple[bytes, float]]:
    """(bytes, score) of each token. The three first are unknown, BOS and EOS, then come the 256 single bytes."""
    data, at = path.read_bytes(), 4
    tokens = []
    try:
        for _ in range(vocab):
            score, length = struct.unpack_from("<fi", data, at)
            tokens.append((data[at + 8 : at + 8 + length], score))
            at += 8 + length
    except struct.error as error:
        raise FormatError(f"{path.name} ends before its {vocab} tokens do.") from error
    return tokens


def build_tokenizer(tokens: list[tuple[bytes, float]], context: int) -> Any:
    """llama2.c's encoder for `tokenizers`: a space in front, characters or their bytes, best score merged first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = [UNK, BOS, EOS] + [f"<0x{byte:02X}>" for byte in range(256)]
    names += [raw.decode().replace(" ", SPACE) for raw, _ in tokens[len(names) :]]
    ids = {name: index for index, name in enumerate(names)}
    merges = [
        (-tokens[index][1], name[:cut], name[cut:])
        for name, index in ids.items()
        if index > 258
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    bpe = models.BPE(
        ids, [(left, right) for _, left, right in sorted(merges)], unk_token=UNK, fuse_unk=True, byte_fallback=True
    )
    fast = Tokenizer(bpe)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    fast.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in (UNK, BOS, EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=UNK,
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _config(header: Header) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=header.vocab,
        hidden_size=header.dim,
        intermediate_size=header.hidden,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=header.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def _state(header: Header, tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The tensors under transformers' names."""
    names = {
        "rms_attention": "input_layernorm",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "rms_ffn": "post_attention_layernorm",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
    }
    state = {"model.embed_tokens.weight": tensors["embedding"], "model.norm.weight": tensors["rms_final"]}
    state["lm_head.weight"] = tensors["embedding" if header.tied else "output"]
    for layer in range(header.layers):
        place = f"model.layers.{layer}"
        for name, theirs in names.items():
            state[f"{place}.{theirs}.weight"] = tensors[name][layer]
        state[f"{place}.self_attn.q_proj.weight"] = _halves(tensors["wq"][layer], header.head_dim)
        state[f"{place}.self_attn.k_proj.weight"] = _halves(tensors["wk"][layer], header.head_dim)
    return {name: torch.tensor(values) for name, values in state.items()}


def _halves(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows 0, 1, 2, 3, … of each head (pairs are neighbours) as 0, 2, …, 1, 3, … (pairs are half a head apart)."""
    rows, dim = weight.shape
    return weight.reshape(-1, head_dim // 2, 2, dim).transpose(0, 2, 1, 3).reshape(rows, dim)


def main(arguments: list[str]) -> int:
    """Convert; exit 2 with one sentence when a file cannot be used."""
    if len(arguments) != 3:
        print("usage: python scripts/convert_llama2c.py MODEL.bin TOKENIZER.bin OUT_DIR", file=sys.stderr)
        return 2
    model, tokenizer, out = map(Path, arguments)
    try:
        convert(model, tokenizer, out)
    except (FormatError, OSError, UnicodeDecodeError) as error:
        print(f"Cannot convert: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
