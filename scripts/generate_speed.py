#!/usr/bin/env python3
"""Tokens/s of transformers' `generate`, for comparison with `scripts/serve_check.py --speed-only`.

    pip install torch transformers gguf
    scripts/generate_speed.py --model DIR [--device cuda] [--nf4]
    scripts/generate_speed.py --model SmolLM2-135M-Instruct.Q4_1.gguf

The same prompt of 43 ids, 64 tokens drawn at temperature 1, for 1, 8 and 64 sequences at once; bf16 on a GPU, f32 on the processor.
--nf4 loads the projections through bitsandbytes.
"""

import argparse
import os
import time

import torch
import transformers

PROMPT = list(range(1000, 1043))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--nf4", action="store_true")
    given = arguments.parse_args()
    place, file = (os.path.split(given.model)) if given.model.endswith(".gguf") else (given.model, None)
    dtype = torch.float32 if given.device == "cpu" else torch.bfloat16
    more = {"gguf_file": file} if file else {}
    if given.nf4:
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=dtype, device_map=given.device, **more).eval()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)

    def generate(streams, tokens):
        ids = torch.tensor([PROMPT] * streams, device=given.device)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, pad_token_id=0,
                              min_new_tokens=tokens, max_new_tokens=tokens)
        if given.device != "cpu":
            torch.cuda.synchronize()
        return made.numel() - ids.numel()

    generate(2, 4)
    for streams in (1, 8, 64):
        began = time.time()
        made = generate(streams, 64)
        seconds = time.time() - began
        print(f"  {streams:3} streams: {made / seconds:7.1f} tokens/s ({made} tokens in {seconds:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
