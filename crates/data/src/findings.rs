//! What is wrong with rows that can be read, or worth knowing about them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::conversation::{Conversation, REASONING_KEYS, Record, Role};
use crate::format::is_nothing;
use crate::supervise::{Supervised, Unseen};
use crate::template::ChatTemplate;
use crate::tokenizer::ChatTokenizer;

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowPlace {
    /// Its file.
    pub path: PathBuf,
    /// Its line there, from 1; the row's number in a Parquet file.
    pub line: usize,
}

impl std::fmt::Display for RowPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::error::place(&self.path, self.line))
    }
}

/// Something about a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum Finding {
    /// It cannot be used and was passed over, as `skip_bad_rows` allows.
    Skipped,
    /// It has no supervised token within the limit.
    WithoutSupervision,
    /// Both answers of a pair say the same, white space aside.
    SameAnswers,
    /// A trained answer is empty.
    EmptyAnswer,
    /// A trained turn ends in no token that stops generation.
    OpenTurn,
    /// A field of the row leaves no trace in the text that the chat template makes of it.
    Unseen(Unseen),
    /// Its text has what looks like a special token that the vocabulary lacks.
    UnknownSpecialToken(String),
    /// Arguments of a tool call are a string, which many templates quote a second time.
    TextArguments,
    /// The chat template leaves out what the model thought in earlier turns.
    EarlierReasoning,
    /// It has keys that nothing reads, by name.
    UnreadFields(Vec<String>),
    /// An answer to compare was cut, and its end is no longer compared.
    LostEnd,
    /// It is longer than the limit and was cut.
    Truncated,
    /// It is longer than the limit and was left out.
    TooLong,
    /// It is longer than the limit and became several.
    Split,
    /// It says the same as one before it.
    Duplicate,
}

impl Finding {
    /// Whether training on such rows is likely to go wrong: `data check` fails on it.
    pub fn is_problem(&self) -> bool {
        match self {
            Self::Skipped
            | Self::WithoutSupervision
            | Self::SameAnswers
            | Self::EmptyAnswer
            | Self::OpenTurn
            | Self::Unseen(_)
            | Self::UnknownSpecialToken(_)
            | Self::TextArguments => true,
            Self::EarlierReasoning
            | Self::UnreadFields(_)
            | Self::LostEnd
            | Self::Truncated
            | Self::TooLong
            | Self::Split
            | Self::Duplicate => false,
        }
    }

    /// What it is, after a number of rows: "rows have an empty answer that is trained".
    pub fn summary(&self, rows: usize) -> String {
        let one = rows == 1;
        let rows = if one { "row" } else { "rows" };
        let have = if one { "has" } else { "have" };
        let are = if one { "is" } else { "are" };
        let were = if one { "was" } else { "were" };
        match self {
            Self::Skipped => format!("{rows} cannot be used and {were} skipped"),
            Self::WithoutSupervision => {
                format!("{rows} {have} no supervised token and {were} left out")
            }
            Self::SameAnswers => {
                format!("{rows} {have} the same answer as chosen and as rejected")
            }
            Self::EmptyAnswer => format!("{rows} {have} an empty answer that is trained"),
            Self::OpenTurn => {
                format!("{rows} {have} an answer that does not end in EOS or an end-of-turn token")
            }
            Self::Unseen(field) => {
                let field = field.field();
                format!("{rows} {have} {field} that the chat template does not show")
            }
            Self::UnknownSpecialToken(token) => {
                let contain = if one { "contains" } else { "contain" };
                format!(
                    "{rows} {contain} {token}, which looks like a special token but is not one in this \
                     tokenizer"
                )
            }
            Self::TextArguments => format!("{rows} {have} tool arguments as a string"),
            Self::EarlierReasoning => {
                format!(
                    "{rows} {have} reasoning in earlier turns that the chat template leaves out"
                )
            }
            Self::UnreadFields(names) => {
                format!("{rows} {have} fields that are not read: {}", quoted(names))
            }
            Self::LostEnd => format!("{rows} {have} an answer to compare that lost its end"),
            Self::Truncated => format!("{rows} {are} longer than max_seq_length and {were} cut"),
            Self::TooLong => format!("{rows} {are} longer than max_seq_length and {were} left out"),
            Self::Split => format!("{rows} {are} longer than max_seq_length and became several"),
            Self::Duplicate => format!("duplicate {rows}"),
        }
    }

