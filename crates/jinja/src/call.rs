//! Calling macros, functions, methods and loops.

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) use super::functions::Function;

use super::args::Args;
use super::ast::MacroBody;
use super::dict::Dict;
use super::error::{Result, fail};
use super::methods;
use super::render::Renderer;
use super::value::{Undefined, Value};

/// A macro with the scope that it was defined in.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) body: Arc<MacroBody>,
    pub(super) scope: usize,
}

impl Macro {
    pub(super) fn name(&self) -> Option<&str> {
        self.body.name.as_deref()
    }

    pub(super) fn attribute(&self, name: &str) -> Result<Option<Value>> {
        Ok(Some(match name {
            "name" => self.name().map_or(Value::None, Value::from),
            "arguments" => {
                let names = self.body.parameters.iter().map(Arc::clone);
                Value::tuple(names.map(Value::Str).collect())?
            }
            "catch_kwargs" => self.body.uses_kwargs.into(),
            "catch_varargs" => self.body.uses_varargs.into(),
            "caller" => self.body.uses_caller.into(),
            _ => return Ok(None),
        }))
    }

    fn described(&self) -> String {
        self.name()
            .map_or("None".to_owned(), |name| format!("'{name}'"))
    }
}

impl Renderer<'_> {
    /// Calls a value.
    pub(super) fn call(&mut self, function: &Value, args: Args) -> Result<Value> {
        match function {
            Value::Macro(template) => self.call_macro(template, args),
            Value::Function(function) => function.call(self, args),
            Value::Method(method) => methods::call(self, &method.of, method.name, args),
            Value::Loop(state) => {
                let Some((block, scope)) = state.recursive.clone() else {
                    fail!("The loop must have the 'recursive' marker to be called recursively.");
                };
                let over = args.bind("loop", ["iterable"], 1)?.value(0);
                let mut text = String::new();
                let depth0 = state.depth0() + 1;
                self.for_loop(&block, &over, scope, depth0, &mut text)?;
                Ok(text.into())
            }
            Value::Joiner(joiner) => {
                args.bind("joiner", [], 0)?;
                match joiner.used.swap(true, Ordering::Relaxed) {
                    true => Ok(joiner.separator.clone()),
                    false => Ok("".into()),
                }
            }
            Value::Undefined(reason) => Err(reason.error()),
            other => fail!("'{}' object is not callable", other.type_name()),
        }
    }

    fn call_macro(&mut self, template: &Arc<Macro>, args: Args) -> Result<Value> {
        let body = Arc::clone(&template.body);
        let scope = self.scopes.open(Some(template.scope));
        self.bind(template, args, scope)?;
        let text = self.text_of(&body.body, scope);
        self.scopes.close(scope);
        Ok(text?.into())
    }

    /// Gives a macro's parameters their arguments, as `jinja2.runtime.Macro` does.
    fn bind(&mut self, template: &Macro, args: Args, scope: usize) -> Result<()> {
        let body = &template.body;
        let mut positional = args.positional.into_iter();
        let mut keywords = args.keywords;
        let take = |keywords: &mut Vec<(Arc<str>, Value)>, name: &str| {
            let index = keywords.iter().position(|(known, _)| &**known == name)?;
            Some(keywords.remove(index).1)
        };
        let explicit_caller = body.parameters.iter().any(|name| &**name == "caller");
        let mut given = Vec::with_capacity(body.parameters.len());
        for name in &body.parameters {
            given.push(positional.next().or_else(|| take(&mut keywords, name)));
        }
        let caller = match body.uses_caller && !explicit_caller {
            true => Some(take(&mut keywords, "caller")),
            false => None,
        };
        let rest: Vec<Value> = positional.collect();
        let name = template.described();
        if !body.uses_kwargs
            && let Some((keyword, _)) = keywords.first()
        {
            if &**keyword == "caller" {
                fail!(
                    "macro {name} was invoked with two values for the special caller argument. \
                     This is most likely a bug."
                );
            }
            fail!("macro {name} takes no keyword argument '{keyword}'");
        }
        if !body.uses_varargs && !rest.is_empty() {
            let count = body.parameters.len();
            fail!("macro {name} takes not more than {count} argument(s)");
        }
        if let Some(caller) = caller {
            let caller =
                caller.unwrap_or(Value::Undefined(Undefined::Because("No caller defined")));
            self.scopes.set(scope, &"caller".into(), caller);
        }
        if body.uses_kwargs {
            let mut dict = Dict::default();
            for (name, value) in keywords {
                dict.insert(Value::Str(name), value)?;
            }
            self.scopes
                .set(scope, &"kwargs".into(), Value::Dict(Arc::new(dict)));
        }
        if body.uses_varargs {
            self.scopes
                .set(scope, &"varargs".into(), Value::tuple(rest)?);
        }
        let first_default = body.parameters.len() - body.defaults.len();
        for (index, (name, value)) in body.parameters.iter().zip(given).enumerate() {
            let value = match (value, index.checked_sub(first_default)) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(&body.defaults[default], scope)?,
                (None, None) => {
                    Value::Undefined(Undefined::Because("a parameter was not provided"))
                }
            };
            self.scopes.set(scope, name, value);
        }
        Ok(())
    }
}
