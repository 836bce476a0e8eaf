//! `map`, `select`, `reject` and their kin with attributes.

use super::Filter;
use super::collections::{lazily, lookup, name_of, walk_if_true};
use crate::args::Args;
use crate::error::{JinjaError, Result, fail};
use crate::is_tests::Test;
use crate::render::Renderer;
use crate::value::{Iter, Value};

pub(super) fn map(renderer: &mut Renderer<'_>, value: Value, mut args: Args) -> Result<Value> {
    let walk = match walk_if_true(&value) {
        Ok(walk) => walk,
        Err(error) => return Iter::value(Vec::new(), Some(error)),
    };
    let path = args
        .keywords
        .iter()
        .position(|(name, _)| &**name == "attribute");
    if let (Some(path), true) = (path, args.positional.is_empty()) {
        let path = args.keywords.remove(path).1;
        let default = args
            .keywords
            .iter()
            .position(|(name, _)| &**name == "default");
        let default = default.map_or(Value::None, |at| args.keywords.remove(at).1);
        if let Some((name, _)) = args.keywords.first() {
            fail!("Unexpected keyword argument '{name}'");
        }
        return lazily(walk, renderer, |_, item| {
            lookup(&item, &path, &default).map(Some)
        });
    }
    if walk.is_none() {
        return Iter::value(Vec::new(), None);
    }
    if args.positional.is_empty() {
        fail!("map requires a filter argument");
    }
    let name = name_of(&args.positional.remove(0), "map")?;
    let Some(filter) = Filter::by_name(&name) else {
        fail!("No filter named '{name}'.");
    };
    lazily(walk, renderer, |renderer, item| {
        filter.apply(renderer, item, args.clone()).map(Some)
    })
}

pub(super) fn select(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    pick(renderer, &value, args, true, false)
}

pub(super) fn reject(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    pick(renderer, &value, args, false, false)
}

pub(super) fn selectattr(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    pick(renderer, &value, args, true, true)
}

pub(super) fn rejectattr(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    pick(renderer, &value, args, false, true)
}

fn pick(
    renderer: &mut Renderer<'_>,
    value: &Value,
    mut args: Args,
    wanted: bool,
    by_attribute: bool,
) -> Result<Value> {
    let walk = match walk_if_true(value) {
        Ok(Some(walk)) => walk,
        Ok(None) => return Iter::value(Vec::new(), None),
        Err(error) => return Iter::value(Vec::new(), Some(error)),
    };
    let mut path = None;
    if by_attribute {
        if args.positional.is_empty() {
            return Err(JinjaError::runtime("Missing parameter for attribute name"));
        }
        path = Some(args.positional.remove(0));
    }
    let mut test = None;
    if !args.positional.is_empty() {
        let name = name_of(&args.positional.remove(0), "select")?;
        test = Some(match Test::by_name(&name) {
            Some(test) => test,
            None => fail!("No test named '{name}'."),
        });
    }
    lazily(Some(walk), renderer, |renderer, item| {
        let value = match &path {
            Some(path) => lookup(&item, path, &Value::None)?,
            None => item.clone(),
        };
        let holds = match test {
            Some(test) => test.apply(renderer, &value, args.clone())?,
            None => value.truth(),
        };
        Ok((holds == wanted).then_some(item))
    })
}
