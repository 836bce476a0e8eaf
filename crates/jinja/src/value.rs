//! What a variable of a template can hold: Python's types, as far as templates meet them.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::call::{Function, Macro};
use super::dict::Dict;
use super::error::{JinjaError, JinjaErrorKind, Result};
use super::loop_context::LoopContext;

/// How deeply lists and dictionaries may nest: what walks them does so on the stack.
const MAX_DEPTH: u32 = 160;

/// The most values in a tuple that is a key.
const MAX_KEY_WEIGHT: u64 = 1000;

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Undefined(Undefined),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    /// A string that HTML escapes leave alone.
    Markup(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Seq>),
    Tuple(Arc<Seq>),
    /// `grouper` and `list`, as `groupby` gives them.
    Group(Arc<Seq>),
    Dict(Arc<Dict>),
    /// What `keys()`, `values()` and `items()` give.
    View(View, Arc<Dict>),
    Range(Range),
    /// A generator: it can be run through once.
    Iter(Arc<Iter>),
    Namespace(Arc<Namespace>),
    Loop(Arc<LoopContext>),
    Macro(Arc<Macro>),
    Function(Function),
    Method(Arc<Method>),
    Cycler(Arc<Cycler>),
    Joiner(Arc<Joiner>),
}

/// Why something is undefined: the words of the error if it is used.
#[derive(Clone, Debug)]
pub(super) enum Undefined {
    Name(Arc<str>),
    /// A name that neither the program nor the template gives a value.
    Unknown(Arc<str>),
    Attribute {
        of: &'static str,
        name: Arc<str>,
    },
    Because(&'static str),
}

impl Undefined {
    /// The error of using it.
    pub(super) fn error(&self) -> Box<JinjaError> {
        let kind = match self {
            Self::Unknown(_) => JinjaErrorKind::Unknown,
            _ => JinjaErrorKind::Undefined,
        };
        JinjaError::new(kind, self.message())
    }

    fn message(&self) -> String {
        match self {
            Self::Name(name) | Self::Unknown(name) => format!("'{name}' is undefined"),
            Self::Attribute { of, name } => {
                format!("'{of} object' has no attribute '{name}'")
            }
            Self::Because(reason) => (*reason).to_owned(),
        }
    }
}

/// Items of a list or tuple.
#[derive(Debug, Default)]
pub(super) struct Seq {
    items: Vec<Value>,
    depth: u32,
    /// Values in it, and in what it holds: shared parts count as often as they are held.
    weight: u64,
}

impl std::ops::Deref for Seq {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

impl Seq {
    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    pub(super) fn new(items: Vec<Value>) -> Result<Arc<Self>> {
        let depth = deeper(0, &items)?;
        let weights = items.iter().map(Value::weight);
        let weight = weights.fold(1, u64::saturating_add);
        Ok(Arc::new(Self {
            items,
            depth,
            weight,
        }))
    }
}

/// The depth of a container that holds these values.
pub(super) fn deeper<'a>(depth: u32, values: impl IntoIterator<Item = &'a Value>) -> Result<u32> {
    let deepest = values.into_iter().map(Value::depth).max().unwrap_or(0);
    let depth = depth.max(deepest + 1);
    if depth > MAX_DEPTH {
        return Err(JinjaError::runtime("values nest too deeply"));
    }
    Ok(depth)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i128,
    pub(super) stop: i128,
    pub(super) step: i128,
}

impl Range {
    pub(super) fn len(self) -> usize {
        let span = match self.step {
            1.. => self.stop - self.start,
            _ => self.start - self.stop,
        };
        let step = self.step.unsigned_abs();
        usize::try_from(u128::try_from(span).unwrap_or(0).div_ceil(step)).unwrap_or(usize::MAX)
    }

