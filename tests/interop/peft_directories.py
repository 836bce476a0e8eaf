"""transformers and PEFT load what `backdraft train`, `merge` and full fine-tuning write, and give the same likelihoods.

    python tests/interop/peft_directories.py --backdraft target/release/backdraft

Small Llamas with random weights, tied and not, are trained for a few steps in every way that leaves a directory of its own: LoRA,
rsLoRA, DoRA, patterns of ranks, orthogonal and PiSSA starts, biases, whole modules, rows of tokens, adapters of tables, and the base itself. PEFT has to
load each without a missing or an unexpected tensor; the mean nll of some ids is compared with `backdraft score`, that of what was
merged with the adapter's. Prints a line a case, and fails with the first that differs.
"""
import argparse
import json
import pathlib
import random
import subprocess
import tempfile
import warnings

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)
IDS = [1, 17, 42, 99, 7, 250, 3, 128, 9, 9, 200]
ALL_TABLES = 'target_modules = ["q_proj", "model.embed_tokens", "lm_head"]'
CASES = {
    "lora": "",
    "rslora": "use_rslora = true",
    "patterns": "rank_pattern = { q_proj = 2, down_proj = 8 }\nalpha_pattern = { q_proj = 5 }",
    "dora": "use_dora = true",
    "orthogonal": 'init = "orthogonal"',
    "pissa": 'init = "pissa"',
    "bias-all": 'bias = "all"',
    "bias-lora-only": 'bias = "lora_only"\ntarget_modules = ["q_proj", "v_proj"]',
    "norms": 'modules_to_save = ["norm"]',
    "tables-whole": 'modules_to_save = ["embed_tokens", "lm_head"]',
    "tokens": 'trainable_tokens = ["w17", "w42"]',
    "tables": ALL_TABLES,
    "head": 'target_modules = ["q_proj", "lm_head"]',
    "embedding": 'target_modules = ["q_proj", "model.embed_tokens"]',
}


def make_model(path, tied):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, attention_bias=True)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(path)
    words = {f"w{i}": i for i in range(256)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2", unk_token="w0").save_pretrained(path)


@torch.no_grad()
def nll(model):
    ids = torch.tensor([IDS])
    logits = model(input_ids=ids).logits.double()[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--backdraft", required=True, type=pathlib.Path)
    parser.add_argument("--case")
    args = parser.parse_args()
    program = args.backdraft.resolve()
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)

        def run(*arguments):
            done = subprocess.run([program, "--json", *map(str, arguments)], cwd=directory, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr + done.stdout
            return json.loads(done.stdout.splitlines()[-1])

        def score(*of):
            scores = run("score", "--ids", "ids.json", "--out", "scores", "--force", "--device", "cpu", *of)
            return scores["mean_nll"]

        (directory / "ids.json").write_text(json.dumps(IDS))
        draw = random.Random(1)
        rows = ({"text": " ".join(f"w{draw.randrange(3, 256)}" for _ in range(12))} for _ in range(16))
        (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        head = 'output_dir = "out"\nmax_seq_length = 32\n'
        tail = ('[data]\ntrain = "rows.jsonl"\nformat = "text"\ncache = "off"\n[train]\nmax_steps = 4\nwarmup_steps = 1\n'
                'micro_batch_size = 4\ngrad_accumulation_steps = 1\nlearning_rate = 2e-2\nsample_rows = 0\n')
        for tied in (False, True):
            name = "tied" if tied else "untied"
            make_model(directory / name, tied)
            base = score("--model", name)
            assert abs(nll(AutoModelForCausalLM.from_pretrained(directory / name)) - base) < 1e-5
            cases = CASES.items()
            for case, lora in ((case, lora) for case, lora in cases if args.case in (None, case)):
                recipe = f'model = "{name}"\n{head}[lora]\nrank = 4\nalpha = 8\n{lora}\n{tail}'
                (directory / "recipe.toml").write_text(recipe)
                run("train", "recipe.toml", "--force", "--device", "cpu")
                expected = score("--adapter", "out")
                adapter = directory / "out/adapter"
                model = AutoModelForCausalLM.from_pretrained(directory / name)
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="(?s).*(missing|unexpected)")
                    model = PeftModel.from_pretrained(model, adapter)
                found = nll(model)
                assert abs(found - expected) < 2e-5, f"{name} {case}: {found} by PEFT, {expected} here"
                assert abs(expected - base) > 1e-3, f"{name} {case}: nothing was learned"
                run("merge", "--adapter", "out", "--out", "merged", "--force")
                merged = nll(AutoModelForCausalLM.from_pretrained(directory / "merged"))
                assert abs(merged - expected) < 2e-5, f"{name} {case}: {merged} merged, {expected} here"
                print(f"{name} {case}: nll {expected:.6f} here, {found:.6f} by PEFT, {merged:.6f} merged (base {base:.6f})", flush=True)
            for case, more in {"whole": "", "released": 'gradients = "released"\nmax_grad_norm = 0\n',
                               "two-passes": 'gradients = "two-passes"\n', "bf16": 'master_weights = "none"\n'}.items():
                if args.case not in (None, case):
                    continue
                recipe = f'model = "{name}"\ntrainable = "all"\n{head}{tail}{more}'.replace("2e-2", "2e-3")
                (directory / "recipe.toml").write_text(recipe)
                run("train", "recipe.toml", "--force", "--device", "cpu")
                expected = score("--model", "out/model")
                found = nll(AutoModelForCausalLM.from_pretrained(directory / "out/model"))
                assert abs(found - expected) < 2e-5, f"{name} full {case}: {found} by transformers, {expected} here"
                assert abs(expected - base) > 1e-3, f"{name} full {case}: nothing was learned"
                print(f"{name} full, {case}: nll {expected:.6f} here, {found:.6f} by transformers (base {base:.6f})", flush=True)


main()
