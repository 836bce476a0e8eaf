"""The work of throughput.rs with Python's libraries: render, tokenise, mask, pack.

    pip install datasets transformers jinja2
    python throughput.py TOKENIZER_FOLDER DATA.jsonl [MAX_SEQ_LENGTH] [PROCESSES]

Rows are `messages` rows of a ChatML template. Labels are masked as usual there: by looking for the
ids of the assistant's marker and of the end of turn. The cache is cleared first.
"""

import bisect
import resource
import shutil
import sys
import tempfile
import time

folder, data = sys.argv[1:3]
max_seq_length = int(sys.argv[3]) if len(sys.argv) > 3 else 2048
processes = int(sys.argv[4]) if len(sys.argv) > 4 else 2

import datasets  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

datasets.disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(folder)
start = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
end = tokenizer.convert_tokens_to_ids("<|im_end|>")


def mask(ids):
    labels = [-100] * len(ids)
    at = 0
    while at < len(ids):
        if ids[at : at + len(start)] == start:
            at += len(start)
            while at < len(ids):
                labels[at] = ids[at]
                at += 1
                if ids[at - 1] == end:
                    break
        else:
            at += 1
    return labels


def encode(batch):
    texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_seq_length)
    ids = ids["input_ids"]
    return {"input_ids": ids, "labels": [mask(row) for row in ids]}


def pack(lengths):
    """Best fit decreasing."""
    packs, room = [], []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        at = bisect.bisect_left(room, (lengths[row], -1))
        if at < len(room):
            left, index = room.pop(at)
            packs[index].append(row)
        else:
            left, index = max_seq_length, len(packs)
            packs.append([row])
        bisect.insort(room, (left - lengths[row], index))
    return packs


cache = tempfile.mkdtemp()
began = time.perf_counter()
rows = datasets.load_dataset("json", data_files=data, split="train", cache_dir=cache)
loaded = time.perf_counter()
rows = rows.map(encode, batched=True, num_proc=processes, remove_columns=rows.column_names)
tokenised = time.perf_counter()
lengths = [len(ids) for ids in rows["input_ids"]]
packs = pack(lengths)
packed = time.perf_counter()
size = __import__("os").path.getsize(data)
both = packed - began
print(f"load      {loaded - began:8.2f} s")
print(f"tokenise  {tokenised - loaded:8.2f} s")
print(f"pack      {packed - tokenised:8.2f} s  {len(packs)} packs, density {sum(lengths) / len(packs) / max_seq_length:.4f}")
print(f"both      {both:8.2f} s  {size / 1e6 / both:8.2f} MB/s  {len(rows) / both:9.0f} rows/s")
supervised = sum(label != -100 for labels in rows["labels"] for label in labels)
print(f"{sum(lengths)} tokens, {supervised} supervised")
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(f"peak memory {peak * 1024 // 1_000_000} MB (largest process)")
shutil.rmtree(cache)
