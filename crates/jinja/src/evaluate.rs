//! Evaluating expressions.

use std::cmp::Ordering;
use std::sync::Arc;

use super::args::Args;
use super::ast::{Arguments, Comparison, Expr, ExprKind};
use super::compare;
use super::dict::Dict;
use super::error::{JinjaError, Result, fail};
use super::functions::Function;
use super::iterate;
use super::render::Renderer;
use super::value::{Undefined, Value};
use super::{arithmetic, attribute, methods, repr};

impl Renderer<'_> {
    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &Expr, scope: usize) -> Result<Value> {
        self.deeper(|this| this.eval_kind(&expr.kind, scope))
            .map_err(|error| error.at(expr.line))
    }

    fn eval_kind(&mut self, kind: &ExprKind, scope: usize) -> Result<Value> {
        match kind {
            ExprKind::Const(value) => Ok(value.clone()),
            ExprKind::Name(name) => Ok(self.name(name, scope)),
            ExprKind::Attribute(value, name) => {
                let value = self.eval(value, scope)?;
                attribute::get(&value, name)
            }
            ExprKind::Item(value, key) => {
                let value = self.eval(value, scope)?;
                let key = self.eval(key, scope)?;
                attribute::item(&value, &key)
            }
            ExprKind::Cond(test, value, otherwise) => {
                if self.eval(test, scope)?.truth() {
                    return self.eval(value, scope);
                }
                match otherwise {
                    Some(value) => self.eval(value, scope),
                    None => Ok(Value::Undefined(Undefined::Because(
                        "the inline if-expression evaluated to false and no else section was \
                         defined.",
                    ))),
                }
            }
            ExprKind::Or(a, b) => {
                let a = self.eval(a, scope)?;
                if a.truth() {
                    Ok(a)
                } else {
                    self.eval(b, scope)
                }
            }
            ExprKind::And(a, b) => {
                let a = self.eval(a, scope)?;
                if a.truth() {
                    self.eval(b, scope)
                } else {
                    Ok(a)
                }
            }
            ExprKind::Not(value) => Ok((!self.eval(value, scope)?.truth()).into()),
            ExprKind::Neg(value) => arithmetic::signed(&self.eval(value, scope)?, true),
            ExprKind::Pos(value) => arithmetic::signed(&self.eval(value, scope)?, false),
            ExprKind::Binary(operator, a, b) => {
                let a = self.eval(a, scope)?;
                let b = self.eval(b, scope)?;
                arithmetic::binary(*operator, &a, &b, &self.meter)
            }
            other => self.eval_rest(other, scope),
        }
    }

    fn eval_rest(&mut self, kind: &ExprKind, scope: usize) -> Result<Value> {
        match kind {
            ExprKind::Tuple(items) => Value::tuple(self.eval_all(items, scope)?),
            ExprKind::List(items) => Value::list(self.eval_all(items, scope)?),
            ExprKind::Dict(pairs) => {
                let mut dict = Dict::default();
                for (key, value) in pairs {
                    let key = self.eval(key, scope)?;
                    let value = self.eval(value, scope)?;
                    self.meter.steps(dict.len() / 16)?;
                    dict.insert(key, value)?;
                }
                Ok(Value::Dict(Arc::new(dict)))
            }
            ExprKind::Compare(first, others) => self.comparison(first, others, scope),
            ExprKind::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let value = self.eval(part, scope)?;
                    repr::write_text(&mut text, &value, &self.meter)?;
                }
                Ok(text.into())
            }
            ExprKind::Slice(value, parts) => {
                let value = self.eval(value, scope)?;
                let mut bounds = [const { Value::None }; 3];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *bound = self.eval(part, scope)?;
                    }
                }
                self.meter.bytes(value.len().unwrap_or(0))?;
                attribute::slice(&value, bounds)
            }
            ExprKind::Call(callee, arguments) => self.call_expr(callee, arguments, None, scope),
            ExprKind::Filter(value, filter, arguments) => {
                let Some(function) = filter.filter else {
                    return Err(JinjaError::unknown(format!(
                        "No filter named '{}' found.",
                        filter.name
                    )));
                };
                let value = match value {
                    Some(value) => self.eval(value, scope)?,
                    None => Value::None,
                };
                let args = self.args(arguments, None, scope)?;
                function.apply(self, value, args)
            }
            ExprKind::Test(value, test, arguments) => {
                let Some(function) = test.test else {
                    return Err(JinjaError::unknown(format!(
                        "No test named '{}' found.",
                        test.name
                    )));
                };
                let value = self.eval(value, scope)?;
                let args = self.args(arguments, None, scope)?;
                Ok(function.apply(self, &value, args)?.into())
            }
            _ => Ok(Value::None),
        }
    }

    fn name(&mut self, name: &Arc<str>, scope: usize) -> Value {
        match self.scopes.get(scope, name) {
            Some(value) => value.clone(),
            None => match Function::global(name) {
                Some(function) => Value::Function(function),
                None if self.assigned.contains(name) => {
                    Value::Undefined(Undefined::Name(Arc::clone(name)))
                }
                None => Value::Undefined(Undefined::Unknown(Arc::clone(name))),
            },
        }
    }

    fn eval_all(&mut self, items: &[Expr], scope: usize) -> Result<Vec<Value>> {
        items.iter().map(|item| self.eval(item, scope)).collect()
    }

    fn comparison(
        &mut self,
        first: &Expr,
        others: &[(Comparison, Expr)],
        scope: usize,
    ) -> Result<Value> {
        let mut left = self.eval(first, scope)?;
        for (comparison, right) in others {
            let right = self.eval(right, scope)?;
            if !self.holds(*comparison, &left, &right)? {
                return Ok(false.into());
            }
            left = right;
        }
        Ok(true.into())
    }

    /// Whether a comparison holds.
    pub(super) fn holds(&self, comparison: Comparison, a: &Value, b: &Value) -> Result<bool> {
        let meter = &self.meter;
        let order = |sign| compare::order(a, b, sign, meter);
        Ok(match comparison {
            Comparison::Eq => compare::equal(a, b, meter)?,
            Comparison::Ne => !compare::equal(a, b, meter)?,
            Comparison::Lt => order("<")? == Some(Ordering::Less),
            Comparison::Gt => order(">")? == Some(Ordering::Greater),
            Comparison::Le => matches!(order("<=")?, Some(Ordering::Less | Ordering::Equal)),
            Comparison::Ge => matches!(order(">=")?, Some(Ordering::Greater | Ordering::Equal)),
            Comparison::In => compare::contains(b, a, meter)?,
            Comparison::NotIn => !compare::contains(b, a, meter)?,
        })
    }

    /// The arguments of a call, with the body of `{% call %}` as `caller`.
    fn args(&mut self, arguments: &Arguments, caller: Option<Value>, scope: usize) -> Result<Args> {
        let mut args = Args::of(self.eval_all(&arguments.positional, scope)?);
        for (name, value) in &arguments.keywords {
            if args.keywords.iter().any(|(known, _)| known == name) {
                fail!("keyword argument repeated: {name}");
            }
            let value = self.eval(value, scope)?;
            args.keywords.push((Arc::clone(name), value));
        }
        if let Some(star) = &arguments.star {
            let star = self.eval(star, scope)?;
            args.positional
                .extend(iterate::collect(&star, &self.meter)?);
        }
        if let Some(caller) = caller {
            args.keywords.push(("caller".into(), caller));
        }
        if let Some(double_star) = &arguments.double_star {
            let Value::Dict(dict) = self.eval(double_star, scope)? else {
                fail!("argument after ** must be a mapping");
            };
            for (name, value) in dict.iter() {
                let Value::Str(name) = name else {
                    fail!("keywords must be strings");
                };
                if args.keywords.iter().any(|(known, _)| known == name) {
                    fail!("got multiple values for keyword argument '{name}'");
                }
                args.keywords.push((Arc::clone(name), value.clone()));
            }
        }
        Ok(args)
    }

    /// The value of a call expression that a `{% call %}` block makes.
    pub(super) fn call_with(
        &mut self,
        call: &Expr,
        caller: Option<Value>,
        scope: usize,
    ) -> Result<Value> {
        match &call.kind {
            ExprKind::Call(callee, arguments) => self
                .call_expr(callee, arguments, caller, scope)
                .map_err(|error| error.at(call.line)),
            _ => Err(JinjaError::runtime("expected call")),
        }
    }

    fn call_expr(
        &mut self,
        callee: &Expr,
        arguments: &Arguments,
        caller: Option<Value>,
        scope: usize,
    ) -> Result<Value> {
        // A method is called without making a value of it.
        if let ExprKind::Attribute(value, name) = &callee.kind {
            let of = self.eval(value, scope)?;
            if matches!(of, Value::Str(_) | Value::Dict(_) | Value::List(_))
                && let Some(method) = methods::find(&of, name)
                && !methods::is_unsafe(&of, name)
            {
                let args = self.args(arguments, caller, scope)?;
                return methods::call(self, &of, method, args);
            }
            let function = attribute::get(&of, name)?;
            let args = self.args(arguments, caller, scope)?;
            return self.call(&function, args);
        }
        let function = self.eval(callee, scope)?;
        let args = self.args(arguments, caller, scope)?;
        self.call(&function, args)
    }

    /// Puts a text through the filters of a block.
    pub(super) fn filter_text(
        &mut self,
        filter: &Expr,
        text: Value,
        scope: usize,
    ) -> Result<Value> {
        let ExprKind::Filter(value, name, arguments) = &filter.kind else {
            return Ok(text);
        };
        let text = match value {
            Some(inner) => self.filter_text(inner, text, scope)?,
            None => text,
        };
        let Some(function) = name.filter else {
            return Err(JinjaError::unknown(format!(
                "No filter named '{}' found.",
                name.name
            )));
        };
        let args = self.args(arguments, None, scope)?;
        function.apply(self, text, args)
    }
}
