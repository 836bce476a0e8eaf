//! Encoding piece by piece, where a tokenizer cuts its text there anyway.
//!
//! Byte-level tokenizers split a text into words by a regular expression and encode each word for
//! itself. Texts repeat their words, so what the library made of a piece is remembered: a piece
//! that was seen before costs a look-up. The library stays the judge of every piece; all that is
//! known here is where it cannot see across.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use super::Encoded;
use crate::error::Source;

/// Longer pieces are rare and come once.
const LONGEST: usize = 64;
/// Pieces that a thread remembers: a few megabytes.
const REMEMBERED: usize = 1 << 15;

/// What a piece becomes, with places counted from its beginning.
type Tokens = Box<[(u32, u32, u32)]>;

/// The pieces that a thread knows of one tokenizer.
#[derive(Default)]
struct Known {
    tokenizer: u64,
    pieces: HashMap<Box<str>, Tokens>,
}

thread_local! {
    static KNOWN: Cell<Known> = Cell::default();
}

/// A tokenizer whose text may be encoded piece by piece.
pub(super) struct Words {
    number: u64,
}

impl Words {
    /// `None` for a tokenizer that is not known to cut its text where [`next_cut`] does.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        is_cut(tokenizer).then(|| Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// What [`whole`] gives.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Encoded, Source> {
        // Taken out, not borrowed: the library may run other work of this thread meanwhile.
        let mut known = KNOWN.take();
        if known.tokenizer != self.number {
            known.tokenizer = self.number;
            known.pieces.clear();
        }
        let mut encoded = Encoded::default();
        let mut at = 0;
        while at < text.len() {
            let end = next_cut(text, at);
            known.append(tokenizer, &text[at..end], at, &mut encoded)?;
            at = end;
        }
        KNOWN.set(known);
        Ok(encoded)
    }
}

impl Known {
    fn append(
        &mut self,
        tokenizer: &Tokenizer,
        piece: &str,
        at: usize,
        to: &mut Encoded,
    ) -> Result<(), Source> {
        if let Some(tokens) = self.pieces.get(piece) {
            for (id, start, end) in tokens {
                to.ids.push(*id);
                to.offsets.push((at + *start as usize, at + *end as usize));
            }
            return Ok(());
        }
        let made = whole(tokenizer, piece)?;
        if piece.len() <= LONGEST {
            if self.pieces.len() == REMEMBERED {
                self.pieces.clear();
            }
            let tokens = made.ids.iter().zip(&made.offsets);
            let tokens = tokens.map(|(id, (start, end))| (*id, *start as u32, *end as u32));
            self.pieces.insert(piece.into(), tokens.collect());
        }
        to.ids.extend(made.ids);
        let moved = made.offsets.iter();
        to.offsets
            .extend(moved.map(|(start, end)| (at + start, at + end)));
        Ok(())
    }
}

/// The library's own encoding.
pub(super) fn whole(tokenizer: &Tokenizer, text: &str) -> Result<Encoded, Source> {
    let encoding = tokenizer.encode(text, false)?;
    Ok(Encoded {
        ids: encoding.get_ids().to_vec(),
        offsets: encoding.get_offsets().to_vec(),
    })
}

/// The first place behind `start` where every known expression ends a word: before a space that
/// follows a visible character, and behind a line break between two visible characters.
///
/// None of them has a word that goes on past whitespace other than line breaks, none looks back,
/// and only whitespace looks at what follows it, which stays in its piece.
fn next_cut(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    for at in start + 1..bytes.len() {
        let cut = match bytes[at - 1] {
            b'\n' => {
                at - 1 > start
                    && is_visible(text[..at - 1].chars().next_back())
                    && is_visible(text[at..].chars().next())
            }
            b'!'..=b'~' => bytes[at] == b' ',
            0x80.. => bytes[at] == b' ' && is_visible(text[..at].chars().next_back()),
            _ => false,
        };
        if cut {
            return at;
        }
    }
    bytes.len()
}

/// Whether everybody agrees that a character is no whitespace.
fn is_visible(character: Option<char>) -> bool {
    character.is_some_and(|c| c.is_ascii_graphic() || (!c.is_ascii() && c.is_alphanumeric()))
}

/// The expressions of Llama 3 and of Qwen 2 to 3.
const SPLITS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

fn is_cut(tokenizer: &Tokenizer) -> bool {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else {
        return false;
    };
    let added = tokenizer.get_added_tokens_decoder();
    let by_themselves = added.values().all(|token| {
        let looks_around = token.single_word || token.lstrip || token.rstrip;
        !(looks_around || token.content.contains([' ', '\n']))
    });
    let parts = (
        serde_json::to_value(tokenizer.get_normalizer()),
        serde_json::to_value(tokenizer.get_pre_tokenizer()),
    );
    let (Ok(normalizer), Ok(splitter)) = parts else {
        return false;
    };
    by_themselves
        && model.dropout.is_none_or(|dropout| dropout == 0.0)
        && (normalizer.is_null() || normalizer["type"] == "NFC")
        && splits_words(&splitter)
}

