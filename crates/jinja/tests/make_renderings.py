"""Writes renderings.json: hashes of what transformers makes of public chat templates.

    pip install "transformers==5.24.0" jinja2==3.1.6
    pip download --no-deps --dest wheels trl==1.16.0 axolotl==0.19.0       # both Apache-2.0
    python make_renderings.py wheels templates                             # unpacks the templates, renders them
    BACKDRAFT_TEMPLATES=$PWD/templates cargo test --release -p backdraft-jinja public_templates

Templates are other people's work: only the hash of each and of its renderings is kept here. The test takes the
texts from the folder that BACKDRAFT_TEMPLATES names, and checks nothing where there is none.
"""

import copy
import datetime
import hashlib
import json
import sys
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import (
    _alias_reasoning_fields,
    _compile_jinja_template,
    _normalize_chat_messages,
    render_jinja_template,
)

from unpack_templates import unpack

TOKENS = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "sep_token": "<sep>",
    "image_token": "<image>", "audio_token": "<audio>", "video_token": "<video>",
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place.\nNow.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Town, e.g. \"Zürich\""},
                "unit": {"type": "string", "enum": ["C", "F"], "description": "Unit", "default": "C"},
                "days": {"type": "integer", "minimum": 1, "nullable": True},
                "at": {"type": "array", "items": {"type": "number"}},
                "deep": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]},
            },
            "required": ["place"],
        },
        "return": {"type": "object", "description": "A table"},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": {"type": "object", "properties": {}}}}


def call(name, arguments, id=None):
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {**made, "id": id} if id else made


def said(role, content, **more):
    return {"role": role, "content": content, **more}


ARGUMENTS = {"place": "Zürich <&> \"x\"", "days": 3, "at": [1.0, 1e16, 1e-7, 0.1], "deep": {"a": None}, "flag": True}
CONVERSATIONS = {
    "one question": [said("user", "Hi there")],
    "system": [said("system", "Be brief."), said("user", " Hi\n"), said("assistant", "Yo ")],
    "several turns": [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d"), said("user", "é 日本 😀 <|im_end|> {{ x }}")],
    "system and turns": [said("system", "S\n\nS"), said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")],
    "empty": [said("system", ""), said("user", ""), said("assistant", "")],
    "reasoning": [said("user", "a"), said("assistant", "b", reasoning_content="think\nhard"), said("user", "c"), said("assistant", "d", reasoning_content="more")],
    "thinking in content": [said("user", "a"), said("assistant", "<think>\nq\n</think>\n\nb"), said("user", "c"), said("assistant", "<think>r</think>d")],
    "tools": [
        said("system", "S"), said("user", "Weather?"), said("assistant", "", tool_calls=[call("get_weather", ARGUMENTS, "abcdefghi")]),
        said("tool", "{\"t\": 5.0}", name="get_weather", tool_call_id="abcdefghi"), said("assistant", "5 degrees"), said("user", "Thanks"),
    ],
    "two calls": [
        said("user", "Both"), said("assistant", "Wait.", tool_calls=[call("get_weather", {"place": "A"}, "aaaaaaaaa"), call("clock", {}, "bbbbbbbbb")]),
        said("tool", "1", name="get_weather", tool_call_id="aaaaaaaaa"), said("tool", "2", name="clock", tool_call_id="bbbbbbbbb"), said("assistant", "Done"),
    ],
    "arguments as text": [said("user", "a"), said("assistant", "", tool_calls=[call("clock", "{\"a\": 1}", "aaaaaaaaa")]), said("tool", "1", name="clock", tool_call_id="aaaaaaaaa"), said("assistant", "b")],
    "call without content": [said("user", "a"), said("assistant", None, tool_calls=[call("clock", {"x": 1.5}, "aaaaaaaaa")]), said("tool", "1", name="clock", tool_call_id="aaaaaaaaa")],
    "result that is data": [said("user", "a"), said("assistant", "", tool_calls=[call("clock", {}, "aaaaaaaaa")]), said("tool", {"t": [1, None, 2.5]}, name="clock", tool_call_id="aaaaaaaaa"), said("assistant", "b")],
    "parts": [said("system", [{"type": "text", "text": "S"}]), said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), said("assistant", [{"type": "text", "text": "c"}])],
    "image": [said("user", [{"type": "image"}, {"type": "text", "text": "What?"}]), said("assistant", "A cat")],
    "nulls": [said("user", "a", name=None, tool_calls=None), said("assistant", "b", tool_calls=None, reasoning_content=None)],
    "two users": [said("user", "a"), said("user", "b"), said("assistant", "c")],
    "assistant first": [said("assistant", "a"), said("user", "b")],
    "developer": [said("developer", "D"), said("user", "a"), said("assistant", "b")],
    "unknown role": [said("user", "a"), said("narrator", "b")],
}
EXTRAS = [{}, {"enable_thinking": False}, {"enable_thinking": True}]


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def short(text):
    return sha(text)[:16]


def context(messages, tools, prompt, extra):
    chat = _alias_reasoning_fields(_normalize_chat_messages(copy.deepcopy(messages)))
    return {**TOKENS, **extra, "messages": chat, "tools": tools, "documents": None, "add_generation_prompt": prompt}


def cases():
    for name, messages in CONVERSATIONS.items():
        with_tools = any(key in name for key in ("tools", "calls", "call", "arguments", "result"))
        for tools in ([None, [WEATHER, CLOCK]] if with_tools or name == "one question" else [None]):
            for prompt in (False, True):
                extras = EXTRAS if name in ("one question", "reasoning") else EXTRAS[:1]
                for extra in extras:
                    yield context(messages, tools, prompt, extra)


def outcome(template, case):
    extra = {key: value for key, value in case.items() if key not in ("messages", "tools", "documents", "add_generation_prompt")}
    try:
        rendered, _ = render_jinja_template(
            conversations=[copy.deepcopy(case["messages"])], tools=copy.deepcopy(case["tools"]), chat_template=template,
            add_generation_prompt=case["add_generation_prompt"], **extra,
        )
        return "text " + rendered[0]
    except jinja2.exceptions.TemplateError as error:
        # `raise_exception` raises the class itself, Jinja's own errors are of classes below it.
        return "raised " + str(error) if type(error) is jinja2.exceptions.TemplateError else "error"
    except Exception:
        return "error"


def main(wheels, folder):
    unpack(Path(wheels), Path(folder))
    contexts = list(cases())
    found, texts, seen = [], {}, set()
    for path in sorted(Path(folder).glob("*.jinja")):
        template = path.read_bytes().decode()
        if sha(template) in seen:
            continue
        seen.add(sha(template))
        compiled = _compile_jinja_template(template)
        compiled.environment.globals["strftime_now"] = lambda form: datetime.datetime(1970, 1, 1).strftime(form)
        outcomes = [outcome(template, case) for case in contexts]
        texts[path.name] = outcomes
        found.append({"name": path.name, "sha256": sha(template), "outcomes": [o.split(" ")[0][0] + short(o) for o in outcomes]})
    out = Path(__file__).with_name("renderings.json")
    lines = ",\n".join(json.dumps(item) for item in found)
    cases_text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in contexts)
    out.write_text('{"cases": [\n' + cases_text + '\n],\n"templates": [\n' + lines + "\n]}\n")
    Path(folder, "texts.json").write_text(json.dumps(texts, ensure_ascii=False))
    kinds = [o[0] for item in found for o in item["outcomes"]]
    print(len(found), "templates,", len(contexts), "cases,", {kind: kinds.count(kind) for kind in sorted(set(kinds))})


main(*sys.argv[1:])