    /// What it is, of one row.
    pub fn row_summary(&self) -> String {
        match self {
            Self::Skipped => "cannot be used".to_owned(),
            Self::WithoutSupervision => "no supervised token".to_owned(),
            Self::SameAnswers => "chosen and rejected are the same".to_owned(),
            Self::EmptyAnswer => "an empty answer is trained".to_owned(),
            Self::OpenTurn => "an answer does not end in EOS or an end-of-turn token".to_owned(),
            Self::Unseen(field) => format!("{} is not in the text", field.field()),
            Self::UnknownSpecialToken(token) => {
                format!("{token} looks like a special token but is not one in this tokenizer")
            }
            Self::TextArguments => "tool arguments are a string".to_owned(),
            Self::EarlierReasoning => "reasoning of earlier turns is not in the text".to_owned(),
            Self::UnreadFields(names) => format!("not read: {}", quoted(names)),
            Self::LostEnd => "an answer lost its end".to_owned(),
            Self::Truncated => "longer than max_seq_length".to_owned(),
            Self::TooLong => "left out as too long".to_owned(),
            Self::Split => "becomes several rows".to_owned(),
            Self::Duplicate => "a duplicate".to_owned(),
        }
    }

    /// What to do about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::Skipped => "fix the rows that are listed, or leave them out",
            Self::WithoutSupervision => {
                "check that they hold answers; raise max_seq_length if they were cut"
            }
            Self::SameAnswers => "take them out: nothing can be learned from them",
            Self::EmptyAnswer => {
                "take them out, or keep the model from learning to say nothing with \"weight\": 0"
            }
            Self::OpenTurn => {
                "use a chat template that ends turns in a special token, or the model will not stop"
            }
            Self::Unseen(Unseen::Call | Unseen::Arguments | Unseen::Tools) => {
                "use a chat template that knows tools, or write tools and calls into the contents"
            }
            Self::Unseen(Unseen::Reasoning) => {
                "use a chat template that shows reasoning, or write it into the content"
            }
            Self::Unseen(Unseen::Thought) => {
                "use a chat template that keeps it, or the model learns to answer without it"
            }
            Self::Unseen(_) => {
                "use a chat template that shows it, or move the text to another turn"
            }
            Self::UnknownSpecialToken(_) => "use the chat template that belongs to this model",
            Self::TextArguments => "write the arguments as a JSON object",
            Self::EarlierReasoning => {
                "nothing, if the model is to answer without its earlier reasoning; else make one row of \
                 each answer"
            }
            Self::UnreadFields(_) => {
                "nothing, unless they should be learned: give them the names of the format's fields \
                 with data.fields"
            }
            Self::LostEnd => {
                "raise max_seq_length, or write overlong = \"drop\": an answer that is cut has no end to be preferred for"
            }
            Self::Truncated => "raise max_seq_length, or shorten them",
            Self::TooLong => "raise max_seq_length to keep them",
            Self::Split => "nothing, unless the parts make no sense alone",
            Self::Duplicate => "take them out unless they are meant to weigh more",
        }
    }
}

/// Names in backticks, the first few.
fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut quoted: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    if names.len() > SHOWN {
        quoted.push(format!("and {} more", names.len() - SHOWN));
    }
    quoted.join(", ")
}

/// Rows with the same finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundRows {
    /// How many.
    pub rows: usize,
    /// The first ones.
    pub first: Vec<RowPlace>,
}

/// All findings of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(Finding, FoundRows)>", into = "Vec<(Finding, FoundRows)>")]
pub struct Findings {
    found: BTreeMap<Finding, FoundRows>,
}

/// Places that are kept of each finding.
const FIRST: usize = 10;
/// Different unknown special tokens that are kept.
const TOKENS: usize = 64;

impl Findings {
    /// Counts a finding.
    ///
    /// Fields that are not read are one finding, with the names of all rows.
    pub fn add(&mut self, finding: Finding, path: &Path, line: usize) {
        if let Finding::UnreadFields(names) = &finding {
            self.merge_unread(names);
        }
        let finding = match finding {
            Finding::UnreadFields(names) => self.unread().cloned().unwrap_or_else(|| {
                let mut names = names;
                names.sort();
                Finding::UnreadFields(names)
            }),
            other => other,
        };
        if matches!(finding, Finding::UnknownSpecialToken(_))
            && !self.found.contains_key(&finding)
            && self.found.len() >= TOKENS
        {
            return;
        }
        let found = self.found.entry(finding).or_default();
        found.rows += 1;
        if found.first.len() < FIRST {
            found.first.push(RowPlace {
                path: path.to_owned(),
                line,
            });
        }
    }

