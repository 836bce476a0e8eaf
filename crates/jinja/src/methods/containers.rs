//! Methods of `dict`, `list`, `tuple` and `range`.

use std::sync::Arc;

use crate::args::Args;
use crate::compare;
use crate::dict::Dict;
use crate::error::{Result, fail};
use crate::functions::Function;
use crate::iterate::Walk;
use crate::render::Renderer;
use crate::repr;
use crate::value::{Value, View};

pub(super) fn dict(
    renderer: &mut Renderer<'_>,
    dict: &Arc<Dict>,
    method: &'static str,
    args: Args,
) -> Result<Value> {
    let view = |view: View, args: Args| -> Result<Value> {
        args.bind_positional::<0>(method, 0)?;
        Ok(Value::View(view, Arc::clone(dict)))
    };
    match method {
        "get" => {
            let bound = args.bind_positional::<2>(method, 1)?;
            let key = bound.value(0);
            if !key.is_hashable() {
                fail!("unhashable type: '{}'", key.type_name());
            }
            renderer.meter.steps(dict.len() / 16)?;
            Ok(dict.get(&key).cloned().unwrap_or_else(|| bound.value(1)))
        }
        "items" => view(View::Items, args),
        "keys" => view(View::Keys, args),
        "values" => view(View::Values, args),
        "fromkeys" => Function::DictFromkeys.call(renderer, args),
        _ => {
            args.bind_positional::<0>(method, 0)?;
            Ok(Value::Dict(Arc::clone(dict)))
        }
    }
}

pub(super) fn sequence(
    renderer: &mut Renderer<'_>,
    of: &Value,
    method: &'static str,
    args: Args,
) -> Result<Value> {
    let meter = &renderer.meter;
    match method {
        "count" => {
            let wanted = args.bind_positional::<1>(method, 1)?.value(0);
            let mut walk = Walk::over(of)?;
            let mut count = 0;
            while let Some(item) = walk.next(meter)? {
                count += usize::from(compare::equal(&item, &wanted, meter)?);
            }
            Ok(count.into())
        }
        "index" => {
            let bound = args.bind_positional::<3>(method, 1)?;
            let wanted = bound.value(0);
            let length = of.len().unwrap_or(0) as i128;
            let place = |at: i128| if at < 0 { (at + length).max(0) } else { at };
            let start = place(bound.int_or(1, 0, method)?);
            let stop = place(bound.int_or(2, i128::MAX, method)?);
            let mut walk = Walk::over(of)?;
            let mut index = 0;
            while let Some(item) = walk.next(meter)? {
                if (start..stop).contains(&index) && compare::equal(&item, &wanted, meter)? {
                    return Ok(Value::Int(index));
                }
                index += 1;
            }
            fail!(
                "{} is not in {}",
                repr::repr(&wanted, meter)?,
                of.type_name()
            )
        }
        _ => {
            args.bind_positional::<0>(method, 0)?;
            Ok(of.clone())
        }
    }
}
