#!/usr/bin/env python3
"""Holds `backdraft serve` against OpenAI's own client, and under load.

    pip install openai==3.57.0
    scripts/serve_check.py --program target/release/backdraft --model SmolLM2-135M-Instruct.Q4_1.gguf

Starts the server over the model and an adapter of random factors, which it writes itself, and checks: chats, streams, several
choices, log-probabilities, tools, completions, errors; then 1,000 requests of 64 clients, among clients that break off, that
read slowly and that send nonsense. Every answer must be that of the same request alone. At the end nothing may run or be
held, memory may not have grown, and SIGTERM must end the server with code 0. Prints tokens/s of 1, 8 and 64 streams; with
--speed-only it does nothing else, needs no package, and takes any model (scripts/generate_speed.py is transformers' part).
"""

import argparse
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

try:
    import openai
except ModuleNotFoundError:
    openai = None

WORDS = "river stone window garden music train winter letter mountain coffee paper cloud bridge island candle".split()
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}\nCall one as <tool_call>{...}</tool_call>.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def say(*words):
    print(*words, flush=True)


def write_adapter(folder, layers, hidden, kv):
    """A PEFT adapter of rank 4 on q_proj and v_proj, of random factors."""
    draw = random.Random(1)
    os.makedirs(folder)
    tensors, data = {}, bytearray()
    for layer in range(layers):
        for name, out in (("q_proj", hidden), ("v_proj", kv)):
            for factor, shape, scale in (("lora_A", (4, hidden), 0.05), ("lora_B", (out, 4), 0.08)):
                values = [draw.gauss(0, scale) for _ in range(shape[0] * shape[1])]
                begin = len(data)
                data += struct.pack(f"<{len(values)}f", *values)
                key = f"base_model.model.model.layers.{layer}.self_attn.{name}.{factor}.weight"
                tensors[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    with open(f"{folder}/adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
              "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": None}
    with open(f"{folder}/adapter_config.json", "w") as file:
        json.dump(config, file)


class Server:
    def __init__(self, program, arguments, key=None):
        environment = dict(os.environ, **({"BACKDRAFT_API_KEY": key} if key else {}))
        self.process = subprocess.Popen([program, "--json", "serve", "--port", "0", *arguments],
                                        stdout=subprocess.PIPE, text=True, env=environment)
        self.about = json.loads(self.process.stdout.readline())
        assert self.about["event"] == "serving", self.about
        self.url = self.about["address"]
        self.host, port = self.url.removeprefix("http://").split(":")
        self.port = int(port)
        if openai:
            self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0, timeout=600)

    def health(self):
        with urllib.request.urlopen(f"{self.url}/health") as answer:
            return json.load(answer)

    def settles(self):
        end = time.time() + 120
        while time.time() < end:
            health = self.health()
            if not (health["running"] or health["waiting"] or health["cached_tokens"]):
                return health
            time.sleep(0.05)
        raise AssertionError(f"still busy: {health}")

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        assert code == 0, f"exit code {code}"

    def raw(self, body, path="/v1/chat/completions"):
        stream = socket.create_connection((self.host, self.port))
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        stream.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return stream


