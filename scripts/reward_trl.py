#!/usr/bin/env python3
"""Trains a tiny reward model with this program and with TRL's RewardTrainer from the same adapter and head, and compares every step.

    pip install torch transformers==5.23.0 peft==0.21.2 trl==1.16.0
    python scripts/reward_trl.py --program target/release/backdraft [--losses dpo simpo orpo]

A step has all pairs, in whatever order, so that the orders of the two make no difference. Compared are losses, gradient norms, accuracies
and margins of each step, the adapter's tensors after the last, and the rewards that transformers and PEFT compute with the adapter that
this program leaves. Pairs of the reward model have margins of their own. With `--losses` other objectives are trained as well: DPO with several
losses summed (`loss_type` and `loss_weights`), SimPO and ORPO at a rate that rises and falls.
"""

import argparse
import json
import pathlib
import random
import subprocess
import tempfile

import torch
import transformers
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from preferences_trl import trainer_of
from tokenizers import Tokenizer, models, pre_tokenizers

PAIRS, STEPS, RATE, CENTER = 12, 8, 2e-3, 0.01
LOSSES, WEIGHTS = ["sigmoid", "ipo", "sft"], [1.0, 0.01, 0.5]


def make_model(path):
    """A Llama that knows nothing, and a tokenizer of words, whose pad token is no end."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False, initializer_range=0.1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 256)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    fast.save_pretrained(path)
    return fast


def make_rows(path, kind):
    """Pairs of answers of different lengths."""
    draw = random.Random(1)
    words = lambda count: " ".join(f"w{draw.randrange(3, 256)}" for _ in range(count))
    rows = [
        {"prompt": words(3 + i % 5) + " ", "chosen": words(2 + i % 3), "rejected": words(2 + i % 4)} for i in range(PAIRS)
    ]
    if kind == "reward":
        rows = [{**row, "margin": i % 4 * 0.25} for i, row in enumerate(rows)]
    if kind in ("simpo", "orpo"):
        # TRL begins and ends these texts itself where they do not, and Backdraft ends them.
        rows = [{**row, "prompt": "<s> " + row["prompt"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def adapter_of(path, kind):
    """A policy with an adapter that is not zero, saved as a start."""
    torch.manual_seed(7)
    score = kind == "reward"
    if score:
        base = transformers.AutoModelForSequenceClassification.from_pretrained(path / "model", num_labels=1, dtype=torch.float32)
    else:
        base = transformers.AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32)
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"],
        task_type=TaskType.SEQ_CLS if score else TaskType.CAUSAL_LM, modules_to_save=["score"] if score else None,
    )
    model = get_peft_model(base, settings)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    model.save_pretrained(path / f"start-{kind}")
    return model


def with_trl(path, kind, model, tokenizer, rows):
    """Loss, gradient norm, accuracy and margin of each step, and the tensors at the end."""
    import trl

    seen = []
    trainer, config, more = (trl.RewardTrainer, trl.RewardConfig, {"center_rewards_coefficient": CENTER})
    if kind != "reward":
        trainer, config, more = trainer_of(kind)
    if kind == "dpo":
        more = {"beta": 0.1, "loss_type": LOSSES, "loss_weights": WEIGHTS}
    rises = kind in ("simpo", "orpo")

    class Recording(trainer):
        def compute_loss(self, *arguments, **keywords):
            found = super().compute_loss(*arguments, **keywords)
            if self.model.training:
                seen.append((found[0] if isinstance(found, tuple) else found).item())
            return found

    settings = config(
        output_dir=str(path / f"trl-{kind}"), per_device_train_batch_size=PAIRS, max_steps=STEPS, learning_rate=RATE, weight_decay=0.0,
        lr_scheduler_type="linear" if rises else "constant", warmup_steps=0.25 if rises else 0, max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=64, optim="adamw_torch", disable_tqdm=True, disable_dropout=True, **more,
    )
    run = Recording(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    run.train()
    logs = [log for log in run.state.log_history if "grad_norm" in log]
    names = ("accuracy", "margin") if kind == "reward" else ("rewards/accuracies", "rewards/margins")
    steps = [(loss, log["grad_norm"], *[log[name] for name in names]) for loss, log in zip(seen, logs, strict=True)]
    run.model.save_pretrained(path / f"end-{kind}")
    return steps, load_file(path / f"end-{kind}" / "adapter_model.safetensors")


def with_this(path, kind, program):
    """The same of this program."""
    objective = f'kind = "reward"\ncenter_rewards_coefficient = {CENTER}'
    if kind == "dpo":
        # TRL compares with a copy of the adapter that the model begins with.
        objective = f'kind = "dpo"\nbeta = 0.1\nloss = {json.dumps(LOSSES)}\nloss_weights = {WEIGHTS}'
    if kind == "simpo":
        objective = 'kind = "simpo"\nbeta = 2.0\ngamma = 0.5'
    if kind == "orpo":
        objective = 'kind = "orpo"\nbeta = 0.1'
    rates = 'lr_scheduler = "linear"\nwarmup_ratio = 0.25' if kind in ("simpo", "orpo") else 'lr_scheduler = "constant"\nwarmup_steps = 0'
    (path / f"{kind}.toml").write_text(
        f'model = "model"\noutput_dir = "out-{kind}"\nmax_seq_length = 64\n[lora]\nadapter = "start-{kind}"\n[objective]\n{objective}\n'
        f'[data]\ntrain = "{kind}.jsonl"\nformat = "preference"\ncache = "off"\n[train]\nmicro_batch_size = 3\ngrad_accumulation_steps = 4\n'
        f'max_steps = {STEPS}\nlearning_rate = {RATE}\nweight_decay = 0.0\n{rates}\nmax_grad_norm = 1.0\n'
        + ('optimizer = "adamw"\n' if kind == "reward" else 'sample_rows = 0\noptimizer = "adamw"\n')
    )
    subprocess.run([program, "train", f"{kind}.toml", "--device", "cpu", "--plain"], cwd=path, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (path / f"out-{kind}/metrics.jsonl").read_text().splitlines()]
    answers = lambda line: (line["answers"]["accuracy"]["mean"], line["answers"]["margin"]["mean"])
    steps = [(line["loss"], line["grad_norm"], *answers(line)) for line in lines if line["event"] == "step"]
    return steps, load_file(path / f"out-{kind}/adapter/adapter_model.safetensors")


def rewards(path, tokenizer, rows):
    """Rewards of the chosen answers by transformers and PEFT, with the adapter that this program left."""
    model = AutoPeftModelForSequenceClassification.from_pretrained(path / "out-reward/adapter", num_labels=1, dtype=torch.float32)
    model.eval()
    found = []
    for row in rows:
        ids = tokenizer(row["prompt"] + row["chosen"])["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            found.append(float(model(torch.tensor([ids])).logits))
    return found


def compare(kind, ours, theirs):
    """Prints both, and fails where they differ by more than rounding."""
    (steps, tensors), (expected, other) = ours, theirs
    print(f"{kind}: step, loss, gradient norm, accuracy, margin; this program, then TRL")
    for i, (a, b) in enumerate(zip(steps, expected, strict=True)):
        print(f"  {i + 1}  " + "  ".join(f"{x:.6f} {y:.6f}" for x, y in zip(a, b)))
        for x, y in zip(a, b):
            assert abs(x - y) <= 1e-4 * max(1.0, abs(y)), f"step {i + 1}: {x} instead of {y}"
    assert tensors.keys() == other.keys(), tensors.keys() ^ other.keys()
    worst = max((float((tensors[name] - other[name]).norm() / other[name].norm()), name) for name in other)
    print(f"  {len(tensors)} tensors; the furthest is {worst[1]}, {worst[0]:.1e} of its norm")
    assert worst[0] < 5e-4, worst


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--program", required=True)
    arguments.add_argument("--losses", choices=["dpo", "simpo", "orpo"], nargs="*", default=[])
    given = arguments.parse_args()
    program = str(pathlib.Path(given.program).resolve())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        tokenizer = make_model(path / "model")
        for kind in ["reward", *given.losses]:
            rows = make_rows(path / f"{kind}.jsonl", kind)
            model = adapter_of(path, kind)
            compare(kind, with_this(path, kind, program), with_trl(path, kind, model, tokenizer, rows))
        answers = ["eval", "reward.toml", "--data", "reward.jsonl", "--answers", "rewards.jsonl", "--device", "cpu"]
        subprocess.run([program, *answers], cwd=path, check=True, stdout=subprocess.DEVNULL)
        ours = [json.loads(line)["adapter"]["chosen"] for line in (path / "rewards.jsonl").read_text().splitlines()]
        off = max(abs(a - b) for a, b in zip(ours, rewards(path, tokenizer, make_rows(path / "reward.jsonl", "reward")), strict=True))
        print(f"rewards of {len(ours)} answers by transformers and PEFT with this program's adapter differ by {off:.1e} at most")
        assert off < 1e-4


if __name__ == "__main__":
    main()
