//! The methods of Python's types.

mod containers;
pub(super) mod number;
pub(super) mod text;
mod text_split;
mod text_tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::args::Args;
use super::compare;
use super::error::{Result, fail};
use super::functions;
use super::render::Renderer;
use super::value::Value;

const STR: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const LIST: [&str; 3] = ["copy", "count", "index"];
const SEQUENCE: [&str; 2] = ["count", "index"];
const BYTES: [&str; 2] = ["decode", "hex"];
const CYCLER: [&str; 2] = ["next", "reset"];
const LOOP: [&str; 2] = ["changed", "cycle"];
const DICT_TYPE: [&str; 1] = ["fromkeys"];

/// What Jinja's immutable sandbox keeps from templates.
const CHANGES_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const CHANGES_LIST: [&str; 8] = [
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
];

/// A method that a value has and templates may call.
pub(super) fn find(value: &Value, name: &str) -> Option<&'static str> {
    let methods: &[&'static str] = match value {
        Value::Str(_) | Value::Markup(_) => &STR,
        Value::Dict(_) => &DICT,
        Value::List(_) => &LIST,
        Value::Tuple(_) | Value::Group(_) | Value::Range(_) => &SEQUENCE,
        Value::Bytes(_) => &BYTES,
        Value::Int(_) | Value::Bool(_) => &number::INT,
        Value::Float(_) => &number::FLOAT,
        Value::Cycler(_) => &CYCLER,
        Value::Loop(_) => &LOOP,
        Value::Function(functions::Function::Dict) => &DICT_TYPE,
        _ => &[],
    };
    methods.iter().copied().find(|method| *method == name)
}

/// Whether the sandbox keeps an attribute from templates.
pub(super) fn is_unsafe(value: &Value, name: &str) -> bool {
    match value {
        _ if name.starts_with("__") && name.ends_with("__") => true,
        Value::Dict(_) => CHANGES_DICT.contains(&name),
        Value::List(_) => CHANGES_LIST.contains(&name),
        _ => false,
    }
}

/// Calls a method that [`find`] has found.
pub(super) fn call(
    renderer: &mut Renderer<'_>,
    of: &Value,
    method: &'static str,
    args: Args,
) -> Result<Value> {
    match of {
        Value::Str(text) | Value::Markup(text) => text::call(renderer, text, method, args),
        Value::Dict(dict) => containers::dict(renderer, dict, method, args),
        Value::List(_) | Value::Tuple(_) | Value::Group(_) | Value::Range(_) => {
            containers::sequence(renderer, of, method, args)
        }
        Value::Bytes(bytes) => match method {
            "decode" => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(text.into()),
                Err(_) => fail!("'utf-8' codec can't decode these bytes"),
            },
            _ => Ok(hex(bytes).into()),
        },
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => number::call(of, method, args),
        Value::Cycler(cycler) => match method {
            "next" => {
                let current = functions::current(cycler);
                let position = cycler.position.load(Ordering::Relaxed) + 1;
                cycler
                    .position
                    .store(position % cycler.items.len(), Ordering::Relaxed);
                Ok(current)
            }
            _ => {
                cycler.position.store(0, Ordering::Relaxed);
                Ok(Value::None)
            }
        },
        Value::Loop(state) => match method {
            "cycle" => match args.positional.len() {
                0 => fail!("no items for cycling given"),
                count => Ok(args.positional[state.index0() % count].clone()),
            },
            _ => {
                let value = Value::tuple(args.positional)?;
                let now = value.clone();
                let is_same =
                    |last: &Value| compare::equal(last, &now, &renderer.meter).unwrap_or(false);
                Ok(state.change(value, is_same).into())
            }
        },
        Value::Function(_) => functions::Function::DictFromkeys.call(renderer, args),
        other => fail!("'{}' object has no method '{method}'", other.type_name()),
    }
}

/// The method of a string as a function, for filters that are made of one.
pub(super) fn on_text(
    renderer: &mut Renderer<'_>,
    text: &str,
    method: &'static str,
    args: Vec<Value>,
) -> Result<Value> {
    text::call(renderer, &Arc::from(text), method, Args::of(args))
}

pub(super) use text_tests::{is_lower, is_upper};

/// `text.splitlines()`.
pub(super) fn lines(text: &str) -> Vec<&str> {
    text_split::lines(text, false)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
