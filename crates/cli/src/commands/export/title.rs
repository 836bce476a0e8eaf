//! A hub id in words, as an exported file says it.

/// What an id on the hub stands for.
///
/// # Source
/// gguf-py's `Metadata.id_to_title` and `get_model_id_components`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Title {
    pub(super) name: String,
    pub(super) organisation: Option<String>,
    pub(super) version: Option<String>,
}

impl Title {
    pub(super) fn of(id: &str) -> Self {
        let (organisation, name) = match id.split_once('/') {
            Some((organisation, name)) => (Some(organisation), name),
            None => (None, id),
        };
        Self {
            name: titled(name),
            organisation: organisation.map(titled),
            version: version(name),
        }
    }
}

/// Words for hyphens, each with a capital unless it has some of its own or is a number.
fn titled(text: &str) -> String {
    let words = text.split(['-', ' ']).filter(|word| !word.is_empty());
    let words = words.map(|word| {
        let has_capital = word.chars().any(char::is_uppercase);
        let has_letter = word.chars().any(char::is_lowercase);
        let number = word
            .strip_prefix('v')
            .unwrap_or(word)
            .starts_with(|c: char| c.is_ascii_digit());
        match has_letter
            && !has_capital
            && !(number && (is_version(word) || !word.starts_with('v')))
        {
            true => capitalised(word),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A capital for every letter behind something else.
fn capitalised(word: &str) -> String {
    let mut before = ' ';
    let letters = word.chars().map(|letter| {
        let start = !before.is_alphabetic();
        before = letter;
        if start {
            letter.to_ascii_uppercase()
        } else {
            letter
        }
    });
    letters.collect()
}

/// The version among the parts of a name, unless it belongs to the family's name as in `Llama-3.1-8B`.
fn version(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('-').filter(|part| !part.is_empty()).collect();
    let of_family = |(at, part): &(usize, &&str)| {
        let plain = part.starts_with(|c: char| c.is_alphabetic()) && !is_qualifier(*at, part);
        is_version(part) || plain
    };
    let mut family = parts.iter().enumerate().take_while(of_family).count();
    if family == parts.len() {
        // Nothing follows the family: a version at the end is one.
        let trailing = parts.iter().rev().take_while(|part| is_version(part));
        family -= trailing.count();
    }
    let versions = parts[family..].iter().filter(|part| is_version(part));
    let versions: Vec<&str> = versions.copied().collect();
    (!versions.is_empty()).then(|| versions.join("-"))
}

/// `3.1`, `v0.3`, `iter2`.
fn is_version(part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    let digits = lower
        .strip_prefix("iter")
        .or(lower.strip_prefix('v'))
        .unwrap_or(&lower);
    let numbers = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    digits.split('.').all(numbers)
}

/// A size, a number format, or a kind of training: what follows a family's name.
fn is_qualifier(at: usize, part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    let kinds = [
        "chat", "instruct", "vision", "lora", "small", "mini", "medium", "large", "xl", "xxl",
    ];
    let formats = ["f16", "f32", "fp16", "fp32", "bf16", "bfp16", "b16", "b32"];
    at > 0 && kinds.contains(&&*lower) || formats.contains(&&*lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What gguf-py 0.19.0 makes of these ids.
    #[test]
    fn ids_become_what_gguf_py_makes_of_them() {
        for (id, name, organisation, version) in [
            (
                "HuggingFaceTB/SmolLM2-135M-Instruct",
                "SmolLM2 135M Instruct",
                Some("HuggingFaceTB"),
                None,
            ),
            (
                "meta-llama/Llama-3.1-8B",
                "Llama 3.1 8B",
                Some("Meta Llama"),
                None,
            ),
            (
                "mistralai/Mistral-7B-Instruct-v0.3",
                "Mistral 7B Instruct v0.3",
                Some("Mistralai"),
                Some("v0.3"),
            ),
            ("org/tldr-commands", "Tldr Commands", Some("Org"), None),
            ("org/rows-v2", "Rows v2", Some("Org"), Some("v2")),
            ("org/qwen2.5b-x", "Qwen2.5B X", Some("Org"), None),
            ("local-model", "Local Model", None, None),
        ] {
            let expected = Title {
                name: name.to_owned(),
                organisation: organisation.map(str::to_owned),
                version: version.map(str::to_owned),
            };
            assert_eq!(Title::of(id), expected, "{id}");
        }
    }
}
