#!/usr/bin/env python3
"""Trains an adapter on preferences with TRL, as the other trainer of `cargo xtask bench preferences`.

    pip install torch transformers==5.23.0 peft==0.21.2 trl==1.16.0
    cargo xtask bench preferences --model DIR --rows train.jsonl --out runs --peer "python scripts/preferences_trl.py"

Settings are those of the bench's recipes: rank 16, alpha 32 on all linear layers, batches of 4 x 2 rows (KTO: 4 x 2 judged answers),
one epoch, AdamW without weight decay, a linear schedule after a tenth of warm-up, float32, gradients clipped to 1.
"""

import argparse

import torch
import transformers
from datasets import load_dataset
from peft import LoraConfig


def trainer_of(kind):
    """The trainer, its settings' class, and what is said to it beside what all have."""
    import trl

    if kind == "dpo":
        return trl.DPOTrainer, trl.DPOConfig, {"beta": 0.1, "loss_type": "sigmoid"}
    if kind == "kto":
        try:
            from trl import KTOConfig, KTOTrainer
        except ImportError:
            from trl.experimental.kto import KTOConfig, KTOTrainer
        return KTOTrainer, KTOConfig, {"beta": 0.1}
    if kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, {"beta": 0.1}
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    more = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0} if kind == "simpo" else {"beta": 0.1}
    return CPOTrainer, CPOConfig, more


def as_text(row, tokenizer):
    """The row in text that ends with its turn. Of chats, TRL's trainers for ORPO, SimPO and CPO learn what templates write behind that
    (SmolLM2's line break), and append the end's token once more: two more tokens that are sure, in means over an answer's tokens."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    answers = {name: value for name, value in row.items() if name in ("chosen", "rejected", "completion")}
    texts = {name: messages[0]["content"] + tokenizer.eos_token for name, messages in answers.items()}
    return {"prompt": prompt, **texts}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["model", "kind", "rows", "out", "rate", "seed"]:
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    transformers.set_seed(int(given.seed))
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    trainer, config, more = trainer_of(given.kind)
    settings = config(
        output_dir=given.out,
        seed=int(given.seed),
        learning_rate=float(given.rate),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=512,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        use_cpu=given.device == "cpu",
        **more,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = load_dataset("json", data_files=given.rows, split="train").map(lambda row: as_text(row, tokenizer))
    run = trainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    run.train()
    run.model.save_pretrained(given.out)


if __name__ == "__main__":
    main()
