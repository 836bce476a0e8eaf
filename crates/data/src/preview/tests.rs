use super::*;
use crate::format::Format;
use crate::options::DataOptions;
use crate::pipeline::tokenize;
use crate::supervise::Supervision;
use crate::tokenizer::tests::{CHATML, tokenizer};

const ROWS: &str = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"é<b>\"}]}\n\
    nope\n\
    {\"messages\":[{\"role\":\"user\",\"content\":\"\\u001b[31m\\u202e\"},{\"role\":\"assistant\",\"content\":\"a long answer\"}]}\n\
    {\"messages\":[{\"role\":\"user\",\"content\":\"<|eot_id|>\"}]}\n";

fn source(folder: &tempfile::TempDir) -> Source {
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, ROWS).unwrap();
    Source::from_file(&path)
}

fn options(max_seq_length: usize) -> TokenizeOptions {
    TokenizeOptions {
        skip_bad_rows: 5,
        ..DataOptions {
            format: Format::Messages,
            template: None,
            supervision: Supervision::Responses,
            max_seq_length,
        }
        .into()
    }
}

fn previewed(folder: &tempfile::TempDir, rows: usize) -> Preview {
    let sources = [source(folder)];
    preview(&sources, &options(24), &tokenizer(Some(CHATML)), rows).unwrap()
}

