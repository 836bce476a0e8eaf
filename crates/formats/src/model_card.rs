//! The head of a model card: what `README.md` says of a model to programs.

use std::path::Path;

/// The longest card that is read: 4 MiB.
const LONGEST: u64 = 1 << 22;
const FILE: &str = "README.md";

/// The YAML between the two `---` at the top of a card, as far as it is text and lists of text by one key: licence,
/// base, data sets, tags. Tables in it (evaluation results) are passed over.
///
/// # Source
/// [Hugging Face's model card metadata](https://github.com/huggingface/hub-docs/blob/main/modelcard.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardHead {
    fields: Vec<(String, Field)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    One(String),
    Many(Vec<String>),
}

impl CardHead {
    /// The name of a card's file.
    pub const FILE: &str = FILE;

    /// The head of the card in a directory; empty where there is none that can be read.
    #[must_use]
    pub fn of_directory(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let fits =
            std::fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= LONGEST);
        let text = fits.then(|| std::fs::read_to_string(&path).ok());
        text.flatten()
            .map_or_else(Self::default, |text| Self::of(&text))
    }

    /// The head of a card; empty where it has none.
    #[must_use]
    pub fn of(card: &str) -> Self {
        let card = card.strip_prefix('\u{feff}').unwrap_or(card);
        let mut lines = card.lines();
        let mut head = Self::default();
        if lines.next().map(str::trim_end) != Some("---") {
            return head;
        }
        // The list that lines with a dash belong to.
        let mut open: Option<(String, Vec<String>)> = None;
        for line in lines {
            let line = line.trim_end();
            if line == "---" {
                head.close(open);
                return head;
            }
            let inner = line.trim_start();
            if inner.is_empty() || inner.starts_with('#') {
                continue;
            }
            if let Some(item) = inner.strip_prefix("- ") {
                if let (Some((_, items)), Some(text)) = (&mut open, scalar(item)) {
                    items.push(text);
                }
                continue;
            }
            // A deeper line belongs to a table.
            if inner.len() < line.len() {
                continue;
            }
            head.close(open.take());
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            match value.trim() {
                "" => open = Some((key.to_owned(), Vec::new())),
                value => head.field(key, value),
            }
        }
        // The second `---` is missing: this was no head.
        Self::default()
    }

    fn field(&mut self, key: &str, value: &str) {
        let flow = value
            .strip_prefix('[')
            .and_then(|value| value.strip_suffix(']'));
        let field = match flow {
            Some(items) => Some(Field::Many(items.split(',').filter_map(scalar).collect())),
            None => scalar(value).map(Field::One),
        };
        if let Some(field) = field {
            self.fields.push((key.to_owned(), field));
        }
    }

    fn close(&mut self, list: Option<(String, Vec<String>)>) {
        if let Some((key, items)) = list.filter(|(_, items)| !items.is_empty()) {
            self.fields.push((key, Field::Many(items)));
        }
    }

    /// The values of a key, one or several.
    #[must_use]
    pub fn all(&self, key: &str) -> &[String] {
        let field = self.fields.iter().find(|(name, _)| name == key);
        match field {
            Some((_, Field::One(value))) => std::slice::from_ref(value),
            Some((_, Field::Many(values))) => values,
            None => &[],
        }
    }

    /// The value of a key that has one.
    #[must_use]
    pub fn one(&self, key: &str) -> Option<&str> {
        match self.all(key) {
            [value] => Some(value),
            _ => None,
        }
    }

    /// With a value, where there is one.
    #[must_use]
    pub fn with(mut self, key: &str, value: Option<impl Into<String>>) -> Self {
        if let Some(value) = value {
            self.fields.push((key.to_owned(), Field::One(value.into())));
        }
        self
    }

    /// With a list, unless it is empty.
    #[must_use]
    pub fn with_list(
        mut self,
        key: &str,
        values: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let values: Vec<String> = values.into_iter().map(Into::into).collect();
        if !values.is_empty() {
            self.fields.push((key.to_owned(), Field::Many(values)));
        }
        self
    }

    /// The head as it stands in a card, both `---` with it.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text = "---\n".to_owned();
        for (key, field) in &self.fields {
            match field {
                Field::One(value) => text.push_str(&format!("{key}: {}\n", quoted(value))),
                Field::Many(values) => {
                    text.push_str(&format!("{key}:\n"));
                    for value in values {
                        text.push_str(&format!("- {}\n", quoted(value)));
                    }
                }
            }
        }
        text.push_str("---\n");
        text
    }
}

/// Text of YAML; `None` for what is more than text.
fn scalar(value: &str) -> Option<String> {
    let value = value.trim();
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote) {
            let (inner, _) = inner.split_once(quote)?;
            return (!inner.contains('\\')).then(|| inner.to_owned());
        }
    }
    let value = value.split(" #").next().unwrap_or_default().trim_end();
    let is_text = !value.is_empty()
        && !value.starts_with(['{', '[', '|', '>', '&', '*', '!'])
        && !value.contains(": ")
        && !value.ends_with(':');
    is_text.then(|| value.to_owned())
}

/// Text as YAML takes it for text: in quotes, as JSON has them, unless it cannot be taken for anything else.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let word = value.chars().all(plain) && value.starts_with(|c: char| c.is_ascii_alphabetic());
    let taken = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    match word && !taken.contains(&value.to_ascii_lowercase().as_str()) {
        true => value.to_owned(),
        false => serde_json::Value::from(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read() {
        let card = "---\nlicense: other # see below\nlicense_name: 'Some licence'\nlicense_link: \"https://x/y\"\n\
                    base_model:\n- org/one\n  # not this\n  - org/two\nlanguage: [en, de]\nmodel-index:\n- name: x\n  \
                    results:\n  - value: 1\ndatasets: org/rows\nempty:\ntags: [\"a b\"]\n---\n# Title\nlicense: none\n";
        let head = CardHead::of(card);
        assert_eq!(head.one("license"), Some("other"));
        assert_eq!(head.one("license_name"), Some("Some licence"));
        assert_eq!(head.one("license_link"), Some("https://x/y"));
        assert_eq!(head.all("base_model"), ["org/one", "org/two"]);
        assert_eq!(head.one("base_model"), None);
        assert_eq!(head.all("language"), ["en", "de"]);
        assert_eq!(head.all("datasets"), ["org/rows"]);
        assert_eq!(head.all("tags"), ["a b"]);
        assert!(head.all("model-index").is_empty() && head.all("empty").is_empty());
    }

    #[test]
    fn what_is_no_head_says_nothing() {
        for card in [
            "",
            "# Title\nlicense: mit\n",
            "---\nlicense: mit\n",
            "---\nlicense: {a: b}\n---\n",
        ] {
            assert_eq!(CardHead::of(card), CardHead::default(), "{card}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let head = CardHead::default()
            .with("base_model", Some("org/Name-1.5"))
            .with("license", None::<String>)
            .with("version", Some("1.0"))
            .with("answer", Some("no"))
            .with("title", Some("It's: a # title"))
            .with_list("datasets", ["org/rows"])
            .with_list("tags", Vec::<String>::new());
        let yaml = head.to_yaml();
        assert_eq!(
            yaml,
            "---\nbase_model: org/Name-1.5\nversion: \"1.0\"\nanswer: \"no\"\ntitle: \"It's: a # title\"\n\
             datasets:\n- org/rows\n---\n"
        );
        assert_eq!(CardHead::of(&yaml), head);
    }
}
