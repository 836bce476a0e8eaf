#!/usr/bin/env python3
"""How far transformers and PEFT are in bf16 from the golden values in f32: writes tests/golden/tiny/bf16.json.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6 zstandard==0.25.0
    python3 scripts/golden_bf16.py [--tiny tests/golden/tiny]

Every case under `tiny` is run on the processor, with one thread, in what users of transformers have when they ask for bf16: weights and
activations of that type. The weights of the cases, their adapters' too, are exact in bf16 (that is checked), so both types compute with
the same numbers and what differs is the rounding of activations and gradients. Each is run in two ways that are equal but for rounding:
`eager` and `sdpa` attention; adapters as PEFT has them (factors in f32, their products too) and under `torch.autocast`, as Trainer has them
with `bf16=True`. Gemma 2 has no `sdpa`. In f32 either attention must give the golden logits to 1e-4.

For the batches `plain` and `padded`:

- `logits`: |bf16 - f32| / |f32|, Euclidean norms over the logits at all real positions;
- `nll`: the root mean square of what the negative log-likelihoods of labelled tokens are off by; `tokens`: how many these are;
- `loss`: what their mean is off by, with its sign;
- `lora`: the same of the case's adapter, `logits` at the last real position of each row, `nll` against PEFT in f32, which must give the
  golden loss; `gradients`: |bf16 - f32| / |f32| over all factors together; `gradients_of_factors`: the median of that of single factors.
"""
import argparse
import io
import json
import os
import pathlib
import tarfile
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy
import peft
import torch
import transformers
import zstandard
from safetensors.torch import load_file

GOLDEN = 1e-4
KINDS = ("plain", "padded")


def unpacked(case, directory):
    """the folder of a case, which may be an archive"""
    if case.is_dir():
        return case
    folder = pathlib.Path(directory) / case.name.removesuffix(".tar.zst")
    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(case.read_bytes())).read()
    tarfile.open(fileobj=io.BytesIO(data)).extractall(folder, filter="data")
    return folder


def check_exact(name, tensors):
    for key, tensor in tensors.items():
        if not torch.equal(tensor.bfloat16().float(), tensor.float()):
            raise SystemExit(f"{name}: {key} is not exact in bf16")


def apart(ours, expected):
    """the norm of a difference, relative to that of what is expected"""
    ours, expected = ours.double(), expected.double()
    return float((ours - expected).norm() / expected.norm())


def nll(logits, labels):
    """of the labelled tokens, from logits at the places before them"""
    logits, labels = logits[:, :-1].float(), labels[:, 1:].reshape(-1)
    each = torch.nn.functional.cross_entropy(logits.reshape(len(labels), -1), labels, ignore_index=-100, reduction="none")
    return each[labels != -100].double()