    pub(super) fn at(self, index: usize) -> Value {
        Value::Int(self.start + self.step * index as i128)
    }
}

/// A generator that was run beforehand. Where running it failed, the error waits at its place.
#[derive(Debug)]
pub(super) struct Iter {
    pub(super) items: Vec<Value>,
    pub(super) error: Option<Box<JinjaError>>,
    pub(super) next: AtomicUsize,
    depth: u32,
}

impl Iter {
    pub(super) fn value(items: Vec<Value>, error: Option<Box<JinjaError>>) -> Result<Value> {
        let depth = deeper(0, &items)?;
        Ok(Value::Iter(Arc::new(Self {
            items,
            error,
            next: AtomicUsize::new(0),
            depth,
        })))
    }
}

/// A namespace. The rendering empties all of them at its end, so that cycles are no leak.
#[derive(Debug, Default)]
pub(super) struct Namespace(Mutex<Dict>);

impl Namespace {
    pub(super) fn new(dict: Dict) -> Self {
        Self(Mutex::new(dict))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Dict> {
        lock(&self.0)
    }
}

/// A lock that nobody can poison: no code of ours panics while it holds one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A method with the value that it belongs to.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) of: Value,
    pub(super) name: &'static str,
}

#[derive(Debug)]
pub(super) struct Cycler {
    pub(super) items: Arc<Seq>,
    pub(super) position: AtomicUsize,
}

#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) separator: Value,
    pub(super) used: std::sync::atomic::AtomicBool,
}

impl Value {
    pub(super) fn list(items: Vec<Value>) -> Result<Self> {
        Seq::new(items).map(Self::List)
    }

    pub(super) fn tuple(items: Vec<Value>) -> Result<Self> {
        Seq::new(items).map(Self::Tuple)
    }

    /// The text of a string, with markup or without.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// The number that Python's `operator.index` gives.
    pub(super) fn as_index(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(flag) => Some(i128::from(*flag)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            other => other.as_index().map(|number| number as f64),
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            other => other.len() != Some(0),
        }
    }

    /// What `len()` gives, for what has a length.
    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) | Self::Markup(text) => match text.is_ascii() {
                true => text.len(),
                false => text.chars().count(),
            },
            Self::Bytes(bytes) => bytes.len(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.len(),
            Self::Dict(dict) | Self::View(_, dict) => dict.len(),
            Self::Range(range) => range.len(),
            Self::Loop(state) => state.length(),
            _ => return None,
        })
    }

    /// Python's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Group(_) => "_GroupTuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Iter(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    pub(super) fn is_hashable(&self) -> bool {
        match self {
            Self::List(_) | Self::Dict(_) | Self::View(..) => false,
            // A key is compared without an end in sight, so it must be small.
            Self::Tuple(items) | Self::Group(items) => {
                items.weight <= MAX_KEY_WEIGHT && items.iter().all(Self::is_hashable)
            }
            _ => true,
        }
    }

    fn weight(&self) -> u64 {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.weight,
            _ => 1,
        }
    }

    fn depth(&self) -> u32 {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth(),
            Self::Iter(iter) => iter.depth,
            Self::Method(method) => method.of.depth() + 1,
            Self::Cycler(cycler) => cycler.items.depth + 1,
            Self::Joiner(joiner) => joiner.separator.depth() + 1,
            Self::Loop(state) => state.depth_of_items() + 1,
            _ => 0,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Int(number as i128)
    }
}

/// JSON as Python's `json.loads` gives it.
impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Self::None,
            Json::Bool(flag) => Self::Bool(*flag),
            Json::Number(number) => {
                let integer = number.as_i64().map(i128::from);
                match integer.or_else(|| number.as_u64().map(i128::from)) {
                    Some(integer) => Self::Int(integer),
                    None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
                }
            }
            Json::String(text) => text.as_str().into(),
            // The parser of JSON allows fewer levels than values do, so both always succeed.
            Json::Array(items) => {
                Self::list(items.iter().map(Self::from).collect()).unwrap_or(Self::None)
            }
            Json::Object(object) => {
                let mut dict = Dict::default();
                for (key, value) in object {
                    if dict.push(key.as_str().into(), value.into()).is_err() {
                        return Self::None;
                    }
                }
                Self::Dict(Arc::new(dict))
            }
        }
    }
}
