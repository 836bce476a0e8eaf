#!/usr/bin/env python3
"""Times Unsloth's training step over a model that `cargo xtask random-model` wrote; `xtask bench gpu` times ours.

    cargo xtask random-model --shape qwen3-8b --out DIR
    python scripts/step_unsloth.py --model DIR --batch 2x2048 --checkpointing unsloth
    python scripts/step_unsloth.py --model DIR --batch 4x1024 --objective dpo

NF4 with double quantization, rank 16, alpha 32 on all linear layers, bf16, adamw_8bit, gradients clipped to 1, random tokens without
padding. For dpo, sequences are two texts of a pair each, half of every one prompt. Prints one line of JSON: median, fastest and slowest
step in milliseconds, and GiB held at most.
"""

import argparse
import json
import os
import random
import statistics
import time

from unsloth import FastLanguageModel  # before transformers, which it patches

import torch


def write_tokenizer(path):
    """Bytes as tokens: a text of so many digits has as many."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=["<s>", "</s>", "<pad>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["text"], trainer)
    tokenizer.save(os.path.join(path, "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "padding_side": "right", **special}
    with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
        json.dump(settings, file)


def add_architecture(path):
    """What the model's class is called, which our `config.json` does not say."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names

    file = os.path.join(path, "config.json")
    with open(file) as opened:
        config = json.load(opened)
    config.setdefault("architectures", [names[config["model_type"]]])
    config.setdefault("torch_dtype", "bfloat16")
    with open(file, "w") as opened:
        json.dump(config, opened)


def load(given, length):
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=given.model, max_seq_length=length, dtype=torch.bfloat16, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        target_modules=given.targets.split(","),
        max_seq_length=length,
        use_gradient_checkpointing={"unsloth": "unsloth", "plain": True, "none": False}[given.checkpointing],
    )
    return model, tokenizer


def sft(given, rows, length):
    """Milliseconds of each step."""
    import bitsandbytes

    model, _ = load(given, length)
    FastLanguageModel.for_training(model)
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = bitsandbytes.optim.AdamW8bit(params, lr=2e-4, weight_decay=0.0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    times = []
    for step in range(given.warm + given.steps):
        ids = torch.randint(5, vocabulary - 5, (rows, length), device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
        if step + 1 == given.warm:
            torch.cuda.reset_peak_memory_stats()
    return times


def dpo(given, texts, length):
    """Milliseconds of each step, from its beginning to its end."""
    from unsloth import PatchDPOTrainer

    PatchDPOTrainer()
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load(given, length)
    pairs, steps = texts // 2, given.warm + given.steps
    digits = random.Random(1)

    def text(count):
        return "".join(digits.choice("0123456789") for _ in range(count))

    half = length // 2
    rows = [
        {"prompt": text(half), "chosen": text(half - 1), "rejected": text(half - 1)} for _ in range(pairs * (steps + 1))
    ]
    marks = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
            if len(marks) == 2 * given.warm + 1:
                torch.cuda.reset_peak_memory_stats()

        def on_step_end(self, *_, **__):
            torch.cuda.synchronize()
            marks.append(time.perf_counter())

    settings = DPOConfig(
        output_dir=given.out,
        per_device_train_batch_size=pairs,
        gradient_accumulation_steps=1,
        max_steps=steps,
        max_length=length,
        beta=0.1,
        learning_rate=2e-4,
        optim="adamw_8bit",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=True,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        dataset_num_proc=1,
    )
    trainer = DPOTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    batch = next(iter(trainer.get_train_dataloader()))
    print({name: tuple(value.shape) for name, value in batch.items() if hasattr(value, "shape")}, flush=True)
    trainer.train()
    return [1e3 * (end - begin) for begin, end in zip(marks[0::2], marks[1::2])]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--batch", default="2x2048", help="sequences x tokens")
    arguments.add_argument("--objective", choices=["sft", "dpo"], default="sft")
    arguments.add_argument("--checkpointing", choices=["unsloth", "plain", "none"], default="unsloth")
    arguments.add_argument("--targets", default="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj")
    arguments.add_argument("--warm", type=int, default=4)
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--out", default="unsloth-out")
    given = arguments.parse_args()
    rows, length = map(int, given.batch.split("x"))
    write_tokenizer(given.model)
    add_architecture(given.model)
    times = {"sft": sft, "dpo": dpo}[given.objective](given, rows, length)[given.warm :]
    found = {
        "trainer": "unsloth",
        "model": given.model,
        "objective": given.objective,
        "checkpointing": given.checkpointing,
        "batch": given.batch,
        "milliseconds": round(statistics.median(times), 1),
        "fastest": round(min(times), 1),
        "slowest": round(max(times), 1),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
    }
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
