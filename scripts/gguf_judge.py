#!/usr/bin/env python3
"""Holds exported GGUF files against llama.cpp itself.

    cargo build --release
    python3 scripts/gguf_judge.py MODEL [MODEL ...] [--backdraft target/release/backdraft] [--adapter DIR]
        [--types q4_k_m,q8_0] [--ids FILE]

For each model, a Hugging Face directory or a GGUF file:

1. `backdraft export` writes f32 and every quantised type; llama.cpp quantises our f32 file to the same types: the files must be
   equal byte for byte.
2. Where reference ids of the model's tokenizer are given (--ids FILE, a JSON list of {"text", "ids"}), llama.cpp's ids of these texts
   over our f16 file must be the same. That the file's tokenizer is the model's own, the export's check says.
3. Logits of llama.cpp and ours over the same file must have the same best token and agree within 5e-2: llama.cpp keeps keys and
   values in f16, and rounds activations to f16 beside f16 weights.
4. With --adapter, llama.cpp puts the exported adapter on the f32 base: its logits must be those of the merged f32 file.

    python3 scripts/gguf_judge.py --families

does the same with a random model of every family (`cargo run -p backdraft-testkit --example families -- DIRECTORY` writes them), in f32:
llama.cpp's greedy tokens must be ours, logits agree within 1.5e-2 of the largest, and a short run's adapter on the base compute what
the merged file does. What the program refuses to export is printed.

The judge is the npm package @node-llama-cpp/linux-x64 at a pinned version, whose libraries are called through ctypes; no Node
runs. It is kept in ~/.cache/backdraft/judge-VERSION. Needs npm once, x86-64 Linux, and Python 3 without any package.
"""
import argparse
import ctypes
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

PACKAGE = "@node-llama-cpp/linux-x64"
VERSION = "3.22.1"
TYPES = {"f16": 1, "bf16": 32, "q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q5_k_s": 16, "q4_k_m": 15, "q4_k_s": 14, "q5_1": 9, "q5_0": 8,
         "q4_1": 3, "q4_0": 2}
LIMIT = 5e-2
# Of a random model's largest logit: keys and values in f16 cost up to 1e-2, a number that the file does not have 2e-2 to 1.
PART = 1.5e-2
PROMPT, CONTINUED = 20, 28
TEXTS = ["Hello, world!", "In 2024, 3.14159 and 1234567890: x=1;\n\n\ty=22",
         "naïve café – “quotes” … €5, Straße ÆØÅ", "日本語のテキスト, Привет, мир! مرحبا 🙂👩‍🚀"]


def install():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "backdraft" / f"judge-{VERSION}"
    libraries = cache / "node_modules" / PACKAGE / "bins" / "linux-x64"
    if not libraries.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(cache), f"{PACKAGE}@{VERSION}"],
                       check=True, stdout=sys.stderr)
    return libraries


