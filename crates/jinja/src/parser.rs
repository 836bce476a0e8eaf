//! From tokens to a tree: statements.
//!
//! # Source
//! `jinja2/parser.py`, with the extensions that transformers adds: `{% break %}`,
//! `{% continue %}` and `{% generation %}`.

mod expressions;

use std::collections::HashSet;
use std::sync::Arc;

use super::ast::{Expr, For, MacroBody, Stmt, StmtKind, Target};
use super::error::{JinjaError, Result};
use super::lexer::{Kind, Token, tokens};

/// How deeply statements may nest; Python's own limit for what Jinja makes of them.
const MAX_NESTING: usize = 100;

/// A parsed template.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) body: Vec<Stmt>,
    pub(super) has_generation: bool,
    /// Names that are assigned to somewhere.
    pub(super) assigned: HashSet<Arc<str>>,
}

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Parsed> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        names: Vec::new(),
        assigned: ["loop", "caller", "varargs", "kwargs"]
            .map(Arc::from)
            .into(),
        unknown: Vec::new(),
        soft: false,
        loops: 0,
        assigned_loop: 0,
        nesting: 0,
        recursion: 0,
        has_generation: false,
    };
    let body = parser.block(&[])?;
    match parser.unknown.into_iter().find(|unknown| !unknown.soft) {
        Some(unknown) => Err(JinjaError::syntax(unknown.line, unknown.message)),
        None => Ok(Parsed {
            body,
            has_generation: parser.has_generation,
            assigned: parser.assigned,
        }),
    }
}

/// A filter or test that does not exist.
struct Unknown {
    message: String,
    line: usize,
    /// It stands under a condition, so that it counts only when it is reached.
    soft: bool,
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    /// Names that were read so far, to see what a body asks for.
    names: Vec<Arc<str>>,
    assigned: HashSet<Arc<str>>,
    unknown: Vec<Unknown>,
    /// Whether a condition stands around.
    soft: bool,
    loops: usize,
    /// How often `loop` was assigned to, which no loop may do.
    assigned_loop: usize,
    nesting: usize,
    recursion: usize,
    has_generation: bool,
}

impl Parser {
    fn peek(&self) -> &Kind {
        // The last token is the end, which nothing moves beyond.
        self.tokens
            .get(self.at)
            .map_or(&Kind::End, |token| &token.kind)
    }

    fn peek_second(&self) -> &Kind {
        self.tokens
            .get(self.at + 1)
            .map_or(&Kind::End, |token| &token.kind)
    }

    fn line(&self) -> usize {
        let last = self.tokens.last();
        self.tokens
            .get(self.at)
            .or(last)
            .map_or(1, |token| token.line)
    }

