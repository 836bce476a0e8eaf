//! Running statements.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::Limits;
use super::ast::{For, MacroBody, Stmt, StmtKind, Target};
use super::call::Macro;
use super::error::{JinjaError, JinjaErrorKind, Result, fail};
use super::iterate::Walk;
use super::loop_context::LoopContext;
use super::meter::Meter;
use super::parser::Parsed;
use super::repr;
use super::scope::{ROOT, Scopes};
use super::value::{Namespace, Seq, Value};

/// How deeply statements, expressions and macros may be nested while they run.
const MAX_DEPTH: usize = 800;

/// Noncharacters around what `{% generation %}` holds; no text for interchange contains them.
const BEGIN: char = '\u{FDD2}';
const END: char = '\u{FDD3}';

/// One rendering.
pub(super) struct Renderer<'t> {
    pub(super) meter: Meter,
    pub(super) limits: &'t Limits,
    pub(super) scopes: Scopes,
    /// All that were made, to be emptied at the end.
    namespaces: Vec<Arc<Namespace>>,
    depth: usize,
    marks: bool,
    /// Names that the template assigns to somewhere.
    pub(super) assigned: &'t HashSet<Arc<str>>,
}

/// How a body ended.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl<'t> Renderer<'t> {
    pub(super) fn new(parsed: &'t Parsed, limits: &'t Limits, marks: bool) -> Self {
        Self {
            assigned: &parsed.assigned,
            meter: Meter::new(limits.fuel),
            limits,
            scopes: Scopes::default(),
            namespaces: Vec::new(),
            depth: 0,
            marks,
        }
    }

    /// Renders a whole template.
    pub(super) fn template(
        &mut self,
        body: &[Stmt],
        context: &Map<String, Json>,
    ) -> Result<String> {
        let root = self.scopes.open(None);
        for (name, value) in context {
            self.scopes.set(root, &name.as_str().into(), value.into());
        }
        let mut out = String::new();
        let rendered = self.run(body, root, &mut out);
        for namespace in &self.namespaces {
            *namespace.lock() = Default::default();
        }
        rendered.map(|_| out)
    }

    pub(super) fn namespace(&mut self, namespace: Namespace) -> Result<Value> {
        // It stays until the end.
        self.meter.steps(16)?;
        let namespace = Arc::new(namespace);
        self.namespaces.push(Arc::clone(&namespace));
        Ok(Value::Namespace(namespace))
    }

    /// Goes one level down for as long as something runs.
    pub(super) fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.meter.steps(1)?;
        if self.depth >= MAX_DEPTH {
            fail!("maximum recursion depth exceeded");
        }
        self.depth += 1;
        let done = run(self);
        self.depth -= 1;
        done
    }

    fn run(&mut self, body: &[Stmt], scope: usize, out: &mut String) -> Result<Flow> {
        for stmt in body {
            let flow = self
                .deeper(|this| this.statement(&stmt.kind, scope, out))
                .map_err(|error| error.at(stmt.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Runs a body in a scope of its own.
    fn run_inside(&mut self, body: &[Stmt], scope: usize, out: &mut String) -> Result<Flow> {
        let inner = self.scopes.open(Some(scope));
        let flow = self.run(body, inner, out);
        self.scopes.close(inner);
        flow
    }

    /// The text of a body that runs in this scope.
    pub(super) fn text_of(&mut self, body: &[Stmt], scope: usize) -> Result<String> {
        let mut text = String::new();
        self.run(body, scope, &mut text)?;
        Ok(text)
    }

    fn write(&mut self, text: &str, out: &mut String) -> Result<()> {
        self.meter.bytes(text.len())?;
        out.push_str(text);
        self.check(out)
    }

    fn check(&self, out: &str) -> Result<()> {
        match out.len() > self.limits.max_bytes {
            true => Err(JinjaError::new(
                JinjaErrorKind::Large,
                "the output is too large",
            )),
            false => Ok(()),
        }
    }

    fn print(&mut self, value: &Value, out: &mut String) -> Result<()> {
        repr::write_text(out, value, &self.meter)?;
        self.check(out)
    }

    fn statement(&mut self, kind: &StmtKind, scope: usize, out: &mut String) -> Result<Flow> {
        match kind {
            StmtKind::Text(text) => self.write(text, out)?,
            StmtKind::Print(values) => {
                for value in values {
                    let value = self.eval(value, scope)?;
                    self.print(&value, out)?;
                }
            }
            StmtKind::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test, scope)?.truth() {
                        return self.run(body, scope, out);
                    }
                }
                return self.run(otherwise, scope, out);
            }
            StmtKind::For(block) => {
                let over = self.eval(&block.over, scope)?;
                self.for_loop(block, &over, scope, 0, out)?;
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
            other => return self.block(other, scope, out),
        }
        Ok(Flow::Next)
    }

    /// Statements that have a body and a scope.
    fn block(&mut self, kind: &StmtKind, scope: usize, out: &mut String) -> Result<Flow> {
        match kind {
            StmtKind::Scope(body) => return self.run_inside(body, scope, out),
            StmtKind::Block(scoped, body) => {
                let around = if *scoped { scope } else { ROOT };
                return self.run_inside(body, around, out);
            }
            StmtKind::With(variables, body) => {
                let inner = self.scopes.open(Some(scope));
                for (target, value) in variables {
                    let value = self.eval(value, scope)?;
                    self.assign(target, value, inner)?;
                }
                let flow = self.run(body, inner, out);
                self.scopes.close(inner);
                return flow;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let mut text = String::new();
                self.run_inside(body, scope, &mut text)?;
                let mut value = Value::from(text);
                if let Some(filter) = filter {
                    value = self.filter_text(filter, value, scope)?;
                }
                self.assign(target, value, scope)?;
            }
            StmtKind::FilterBlock(filter, body) => {
                let inner = self.scopes.open(Some(scope));
                let text = self.text_of(body, inner)?;
                let value = self.filter_text(filter, text.into(), inner)?;
                self.scopes.close(inner);
                self.print(&value, out)?;
            }
            StmtKind::Macro(body) => {
                let value = self.macro_value(body, scope);
                if let Some(name) = &body.name {
                    self.scopes.set(scope, name, value);
                }
            }
            StmtKind::CallBlock(body, call) => {
                let caller = self.macro_value(body, scope);
                let value = self.call_with(call, Some(caller), scope)?;
                self.print(&value, out)?;
            }
            StmtKind::Generation(body) => {
                if self.marks {
                    out.push(BEGIN);
                }
                self.run_inside(body, scope, out)?;
                if self.marks {
                    out.push(END);
                }
            }
            StmtKind::Load(what) => {
                let message = format!("{what}: a chat template has no other one to load");
                return Err(JinjaError::unknown(message));
            }
            _ => {}
        }
        Ok(Flow::Next)
    }

    fn macro_value(&mut self, body: &Arc<MacroBody>, scope: usize) -> Value {
        self.scopes.capture(scope);
        Value::Macro(Arc::new(Macro {
            body: Arc::clone(body),
            scope,
        }))
    }

    fn assign(&mut self, target: &Target, value: Value, scope: usize) -> Result<()> {
        match target {
            Target::Name(name) => self.scopes.set(scope, name, value),
            Target::Attribute(name, attribute) => match self.scopes.get(scope, name) {
                Some(Value::Namespace(namespace)) => {
                    super::functions::check_name(attribute)?;
                    let namespace = Arc::clone(namespace);
                    // The old value is dropped when the lock is free again.
                    let mut dict = namespace.lock().clone();
                    dict.insert(Value::Str(Arc::clone(attribute)), value)?;
                    std::mem::swap(&mut *namespace.lock(), &mut dict);
                }
                _ => fail!("cannot assign attribute on non-namespace object"),
            },
            Target::Tuple(targets) => {
                let values = Walk::over(&value)
                    .map_err(|_| {
                        JinjaError::runtime(format!(
                            "cannot unpack non-iterable {} object",
                            value.type_name()
                        ))
                    })?
                    .rest(&self.meter)?;
                let expected = targets.len();
                if values.len() > expected {
                    fail!("too many values to unpack (expected {expected})");
                }
                if values.len() < expected {
                    let got = values.len();
                    fail!("not enough values to unpack (expected {expected}, got {got})");
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a loop over a value.
    pub(super) fn for_loop(
        &mut self,
        block: &Arc<For>,
        over: &Value,
        scope: usize,
        depth0: usize,
        out: &mut String,
    ) -> Result<()> {
        let mut walk = Walk::over(over)?;
        let mut ran = false;
        if block.uses_loop || block.recursive {
            let mut items = Vec::new();
            while let Some(item) = walk.next(&self.meter)? {
                if self.passes(block, &item, scope)? {
                    items.push(item);
                }
            }
            let items = Seq::new(items)?;
            let recursive = block.recursive.then(|| (Arc::clone(block), scope));
            if let Some((_, scope)) = recursive {
                self.scopes.capture(scope);
            }
            let state = Arc::new(LoopContext::new(Arc::clone(&items), depth0, recursive));
            for (index, item) in items.iter().enumerate() {
                ran = true;
                state.go_to(index);
                let state = Some(Value::Loop(Arc::clone(&state)));
                if self.turn(block, item.clone(), state, scope, out)? == Flow::Break {
                    break;
                }
            }
        } else {
            while let Some(item) = walk.next(&self.meter)? {
                if !self.passes(block, &item, scope)? {
                    continue;
                }
                ran = true;
                if self.turn(block, item, None, scope, out)? == Flow::Break {
                    break;
                }
            }
        }
        if !ran {
            self.run_inside(&block.otherwise, scope, out)?;
        }
        Ok(())
    }

    fn turn(
        &mut self,
        block: &For,
        item: Value,
        state: Option<Value>,
        scope: usize,
        out: &mut String,
    ) -> Result<Flow> {
        let inner = self.scopes.open(Some(scope));
        if let Some(state) = state {
            self.scopes.set(inner, &"loop".into(), state);
        }
        self.assign(&block.target, item, inner)?;
        let flow = self.run(&block.body, inner, out);
        self.scopes.close(inner);
        flow
    }

    fn passes(&mut self, block: &For, item: &Value, scope: usize) -> Result<bool> {
        let Some(test) = &block.test else {
            return Ok(true);
        };
        let inner = self.scopes.open(Some(scope));
        self.assign(&block.target, item.clone(), inner)?;
        let passes = self.eval(test, inner)?.truth();
        self.scopes.close(inner);
        Ok(passes)
    }
}

/// Takes the marks out of a text; `None` if they do not come in pairs.
pub(super) fn unmark(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut begin = None;
    for c in marked.chars() {
        match (c, begin) {
            (BEGIN, None) => begin = Some(text.len()),
            (END, Some(start)) => {
                spans.push(start..text.len());
                begin = None;
            }
            (BEGIN | END, _) => return None,
            _ => text.push(c),
        }
    }
    begin.is_none().then_some((text, spans))
}