fn splits_words(splitter: &Value) -> bool {
    let byte_level = |part: &Value, use_regex: bool| {
        part["type"] == "ByteLevel"
            && part["add_prefix_space"] == false
            && part["use_regex"] == use_regex
    };
    let parts = splitter["pretokenizers"].as_array();
    match parts.map_or(std::slice::from_ref(splitter), Vec::as_slice) {
        [only] => byte_level(only, true),
        [first, last] => match first["type"].as_str() {
            Some("Digits") => byte_level(last, true),
            Some("Split") => {
                let pattern = first["pattern"]["Regex"].as_str();
                byte_level(last, false)
                    && first["behavior"] == "Isolated"
                    && first["invert"] == false
                    && pattern.is_some_and(|pattern| SPLITS.contains(&pattern))
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tokenizer_json;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Characters that expressions tell apart, as the byte-level alphabet writes them.
    const LETTERS: [&str; 13] = [
        "a", "B", "s", "'", ".", "1", "2", "Ġ", "Ċ", "č", "ĉ", "Ã", "©",
    ];

    /// A tokenizer in which any two neighbours of a word become one token, so that words that are
    /// cut elsewhere have other ids.
    fn tokenizer(splitter: Value, normalizer: Value) -> Tokenizer {
        let mut json: Value = serde_json::from_slice(&tokenizer_json(false)).unwrap();
        let mut merges = Vec::new();
        for first in LETTERS {
            for second in LETTERS {
                let id = 300 + merges.len();
                merges.push(json!([first, second]));
                json["model"]["vocab"][format!("{first}{second}")] = json!(id);
            }
        }
        json["model"]["merges"] = merges.into();
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        json["post_processor"] = Value::Null;
        json["pre_tokenizer"] = splitter;
        json["normalizer"] = normalizer;
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    fn byte_level(use_regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
    }

    fn split(pattern: &str) -> Value {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    }

    fn digits(individual: bool) -> Value {
        let digits = json!({"type": "Digits", "individual_digits": individual});
        json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})
    }

    fn cut_ones() -> Vec<Tokenizer> {
        let splitters = [byte_level(true), digits(true), digits(false)];
        let splitters = splitters.into_iter().chain(SPLITS.map(split));
        splitters
            .flat_map(|splitter| {
                [Value::Null, json!({"type": "NFC"})]
                    .map(|normalizer| tokenizer(splitter.clone(), normalizer))
            })
            .collect()
    }

    fn texts() -> impl Strategy<Value = String> {
        let mut parts: Vec<&str> = "a B s ' . 1 2 é e\u{301} \u{a0} \u{85} \u{200b} \u{3000} 中 \u{301} <|im_end|> <s> < s 've 'LL"
            .split(' ')
            .collect();
        // Most of them, as they are what it is about.
        parts.extend([" ", " ", "  ", "\n", "\n", "\n\n", "\r\n", "\t", "\u{b}"]);
        proptest::collection::vec(proptest::sample::select(parts), 0..24)
            .prop_map(|parts| parts.concat())
    }

    fn same(tokenizer: &Tokenizer, words: &Words, text: &str) {
        let expected = whole(tokenizer, text).unwrap();
        // The second time from memory.
        for _ in 0..2 {
            assert_eq!(words.encode(tokenizer, text).unwrap(), expected, "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn pieces_are_encoded_as_the_whole_is(texts in proptest::collection::vec(texts(), 1..8)) {
            thread_local! {
                static TOKENIZERS: Vec<(Tokenizer, Words)> = cut_ones()
                    .into_iter()
                    .map(|tokenizer| { let words = Words::of(&tokenizer).unwrap(); (tokenizer, words) })
                    .collect();
            }
            TOKENIZERS.with(|tokenizers| {
                for (tokenizer, words) in tokenizers {
                    for text in &texts {
                        same(tokenizer, words, text);
                    }
                }
            });
        }
    }

    #[test]
    fn memory_is_bounded_and_long_pieces_are_not_kept() {
        let tokenizer = tokenizer(byte_level(true), Value::Null);
        let words = Words::of(&tokenizer).unwrap();
        for number in 0..REMEMBERED + 10 {
            words.encode(&tokenizer, &format!("a{number}")).unwrap();
        }
        same(&tokenizer, &words, &"x".repeat(LONGEST + 1));
        let known = KNOWN.take();
        assert_eq!(known.pieces.len(), 10);
    }

    #[test]
    fn a_thread_that_meets_another_tokenizer_forgets_the_first() {
        let [one, other] = [byte_level(true), split(SPLITS[0])].map(|splitter| {
            let tokenizer = tokenizer(splitter, Value::Null);
            let words = Words::of(&tokenizer).unwrap();
            (tokenizer, words)
        });
        for (tokenizer, words) in [&one, &other, &one] {
            same(tokenizer, words, "a.\n\nB  's 12");
        }
    }

    #[test]
    fn other_tokenizers_are_left_alone() {
        let refused = |splitter, normalizer| Words::of(&tokenizer(splitter, normalizer)).is_none();
        assert!(refused(Value::Null, Value::Null));
        assert!(refused(split(r"\s+"), Value::Null));
        assert!(refused(byte_level(false), Value::Null));
        assert!(refused(byte_level(true), json!({"type": "Lowercase"})));
        let mut prefixed = byte_level(true);
        prefixed["add_prefix_space"] = true.into();
        assert!(refused(prefixed, Value::Null));
        for (content, lstrip) in [("<a b>", false), ("<a\n>", false), ("<mask>", true)] {
            let mut tokenizer = tokenizer(byte_level(true), Value::Null);
            let token = tokenizers::AddedToken::from(content, true).lstrip(lstrip);
            tokenizer.add_special_tokens([token]).unwrap();
            assert!(Words::of(&tokenizer).is_none(), "{content:?}");
        }
    }
}
