#!/usr/bin/env python3
"""Trains PEFT's LoRA, QLoRA and LoftQ, or the whole model, on the rows of `cargo xtask bench precision`, for the same table.

    cargo xtask dither --amount 0 --model SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
    python scripts/precision_peft.py --model smollm2 --train train.jsonl --rows 880 --test test_seen_tools.jsonl \
        --test test_unseen_tools.jsonl --arms bf16,qlora,loftq --rates 2e-4,5e-4,1e-3,2e-3 --seeds 42,1,2

Settings are the bench's: one epoch in steps of 8 rows, rank 16, alpha 32 on all linear layers, adapters in f32, AdamW with weight decay
0.01, 5 % of warm-up, a cosine, gradients clipped to 1, the loss of the answer's tokens. `qlora` is bitsandbytes' NF4 with double
quantization, `loftq` PEFT's `init_lora_weights="loftq"` with its default single iteration, whose base holds dequantized NF4 values; `full`
trains all weights, in f32 under autocast, norms without decay.
Prints a line of JSON a run: the mean nll of the test rows' answer tokens after the last step.
"""

import argparse
import gc
import json
import math
import time

import torch
import transformers
from peft import LoftQConfig, LoraConfig, get_peft_model, prepare_model_for_kbit_training


def read_rows(path, tokenizer, limit=None):
    """(ids, first answer token) of each chat row."""
    rows = []
    with open(path) as file:
        for line in file:
            messages = json.loads(line)["messages"]
            whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            prompt = tokenizer.apply_chat_template(
                messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
            )
            assert whole[: len(prompt)] == prompt
            # What a template writes behind the end of the turn is not learned.
            end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
            rows.append((whole[:end], len(prompt)))
            if len(rows) == limit:
                break
    return rows


def nll(model, rows):
    """Sum over the answers' tokens, and their number."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (tokens, begin) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, begin : len(tokens)] = torch.tensor(tokens[begin:])
        mask[row, : len(tokens)] = 1
    ids, labels, mask = ids.cuda(), labels.cuda(), mask.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask).logits
    targets = labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=-100, reduction="sum"
    )
    return loss, int((targets != -100).sum())


def build(arm, path, seed):
    transformers.set_seed(seed)
    more = {}
    if arm == "qlora":
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    dtype = torch.float32 if arm == "full" else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map={"": 0}, **more)
    if arm == "full":
        return model
    if arm == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    start = {"init_lora_weights": "loftq", "loftq_config": LoftQConfig(loftq_bits=4)} if arm == "loftq" else {}
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", **start)
    model = get_peft_model(model, lora)
    for param in model.parameters():
        if param.requires_grad:
            param.data = param.data.float()
    return model


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--train", required=True)
    arguments.add_argument("--test", required=True, action="append")
    arguments.add_argument("--rows", type=int)
    arguments.add_argument("--arms", default="bf16,qlora,loftq")
    arguments.add_argument("--rates", default="5e-4,1e-3")
    arguments.add_argument("--seeds", default="42,1,2")
    given = arguments.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    rows = read_rows(given.train, tokenizer, given.rows)
    tests = [row for path in given.test for row in read_rows(path, tokenizer)]
    for seed in map(int, given.seeds.split(",")):
        for rate in given.rates.split(","):
            for arm in given.arms.split(","):
                began = time.time()
                torch.cuda.reset_peak_memory_stats()
                model = build(arm, given.model, seed)
                params = [param for param in model.parameters() if param.requires_grad]
                vectors = [param for param in params if arm == "full" and param.dim() == 1]
                matrices = [param for param in params if arm != "full" or param.dim() > 1]
                groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
                optimizer = torch.optim.AdamW(groups, lr=float(rate))
                steps = math.ceil(len(rows) / 8)
                schedule = transformers.get_cosine_schedule_with_warmup(optimizer, math.ceil(0.05 * steps), steps)
                order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
                model.train()
                for step in range(steps):
                    loss, tokens = nll(model, [rows[i] for i in order[8 * step : 8 * step + 8]])
                    (loss / tokens).backward()
                    torch.nn.utils.clip_grad_norm_(params, 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                model.eval()
                with torch.no_grad():
                    parts = [nll(model, tests[i : i + 50]) for i in range(0, len(tests), 50)]
                mean = sum(loss.item() for loss, _ in parts) / sum(tokens for _, tokens in parts)
                name = "torch-full" if arm == "full" else f"peft-{arm}"
                found = {"arm": name, "rate": rate, "seed": seed, "nll": mean, "seconds": time.time() - began}
                found["gib"] = torch.cuda.max_memory_reserved() / 2**30
                print(json.dumps(found), flush=True)
                del model, optimizer, params
                gc.collect()
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
