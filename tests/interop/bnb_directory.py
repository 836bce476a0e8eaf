"""transformers and bitsandbytes load what `backdraft quantize` writes, and give the same logits; `backdraft` reads
what transformers saves."""
import argparse
import json
import pathlib
import subprocess
import tempfile

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)
IDS = torch.tensor([[1, 17, 42, 99, 7, 250, 3, 128]])


def make_model(path):
    """Sides that are multiples of the block size: bitsandbytes' x86 kernels are wrong for others."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False)
    LlamaForCausalLM(config).float().save_pretrained(path)
    vocabulary = {chr(i + 256): i for i in range(256)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=chr(256)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=chr(257), unk_token=chr(256)).save_pretrained(path)


def codes_to_weights(path):
    """The weights that the codes of a directory stand for, worked out from the file format alone."""
    tensors = load_file(path / "model.safetensors")
    weights = {}
    for name, tensor in tensors.items():
        states = [k for k in tensors if k.startswith(f"{name}.quant_state.")]
        scb = name.removesuffix(".weight") + ".SCB"
        if states:
            state = json.loads(bytes(tensors[states[0]].numpy()).decode())
            n = state["shape"][0] * state["shape"][1]
            packed = tensor.flatten()
            codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:n].long()
            absmax = tensors[f"{name}.absmax"]
            if "nested_offset" in state:
                scales = tensors[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])[:absmax.numel()]
                absmax = tensors[f"{name}.nested_quant_map"][absmax.long()] * scales + state["nested_offset"]
            values = tensors[f"{name}.quant_map"][codes] * absmax.repeat_interleave(state["blocksize"])[:n]
            weights[name] = values.reshape(state["shape"])
        elif scb in tensors:
            weights[name] = tensor.float() * (tensors[scb] / 127)[:, None]
        elif name.endswith("weight") and tensor.dtype == torch.float32:
            weights[name] = tensor
    return weights


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits.float()


def check_weights(loaded, weights, in_codes):
    """What bitsandbytes makes of our codes are the values that the file format prescribes."""
    compared = 0
    for name, module in loaded.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            values = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            # A product is rounded once more where scales are nested and multiplied in another order.
            torch.testing.assert_close(values.float(), weights[f"{name}.weight"], rtol=1e-6, atol=1e-8)
            compared += 1
        elif isinstance(module, bnb.nn.Linear8bitLt):
            values = module.weight.CB.float() * (module.weight.SCB / 127)[:, None]
            torch.testing.assert_close(values, weights[f"{name}.weight"], rtol=1e-6, atol=1e-8)
            compared += 1
    assert compared == in_codes, (compared, in_codes)


def check(source, out, flags, config, tolerance, backdraft, in_codes=14):
    subprocess.run([backdraft, "quantize", "--model", source, "--out", out, *flags], check=True, stdout=subprocess.DEVNULL)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, device_map="cpu")
    check_weights(loaded, codes_to_weights(out), in_codes)
    actual = logits(loaded)
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, device_map="cpu", quantization_config=config)
    expected = logits(theirs)
    error = float((actual - expected).abs().max() / expected.abs().max())
    plain = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    missing, unexpected = plain.load_state_dict(codes_to_weights(out), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    rounding = float((actual - logits(plain)).abs().max() / expected.abs().max())
    print(f"{' '.join(flags):52} weights equal; logits within {error:.1e} of transformers' own quantisation "
          f"({rounding:.1e} from float32 arithmetic: bitsandbytes' processor kernels round to bfloat16)")
    assert error <= tolerance, error


def perplexity(backdraft, model, text):
    run = subprocess.run([backdraft, "--json", "eval", "--model", model, "--data", text], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])["base"]["nll"]


def check_reading(source, directory, backdraft):
    """A directory that transformers saved in 4 bits reads like the one we write ourselves."""
    text = directory / "text.txt"
    text.write_text("".join(chr(256 + i * 7 % 256) for i in range(400)))
    for double in (False, True):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
        saved = directory / f"saved-{double}"
        theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, device_map="cpu", quantization_config=config)
        theirs.save_pretrained(saved)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (saved / file).write_bytes((source / file).read_bytes())
        ours = directory / f"ours-{double}"
        flags = ["--double-quant"] if double else []
        subprocess.run([backdraft, "quantize", "--model", source, "--out", ours, *flags], check=True, stdout=subprocess.DEVNULL)
        a, b = perplexity(backdraft, saved, text), perplexity(backdraft, ours, text)
        print(f"saved by transformers, double {double}: nll {a:.6f}; written by us: {b:.6f}")
        assert abs(a - b) < (1e-3 if double else 1e-6), (a, b)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backdraft", required=True)
    backdraft = pathlib.Path(parser.parse_args().backdraft).resolve()
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        source = directory / "source"
        make_model(source)
        four_bit = lambda kind, double: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind,
                                                           bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=torch.float32)
        check(source, directory / "nf4", ["--format", "nf4"], four_bit("nf4", False), 1e-6, backdraft)
        # On x86 bitsandbytes looks nested codes up in a coarse table.
        check(source, directory / "double", ["--format", "nf4", "--double-quant"], four_bit("nf4", True), 1e-2, backdraft)
        check(source, directory / "fp4", ["--format", "fp4"], four_bit("fp4", False), 1e-6, backdraft)
        # transformers quantises to 8 bits from float16, and activations too.
        check(source, directory / "int8", ["--format", "int8"], BitsAndBytesConfig(load_in_8bit=True), 3e-2, backdraft)
        # Modules left as they are: transformers has to find each of them listed.
        skipped = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32,
                                     llm_int8_skip_modules=["lm_head", "model.layers.1", "down_proj"])
        check(source, directory / "skip", ["--format", "nf4", "--skip", "layers.1", "--skip", "down_proj"], skipped, 1e-6,
              backdraft, in_codes=6)
        check_reading(source, directory, backdraft)
    print("all agree")
