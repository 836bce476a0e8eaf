#!/usr/bin/env python3
"""Asks llama.cpp the held-out rows of a run, and holds its answers beside ours.

    cargo build --release
    target/release/backdraft quickstart --output-dir trial
    python3 scripts/gguf_answers.py trial/run trial/test.jsonl [--types q4_k_m,q8_0] [--rows 40] [--backdraft target/release/backdraft]

Exports the run's adapter over its base as GGUF, once for each type. Over the same rows, one JSON object a line with `messages` that end in
the expected answer, these answer greedily:

1. the trained model, in this program;
2. the file, in this program;
3. the file, in llama.cpp, which renders the chat with its own code from the file's template, after the system prompt that the
   Modelfile says, and stops at the tokens that the file says.

Counted are answers equal to the expected one, equal as JSON (where it is JSON), and equal in the first word (the right command first).
What 2 lacks of 1 is what the type costs; shares of 3 that are more than --within points (5) below those of 2, the same file, end the
script with an error.

llama.cpp is the npm package of scripts/gguf_judge.py.
"""
import argparse
import ctypes
import json
import os
import pathlib
import re
import tempfile

from gguf_judge import Judge, Model, install, run

LONGEST = 64


class Message(ctypes.Structure):
    _fields_ = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p)]


def declare(lib):
    p, i = ctypes.c_void_p, ctypes.c_int32
    lib.llama_model_chat_template.restype, lib.llama_model_chat_template.argtypes = ctypes.c_char_p, [p, ctypes.c_char_p]
    lib.llama_chat_apply_template.argtypes = [ctypes.c_char_p, ctypes.POINTER(Message), ctypes.c_size_t, ctypes.c_bool, ctypes.c_char_p, i]
    lib.llama_sampler_init_greedy.restype = p
    lib.llama_sampler_sample.argtypes = [p, p, i]
    lib.llama_set_n_threads.restype, lib.llama_set_n_threads.argtypes = None, [p, i, i]
    lib.llama_vocab_is_eog.restype, lib.llama_vocab_is_eog.argtypes = ctypes.c_bool, [p, i]
    lib.llama_token_to_piece.argtypes = [p, i, ctypes.c_char_p, i, i, ctypes.c_bool]


class Answerer(Model):
    def __init__(self, judge, path):
        super().__init__(judge, path)
        declare(self.lib)
        self.template = self.lib.llama_model_chat_template(self.model, None)
        if not self.template:
            raise SystemExit(f"{path} has no chat template")
        # More threads than processors wait for one another.
        threads = len(os.sched_getaffinity(0))
        self.lib.llama_set_n_threads(self.context, threads, threads)
        self.sampler = ctypes.c_void_p(self.lib.llama_sampler_init_greedy())

    def render(self, messages):
        array = (Message * len(messages))(*[Message(m["role"].encode(), m["content"].encode()) for m in messages])
        buffer = ctypes.create_string_buffer(1 << 16)
        length = self.lib.llama_chat_apply_template(self.template, array, len(messages), True, buffer, len(buffer))
        if not 0 < length <= len(buffer):
            raise SystemExit("llama.cpp cannot render the chat template")
        return buffer.raw[:length].decode()

    def answer(self, messages):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        ids, out = self.tokenize(self.render(messages)), b""
        for _ in range(LONGEST):
            tokens = (ctypes.c_int32 * len(ids))(*ids)
            if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, len(ids))):
                raise SystemExit("llama.cpp cannot decode")
            token = self.lib.llama_sampler_sample(self.sampler, self.context, -1)
            if self.lib.llama_vocab_is_eog(self.vocab, token):
                break
            piece = ctypes.create_string_buffer(256)
            length = self.lib.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, False)
            out += piece.raw[:length]
            ids = [token]
        return out.decode(errors="replace")


def as_json(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def share(pairs, same):
    return 100 * sum(same(answer.strip(), expected.strip()) for answer, expected in pairs) / len(pairs)


def scores(pairs):
    """exact match, right JSON where it is JSON, right first word, in per cent"""
    first = lambda text: text.split()[:1]
    structured = all(as_json(expected) is not None for _, expected in pairs)
    return {"exact_match": share(pairs, lambda a, b: a == b),
            "same_json": share(pairs, lambda a, b: as_json(a) == as_json(b)) if structured else None,
            "first_word": share(pairs, lambda a, b: first(a) == first(b))}


def ours(backdraft, arguments, rows):
    line = next(line for line in run(backdraft, "--json", "eval", *arguments, "--data", rows, "--generate", "--max-new-tokens", LONGEST,
                                     "--device", "cpu") if line["event"] == "evaluation")
    found = line.get("adapter", line["base"])
    return {"exact_match": 100 * found["exact_match"], "same_json": None, "first_word": 100 * found["first_word"]}


def show(who, found):
    shown = [f"{name.replace('_', ' ')} {value:.1f} %" for name, value in found.items() if value is not None]
    print(f"{who:34} {', '.join(shown)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="output directory of a run, or an adapter")
    parser.add_argument("data", type=pathlib.Path, help="rows with messages")
    parser.add_argument("--types", type=lambda text: text.split(","), default=["q4_k_m"])
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--within", type=float, default=5.0, help="points")
    parser.add_argument("--backdraft", default="target/release/backdraft", type=pathlib.Path)
    arguments = parser.parse_args()
    backdraft = arguments.backdraft.resolve()
    rows = [json.loads(line) for line in arguments.data.read_text().splitlines() if line.strip()][:arguments.rows]
    if not rows or any(row["messages"][-1]["role"] != "assistant" for row in rows):
        raise SystemExit(f"{arguments.data}: expected rows whose messages end in an answer")
    judge, worse = Judge(install()), []
    with tempfile.TemporaryDirectory(prefix="gguf-answers-") as folder:
        folder = pathlib.Path(folder)
        asked = folder / "rows.jsonl"
        asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{len(rows)} rows of {arguments.data}")
        trained = ours(backdraft, ["--adapter", arguments.run], asked)
        show("trained model, backdraft", trained)
        exported = run(backdraft, "--json", "export", "--adapter", arguments.run, "--to", folder, "--type", ",".join(arguments.types),
                       "--device", "cpu")
        modelfile = (folder / "Modelfile").read_text()
        system = re.search(r'^SYSTEM """(.*?)"""', modelfile, re.S | re.M)
        for line in (line for line in exported if line["event"] == "exported"):
            path, kind = folder / pathlib.Path(line["files"][0]).name, line["type"]
            same = ours(backdraft, ["--model", path], asked)
            show(f"{kind}, backdraft", same)
            model, pairs = Answerer(judge, path), []
            for row in rows:
                *before, expected = row["messages"]
                if system and before[0]["role"] != "system":
                    before = [{"role": "system", "content": system.group(1)}, *before]
                pairs.append((model.answer(before), expected["content"]))
            model.free()
            found = scores(pairs)
            show(f"{kind}, llama.cpp", found)
            worse += [f"{kind}: {name}" for name in ("exact_match", "first_word") if found[name] < same[name] - arguments.within]
    if worse:
        raise SystemExit(f"llama.cpp's answers are more than {arguments.within:g} points worse: {', '.join(worse)}")


if __name__ == "__main__":
    main()
