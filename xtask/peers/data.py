"""What `cargo xtask bench data` measures, with datasets and transformers: read, render, tokenise, label, pack.

    python -m venv venv && venv/bin/pip install -r xtask/peers/requirements.txt
    cargo xtask bench data --python venv/bin/python

The bench starts it as `data.py TOKENIZER_FOLDER ROWS.jsonl MAX_SEQ_LENGTH PROCESSES`. Rows are `messages` rows of a
ChatML template. The template has no {% generation %}, so labels are made as usual there: by looking for the ids of
the assistant's marker and of the end of turn. Packing is best fit decreasing over lengths, as TRL's "bfd"; rows
are not copied together, which TRL would do too. Prints one JSON object.
"""

import bisect
import json
import resource
import sys
import tempfile
import time

import datasets
import pyarrow.compute as pc
from transformers import AutoTokenizer

folder, path = sys.argv[1:3]
max_seq_length, processes = int(sys.argv[3]), int(sys.argv[4])

datasets.disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(folder)
start = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
end = tokenizer.convert_tokens_to_ids("<|im_end|>")


def label(ids):
    labels = [-100] * len(ids)
    at = 0
    try:
        while True:
            at = ids.index(start[0], at)
            if ids[at : at + len(start)] != start:
                at += 1
                continue
            at += len(start)
            try:
                stop = ids.index(end, at) + 1
            except ValueError:
                stop = len(ids)
            labels[at:stop] = ids[at:stop]
            at = stop
    except ValueError:
        return labels


def encode(batch):
    texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_seq_length)["input_ids"]
    return {"input_ids": ids, "labels": [label(row) for row in ids]}


def pack(lengths):
    """Best fit decreasing: the number of packs."""
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
    return len(packs)


with tempfile.TemporaryDirectory() as cache:
    began = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
    rows = rows.map(encode, batched=True, num_proc=processes, remove_columns=rows.column_names)
    tokenized = time.perf_counter()
    lengths = pc.list_value_length(rows.data.column("input_ids")).to_pylist()
    packs = pack(lengths)
    packed = time.perf_counter()
    # Not part of what is timed.
    supervised = sum(
        pc.sum(pc.not_equal(pc.list_flatten(labels), -100)).as_py() for labels in rows.data.column("labels").chunks
    )
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
result = {
    "tokenize_seconds": tokenized - began,
    "pack_seconds": packed - tokenized,
    "rows": len(lengths),
    "tokens": sum(lengths),
    "supervised_tokens": supervised,
    "packs": packs,
    "peak_bytes": max(peaks) * 1024,
}
print(json.dumps(result))
