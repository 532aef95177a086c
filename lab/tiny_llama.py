# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a tiny random Llama, so that a server without a GPU and without a hub has a model to serve.

    python3 lab/tiny_llama.py /path/to/folder

The folder gets what a model on a hub has, but for the weights: configuration, tokenizer, chat template. The server
makes the weights up itself (``--load-format dummy``), so the answers are nonsense: made-up words, from a model that
was never trained. All else about the server is real.

Written again with the same version of this file, the folder is the same to the byte; files that are right are not
touched. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from typing import Any

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
UNKNOWN, BEGIN, END, TURN_BEGIN, TURN_END = SPECIAL_TOKENS
CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
VOCABULARY_SIZE = 4096
CONTEXT_LENGTH = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_alphabet() -> dict[int, str]:
    """Return the printable character that stands for each byte in a byte-level tokenizer.

    Printable Latin-1 bytes stand for themselves; the others take the code points from 256 on, in their order. A blank
    becomes "Ġ" that way. Every text, in any script, is a string over these 256 characters.
    """
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in themselves}
    others = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(256 + place) for place, byte in enumerate(others)})
    return alphabet


def vocabulary() -> tuple[dict[str, int], list[list[str]]]:
    """Return the tokens with their numbers, and the merges that make them, of a small byte-pair encoding.

    Bytes come first, then syllables ("ba"), syllables that begin a word ("Ġba") and made-up words of two syllables
    ("Ġbako") until the vocabulary is full. Most tokens are words, so what a random model says can be read.
    """
    alphabet = byte_alphabet()
    blank = alphabet[ord(" ")]
    tokens = SPECIAL_TOKENS + [alphabet[byte] for byte in range(256)]
    merges: list[list[str]] = []

    def merge(left: str, right: str) -> str:
        tokens.append(left + right)
        merges.append([left, right])
        return left + right

    syllables = [merge(consonant, vowel) for consonant in CONSONANTS for vowel in VOWELS]
    beginnings = [merge(blank, syllable) for syllable in syllables]
    for beginning in beginnings:
        for syllable in syllables:
            if len(tokens) < VOCABULARY_SIZE:
                merge(beginning, syllable)
    return {token: number for number, token in enumerate(tokens)}, merges


def model_files() -> dict[str, Any]:
    """Return the model's files: name → content, to be written as JSON."""
    vocab, merges = vocabulary()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": vocab[BEGIN],
            "eos_token_id": vocab[END],
            "head_dim": 32,
            "hidden_act": "silu",
            "hidden_size": 128,
            "initializer_range": 0.02,
            "intermediate_size": 256,
            "max_position_embeddings": CONTEXT_LENGTH,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": VOCABULARY_SIZE,
        },
        "generation_config.json": {
            "bos_token_id": vocab[BEGIN],
            "do_sample": True,
            "eos_token_id": [vocab[END], vocab[TURN_END]],
            "temperature": 1.0,
        },
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": vocab[token], "content": token, **flags} for token in SPECIAL_TOKENS],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": merges,
            },
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "bos_token": BEGIN,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "model_max_length": CONTEXT_LENGTH,
            "pad_token": END,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNKNOWN,
        },
    }


def write_when_different(path: str, content: bytes) -> bool:
    """Write a file in one step unless it has this content already. Return whether it was written.

    Raises:
        OSError: the file can't be read or written.
    """
    try:
        with open(path, "rb") as file:
            if file.read() == content:
                return False
    except FileNotFoundError:
        pass
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".tiny_llama-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        # Any user of any container may read it, through a bind mount that maps its owner to nobody.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return True


def main() -> int:
    """Run as a command. Return the exit code."""
    parser = argparse.ArgumentParser(description="Write a tiny random Llama (no weights) into a folder.")
    parser.add_argument("folder", help="where to; made when it is missing")
    folder = os.path.abspath(parser.parse_args().folder)
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        written = [
            name
            for name, content in model_files().items()
            if write_when_different(
                os.path.join(folder, name), (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
            )
        ]
    except OSError as error:
        print(f"tiny_llama: can't write {error.filename or folder}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{folder}: {', '.join(written) + ' written' if written else 'as it should be'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
