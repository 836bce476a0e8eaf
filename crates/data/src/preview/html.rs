//! A preview as one page that needs nothing else.

use std::fmt::Write;

use super::{Part, Preview, PreviewRow, ShownRow};
use crate::pipeline::Outcome;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}\
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}td.n{text-align:right}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f4f2;padding:.8rem;border-radius:.3rem}\
mark{background:#c9ecc6;color:inherit}del{opacity:.45}.bad{color:#a11212}.bar{display:inline-block;height:.7rem;background:#6b8fc9}\
code{overflow-wrap:anywhere}@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}pre{background:#242424}mark{background:#27522a}.bad{color:#ff8a80}}";

impl Preview {
    /// One page with counts, lengths, findings and the rows; `token_ids` adds the ids of each row.
    ///
    /// Nothing is loaded from elsewhere, and no text of a row can act as markup.
    pub fn to_html(&self, outcome: Option<&Outcome>, token_ids: bool) -> String {
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>Data preview</title>\
             <style>{STYLE}</style></head><body>\n<h1>Data preview</h1>\n"
        );
        if let Some(outcome) = outcome {
            summary(&mut page, outcome);
        }
        page.push_str(
            "<h2>Rows</h2>\n<p><mark>Marked</mark> text is trained; <del>struck</del> text lies beyond max_seq_length.</p>\n",
        );
        for row in &self.rows {
            show(&mut page, row, token_ids);
        }
        page.push_str("</body></html>\n");
        page
    }
}

/// Writing to a string cannot fail.
macro_rules! add {
    ($page:expr, $($format:tt)*) => {
        let _ = write!($page, $($format)*);
    };
}

fn summary(page: &mut String, outcome: &Outcome) {
    page.push_str("<h2>Counts</h2>\n<table>\n");
    for (name, value) in outcome.counts() {
        add!(
            page,
            "<tr><td>{name}</td><td class=\"n\">{value}</td></tr>\n"
        );
    }
    page.push_str("</table>\n<h2>Lengths in tokens</h2>\n<table>\n");
    let most = outcome.report.lengths.classes().map(|class| class.2).max();
    for (shortest, longest, rows) in outcome.report.lengths.classes() {
        let width = 20.0 * rows as f64 / most.unwrap_or(1).max(1) as f64;
        add!(
            page,
            "<tr><td class=\"n\">{shortest}–{longest}</td><td class=\"n\">{rows}</td>\
             <td><span class=\"bar\" style=\"width:{width:.1}rem\"></span></td></tr>\n"
        );
    }
    page.push_str("</table>\n<h2>Findings</h2>\n");
    if outcome.findings.iter().next().is_none() {
        page.push_str("<p>None.</p>\n");
        return;
    }
    page.push_str("<table>\n");
    for (finding, found) in outcome.findings.iter() {
        let class = if finding.is_problem() {
            " class=\"bad\""
        } else {
            ""
        };
        let places: Vec<String> = found
            .first
            .iter()
            .map(|place| escape(&place.to_string()))
            .collect();
        add!(
            page,
            "<tr><td class=\"n\">{}</td><td{class}>{}; {}</td><td>{}</td></tr>\n",
            found.rows,
            escape(&finding.summary(found.rows)),
            escape(finding.next_step()),
            places.join("<br>"),
        );
    }
    page.push_str("</table>\n");
}

fn show(page: &mut String, row: &PreviewRow, token_ids: bool) {
    add!(page, "<h3>{}</h3>\n", escape(&row.place.to_string()));
    match &row.shown {
        Err(problem) => {
            add!(
                page,
                "<p class=\"bad\">cannot be used: {}</p>\n",
                escape(problem)
            );
        }
        Ok(shown) => {
            add!(page, "<p>{}</p>\n<pre>", escape(&shown.headline()));
            page.push_str(&body(shown));
            page.push_str("</pre>\n");
            if token_ids {
                let ids: Vec<String> = shown.input_ids.iter().map(u32::to_string).collect();
                add!(
                    page,
                    "<details><summary>Token ids</summary><code>{}</code></details>\n",
                    ids.join(" ")
                );
            }
        }
    }
}

fn body(shown: &ShownRow) -> String {
    shown.render(&mut |piece, part| {
        let piece = escape(piece);
        match part {
            Part::Context => piece,
            Part::Trained => format!("<mark>{piece}</mark>"),
            Part::Cut => format!("<del>{piece}</del>"),
        }
    })
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}
