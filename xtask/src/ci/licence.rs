//! SPDX expressions: does a list of allowed licences satisfy one?

use std::collections::BTreeSet;

use anyhow::bail;

/// Whether `allowed` licences are enough for `expression`, as `MIT OR (Apache-2.0 AND Unicode-3.0)`. A slash is the
/// old way to write OR.
///
/// # Errors
/// The expression is not one.
pub(crate) fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> anyhow::Result<bool> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = Words {
        words: spaced.split_whitespace().collect(),
        next: 0,
    };
    let answer = words.any(allowed);
    match (answer, words.peek()) {
        (Some(answer), None) => Ok(answer),
        (_, rest) => bail!(
            "{expression} is no SPDX expression: {}",
            rest.map_or("it ends too early".to_owned(), |word| format!(
                "{word} is not expected"
            ))
        ),
    }
}

struct Words<'a> {
    words: Vec<&'a str>,
    next: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).copied()
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.next += usize::from(found);
        found
    }

    /// One side of each OR is enough. `None` where an operand is missing.
    fn any(&mut self, allowed: &BTreeSet<String>) -> Option<bool> {
        let mut answer = self.all(allowed)?;
        while self.take("OR") {
            answer |= self.all(allowed)?;
        }
        Some(answer)
    }

    fn all(&mut self, allowed: &BTreeSet<String>) -> Option<bool> {
        let mut answer = self.one(allowed)?;
        while self.take("AND") {
            answer &= self.one(allowed)?;
        }
        Some(answer)
    }

    fn one(&mut self, allowed: &BTreeSet<String>) -> Option<bool> {
        if self.take("(") {
            let answer = self.any(allowed)?;
            return self.take(")").then_some(answer);
        }
        let name = self.peek()?;
        if ["OR", "AND", "WITH", ")"].contains(&name) {
            return None;
        }
        self.next += 1;
        if !self.take("WITH") {
            return Some(allowed.contains(name));
        }
        let exception = self.peek()?;
        self.next += 1;
        Some(allowed.contains(name) || allowed.contains(&format!("{name} WITH {exception}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn check(expression: &str, expected: bool) {
        let allowed = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"];
        let allowed = allowed.into_iter().map(str::to_owned).collect();
        let found = satisfied(expression, &allowed).unwrap();
        assert_eq!(found, expected, "{expression}");
    }

    #[test]
    fn one_side_of_or_is_enough_and_both_of_and_are_needed() {
        check("MIT", true);
        check("GPL-3.0", false);
        check("GPL-3.0 OR MIT", true);
        check("GPL-3.0/MIT", true);
        check("MIT AND GPL-3.0", false);
        check("MIT AND Zlib", true);
        check("GPL-3.0 OR MIT AND Zlib", true);
        check("(GPL-3.0 OR MIT) AND Zlib", true);
        check("(GPL-3.0 OR MIT) AND BSL-1.0", false);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("Apache-2.0", false);
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for expression in [
            "", "MIT OR", "(MIT", "MIT)", "MIT Zlib", "OR MIT", "MIT WITH",
        ] {
            assert!(
                satisfied(expression, &BTreeSet::new()).is_err(),
                "{expression}"
            );
        }
    }
}