#[test]
fn text_shows_what_is_trained_and_cut() {
    let folder = tempfile::tempdir().unwrap();
    let text = previewed(&folder, 10).to_text(TextLook::default());
    let place = format!("{}/", folder.path().display());
    insta::assert_snapshot!(text.replace(&place, ""), @r#"
    ── a.jsonl, line 1 ──
    17 tokens, 6 supervised
    <|im_start|>u
    Hi<|im_end|>
    <|im_start|>a
    ⟦é<b><|im_end|>⟧
    
    ── a.jsonl, line 2 ──
    cannot be used: a.jsonl, line 2: expected one JSON object, found broken JSON: expected ident at column 2
    
    ── a.jsonl, line 3 ──
    31 tokens, 8 supervised, cut after 24
    <|im_start|>u
    ␛[31m␦<|im_end|>
    <|im_start|>a
    ⟦a long a⟧✂nswer<|im_end|>
    
    ── a.jsonl, line 4 ──
    15 tokens, 0 supervised; <|eot_id|> looks like a special token but is not one in this tokenizer; no supervised token
    <|im_start|>u
    <|eot_id|><|im_end|>
    "#);
    assert_eq!(previewed(&folder, 1).rows.len(), 1);
    let look = TextLook {
        colour: true,
        token_ids: true,
    };
    let text = previewed(&folder, 1).to_text(look).replace('\u{1b}', "␛");
    insta::assert_snapshot!(text.replace(&place, ""), @r#"
    ── a.jsonl, line 1 ──
    17 tokens, 6 supervised
    <|im_start|>u
    Hi<|im_end|>
    <|im_start|>a
    ␛[32m⟦é<b><|im_end|>⟧␛[0m
    ids: 259 117 10 72 105 260 10 259 97 10 195 169 60 98 62 260 10
    "#);
}

#[test]
fn a_bos_that_is_added_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, "{\"text\":\"Hi\"}").unwrap();
    let mut options = options(8);
    options.data.format = Format::Text;
    let sources = [Source::from_file(&path)];
    let preview = preview(&sources, &options, &tokenizer(None), 1).unwrap();
    let shown = preview.rows[0].shown.as_ref().unwrap();
    assert_eq!(shown.render(&mut |piece, _| piece.to_owned()), "<s>Hi</s>");
    assert_eq!((shown.input_ids.len(), shown.supervised_tokens), (4, 3));
}

#[test]
fn the_page_shows_everything_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [source(&folder)];
    let tokenizer = tokenizer(Some(CHATML));
    let outcome = tokenize(&sources, &options(24), &tokenizer, &mut (), &mut |_| {}).unwrap();
    let page = previewed(&folder, 10).to_html(Some(&outcome), true);
    let place = format!("{}/", folder.path().display());
    let body = page.split_once("<body>").unwrap().1.replace(&place, "");
    insta::assert_snapshot!(body, @r#"
    
    <h1>Data preview</h1>
    <h2>Counts</h2>
    <table>
    <tr><td>rows</td><td class="n">4</td></tr>
    <tr><td>kept</td><td class="n">2</td></tr>
    <tr><td>skipped as broken</td><td class="n">1</td></tr>
    <tr><td>left out</td><td class="n">1</td></tr>
    <tr><td>cut at max_seq_length</td><td class="n">1</td></tr>
    <tr><td>duplicates</td><td class="n">0</td></tr>
    <tr><td>tokens</td><td class="n">41</td></tr>
    <tr><td>supervised tokens</td><td class="n">14</td></tr>
    <tr><td>tokens of the longest row</td><td class="n">31</td></tr>
    </table>
    <h2>Lengths in tokens</h2>
    <table>
    <tr><td class="n">0–16</td><td class="n">1</td><td><span class="bar" style="width:10.0rem"></span></td></tr>
    <tr><td class="n">17–32</td><td class="n">2</td><td><span class="bar" style="width:20.0rem"></span></td></tr>
    </table>
    <h2>Findings</h2>
    <table>
    <tr><td class="n">1</td><td class="bad">row cannot be used and was skipped; fix the rows that are listed, or leave them out</td><td>a.jsonl, line 2</td></tr>
    <tr><td class="n">1</td><td class="bad">row has no supervised token and was left out; check that they hold answers; raise max_seq_length if they were cut</td><td>a.jsonl, line 4</td></tr>
    <tr><td class="n">1</td><td class="bad">row contains &lt;|eot_id|&gt;, which looks like a special token but is not one in this tokenizer; use the chat template that belongs to this model</td><td>a.jsonl, line 4</td></tr>
    <tr><td class="n">1</td><td>row is longer than max_seq_length and was cut; raise max_seq_length, or shorten them</td><td>a.jsonl, line 3</td></tr>
    </table>
    <h2>Rows</h2>
    <p><mark>Marked</mark> text is trained; <del>struck</del> text lies beyond max_seq_length.</p>
    <h3>a.jsonl, line 1</h3>
    <p>17 tokens, 6 supervised</p>
    <pre>&lt;|im_start|&gt;u
    Hi&lt;|im_end|&gt;
    &lt;|im_start|&gt;a
    <mark>é&lt;b&gt;&lt;|im_end|&gt;</mark>
    </pre>
    <details><summary>Token ids</summary><code>259 117 10 72 105 260 10 259 97 10 195 169 60 98 62 260 10</code></details>
    <h3>a.jsonl, line 2</h3>
    <p class="bad">cannot be used: a.jsonl, line 2: expected one JSON object, found broken JSON: expected ident at column 2</p>
    <h3>a.jsonl, line 3</h3>
    <p>31 tokens, 8 supervised, cut after 24</p>
    <pre>&lt;|im_start|&gt;u
    ␛[31m␦&lt;|im_end|&gt;
    &lt;|im_start|&gt;a
    <mark>a long a</mark><del>nswer&lt;|im_end|&gt;
    </del></pre>
    <details><summary>Token ids</summary><code>259 117 10 27 91 51 49 109 226 128 174 260 10 259 97 10 97 32 108 111 110 103 32 97 110 115 119 101 114 260 10</code></details>
    <h3>a.jsonl, line 4</h3>
    <p>15 tokens, 0 supervised; &lt;|eot_id|&gt; looks like a special token but is not one in this tokenizer; no supervised token</p>
    <pre>&lt;|im_start|&gt;u
    &lt;|eot_id|&gt;&lt;|im_end|&gt;
    </pre>
    <details><summary>Token ids</summary><code>259 117 10 60 124 101 111 116 95 105 100 124 62 260 10</code></details>
    </body></html>
    "#);
    assert!(!page.contains("<script") && !page.contains("http:") && !page.contains("https:"));
}

proptest::proptest! {
    #[test]
    fn parts_are_the_text(text in "[a-z\u{e9}\u{4e2d} ]{0,20}", seed: u64, kept in 0usize..30) {
        let encoded = tokenizer(None).encode_rendered(&text).unwrap();
        let labels: Vec<i64> = encoded.ids.iter().enumerate().map(|(at, id)| if seed >> (at % 64) & 1 == 1 { i64::from(*id) } else { IGNORE_INDEX }).collect();
        let kept: Vec<bool> = (0..labels.len()).map(|at| at < kept).collect();
        let parts = parts(&text, &encoded.offsets, &labels, &kept);
        let joined: String = parts.iter().map(|(range, _)| &text[range.clone()]).collect();
        proptest::prop_assert_eq!(&joined, &text);
        for pair in parts.windows(2) {
            proptest::prop_assert!(pair[0].1 != pair[1].1 && pair[0].0.end == pair[1].0.start);
        }
    }

    #[test]
    fn no_row_writes_markup(user in "[<>&\"'/a-z ]{0,30}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let row = serde_json::json!({"messages": [{"role": "user", "content": user}]});
        std::fs::write(&path, row.to_string()).unwrap();
        let preview = preview(&[Source::from_file(&path)], &options(64), &tokenizer(Some(CHATML)), 1).unwrap();
        let page = preview.to_html(None, false);
        let tags = |page: &str| page.matches('<').count();
        let empty = Preview { rows: preview.rows.iter().map(|row| PreviewRow { place: row.place.clone(), shown: row.shown.clone().map(|shown| ShownRow { text: String::new(), parts: Vec::new(), ..shown }) }).collect() };
        proptest::prop_assert_eq!(tags(&page), tags(&empty.to_html(None, false)));
    }
}
