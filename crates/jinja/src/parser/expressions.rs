//! From tokens to a tree: expressions.

use std::sync::Arc;

use super::{Parser, Unknown};
use crate::ast::{Arguments, Comparison, Expr, ExprKind, FilterName, Operator, TestName};
use crate::error::{JinjaError, Result};
use crate::filters::Filter;
use crate::is_tests::Test;
use crate::lexer::Kind;
use crate::value::Value;

/// How deeply expressions may nest: as many parentheses as Python allows.
const MAX_DEPTH: usize = 200;
/// How deeply the parser may recurse for an expression.
const MAX_RECURSION: usize = 60;

impl Parser {
    /// A node, if it does not make the tree too deep.
    fn node(&self, kind: ExprKind, line: usize) -> Result<Expr> {
        let expr = Expr::new(kind, line);
        match expr.depth > MAX_DEPTH {
            true => Err(JinjaError::syntax(line, "the expression nests too deeply")),
            false => Ok(expr),
        }
    }

    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.recursion += 1;
        if self.recursion > MAX_RECURSION {
            return self.fail("the expression nests too deeply");
        }
        let parsed = self.conditional();
        self.recursion -= 1;
        parsed
    }

    fn conditional(&mut self) -> Result<Expr> {
        let unknown = self.unknown.len();
        let mut line = self.line();
        let mut value = self.or()?;
        while self.skip_name("if") {
            let soft = std::mem::replace(&mut self.soft, true);
            let test = self.or()?;
            let otherwise = match self.skip_name("else") {
                true => Some(Box::new(self.expression()?)),
                false => None,
            };
            self.soft = soft;
            for unknown in &mut self.unknown[unknown..] {
                unknown.soft = true;
            }
            let kind = ExprKind::Cond(Box::new(test), Box::new(value), otherwise);
            value = self.node(kind, line)?;
            line = self.line();
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            left = self.node(ExprKind::Or(Box::new(left), Box::new(right)), line)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            left = self.node(ExprKind::And(Box::new(left), Box::new(right)), line)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut negations = 0;
        while self.skip_name("not") {
            negations += 1;
        }
        let mut value = self.compare()?;
        for _ in 0..negations {
            value = self.node(ExprKind::Not(Box::new(value)), line)?;
        }
        Ok(value)
    }

    fn compare(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let comparison = match self.peek() {
                Kind::Operator("==") => Comparison::Eq,
                Kind::Operator("!=") => Comparison::Ne,
                Kind::Operator("<") => Comparison::Lt,
                Kind::Operator("<=") => Comparison::Le,
                Kind::Operator(">") => Comparison::Gt,
                Kind::Operator(">=") => Comparison::Ge,
                Kind::Name(name) if &**name == "in" => Comparison::In,
                Kind::Name(name)
                    if &**name == "not"
                        && matches!(self.peek_second(), Kind::Name(second) if &**second == "in") =>
                {
                    self.at += 1;
                    Comparison::NotIn
                }
                _ => break,
            };
            self.at += 1;
            others.push((comparison, self.sum()?));
        }
        match others.is_empty() {
            true => Ok(first),
            false => self.node(ExprKind::Compare(Box::new(first), others), line),
        }
    }

    fn sum(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.concat()?;
        loop {
            let operator = match self.peek() {
                Kind::Operator("+") => Operator::Add,
                Kind::Operator("-") => Operator::Sub,
                _ => return Ok(left),
            };
            self.at += 1;
            let right = self.concat()?;
            left = self.node(
                ExprKind::Binary(operator, Box::new(left), Box::new(right)),
                line,
            )?;
        }
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        self.node(ExprKind::Concat(parts), line)
    }

    fn product(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.power()?;
        loop {
            let operator = match self.peek() {
                Kind::Operator("*") => Operator::Mul,
                Kind::Operator("/") => Operator::Div,
                Kind::Operator("//") => Operator::FloorDiv,
                Kind::Operator("%") => Operator::Mod,
                _ => return Ok(left),
            };
            self.at += 1;
            let right = self.power()?;
            left = self.node(
                ExprKind::Binary(operator, Box::new(left), Box::new(right)),
                line,
            )?;
        }
    }

    /// From the left, unlike Python's.
    fn power(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.unary(true)?;
        while self.skip_operator("**") {
            let right = self.unary(true)?;
            let kind = ExprKind::Binary(Operator::Pow, Box::new(left), Box::new(right));
            left = self.node(kind, line)?;
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        self.recursion += 1;
        if self.recursion > MAX_RECURSION {
            return self.fail("the expression nests too deeply");
        }
        let line = self.line();
        let mut value = if self.skip_operator("-") {
            let value = self.unary(false)?;
            self.node(ExprKind::Neg(Box::new(value)), line)?
        } else if self.skip_operator("+") {
            let value = self.unary(false)?;
            self.node(ExprKind::Pos(Box::new(value)), line)?
        } else {
            self.primary()?
        };
        self.recursion -= 1;
        value = self.postfix(value)?;
        if with_filters {
            value = self.filtered(value)?;
        }
        Ok(value)
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.peek().clone() {
            Kind::Name(name) => {
                self.at += 1;
                match &*name {
                    "true" | "True" => ExprKind::Const(Value::Bool(true)),
                    "false" | "False" => ExprKind::Const(Value::Bool(false)),
                    "none" | "None" => ExprKind::Const(Value::None),
                    _ => {
                        self.names.push(Arc::clone(&name));
                        ExprKind::Name(name)
                    }
                }
            }
            Kind::Str(text) => {
                self.at += 1;
                match self.peek() {
                    // Strings that stand side by side are one.
                    Kind::Str(_) => {
                        let mut whole = text.to_string();
                        while let Kind::Str(more) = self.peek() {
                            whole.push_str(more);
                            self.at += 1;
                        }
                        ExprKind::Const(whole.into())
                    }
                    _ => ExprKind::Const(Value::Str(text)),
                }
            }
            Kind::Int(number) => {
                self.at += 1;
                ExprKind::Const(Value::Int(number))
            }
            Kind::Float(number) => {
                self.at += 1;
                ExprKind::Const(Value::Float(number))
            }
            Kind::Operator("(") => {
                self.at += 1;
                let value = self.parenthesised()?;
                self.expect_operator(")")?;
                return Ok(value);
            }
            Kind::Operator("[") => {
                self.at += 1;
                ExprKind::List(self.items("]", Self::expression)?)
            }
            Kind::Operator("{") => {
                self.at += 1;
                ExprKind::Dict(self.items("}", |parser| {
                    let key = parser.expression()?;
                    parser.expect_operator(":")?;
                    Ok((key, parser.expression()?))
                })?)
            }
            found => return self.fail(format!("unexpected '{}'", found.describe())),
        };
        self.node(kind, line)
    }

    fn items<T>(&mut self, close: &str, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_operator(close) {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_operator(close) {
                break;
            }
            items.push(item(self)?);
        }
        self.expect_operator(close)?;
        Ok(items)
    }

    /// Several values with commas between them are a tuple, without parentheses too.
    pub(super) fn tuple(&mut self, with_conditional: bool, ends: &[&str]) -> Result<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = match self.peek() {
                Kind::VariableEnd | Kind::BlockEnd | Kind::Operator(")") => true,
                Kind::Name(name) => ends.contains(&&**name),
                _ => false,
            };
            if ended {
                break;
            }
            items.push(match with_conditional {
                true => self.expression()?,
                false => self.or()?,
            });
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, items.pop()) {
            (false, Some(item)) => Ok(item),
            (true, Some(item)) => {
                items.push(item);
                self.node(ExprKind::Tuple(items), line)
            }
            (_, None) => self.fail(format!(
                "Expected an expression, got '{}'",
                self.peek().describe()
            )),
        }
    }

    fn parenthesised(&mut self) -> Result<Expr> {
        match self.is_operator(")") {
            true => self.node(ExprKind::Tuple(Vec::new()), self.line()),
            false => self.tuple(true, &[]),
        }
    }

    fn postfix(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            value = match self.peek() {
                Kind::Operator("." | "[") => self.subscript(value)?,
                Kind::Operator("(") => self.call(value)?,
                _ => return Ok(value),
            };
        }
    }

    fn filtered(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            value = match self.peek() {
                Kind::Operator("|") => self.filters(Some(value))?,
                Kind::Operator("(") => self.call(value)?,
                Kind::Name(name) if &**name == "is" => self.test(value)?,
                _ => return Ok(value),
            };
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        if self.skip_operator(".") {
            return match self.next() {
                Kind::Name(name) => self.node(ExprKind::Attribute(Box::new(value), name), line),
                Kind::Int(number) => {
                    let index = self.node(ExprKind::Const(Value::Int(number)), line)?;
                    self.node(ExprKind::Item(Box::new(value), Box::new(index)), line)
                }
                _ => self.fail("expected name or number"),
            };
        }
        self.expect_operator("[")?;
        let mut items = Vec::new();
        while !self.is_operator("]") {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            let start = match self.is_operator(":") {
                true => None,
                false => Some(self.expression()?),
            };
            match (start, self.is_operator(":")) {
                (Some(item), false) => items.push(item),
                (start, _) => {
                    let slice = self.slice(start)?;
                    if !items.is_empty() || !self.is_operator("]") {
                        return self.fail("a slice among other subscripts is not supported");
                    }
                    self.at += 1;
                    return self.node(ExprKind::Slice(Box::new(value), Box::new(slice)), line);
                }
            }
        }
        self.expect_operator("]")?;
        let index = match items.pop() {
            Some(item) if items.is_empty() => item,
            item => {
                items.extend(item);
                self.node(ExprKind::Tuple(items), line)?
            }
        };
        self.node(ExprKind::Item(Box::new(value), Box::new(index)), line)
    }

    /// What follows the start of a slice.
    fn slice(&mut self, start: Option<Expr>) -> Result<[Option<Expr>; 3]> {
        let mut parts = [start, None, None];
        for part in &mut parts[1..] {
            if !self.skip_operator(":") {
                break;
            }
            if !matches!(self.peek(), Kind::Operator(":" | "]" | ",")) {
                *part = Some(self.expression()?);
            }
        }
        Ok(parts)
    }

    fn call(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        let arguments = self.arguments()?;
        self.node(ExprKind::Call(Box::new(value), Box::new(arguments)), line)
    }

    fn arguments(&mut self) -> Result<Arguments> {
        const INVALID: &str = "invalid syntax for function call expression";
        let mut found = Arguments::default();
        let mut first = true;
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            first = false;
            let starred = found.star.is_some() || found.double_star.is_some();
            if self.is_operator("*") && !starred {
                self.at += 1;
                found.star = Some(self.expression()?);
            } else if self.is_operator("**") && found.double_star.is_none() {
                self.at += 1;
                found.double_star = Some(self.expression()?);
            } else if let (Kind::Name(name), Kind::Operator("=")) =
                (self.peek().clone(), self.peek_second())
                && found.double_star.is_none()
            {
                self.at += 2;
                found.keywords.push((name, self.expression()?));
            } else if !starred && found.keywords.is_empty() {
                found.positional.push(self.expression()?);
            } else {
                return self.fail(INVALID);
            }
        }
        self.expect_operator(")")?;
        Ok(found)
    }

    /// `| f | g(…)`
    pub(super) fn filters(&mut self, mut value: Option<Expr>) -> Result<Expr> {
        self.expect_operator("|")?;
        loop {
            let filtered = self.one_filter(value)?;
            if !self.skip_operator("|") {
                return Ok(filtered);
            }
            value = Some(filtered);
        }
    }

    /// `f | g(…)`, as `{% filter %}` has it.
    pub(super) fn filter_chain(&mut self, value: Option<Expr>) -> Result<Expr> {
        let filtered = self.one_filter(value)?;
        match self.is_operator("|") {
            true => self.filters(Some(filtered)),
            false => Ok(filtered),
        }
    }

    fn one_filter(&mut self, value: Option<Expr>) -> Result<Expr> {
        let line = self.line();
        let name = self.dotted_name()?;
        let filter = Filter::by_name(&name);
        if filter.is_none() {
            self.unknown.push(Unknown {
                message: format!("No filter named '{name}'."),
                line,
                soft: self.soft,
            });
        }
        let arguments = match self.is_operator("(") {
            true => self.arguments()?,
            false => Arguments::default(),
        };
        let name = FilterName { name, filter };
        self.node(
            ExprKind::Filter(value.map(Box::new), name, Box::new(arguments)),
            line,
        )
    }

    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        self.at += 1;
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let test = Test::by_name(&name);
        if test.is_none() {
            self.unknown.push(Unknown {
                message: format!("No test named '{name}'."),
                line,
                soft: self.soft,
            });
        }
        let has_argument = match self.peek() {
            Kind::Name(next) => !matches!(&**next, "else" | "or" | "and"),
            Kind::Str(_) | Kind::Int(_) | Kind::Float(_) | Kind::Operator("[" | "{") => true,
            _ => false,
        };
        let mut arguments = Arguments::default();
        if self.is_operator("(") {
            arguments = self.arguments()?;
        } else if has_argument {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument)?);
        }
        let name = TestName { name, test };
        let kind = ExprKind::Test(Box::new(value), name, Box::new(arguments));
        let tested = self.node(kind, line)?;
        match negated {
            true => self.node(ExprKind::Not(Box::new(tested)), line),
            false => Ok(tested),
        }
    }
}
