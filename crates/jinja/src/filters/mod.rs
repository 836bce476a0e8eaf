//! `value | filter`.

mod collections;
mod display;
pub(super) mod numbers;
mod select;
mod text;
mod wrap;

use std::fmt;

use super::args::Args;
use super::error::{Result, fail};
use super::json;
use super::render::Renderer;
use super::value::Value;

type Function = fn(&mut Renderer<'_>, Value, Args) -> Result<Value>;

/// A filter.
#[derive(Clone, Copy)]
pub(super) struct Filter(Function);

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}

impl Filter {
    /// A filter by its name in templates.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        let function: Function = match name {
            "abs" => numbers::abs,
            "attr" => collections::attr,
            "batch" => collections::batch,
            "capitalize" => text::capitalize,
            "center" => text::center,
            "count" | "length" => collections::length,
            "d" | "default" => collections::default,
            "dictsort" => collections::dictsort,
            "e" | "escape" => text::escape,
            "filesizeformat" => numbers::filesizeformat,
            "first" => collections::first,
            "float" => numbers::float,
            "forceescape" => text::forceescape,
            "format" => text::format,
            "groupby" => collections::groupby,
            "indent" => text::indent,
            "int" => numbers::int,
            "items" => collections::items,
            "join" => collections::join,
            "last" => collections::last,
            "list" => collections::list,
            "lower" => text::lower,
            "map" => select::map,
            "max" => collections::max,
            "min" => collections::min,
            "pprint" => display::pprint,
            "reject" => select::reject,
            "rejectattr" => select::rejectattr,
            "replace" => text::replace,
            "reverse" => collections::reverse,
            "round" => numbers::round,
            "safe" => text::safe,
            "select" => select::select,
            "selectattr" => select::selectattr,
            "slice" => collections::slice,
            "sort" => collections::sort,
            "string" => text::string,
            "striptags" => text::striptags,
            "sum" => collections::sum,
            "title" => text::title,
            "tojson" => json::tojson,
            "trim" => text::trim,
            "truncate" => text::truncate,
            "unique" => collections::unique,
            "upper" => text::upper,
            "urlencode" => text::urlencode,
            "wordcount" => text::wordcount,
            "wordwrap" => wrap::wordwrap,
            "xmlattr" => text::xmlattr,
            "random" => random,
            "urlize" => urlize,
            _ => return None,
        };
        Some(Self(function))
    }

    pub(super) fn apply(
        self,
        renderer: &mut Renderer<'_>,
        value: Value,
        args: Args,
    ) -> Result<Value> {
        renderer.deeper(|renderer| (self.0)(renderer, value, args))
    }
}

fn random(_: &mut Renderer<'_>, _: Value, _: Args) -> Result<Value> {
    fail!("the filter 'random' is not supported: rows must be the same in every run");
}

fn urlize(_: &mut Renderer<'_>, _: Value, _: Args) -> Result<Value> {
    fail!("the filter 'urlize', which makes HTML of links, is not supported");
}