class Parameters(ctypes.Structure):
    """A structure of llama.cpp's that is only handed back, with fields set by their offsets: larger than any of them."""
    _fields_ = [("raw", ctypes.c_uint8 * 512)]

    def set(self, offset, value):
        self.raw[offset:offset + 4] = struct.pack("<i", value)


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.c_void_p), ("embd", ctypes.c_void_p), ("pos", ctypes.c_void_p),
                ("n_seq_id", ctypes.c_void_p), ("seq_id", ctypes.c_void_p), ("logits", ctypes.c_void_p)]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Judge:
    def __init__(self, libraries):
        ctypes.CDLL(str(libraries / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(str(next(libraries.glob("libggml.v*.so"))), mode=ctypes.RTLD_GLOBAL)
        lib = self.lib = ctypes.CDLL(str(next(libraries.glob("libllama.v*.so"))))
        self.log = LOG(lambda level, text, _: print(text.decode(errors="replace"), end="", file=sys.stderr) if level == 4 else None)
        ggml.ggml_backend_load_all_from_path(str(libraries).encode())
        lib.llama_log_set(self.log, None)
        lib.llama_backend_init()
        for name in ("llama_model_quantize_default_params", "llama_model_default_params", "llama_context_default_params"):
            getattr(lib, name).restype = Parameters
        p, i = ctypes.c_void_p, ctypes.c_int32
        lib.llama_model_load_from_file.restype, lib.llama_model_load_from_file.argtypes = p, [ctypes.c_char_p, Parameters]
        lib.llama_init_from_model.restype, lib.llama_init_from_model.argtypes = p, [p, Parameters]
        lib.llama_model_get_vocab.restype, lib.llama_model_get_vocab.argtypes = p, [p]
        lib.llama_vocab_n_tokens.argtypes = [p]
        lib.llama_tokenize.argtypes = [p, ctypes.c_char_p, i, ctypes.POINTER(i), i, ctypes.c_bool, ctypes.c_bool]
        lib.llama_batch_get_one.restype, lib.llama_batch_get_one.argtypes = Batch, [ctypes.POINTER(i), i]
        lib.llama_decode.argtypes = [p, Batch]
        lib.llama_get_logits_ith.restype, lib.llama_get_logits_ith.argtypes = ctypes.POINTER(ctypes.c_float), [p, i]
        lib.llama_get_memory.restype, lib.llama_get_memory.argtypes = p, [p]
        lib.llama_memory_clear.argtypes = [p, ctypes.c_bool]
        lib.llama_model_quantize.restype = ctypes.c_uint32
        lib.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
        lib.llama_adapter_lora_init.restype, lib.llama_adapter_lora_init.argtypes = p, [p, ctypes.c_char_p]
        lib.llama_set_adapters_lora.argtypes = [p, ctypes.POINTER(p), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)]
        lib.llama_set_n_threads.argtypes = [p, i, i]
        lib.llama_free.argtypes = lib.llama_model_free.argtypes = [p]

    def quantise(self, source, target, file_type):
        parameters = self.lib.llama_model_quantize_default_params()
        parameters.set(0, 2)
        parameters.set(4, file_type)
        if self.lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
            raise SystemExit(f"llama.cpp cannot quantise {source}")


class Model:
    def __init__(self, judge, path, adapter=None, threads=None):
        self.lib = lib = judge.lib
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.context = lib.llama_init_from_model(self.model, lib.llama_context_default_params())
        if threads:
            lib.llama_set_n_threads(self.context, threads, threads)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        if adapter:
            lora = ctypes.c_void_p(lib.llama_adapter_lora_init(self.model, str(adapter).encode()))
            if not lora or lib.llama_set_adapters_lora(self.context, ctypes.byref(lora), 1, ctypes.byref(ctypes.c_float(1.0))):
                raise SystemExit(f"llama.cpp cannot put {adapter} on {path}")

    def tokenize(self, text, begin=True):
        raw = text.encode()
        out = (ctypes.c_int32 * (len(raw) + 16))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), out, len(out), begin, True)
        return list(out[:count])

    def logits(self, ids):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama.cpp cannot decode")
        return self.lib.llama_get_logits_ith(self.context, -1)[:self.size]

    def free(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def our_logits(backdraft, model, ids, folder):
    """logits after each of these ids, by `score`"""
    (folder / "ids.json").write_text(json.dumps(ids))
    run(backdraft, "--json", "score", "--model", model, "--ids", folder / "ids.json", "--out", folder / "scores.safetensors", "--dtype",
        "f32", "--device", "cpu", "--force")
    raw = (folder / "scores.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    entry = json.loads(raw[8:8 + length])["logits"]
    start, end = entry["data_offsets"]
    size = entry["shape"][-1]
    values = struct.unpack(f"<{(end - start) // 4}f", raw[8 + length + start:8 + length + end])
    return [values[row:row + size] for row in range(0, len(values), size)]


def difference(a, b):
    best = lambda values: max(range(len(values)), key=values.__getitem__)
    return max(abs(x - y) for x, y in zip(a, b)), best(a) == best(b)


def first_difference(a, b):
    with open(a, "rb") as a, open(b, "rb") as b:
        at = 0
        while True:
            x, y = a.read(1 << 20), b.read(1 << 20)
            if x != y:
                return at + next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
            if not x:
                return None
            at += len(x)


def judge_model(judge, arguments, model, folder):
    backdraft, adapter, failures = arguments.backdraft.resolve(), arguments.adapter, []

    def check(fine, text):
        print(("ok    " if fine else "WRONG ") + text, flush=True)
        if not fine:
            failures.append(text)

    types = ",".join(dict.fromkeys(["f32", "f16", *arguments.types]))
    name = "judged"
    tuned = ["--adapter", adapter] if adapter else []
    lines = run(backdraft, "--json", "export", "--model", model, *tuned, "--to", folder, "--type", types, "--name", name, "--device", "cpu",
                "--force")
    for line in (line for line in lines if line["event"] == "exported"):
        kl, same = line["mean_kl"], line["same_best_token"]
        print(f"      {line['type']}: {line['bytes'] / 1e6:.1f} MB, KL {kl:.2e}, same best token {100 * same:.1f} % of {line['tokens']}")
    full = folder / f"{name}-f32.gguf"
    for kind in arguments.types:
        judge.quantise(full, folder / "judge.gguf", TYPES[kind])
        at = first_difference(folder / "judge.gguf", folder / f"{name}-{kind}.gguf")
        check(at is None, f"{kind}: " + ("the bytes of llama.cpp" if at is None else f"differs from llama.cpp from byte {at} on"))
    loaded = Model(judge, folder / f"{name}-f16.gguf")
    if arguments.ids:
        cases = json.loads(arguments.ids.read_text())
        cases = cases if isinstance(cases, list) else cases["cases"]
        wrong = [case["text"] for case in cases if loaded.tokenize(case["text"], False) != case["ids"]]
        check(not wrong, f"ids of {len(cases)} texts by llama.cpp" + (f": other ones of {wrong[:3]}" if wrong else ""))
    for kind in ("f32", "f16"):
        path, worst, alike = folder / f"{name}-{kind}.gguf", 0.0, True
        of_kind = loaded if kind == "f16" else Model(judge, path)
        for ids in filter(lambda ids: len(ids) > 1, map(loaded.tokenize, TEXTS)):
            apart, same = difference(our_logits(backdraft, path, ids, folder)[-1], of_kind.logits(ids))
            worst, alike = max(worst, apart), alike and same
        check(alike and worst <= LIMIT, f"{kind}: logits within {worst:.1e} of ours, the same best token: {alike}")
        if of_kind is not loaded:
            of_kind.free()
    loaded.free()
    if adapter:
        run(backdraft, "--json", "export", "--model", model, "--to", folder, "--type", "f32", "--name", "base", "--no-check", "--force")
        run(backdraft, "--json", "export", "--model", model, "--adapter", adapter, "--to", folder, "--adapter-only", "--name", name,
            "--force")
        merged = Model(judge, full)
        swapped = Model(judge, folder / "base-f32.gguf", folder / f"{name}-lora.gguf")
        ids = merged.tokenize(TEXTS[0])
        apart, same = difference(merged.logits(ids), swapped.logits(ids))
        check(apart <= LIMIT and same, f"adapter on its base: logits within {apart:.1e} of the merged file's")
    return failures


RECIPE = """
model = "{model}"
output_dir = "run"
max_seq_length = 128
device = "cpu"
[lora]
rank = 4
alpha = 64
[data]
train = "rows.jsonl"
format = "alpaca"
prompt_template = "{{instruction}} is {{output}}"
cache = "off"
[train]
max_steps = 2
learning_rate = 1e-2
"""


def judge_family(judge, backdraft, model, folder):
    """what llama.cpp makes of a random model: a line, and whether it is as it should be"""
    export = ["--json", "export", "--to", folder, "--no-check", "--device", "cpu", "--type", "f32", "--force"]
    try:
        run(backdraft, *export, "--model", model, "--name", "base")
    except SystemExit as refused:
        return f"refused: {json.loads(str(refused).splitlines()[-1])['causes'][0]}", True
    file = folder / "base-f32.gguf"
    # Threads that wait for each other would take longer than such a model.
    theirs, ids, rows = Model(judge, file, threads=1), [3 + (7 * i * i + 5 * i) % 90 for i in range(PROMPT)], []
    for _ in range(CONTINUED):
        rows.append(theirs.logits(ids))
        ids.append(max(range(theirs.size), key=rows[-1].__getitem__))
    theirs.free()
    worst, other = 0.0, 0
    for path in (model, file):
        ours = our_logits(backdraft, path, ids, folder)[PROMPT - 1:-1]
        for mine, row in zip(ours, rows):
            limit = max(map(abs, mine))
            worst = max(worst, difference(mine, row)[0] / limit)
            # Two best tokens that lie closer than rounding are no difference.
            other += max(mine) - mine[max(range(len(row)), key=row.__getitem__)] > PART * limit
    (folder / "rows.jsonl").write_text("".join(json.dumps({"instruction": f"{n}", "output": f"w{n}"}) + "\n" for n in range(8)))
    (folder / "recipe.toml").write_text(RECIPE.format(model=model))
    run(backdraft, "--json", "train", folder / "recipe.toml")
    adapter = folder / "run"
    run(backdraft, *export, "--adapter", adapter, "--name", "merged")
    run(backdraft, "--json", "export", "--adapter", adapter, "--to", folder, "--adapter-only", "--name", "base", "--force")
    merged, swapped = Model(judge, folder / "merged-f32.gguf", threads=1), Model(judge, file, folder / "base-lora.gguf", threads=1)
    with_adapter, without = merged.logits(ids[:PROMPT]), rows[0]
    largest = max(map(abs, with_adapter))
    apart, moved = difference(with_adapter, swapped.logits(ids[:PROMPT]))[0] / largest, difference(with_adapter, without)[0] / largest
    merged.free()
    swapped.free()
    fine = worst <= PART and not other and apart <= PART < moved
    return (f"{CONTINUED - other} of {CONTINUED} tokens ours, logits within {worst:.1e}; adapter {apart:.1e} from merged, "
            f"{moved:.1e} from the base"), fine


def judge_families(judge, backdraft):
    failures = []
    with tempfile.TemporaryDirectory(prefix="gguf-judge-") as models:
        command = ["cargo", "run", "-q", "--release", "-p", "backdraft-testkit", "--example", "families", "--", models]
        subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parent)
        for model in sorted(pathlib.Path(models).iterdir()):
            with tempfile.TemporaryDirectory(prefix="gguf-judge-") as folder:
                text, fine = judge_family(judge, backdraft, model, pathlib.Path(folder))
            print(f"{'ok   ' if fine else 'WRONG'} {model.name}: {text}", flush=True)
            failures += [] if fine else [model.name]
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--backdraft", default="target/release/backdraft", type=pathlib.Path)
    parser.add_argument("--adapter")
    parser.add_argument("--ids", type=pathlib.Path)
    parser.add_argument("--types", type=lambda text: text.split(","), default=list(TYPES))
    arguments = parser.parse_args()
    if not arguments.models and not arguments.families:
        parser.error("name a model, or --families")
    judge = Judge(install())
    failures = judge_families(judge, arguments.backdraft.resolve()) if arguments.families else []
    for model in arguments.models:
        print(model)
        with tempfile.TemporaryDirectory(prefix="gguf-judge-") as folder:
            failures += judge_model(judge, arguments, model, pathlib.Path(folder))
    if failures:
        raise SystemExit(f"{len(failures)} of llama.cpp's judgements differ")


if __name__ == "__main__":
    main()
