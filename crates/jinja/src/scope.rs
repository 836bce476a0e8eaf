//! Variables, by the blocks that they belong to.

use std::sync::Arc;

use super::value::Value;

/// All scopes of a rendering. A scope lives as long as its block, or to the end if a macro was
/// defined in it or below.
#[derive(Default)]
pub(super) struct Scopes {
    scopes: Vec<Scope>,
}

#[derive(Default)]
struct Scope {
    variables: Vec<(Arc<str>, Value)>,
    parent: Option<usize>,
    /// A macro looks names up here.
    captured: bool,
}

/// The scope of the whole template.
pub(super) const ROOT: usize = 0;

impl Scopes {
    /// A scope inside another one, or the first.
    pub(super) fn open(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope {
            parent,
            ..Scope::default()
        });
        self.scopes.len() - 1
    }

    /// Ends a scope.
    pub(super) fn close(&mut self, scope: usize) {
        if self.scopes[scope].captured {
            return;
        }
        if scope + 1 == self.scopes.len() {
            self.scopes.pop();
        } else {
            self.scopes[scope].variables = Vec::new();
        }
    }

    /// Keeps a scope and those around it for a macro.
    pub(super) fn capture(&mut self, scope: usize) {
        let mut next = Some(scope);
        while let Some(scope) = next {
            let scope = &mut self.scopes[scope];
            if scope.captured {
                break;
            }
            scope.captured = true;
            next = scope.parent;
        }
    }

    pub(super) fn set(&mut self, scope: usize, name: &Arc<str>, value: Value) {
        let variables = &mut self.scopes[scope].variables;
        match variables.iter_mut().find(|(known, _)| same(known, name)) {
            Some((_, old)) => *old = value,
            None => variables.push((Arc::clone(name), value)),
        }
    }

    /// The variable that a name means in a scope.
    pub(super) fn get(&self, scope: usize, name: &Arc<str>) -> Option<&Value> {
        let mut next = Some(scope);
        while let Some(scope) = next {
            let scope = &self.scopes[scope];
            if let Some((_, value)) = scope.variables.iter().find(|(known, _)| same(known, name)) {
                return Some(value);
            }
            next = scope.parent;
        }
        None
    }
}

fn same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}
