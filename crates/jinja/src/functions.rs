//! Functions that every template has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use chrono::NaiveDateTime;
use chrono::format::{Item, StrftimeItems};

use super::args::Args;
use super::dict::Dict;
use super::error::{JinjaError, JinjaErrorKind, Result, fail};
use super::iterate;
use super::render::Renderer;
use super::repr;
use super::value::{Cycler, Joiner, Namespace, Range, Seq, Value};

/// The most items of a `range`, by Jinja's sandbox.
const MAX_RANGE: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Range,
    Dict,
    DictFromkeys,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
}

impl Function {
    /// A function by its name in templates.
    ///
    /// `lipsum`, which writes random words, is left out: rows must be the same in every run.
    pub(super) fn global(name: &str) -> Option<Self> {
        Some(match name {
            "range" => Self::Range,
            "dict" => Self::Dict,
            "namespace" => Self::Namespace,
            "cycler" => Self::Cycler,
            "joiner" => Self::Joiner,
            "raise_exception" => Self::RaiseException,
            "strftime_now" => Self::StrftimeNow,
            _ => return None,
        })
    }

    pub(super) fn call(self, renderer: &mut Renderer<'_>, args: Args) -> Result<Value> {
        match self {
            Self::Range => range(args),
            Self::Dict => Ok(Value::Dict(Arc::new(dict(renderer, args)?))),
            Self::DictFromkeys => {
                let bound = args.bind_positional::<2>("fromkeys", 1)?;
                let mut dict = Dict::default();
                for key in iterate::collect(&bound.value(0), &renderer.meter)? {
                    renderer.meter.steps(dict.len() / 16)?;
                    dict.insert(key, bound.value(1))?;
                }
                Ok(Value::Dict(Arc::new(dict)))
            }
            Self::Namespace => {
                let dict = dict(renderer, args)?;
                for name in dict.keys().filter_map(Value::as_str) {
                    check_name(name)?;
                }
                renderer.namespace(Namespace::new(dict))
            }
            Self::Cycler => {
                if args.positional.is_empty() {
                    fail!("at least one item has to be provided");
                }
                Ok(Value::Cycler(Arc::new(Cycler {
                    items: Seq::new(args.positional)?,
                    position: AtomicUsize::new(0),
                })))
            }
            Self::Joiner => {
                let bound = args.bind("joiner", ["sep"], 0)?;
                let separator = bound.given(0).cloned().unwrap_or_else(|| ", ".into());
                Ok(Value::Joiner(Arc::new(Joiner {
                    separator,
                    used: AtomicBool::new(false),
                })))
            }
            Self::RaiseException => {
                let message = args.bind("raise_exception", ["message"], 1)?.value(0);
                let message = repr::text(&message, &renderer.meter)?;
                Err(JinjaError::new(JinjaErrorKind::Raised, message))
            }
            Self::StrftimeNow => {
                let bound = args.bind("strftime_now", ["format"], 1)?;
                let format = bound.str(0, "strftime_now")?;
                strftime(renderer.limits.now, format).map(Value::from)
            }
        }
    }
}

/// transformers keeps names that begin with an underscore out of namespaces.
pub(super) fn check_name(name: &str) -> Result<()> {
    if name.starts_with('_') {
        fail!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got \
             {}. Please rename the attribute.",
            repr::quoted(name)
        );
    }
    Ok(())
}

/// `dict(mapping or pairs, **names)`.
fn dict(renderer: &mut Renderer<'_>, args: Args) -> Result<Dict> {
    let meter = &renderer.meter;
    if args.positional.len() > 1 {
        fail!(
            "dict expected at most 1 argument, got {}",
            args.positional.len()
        );
    }
    let mut dict = match args.positional.first() {
        None => Dict::default(),
        Some(Value::Dict(dict)) => (**dict).clone(),
        Some(pairs) => {
            let mut dict = Dict::default();
            for pair in iterate::collect(pairs, meter)? {
                let pair = iterate::collect(&pair, meter)?;
                let [key, value] = <[Value; 2]>::try_from(pair).map_err(|pair| {
                    JinjaError::runtime(format!(
                        "dictionary update sequence element has length {}; 2 is required",
                        pair.len()
                    ))
                })?;
                meter.steps(dict.len() / 16)?;
                dict.insert(key, value)?;
            }
            dict
        }
    };
    for (name, value) in args.keywords {
        dict.insert(Value::Str(name), value)?;
    }
    Ok(dict)
}

fn range(args: Args) -> Result<Value> {
    let bound = args.bind_positional::<3>("range", 1)?;
    let first = bound.int(0, "range")?;
    let range = match bound.given(1) {
        None => Range {
            start: 0,
            stop: first,
            step: 1,
        },
        Some(_) => Range {
            start: first,
            stop: bound.int(1, "range")?,
            step: bound.int_or(2, 1, "range")?,
        },
    };
    let limit = 1_i128 << 100;
    if range.step == 0 {
        fail!("range() arg 3 must not be zero");
    }
    let sane = |number: i128| (-limit..limit).contains(&number);
    let all_sane = sane(range.start) && sane(range.stop) && sane(range.step);
    if !all_sane || range.len() > MAX_RANGE {
        fail!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE}).");
    }
    Ok(Value::Range(range))
}

/// The item that a cycler stands at.
pub(super) fn current(cycler: &Cycler) -> Value {
    let position = cycler.position.load(Ordering::Relaxed);
    cycler.items[position % cycler.items.len()].clone()
}

fn strftime(now: NaiveDateTime, format: &str) -> Result<String> {
    // chrono's `Display` fails without a reason on a bad specifier: refuse it here.
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    let mut text = String::new();
    let written = std::fmt::Write::write_fmt(
        &mut text,
        format_args!("{}", now.format_with_items(items.iter())),
    );
    if items.contains(&Item::Error) || written.is_err() {
        fail!("strftime_now: bad format {format:?}");
    }
    Ok(text)
}
