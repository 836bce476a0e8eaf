//! A preview as text, with brackets around what is trained.

use super::{Part, Preview, ShownRow};

/// How a preview looks as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextLook {
    /// Whether the terminal's colours are used, besides the brackets.
    pub colour: bool,
    /// Whether the token ids follow each row.
    pub token_ids: bool,
}

impl TextLook {
    fn mark(self, piece: &str, part: Part) -> String {
        const RESET: &str = "\u{1b}[0m";
        match (part, self.colour) {
            (Part::Context, _) => piece.to_owned(),
            (Part::Trained, false) => format!("⟦{piece}⟧"),
            (Part::Trained, true) => format!("\u{1b}[32m⟦{piece}⟧{RESET}"),
            (Part::Cut, false) => format!("✂{piece}"),
            (Part::Cut, true) => format!("\u{1b}[2m✂{piece}{RESET}"),
        }
    }
}

impl Preview {
    /// The rows as text: `⟦` and `⟧` around what is trained, `✂` before what is cut away.
    pub fn to_text(&self, look: TextLook) -> String {
        let mut text = String::new();
        for row in &self.rows {
            text.push_str(&format!("── {} ──\n", row.place));
            match &row.shown {
                Ok(shown) => {
                    text.push_str(&shown.headline());
                    text.push('\n');
                    let body = shown.render(&mut |piece, part| look.mark(piece, part));
                    text.push_str(body.trim_end_matches('\n'));
                    text.push('\n');
                    if look.token_ids {
                        let ids: Vec<String> = shown.input_ids.iter().map(u32::to_string).collect();
                        text.push_str(&format!("ids: {}\n", ids.join(" ")));
                    }
                }
                Err(problem) => text.push_str(&format!("cannot be used: {}\n", visible(problem))),
            }
            text.push('\n');
        }
        text
    }
}

impl ShownRow {
    /// Counts and findings on one line.
    pub fn headline(&self) -> String {
        let mut line = format!(
            "{} tokens, {} supervised",
            self.input_ids.len(),
            self.supervised_tokens
        );
        if self.kept_tokens < self.input_ids.len() {
            line.push_str(&format!(", cut after {}", self.kept_tokens));
        }
        for finding in &self.findings {
            match finding {
                Finding::Truncated => {}
                other => line.push_str(&format!("; {}", other.row_summary())),
            }
        }
        line
    }

    /// The text with every piece as `mark` writes it. Control characters are shown, not sent.
    pub fn render(&self, mark: &mut dyn FnMut(&str, Part) -> String) -> String {
        let bos = self.added_bos.iter().map(|bos| mark(bos, Part::Context));
        let mut text: String = bos.collect();
        for (range, part) in &self.parts {
            text.push_str(&mark(&visible(&self.text[range.clone()]), *part));
        }
        text
    }
}

use crate::findings::Finding;

/// Control characters but for line breaks and tabs as their picture.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            '\u{7f}' => '␡',
            '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('␦'),
            '\u{80}'..='\u{9f}' => '␦',
            // Marks that turn the direction of writing hide what stands behind them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '␦',
            _ => c,
        })
        .collect()
}
