"""Writes tests/golden/misc/tokenizer_tekken.json: ids that mistral-common gives, and the tokenizer.json they belong to.

    pip install mistral-common==1.13.1 tiktoken                            # Apache-2.0; the vocabulary is in the wheel
    python make_tekken.py ../../../tests/golden/misc tokenizers            # writes tokenizers/tekken.json too
    BACKDRAFT_TOKENIZERS=$PWD/tokenizers cargo test -p backdraft-formats -p backdraft-data golden_tokenizers

The vocabulary is tekken_240718, Mistral Nemo's. It has ranks where a tokenizer.json has merges: a token's merge is the
pair that byte-pair encoding with the ranks below its own leaves of it. Only ids and the file's hash are kept here.
"""

import base64
import hashlib
import importlib.resources
import json
import sys
from pathlib import Path

from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

NAME = "tekken_240718.json"


def byte_letters():
    """The letter that GPT-2 writes for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(shown)))
    return letters


def parts(token, ranks):
    """What is left of a token after every merge of a lower rank."""
    own, pieces = ranks[token], [bytes([byte]) for byte in token]
    while True:
        merged = [(ranks.get(a + b, own), at) for at, (a, b) in enumerate(zip(pieces, pieces[1:]))]
        rank, at = min(merged, default=(own, 0))
        if rank >= own:
            return pieces
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def tokenizer_json(path, tekken):
    model = json.loads(path.read_text())
    specials = tekken.num_special_tokens
    count = tekken.n_words - specials
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in model["vocab"][:count]}
    letters = byte_letters()
    text = lambda token: "".join(letters[byte] for byte in token)
    vocab = {tekken.id_to_piece(id): id for id in range(specials)}
    vocab.update((text(token), specials + rank) for token, rank in ranks.items())
    merges = [[text(part) for part in parts(token, ranks)] for token in sorted(ranks, key=ranks.get) if len(token) > 1]
    assert all(len(merge) == 2 for merge in merges)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": id, "content": tekken.id_to_piece(id), **flags} for id in range(specials)]
    bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": model["config"]["pattern"]}, "behavior": "Isolated", "invert": False}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequence = lambda id: {"Sequence": {"id": id, "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytelevel]},
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, sequence("A")], "pair": [bos, sequence("A"), sequence("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": bytelevel,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocab, "merges": merges,
        },
    }


def main(golden, folder):
    path = importlib.resources.files("mistral_common") / "data" / NAME
    tekken = Tekkenizer.from_file(path)
    tekken.special_token_policy = SpecialTokenPolicy.IGNORE
    folder.mkdir(parents=True, exist_ok=True)
    file = json.dumps(tokenizer_json(path, tekken), ensure_ascii=False).encode()
    (folder / "tekken.json").write_bytes(file)
    cases = []
    for case in json.loads((golden / "tokenizer_qwen3.json").read_text())["cases"]:
        text = case["text"]
        # mistral-common never reads a special token in a text.
        if "<" not in text and "[" not in text:
            ids = tekken.encode(text, bos=False, eos=False)
            cases.append({"text": text, "ids": ids, "ids_with_special": tekken.encode(text, bos=True, eos=False),
                          "decoded": tekken.decode(ids, special_token_policy=SpecialTokenPolicy.IGNORE)})
    out = {"tokenizer_json_sha256": hashlib.sha256(file).hexdigest(), "cases": cases}
    lines = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in out["cases"])
    text = f'{{\n "tokenizer_json_sha256": "{out["tokenizer_json_sha256"]}",\n "cases": [\n  {lines}\n ]\n}}\n'
    (golden / "tokenizer_tekken.json").write_text(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
