//! A generated section of a page that is otherwise written by hand.

use anyhow::Context;

const END: &str = "<!-- to here -->";

/// `page` with `section` between the line `begin` and the next end marker.
///
/// # Errors
/// One of the markers is missing.
pub(crate) fn replace(page: &str, begin: &str, section: &str) -> anyhow::Result<String> {
    let (before, rest) = page
        .split_once(begin)
        .with_context(|| format!("the page has no {begin}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("the page has no {END} after {begin}"))?;
    Ok(format!("{before}{begin}\n{section}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_section_changes() {
        let begin = "<!-- generated -->";
        let page = |section: &str| format!("a\n{begin}\n{section}\n{END}\nb");
        assert!(replace(&page("old"), begin, "new").is_ok_and(|text| text == page("new")));
        assert!(replace("a", begin, "new").is_err());
        assert!(replace(begin, begin, "new").is_err());
    }
}
