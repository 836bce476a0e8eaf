//! Text that fits where it is shown.

use textwrap::core::display_width;

/// `text` in `width` columns, its beginning given up for `…` where it is longer: the end of a path says more.
pub(super) fn ending(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars().rev() {
        if display_width(&kept) + display_width(character.encode_utf8(&mut [0; 4])) + 1 > width {
            break;
        }
        kept.insert(0, character);
    }
    format!("…{kept}")
}

/// Lines of `text` in `width` columns, the further ones set off by `indent` spaces; no-break spaces keep words together.
pub(super) fn wrapped(text: &str, width: usize, indent: usize) -> Vec<String> {
    let indent = " ".repeat(indent.min(width / 2));
    let options = textwrap::Options::new(width.max(1))
        .subsequent_indent(&indent)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::wrap(text, options)
        .into_iter()
        .map(|line| line.replace('\u{a0}', " "))
        .collect()
}

/// The first `height` lines; `…` ends the last one where there are more.
pub(super) fn clipped(mut lines: Vec<String>, width: usize, height: usize) -> Vec<String> {
    if lines.len() > height {
        lines.truncate(height);
        if let Some(last) = lines.last_mut() {
            while display_width(last) + 2 > width {
                match last.rfind(' ') {
                    Some(space) => last.truncate(space),
                    None => break,
                }
            }
            last.push_str(" …");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_keeps_its_end() {
        assert_eq!(ending("outputs", 7), "outputs");
        assert_eq!(ending("runs/outputs", 8), "…outputs");
        assert_eq!(ending("/home/ü/数据", 6), "…/数据");
        assert_eq!(ending("abc", 1), "…");
    }

    #[test]
    fn lines_are_wrapped_and_their_number_kept() {
        let lines = wrapped("one two three four five", 9, 2);
        assert_eq!(lines, ["one two", "  three", "  four", "  five"]);
        assert_eq!(clipped(lines.clone(), 9, 2), ["one two", "  three …"]);
        assert_eq!(clipped(lines.clone(), 9, 4), lines);
        assert_eq!(clipped(wrapped("one two three", 7, 0), 7, 1), ["one …"]);
        // Numbers are not cut at their signs, and stay with their names.
        assert_eq!(
            wrapped("lr 2e-5  loss\u{a0}1.5", 10, 2),
            ["lr 2e-5", "  loss 1.5"]
        );
    }
}