    fn next(&mut self) -> Kind {
        let kind = self.peek().clone();
        if kind != Kind::End {
            self.at += 1;
        }
        kind
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Kind::Name(found) if &**found == name)
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Kind::Operator(found) if *found == operator)
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.at += usize::from(found);
        found
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(JinjaError::syntax(self.line(), message))
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T> {
        match self.peek() {
            Kind::End => self.fail(format!(
                "unexpected end of template, expected '{expected}'."
            )),
            found => self.fail(format!(
                "expected token '{expected}', got '{}'",
                found.describe()
            )),
        }
    }

    fn expect_operator(&mut self, operator: &str) -> Result<()> {
        match self.skip_operator(operator) {
            true => Ok(()),
            false => self.unexpected(operator),
        }
    }

    fn expect_name(&mut self) -> Result<Arc<str>> {
        match self.peek() {
            Kind::Name(name) => {
                let name = Arc::clone(name);
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("name"),
        }
    }

    fn expect_keyword(&mut self, keyword: &str) -> Result<()> {
        match self.skip_name(keyword) {
            true => Ok(()),
            false => self.unexpected(keyword),
        }
    }

    fn expect_block_end(&mut self) -> Result<()> {
        match self.peek() {
            Kind::BlockEnd => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("end of statement block"),
        }
    }

    /// Text, variables and statements up to a tag with one of these names, which is the next token
    /// then; up to the end where there are none.
    fn block(&mut self, ends: &[&str]) -> Result<Vec<Stmt>> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return self.fail("statements nest too deeply");
        }
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.next() {
                Kind::Data(text) => StmtKind::Text(text),
                Kind::VariableBegin => {
                    let value = self.tuple(true, &[])?;
                    match self.peek() {
                        Kind::VariableEnd => self.at += 1,
                        _ => return self.unexpected("end of print statement"),
                    }
                    StmtKind::Print(vec![value])
                }
                Kind::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        break;
                    }
                    let kind = self.statement(ends)?;
                    self.expect_block_end()?;
                    kind
                }
                _ if ends.is_empty() => break,
                _ => {
                    let ends: Vec<String> = ends.iter().map(|end| format!("'{end}'")).collect();
                    return self.fail(format!(
                        "Unexpected end of template. Jinja was looking for the following tags: {}.",
                        ends.join(" or ")
                    ));
                }
            };
            body.push(Stmt { kind, line });
        }
        self.nesting -= 1;
        Ok(body)
    }

    /// The body of a statement with its closing tag.
    fn body(&mut self, end: &str) -> Result<Vec<Stmt>> {
        let body = self.body_until(&[end])?;
        self.at += 1;
        Ok(body)
    }

    fn body_until(&mut self, ends: &[&str]) -> Result<Vec<Stmt>> {
        self.skip_operator(":");
        self.expect_block_end()?;
        self.block(ends)
    }

    /// A body that Jinja compiles on its own: an unknown filter in it is an error whatever
    /// condition stands around.
    fn hard<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let soft = std::mem::replace(&mut self.soft, false);
        let parsed = parse(self);
        self.soft = soft;
        parsed
    }

    fn statement(&mut self, ends: &[&str]) -> Result<StmtKind> {
        let Kind::Name(tag) = self.peek().clone() else {
            return self.fail("tag name expected");
        };
        self.at += 1;
        match &*tag {
            "for" => self.for_loop(),
            "if" => self.if_block(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => self.macro_block(),
            "call" => self.call_block(),
            "filter" => self.filter_block(),
            "print" => self.print(),
            "block" => self.named_block(),
            "generation" => {
                self.has_generation = true;
                let body = self.hard(|parser| parser.body("endgeneration"))?;
                Ok(StmtKind::Generation(body))
            }
            "autoescape" => {
                self.expression()?;
                Ok(StmtKind::Scope(
                    self.hard(|parser| parser.body("endautoescape"))?,
                ))
            }
            "break" if self.loops > 0 => Ok(StmtKind::Break),
            "continue" if self.loops > 0 => Ok(StmtKind::Continue),
            "break" | "continue" => self.fail(format!("'{tag}' outside loop")),
            "include" | "extends" => self.load(if &*tag == "include" {
                "include"
            } else {
                "extends"
            }),
            "import" | "from" => self.load("import"),
            _ => {
                self.at -= 1;
                let looked = match ends {
                    [] => String::new(),
                    ends => format!(" Jinja was looking for {}.", ends.join(" or ")),
                };
                self.fail(format!("Encountered unknown tag '{tag}'.{looked}"))
            }
        }
    }

    /// A statement that loads another template, to its end.
    fn load(&mut self, what: &'static str) -> Result<StmtKind> {
        self.expression()?;
        while !matches!(self.peek(), Kind::BlockEnd | Kind::End) {
            self.at += 1;
        }
        Ok(StmtKind::Load(what))
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let assigned = self.assigned_loop;
        let target = self.target(false, &["in"])?;
        self.expect_keyword("in")?;
        let over = self.tuple(false, &["recursive"])?;
        let before = self.names.len();
        let test = match self.skip_name("if") {
            true => Some(self.hard(Self::expression)?),
            false => None,
        };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let body = self.hard(|parser| parser.body_until(&["endfor", "else"]))?;
        self.loops -= 1;
        let uses_loop = self.asks_for(before, "loop");
        let otherwise = if self.skip_name("else") {
            self.hard(|parser| parser.body("endfor"))?
        } else {
            self.at += 1;
            Vec::new()
        };
        if self.assigned_loop > assigned {
            return self.fail("Can't assign to special loop variable in for-loop");
        }
        Ok(StmtKind::For(Arc::new(For {
            target,
            over,
            test,
            recursive,
            body,
            otherwise,
            uses_loop,
        })))
    }

    /// Whether a name was read since there were this many.
    fn asks_for(&self, before: usize, name: &str) -> bool {
        self.names[before..].iter().any(|read| &**read == name)
    }

    fn if_block(&mut self) -> Result<StmtKind> {
        let soft = std::mem::replace(&mut self.soft, true);
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            branches.push((test, self.body_until(&["elif", "else", "endif"])?));
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                otherwise = self.body("endif")?;
            } else {
                self.at += 1;
            }
            break;
        }
        self.soft = soft;
        Ok(StmtKind::If(branches, otherwise))
    }

    fn set(&mut self) -> Result<StmtKind> {
        let target = self.target(true, &[])?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filter = match self.is_operator("|") {
            true => Some(self.filters(None)?),
            false => None,
        };
        let body = self.hard(|parser| parser.body("endset"))?;
        Ok(StmtKind::SetBlock(target, filter, body))
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut variables = Vec::new();
        while !matches!(self.peek(), Kind::BlockEnd | Kind::End) {
            if !variables.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect_operator("=")?;
            variables.push((target, self.expression()?));
        }
        let body = self.hard(|parser| parser.body("endwith"))?;
        Ok(StmtKind::With(variables, body))
    }

    fn named_block(&mut self) -> Result<StmtKind> {
        let name = self.expect_name()?;
        let scoped = self.skip_name("scoped");
        self.skip_name("required");
        let body = self.hard(|parser| parser.body("endblock"))?;
        self.skip_name(&name);
        Ok(StmtKind::Block(scoped, body))
    }

    fn print(&mut self) -> Result<StmtKind> {
        let mut values = Vec::new();
        while !matches!(self.peek(), Kind::BlockEnd | Kind::End) {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            values.push(self.expression()?);
        }
        Ok(StmtKind::Print(values))
    }

    fn filter_block(&mut self) -> Result<StmtKind> {
        let filter = self.filter_chain(None)?;
        let body = self.hard(|parser| parser.body("endfilter"))?;
        Ok(StmtKind::FilterBlock(filter, body))
    }

    fn macro_block(&mut self) -> Result<StmtKind> {
        let name = self.assignable_name()?;
        let (parameters, defaults) = self.signature()?;
        let without_default = parameters.len() - defaults.len();
        if parameters[..without_default]
            .iter()
            .any(|name| &**name == "caller")
        {
            return self.fail(
                "When defining macros or call blocks the special \"caller\" argument must be \
                 omitted or be given a default.",
            );
        }
        let body = self.macro_body(Some(name), parameters, defaults, "endmacro")?;
        Ok(StmtKind::Macro(Arc::new(body)))
    }

    fn call_block(&mut self) -> Result<StmtKind> {
        let (parameters, defaults) = match self.is_operator("(") {
            true => self.signature()?,
            false => (Vec::new(), Vec::new()),
        };
        let call = self.expression()?;
        if !matches!(call.kind, super::ast::ExprKind::Call(..)) {
            return Err(JinjaError::syntax(call.line, "expected call"));
        }
        let body = self.macro_body(None, parameters, defaults, "endcall")?;
        Ok(StmtKind::CallBlock(Arc::new(body), call))
    }

    fn macro_body(
        &mut self,
        name: Option<Arc<str>>,
        parameters: Vec<Arc<str>>,
        defaults: Vec<Expr>,
        end: &str,
    ) -> Result<MacroBody> {
        let before = self.names.len();
        let loops = std::mem::replace(&mut self.loops, 0);
        let body = self.hard(|parser| parser.body(end))?;
        self.loops = loops;
        let asks_for = |name: &str| {
            self.asks_for(before, name) && !parameters.iter().any(|parameter| &**parameter == name)
        };
        Ok(MacroBody {
            uses_varargs: asks_for("varargs"),
            uses_kwargs: asks_for("kwargs"),
            uses_caller: asks_for("caller"),
            name,
            parameters,
            defaults,
            body,
        })
    }

    fn signature(&mut self) -> Result<(Vec<Arc<str>>, Vec<Expr>)> {
        let mut parameters = Vec::new();
        let mut defaults = Vec::new();
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            parameters.push(self.assignable_name()?);
            if self.skip_operator("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return self.fail("non-default argument follows default argument");
            }
        }
        self.expect_operator(")")?;
        Ok((parameters, defaults))
    }

    fn assignable_name(&mut self) -> Result<Arc<str>> {
        let name = self.expect_name()?;
        match &*name {
            "true" | "false" | "none" | "True" | "False" | "None" => {
                self.fail(format!("can't assign to '{name}'"))
            }
            _ => {
                self.assigned_loop += usize::from(&*name == "loop");
                self.assigned.insert(Arc::clone(&name));
                Ok(name)
            }
        }
    }

    /// What is assigned to: a name, an attribute of a namespace, or several of them.
    fn target(&mut self, with_attributes: bool, ends: &[&str]) -> Result<Target> {
        let mut targets = Vec::new();
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
            targets.push(self.single_target(with_attributes)?);
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, targets.pop()) {
            (false, Some(target)) => Ok(target),
            (true, Some(target)) => {
                targets.push(target);
                Ok(Target::Tuple(targets))
            }
            (_, None) => self.fail(format!(
                "Expected an expression, got '{}'",
                self.peek().describe()
            )),
        }
    }

    fn single_target(&mut self, with_attributes: bool) -> Result<Target> {
        for (open, close) in [("(", ")"), ("[", "]")] {
            if self.skip_operator(open) {
                self.nesting += 1;
                if self.nesting > MAX_NESTING {
                    return self.fail("targets nest too deeply");
                }
                let target = self.target(false, &[])?;
                self.nesting -= 1;
                self.expect_operator(close)?;
                return Ok(target);
            }
        }
        let name = self.assignable_name()?;
        if with_attributes && self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }
}
