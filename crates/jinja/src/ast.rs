//! A template as a tree.

use std::sync::Arc;

use super::filters::Filter;
use super::is_tests::Test;
use super::value::Value;

#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: ExprKind,
    pub(super) line: usize,
    /// Levels of the tree below and with this node.
    pub(super) depth: usize,
}

impl Expr {
    pub(super) fn new(kind: ExprKind, line: usize) -> Self {
        let depth = 1 + kind.depth();
        Self { kind, line, depth }
    }
}

impl ExprKind {
    /// Levels of the tree below.
    fn depth(&self) -> usize {
        let deepest = |items: &[Expr]| items.iter().map(|item| item.depth).max().unwrap_or(0);
        match self {
            Self::Const(_) | Self::Name(_) => 0,
            Self::Tuple(items) | Self::List(items) | Self::Concat(items) => deepest(items),
            Self::Dict(pairs) => {
                let pair = |(key, value): &(Expr, Expr)| key.depth.max(value.depth);
                pairs.iter().map(pair).max().unwrap_or(0)
            }
            Self::Cond(test, value, other) => {
                let other = other.as_ref().map_or(0, |other| other.depth);
                test.depth.max(value.depth).max(other)
            }
            Self::Or(a, b) | Self::And(a, b) | Self::Binary(_, a, b) | Self::Item(a, b) => {
                a.depth.max(b.depth)
            }
            Self::Not(a) | Self::Neg(a) | Self::Pos(a) | Self::Attribute(a, _) => a.depth,
            Self::Compare(first, others) => {
                let other = others.iter().map(|(_, other)| other.depth).max();
                first.depth.max(other.unwrap_or(0))
            }
            Self::Slice(value, parts) => {
                let part = parts.iter().flatten().map(|part| part.depth).max();
                value.depth.max(part.unwrap_or(0))
            }
            Self::Call(value, arguments) | Self::Test(value, _, arguments) => {
                value.depth.max(arguments.depth())
            }
            Self::Filter(value, _, arguments) => {
                let value = value.as_ref().map_or(0, |value| value.depth);
                value.max(arguments.depth())
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum ExprKind {
    Const(Value),
    Name(Arc<str>),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// Test, value, other value.
    Cond(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
    Or(Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    /// Value, start, stop, step.
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Arguments>),
    /// Without a value in `{% filter %}` and `{% set x | f %}`: there it is the block's text.
    Filter(Option<Box<Expr>>, FilterName, Box<Arguments>),
    Test(Box<Expr>, TestName, Box<Arguments>),
}

/// A filter by name; one that does not exist is an error only where it is reached, if it stands
/// under a condition.
#[derive(Clone, Debug)]
pub(super) struct FilterName {
    pub(super) name: Arc<str>,
    pub(super) filter: Option<Filter>,
}

#[derive(Clone, Debug)]
pub(super) struct TestName {
    pub(super) name: Arc<str>,
    pub(super) test: Option<Test>,
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) keywords: Vec<(Arc<str>, Expr)>,
    /// `*args`
    pub(super) star: Option<Expr>,
    /// `**kwargs`
    pub(super) double_star: Option<Expr>,
}

impl Arguments {
    fn depth(&self) -> usize {
        let keywords = self.keywords.iter().map(|(_, value)| value);
        let stars = self.star.iter().chain(&self.double_star);
        let all = self.positional.iter().chain(keywords).chain(stars);
        all.map(|value| value.depth).max().unwrap_or(0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// What can be assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) kind: StmtKind,
    pub(super) line: usize,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Text(String),
    Print(Vec<Expr>),
    Set(Target, Expr),
    /// With the filters that the text goes through.
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    /// Branches with their tests, and what is done otherwise.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Arc<For>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    /// `{% block %}`; the flag says that it sees the variables around it.
    Block(bool, Vec<Stmt>),
    Macro(Arc<MacroBody>),
    /// `{% call %}`
    CallBlock(Arc<MacroBody>, Expr),
    FilterBlock(Expr, Vec<Stmt>),
    /// `{% generation %}`
    Generation(Vec<Stmt>),
    /// A scope of its own without more, as `{% autoescape %}` makes one.
    Scope(Vec<Stmt>),
    Break,
    Continue,
    /// `include`, `import`, `extends`: there is nothing to load.
    Load(&'static str),
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) over: Expr,
    pub(super) test: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
    /// Whether the body asks for `loop`.
    pub(super) uses_loop: bool,
}

/// A macro, or the body of `{% call %}`, which is one without a name.
#[derive(Debug)]
pub(super) struct MacroBody {
    pub(super) name: Option<Arc<str>>,
    pub(super) parameters: Vec<Arc<str>>,
    /// Of the last parameters.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Vec<Stmt>,
    pub(super) uses_varargs: bool,
    pub(super) uses_kwargs: bool,
    pub(super) uses_caller: bool,
}