    fn unread(&self) -> Option<&Finding> {
        let mut found = self.found.keys();
        found.find(|finding| matches!(finding, Finding::UnreadFields(_)))
    }

    /// Adds names to the finding that there is.
    fn merge_unread(&mut self, names: &[String]) {
        let Some(Finding::UnreadFields(known)) = self.unread() else {
            return;
        };
        let new = names.iter().filter(|name| !known.contains(name));
        let mut all: Vec<String> = known.iter().chain(new).cloned().collect();
        if all.len() == known.len() || known.len() >= TOKENS {
            return;
        }
        let before = Finding::UnreadFields(known.clone());
        all.sort();
        if let Some(rows) = self.found.remove(&before) {
            self.found.insert(Finding::UnreadFields(all), rows);
        }
    }

    /// The rows with a finding.
    pub fn get(&self, finding: &Finding) -> Option<&FoundRows> {
        self.found.get(finding)
    }

    /// Every finding with its rows, problems first.
    pub fn iter(&self) -> impl Iterator<Item = (&Finding, &FoundRows)> {
        self.found.iter()
    }

    /// Those that `data check` fails on.
    pub fn problems(&self) -> impl Iterator<Item = (&Finding, &FoundRows)> {
        self.iter().filter(|(finding, _)| finding.is_problem())
    }

    /// Whether there is nothing to fail on.
    pub fn is_sound(&self) -> bool {
        self.problems().next().is_none()
    }
}

impl From<Vec<(Finding, FoundRows)>> for Findings {
    fn from(found: Vec<(Finding, FoundRows)>) -> Self {
        Self {
            found: found.into_iter().collect(),
        }
    }
}

impl From<Findings> for Vec<(Finding, FoundRows)> {
    fn from(findings: Findings) -> Self {
        findings.found.into_iter().collect()
    }
}

/// What is to say about a row before its length is known to fit.
pub(crate) fn examine(
    record: &Record,
    supervised: &Supervised,
    tokenizer: &ChatTokenizer,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if record.chats().into_iter().any(has_text_arguments) {
        findings.push(Finding::TextArguments);
    }
    if supervised.same_answers {
        findings.push(Finding::SameAnswers);
    }
    if supervised.empty_answer {
        findings.push(Finding::EmptyAnswer);
    }
    if supervised.open_turns > 0 {
        findings.push(Finding::OpenTurn);
    }
    findings.extend(supervised.unseen.iter().copied().map(Finding::Unseen));
    if supervised.earlier_reasoning {
        findings.push(Finding::EarlierReasoning);
    }
    for token in unknown_markers(&supervised.text, tokenizer) {
        // What the template writes in every row is said once, of the template.
        if tokenizer.foreign_markers().contains(&token) {
            continue;
        }
        findings.push(Finding::UnknownSpecialToken(token));
    }
    findings
}

/// Fields that nothing reads: of the row, as its format named them, and of its messages where the
/// template writes the same without them.
pub(crate) fn unread_fields(
    record: &Record,
    mut unread: Vec<String>,
    tokenizer: &ChatTokenizer,
) -> Option<Finding> {
    for chat in record.chats() {
        let template = tokenizer.template_for(chat);
        for message in &chat.messages {
            for (key, value) in &message.extra {
                let path = || format!("messages[].{key}");
                if is_structure(key, message.role) || is_nothing(value) || unread.contains(&path())
                {
                    continue;
                }
                if !template.is_some_and(|template| reads(template, chat, key)) {
                    unread.push(path());
                }
            }
        }
    }
    (!unread.is_empty()).then_some(Finding::UnreadFields(unread))
}

/// Keys that tie calls to results, and those that are looked for by their texts.
fn is_structure(key: &str, role: Role) -> bool {
    let ties = matches!(key, "tool_calls" | "tool_call_id" | "id" | "type");
    ties || REASONING_KEYS.contains(&key) || (key == "name" && role == Role::Tool)
}

/// Whether a key of messages makes a difference to a template.
fn reads(template: &ChatTemplate, chat: &Conversation, key: &str) -> bool {
    if !names(template.source(), key) {
        return false;
    }
    let mut without = chat.clone();
    for message in &mut without.messages {
        message.extra.remove(key);
    }
    let render = |chat| template.render(chat, false).ok();
    render(chat) != render(&without)
}