def check_client(server, base, tuned):
    client = server.client
    ids = [model.id for model in client.models.list()]
    assert ids == [base, tuned], ids
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    ask = dict(model=base, messages=messages, temperature=0, max_tokens=24)
    whole = client.chat.completions.create(**ask)
    text = whole.choices[0].message.content
    say("  chat:", repr(text))
    assert "Paris" in text, text
    story = {**ask, "messages": [{"role": "user", "content": "Tell me a story about a stone and a river."}]}
    told = [client.chat.completions.create(**{**story, "model": name}).choices[0].message.content for name in (base, tuned)]
    say("  base, adapter:", told)
    assert told[0] != told[1], "the adapter changes nothing"
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert joined == text, (joined, text)
    assert chunks[-1].usage == whole.usage, (chunks[-1].usage, whole.usage)
    stop = text[9:13]
    stopped = client.chat.completions.create(**ask, stop=[stop])
    assert stopped.choices[0].message.content == text[: text.index(stop)], stopped
    assert stopped.choices[0].finish_reason == "stop"
    several = client.chat.completions.create(**{**ask, "temperature": 1.0}, n=3, seed=11, logprobs=True, top_logprobs=3)
    assert len(several.choices) == 3
    assert len({choice.message.content for choice in several.choices}) == 3
    first = several.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in first)
    again = client.chat.completions.create(**{**ask, "temperature": 1.0}, seed=12)
    assert again.choices[0].message.content == several.choices[1].message.content, "a choice is what its seed gives alone"
    emoji = client.chat.completions.create(model=base, temperature=0, max_tokens=16, stream=True, messages=[
        {"role": "user", "content": "Repeat exactly: 日本語 🙂 für"}])
    pieces = [chunk.choices[0].delta.content or "" for chunk in emoji]
    say("  pieces:", pieces)
    assert not any("\ufffd" in piece for piece in pieces[:-1]), "a character was cut"
    completion = client.completions.create(model=base, prompt=["One, two,", "A, B,"], max_tokens=4, temperature=0, logprobs=2)
    assert len(completion.choices) == 2 and len(completion.choices[0].logprobs.tokens) == 4
    for wrong, kind, code in [
        (dict(model="nobody"), openai.NotFoundError, "model_not_found"),
        (dict(max_tokens=100_000), openai.BadRequestError, "context_length_exceeded"),
        (dict(presence_penalty=1.5), openai.BadRequestError, "unsupported_parameter"),
        (dict(messages=[]), openai.BadRequestError, "invalid_request"),
        (dict(extra_body={"wisdom": 1}), openai.BadRequestError, "unknown_parameter"),
        (dict(tools=[{"type": "function", "function": {"name": "now", "parameters": {}}}]), openai.BadRequestError,
         "unsupported_parameter"),
    ]:
        try:
            client.chat.completions.create(**{**ask, **wrong})
        except kind as error:
            assert error.code == code, (wrong, error)
        else:
            raise AssertionError(f"{wrong} was answered")


def check_tools(program, model, folder):
    """With a template that shows tools; whether so small a model calls one is its own affair."""
    template = f"{folder}/tools.jinja"
    with open(template, "w") as file:
        file.write(TOOL_TEMPLATE)
    server = Server(program, ["--model", model, "--chat-template", template], key="a key of some length")
    name = server.about["models"][0]
    tools = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}]
    ask = dict(model=name, tools=tools, temperature=0, max_tokens=40, messages=[{"role": "user", "content": "What time is it?"}])
    with_tools = server.client.chat.completions.create(**ask)
    without = server.client.chat.completions.create(**{**ask, "tools": openai.NOT_GIVEN})
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens, "the template saw no tools"
    say("  tools:", with_tools.choices[0].finish_reason, with_tools.choices[0].message)
    streamed = list(server.client.chat.completions.create(**ask, stream=True))
    assert streamed[-1].choices[0].finish_reason == with_tools.choices[0].finish_reason
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{\"zone\": \"UTC\"}"}}
    history = [*ask["messages"], {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "c1", "content": "12:00"}]
    server.client.chat.completions.create(**{**ask, "messages": history})
    try:
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key was taken")
    server.end()


def requests_of_load(base, tuned, count):
    draw = random.Random(7)
    for number in range(count):
        said = "Write about " + " and ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 12))) + "."
        yield dict(model=draw.choice([base, tuned]), messages=[{"role": "user", "content": said}], seed=number,
                   temperature=draw.choice([0, 0.7, 1.2]), max_tokens=draw.randint(4, 24))


def answer(client, request, stream):
    if not stream:
        whole = client.chat.completions.create(**request)
        choice = whole.choices[0]
        return choice.message.content, choice.finish_reason, whole.usage.completion_tokens
    text, finish, tokens = "", None, 0
    for chunk in client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish, tokens


def trouble(server, base, ends, counts):
    """Clients as no one wants them."""
    draw = random.Random(3)
    body = lambda **more: json.dumps(dict(model=base, messages=[{"role": "user", "content": "Tell me a long story."}],
                                          max_tokens=200, **more)).encode()
    nonsense = [b"", b"{", b"null", b"[1,2", b"\xff\xfe\x00", b'{"model": NaN}', b"[" * 50_000, b'{"model":1e999}',
                b'{"messages": [{"role": 7}]}', json.dumps({"model": base, "messages": [[]] * 50}).encode(), b"x" * (2 << 20)]
    while not ends.is_set():
        kind = draw.choice(["killed", "killed", "slow", "nonsense"])
        try:
            if kind == "killed":
                stream = server.raw(body(stream=draw.random() < 0.7))
                stream.settimeout(draw.random() * 0.7)
                try:
                    stream.recv(64)
                except TimeoutError:
                    pass
                # With unread data the system sends a reset, without it an orderly end.
                stream.close()
            elif kind == "slow":
                stream = server.raw(body(stream=True))
                stream.settimeout(5)
                for _ in range(20):
                    stream.recv(1)
                    time.sleep(0.03)
                stream.close()
            else:
                stream = server.raw(draw.choice(nonsense), draw.choice(["/v1/chat/completions", "/v1/completions", "/"]))
                stream.settimeout(10)
                status = int(stream.recv(64).split(b" ")[1])
                assert 400 <= status < 500, status
                stream.close()
            counts[kind] = counts.get(kind, 0) + 1
        except (ConnectionError, TimeoutError):
            counts["broken"] = counts.get("broken", 0) + 1