class Case:
    def __init__(self, folder):
        self.folder, self.name = folder, folder.name
        self.golden = json.loads((folder / "golden.json").read_text())
        self.tensors, self.lora = load_file(folder / "golden.safetensors"), load_file(folder / "lora.safetensors")
        for path in folder.glob("model*.safetensors"):
            check_exact(self.name, load_file(path))
        self.factors = {key: tensor for key, tensor in self.lora.items() if not key.startswith(KINDS)}
        check_exact(self.name, self.factors)

    def model(self, attention, dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, attn_implementation=attention, dtype=dtype)
        return model.eval()

    def attentions(self):
        return ("eager",) if self.golden["architecture"] == "Gemma2ForCausalLM" else ("eager", "sdpa")

    def batch(self, kind):
        ids = self.tensors[f"{kind}.input_ids"]
        mask = self.tensors.get(f"{kind}.attention_mask", torch.ones_like(ids))
        return ids, mask, self.tensors.get(f"{kind}.labels", ids)

    def logits(self, kind):
        """the golden ones, zero at padding"""
        if kind == "plain":
            return self.tensors["plain.logits"]
        _, mask, _ = self.batch(kind)
        real = self.tensors["padded.logits_at_real_positions"]
        logits = torch.zeros(*mask.shape, real.shape[-1])
        logits[mask.bool()] = real
        return logits

    def forward(self, kind, attention):
        ids, mask, labels = self.batch(kind)
        expected, real = self.logits(kind), mask.bool()
        run = lambda dtype: self.model(attention, dtype)(input_ids=ids, attention_mask=mask).logits.detach()
        exact = run(torch.float32)
        if (worst := float((exact - expected)[real].abs().max())) > GOLDEN:
            raise SystemExit(f"{self.name}, {kind}, {attention}: {worst} from the golden logits in f32: another version?")
        rounded = run(torch.bfloat16)
        off = nll(rounded, labels) - nll(expected, labels)
        return {"logits": apart(rounded[real], expected[real]), "nll": float(off.pow(2).mean().sqrt()), "loss": float(off.mean())}

    def adapted_model(self, dtype):
        """with the factors by their golden names"""
        entry = self.golden["lora"]
        config = peft.LoraConfig(r=entry["r"], lora_alpha=entry["lora_alpha"], lora_dropout=0.0, target_modules=entry["target_modules"],
                                 task_type="CAUSAL_LM", **entry["options"])
        model = peft.get_peft_model(self.model("eager", dtype), config)
        plain = lambda key: key.removeprefix("base_model.model.").replace(".default", "")
        named = {plain(key): factor for key, factor in model.named_parameters() if "lora_" in key}
        with torch.no_grad():
            for key, factor in named.items():
                factor.copy_(self.factors[key])
        return model, named

    def adapted(self, autocast):
        (exact, _), (model, named) = (self.adapted_model(dtype) for dtype in (torch.float32, torch.bfloat16))
        figures = {}
        for kind in KINDS:
            ids, mask, labels = self.batch(kind)
            expected_loss = self.golden["lora"][f"{kind}_loss"]
            expected_nll = nll(exact(input_ids=ids, attention_mask=mask).logits.detach(), labels)
            if abs(float(expected_nll.mean()) - expected_loss) > GOLDEN:
                raise SystemExit(f"{self.name}, {kind}: not the golden loss with the adapter in f32: another version?")
            model.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                out = model(input_ids=ids, attention_mask=mask, labels=labels)
            out.loss.backward()
            last = out.logits.detach()[torch.arange(len(ids)), mask.sum(1) - 1]
            expected = [self.lora[f"{kind}.grad.{key}"] for key in named]
            grads = [factor.grad for factor in named.values()]
            flat = lambda tensors: torch.cat([tensor.double().flatten() for tensor in tensors])
            figures[kind] = {
                "nll": float((nll(out.logits.detach(), labels) - expected_nll).pow(2).mean().sqrt()),
                "loss": float(out.loss) - expected_loss,
                "logits": apart(last, self.lora[f"{kind}.logits_last"]),
                "gradients": apart(flat(grads), flat(expected)),
                "gradients_of_factors": float(numpy.median([apart(a, b) for a, b in zip(grads, expected)])),
            }
        return figures

    def figures(self):
        adapted = {"peft": self.adapted(False), "autocast": self.adapted(True)}
        return {kind: {
            "tokens": int((self.batch(kind)[2][:, 1:] != -100).sum()),
            **{attention: self.forward(kind, attention) for attention in self.attentions()},
            "lora": {way: figures[kind] for way, figures in adapted.items()},
        } for kind in KINDS}


def rounded(value):
    """four digits are more than rounding has"""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def lines(value, depth=0):
    """JSON with one line for each object of numbers"""
    if not any(isinstance(item, dict) for item in value.values()):
        return json.dumps(value)
    inner = " " * (depth + 1)
    items = (f"{inner}{json.dumps(key)}: {lines(item, depth + 1) if isinstance(item, dict) else json.dumps(item)}"
             for key, item in value.items())
    return "{\n" + ",\n".join(items) + "\n" + " " * depth + "}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "tiny"
    parser.add_argument("--tiny", type=pathlib.Path, default=here)
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cases = {}
    with tempfile.TemporaryDirectory() as directory:
        for path in sorted(tiny.iterdir()):
            if path.is_dir() or path.name.endswith(".tar.zst"):
                case = Case(unpacked(path, directory))
                cases[case.name] = rounded(case.figures())
                print(case.name, cases[case.name]["plain"], flush=True)
    versions = {module.__name__: module.__version__.split("+")[0] for module in (torch, transformers, peft)}
    (tiny / "bf16.json").write_text(lines({"versions": versions, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