/// Whether a template has a key as a word.
fn names(source: &str, key: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    source.match_indices(key).any(|(at, _)| {
        !source[..at].ends_with(is_word) && !source[at + key.len()..].starts_with(is_word)
    })
}

fn has_text_arguments(chat: &Conversation) -> bool {
    let calls = chat
        .messages
        .iter()
        .filter(|message| message.role == Role::Assistant)
        .filter_map(|message| message.extra.get("tool_calls")?.as_array());
    calls.flatten().any(|call| {
        let function = call.get("function").unwrap_or(call);
        function["arguments"].is_string()
    })
}

/// Texts like `<|im_end|>` that the vocabulary does not hold as one token, each once.
pub(crate) fn unknown_markers(text: &str, tokenizer: &ChatTokenizer) -> Vec<String> {
    const OTHERS: [&str; 10] = [
        "<|turn>",
        "<turn|>",
        "<|channel>",
        "<channel|>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<bos>",
        "<eos>",
        "<<SYS>>",
        "<|",
    ];
    let mut unknown: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        rest = &rest[start..];
        let Some(opening) = OTHERS.iter().find(|marker| rest.starts_with(**marker)) else {
            rest = &rest[1..];
            continue;
        };
        let marker = match *opening {
            "<|" => bar_marker(rest),
            // Llama 2 has no token for it.
            "<<SYS>>" => None,
            other => Some(other),
        };
        if let Some(marker) = marker
            && tokenizer.token_to_id(marker).is_none()
            && !unknown.iter().any(|known| known == marker)
        {
            unknown.push(marker.to_owned());
        }
        rest = &rest[opening.len()..];
    }
    unknown
}

/// `<|name|>` at the beginning of a text.
fn bar_marker(text: &str) -> Option<&str> {
    const LONGEST: usize = 40;
    let name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let length = text.as_bytes()[2..]
        .iter()
        .take_while(|byte| name(byte))
        .count();
    let end = 2 + length;
    ((1..=LONGEST).contains(&length) && text[end..].starts_with("|>")).then(|| &text[..end + 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::{CHATML, tokenizer};

    #[test]
    fn finds_markers_that_are_no_tokens() {
        let unknown = |text: &str| unknown_markers(text, &tokenizer(Some(CHATML)));
        assert!(unknown("<|im_start|>a<|im_end|> <s> 1 < 2 <|> <|a b|> <|é|>").is_empty());
        assert_eq!(
            unknown("<|eot_id|><|im_start|><|eot_id|><end_of_turn><|x_1|"),
            ["<|eot_id|>", "<end_of_turn>"]
        );
        assert_eq!(
            unknown("<|turn>user\na<turn|>\n<|turn>"),
            ["<|turn>", "<turn|>"]
        );
        assert!(unknown(&format!("<|{}|>", "x".repeat(41))).is_empty());
        assert!(unknown("<").is_empty());
        assert!(unknown("<|").is_empty());
    }

    #[test]
    fn a_key_of_a_message_is_read_where_it_makes_a_difference() {
        // The name of a tool is not the name of a speaker.
        let calls = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}\
                     {{ c.function.name }}{% endfor %}{% endfor %}";
        let speakers = "{% for m in messages %}{{ m.name or m.role }}: {{ m.content }}{% endfor %}";
        let row = serde_json::json!({"messages": [
            {"role": "user", "content": "Hi", "name": "Ada"},
            {"role": "assistant", "content": "Hello"},
        ]});
        let record = crate::format::Format::Messages.read(row).unwrap();
        let unread = |template| unread_fields(&record, Vec::new(), &tokenizer(Some(template)));
        let name = Finding::UnreadFields(vec!["messages[].name".to_owned()]);
        assert_eq!(unread(calls), Some(name));
        assert_eq!(unread(speakers), None);
    }

    #[test]
    fn findings_survive_json() {
        let mut findings = Findings::default();
        findings.add(Finding::Truncated, Path::new("a"), 1);
        for line in 1..20 {
            let finding = Finding::UnknownSpecialToken("<|x|>".into());
            findings.add(finding, Path::new("a"), line);
        }
        let json = serde_json::to_string(&findings).unwrap();
        assert_eq!(serde_json::from_str::<Findings>(&json).unwrap(), findings);
        let order: Vec<_> = findings
            .iter()
            .map(|(finding, rows)| (finding.is_problem(), rows.rows, rows.first.len()))
            .collect();
        assert_eq!(order, [(true, 19, 10), (false, 1, 1)]);
        assert!(!findings.is_sound());
    }
}