def answers_alone(server, base, tuned):
    unique = list(requests_of_load(base, tuned, 100))
    began = time.time()
    alone = [answer(server.client, request, False) for request in unique]
    say(f"  {len(unique)} requests alone: {time.time() - began:.0f} s")
    return unique, alone


def check_load(server, base, known, clients, total):
    unique, alone = known
    before = server.memory(), server.descriptors()
    ends, counts = threading.Event(), {}
    troubles = [threading.Thread(target=trouble, args=(server, base, ends, counts)) for _ in range(4)]
    for thread in troubles:
        thread.start()
    order = [number % len(unique) for number in range(total)]
    random.Random(5).shuffle(order)

    def one(place):
        number = order[place]
        while True:
            try:
                return number, answer(server.client, unique[number], place % 2 == 0)
            except openai.RateLimitError:
                counts["429"] = counts.get("429", 0) + 1
                time.sleep(0.2)

    began = time.time()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(one, range(total)))
    seconds = time.time() - began
    ends.set()
    for thread in troubles:
        thread.join()
    wrong = [(unique[number], found, alone[number]) for number, found in answers if found != alone[number]]
    assert not wrong, f"{len(wrong)} of {total} differ, such as {wrong[0]}"
    tokens = sum(found[2] for _, found in answers)
    health = server.settles()
    time.sleep(1)
    after = server.memory(), server.descriptors()
    say(f"  {total} requests of {clients} clients: {seconds:.0f} s, {tokens} tokens, every answer that of the request alone")
    say(f"  beside them: {counts}; {health}")
    say(f"  memory {before[0]:.0f} → {after[0]:.0f} MiB, descriptors {before[1]} → {after[1]}")
    return after


def check_growth(server, base, known, clients, total, first):
    """The same load again: what a first one has made warm must be enough for a second."""
    after = check_load(server, base, known, clients, total)
    assert after[0] < first[0] * 1.1 + 50, f"memory grew from {first[0]:.0f} to {after[0]:.0f} MiB"
    assert after[1] <= first[1] + 2, "descriptors were left open"


PROMPT = list(range(1000, 1043))


def speed(server, base, streams, tokens=64):
    """Completions of a prompt of ids at temperature 1, all at once; not streamed: the client's own work would count."""
    request = dict(model=base, prompt=PROMPT, temperature=1.0, max_tokens=tokens)

    def one(seed):
        body = json.dumps({**request, "seed": seed}).encode()
        asked = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            return json.load(answer)["usage"]["completion_tokens"]

    with ThreadPoolExecutor(streams) as pool:
        began = time.time()
        made = sum(pool.map(one, range(streams)))
        seconds = time.time() - began
    say(f"  {streams:3} streams: {made / seconds:7.1f} tokens/s ({made} tokens in {seconds:.1f} s, prompts of {len(PROMPT)} tokens included)")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--program", required=True)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--clients", type=int, default=64)
    arguments.add_argument("--requests", type=int, default=1000)
    arguments.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="last: more arguments of `serve`, such as --device cuda")
    arguments.add_argument("--speed-only", action="store_true")
    given = arguments.parse_args()
    if not openai and not given.speed_only:
        arguments.error("pip install openai==3.57.0")
    with tempfile.TemporaryDirectory() as folder:
        adapter = []
        if not given.speed_only:
            write_adapter(f"{folder}/tuned", layers=30, hidden=576, kv=192)
            adapter = ["--adapter", f"tuned={folder}/tuned"]
        server = Server(given.program, ["--model", given.model, *adapter, *given.more])
        base, *tuned = server.about["models"]
        try:
            if not given.speed_only:
                say("client", openai.__version__)
                check_client(server, base, *tuned)
                check_tools(given.program, given.model, folder)
                say("load")
                known = answers_alone(server, base, *tuned)
                first = check_load(server, base, known, given.clients, given.requests)
                check_growth(server, base, known, given.clients, given.requests // 3, first)
            say("speed")
            speed(server, base, 2, 4)  # The first passes make kernels and pages.
            for streams in (1, 8, 64):
                speed(server, base, streams)
            server.end()
        finally:
            server.process.kill()
    say("all is well")


if __name__ == "__main__":
    sys.exit(main())
