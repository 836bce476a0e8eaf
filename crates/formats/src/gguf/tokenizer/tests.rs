use tokenizers::Tokenizer;

use super::super::file::GgufFile;
use super::super::testing::Builder;
use super::*;

fn files(builder: &Builder) -> Result<TokenizerFiles, GgufTokenizerError> {
    let (_root, path) = builder.write();
    tokenizer_files(GgufFile::open(path).unwrap().metadata())
}

pub(super) fn tokenizer(builder: &Builder) -> Tokenizer {
    Tokenizer::from_bytes(files(builder).unwrap().tokenizer_json).unwrap()
}

pub(super) fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

/// Ids: 0 `<s>`, 1 `<pad>`, 2 `<x>` (user-defined), then the tokens given.
fn bpe(pre: &str, tokens: &[&str], merges: &[&str]) -> Builder {
    let mut all = vec!["<s>", "<pad>", "<x>"];
    all.extend(tokens);
    let mut kinds = vec![1; all.len()];
    kinds[..3].copy_from_slice(&[3, 3, 4]);
    Builder::new()
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &all)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", merges)
        .u32("tokenizer.ggml.bos_token_id", 0)
}

#[test]
fn digits_by_pre_tokenizer() {
    let tokens = ["1", "11", "111", "Ġ", "Ġ1"];
    let merges = ["1 1", "11 1", "Ġ 1"];
    for (pre, text, expected) in [
        ("smollm", "111", &[3, 3, 3][..]),
        ("gpt-2", "111", &[5]),
        ("llama-bpe", "1111", &[5, 3]),
        ("llama3", "1111", &[5, 3]),
        ("dbrx", "1111", &[5, 3]),
        ("refact", "111", &[3, 3, 3]),
        ("deepseek-r1-qwen", "111", &[3, 3, 3]),
        ("mellum", "111", &[5]),
        ("qwen2", "111", &[3, 3, 3]),
        ("tekken", "111", &[3, 3, 3]),
        ("gpt-4o", "1111", &[5, 3]),
        ("chatglm-bpe", "1111", &[5, 3]),
        ("glm4", "1111", &[5, 3]),
        ("default", "1111", &[5, 3]),
        ("gpt-2", " 1", &[7]),
        ("smollm", " 1", &[6, 3]),
        ("llama-bpe", " 1", &[6, 3]),
    ] {
        let tokenizer = tokenizer(&bpe(pre, &tokens, &merges));
        assert_eq!(ids(&tokenizer, text), expected, "{pre} {text:?}");
    }
}

#[test]
fn special_and_added_tokens() {
    let tokenizer = tokenizer(&bpe("gpt-2", &["a", "x", "<", ">"], &[]));
    assert_eq!(ids(&tokenizer, "a<s>a<x>x"), [3, 0, 3, 2, 4]);
    assert_eq!(tokenizer.decode(&[3, 0, 2, 4], true).unwrap(), "a<x>x");
    assert_eq!(tokenizer.decode(&[3, 0, 2, 4], false).unwrap(), "a<s><x>x");
    assert_eq!(tokenizer.get_vocab_size(true), 7);
}

#[test]
fn bos_is_added_where_the_file_or_the_family_says_so() {
    let with_special = |builder: Builder| {
        let tokenizer = tokenizer(&builder);
        tokenizer.encode("a", true).unwrap().get_ids().to_vec()
    };
    let key = "tokenizer.ggml.add_bos_token";
    let tokens = ["a"];
    assert_eq!(with_special(bpe("gpt-2", &tokens, &[])), [3]);
    assert_eq!(
        with_special(bpe("gpt-2", &tokens, &[]).bool(key, true)),
        [0, 3]
    );
    assert_eq!(with_special(bpe("llama-bpe", &tokens, &[])), [0, 3]);
    assert_eq!(
        with_special(bpe("llama-bpe", &tokens, &[]).bool(key, false)),
        [3]
    );
    let both = bpe("gpt-2", &tokens, &[])
        .bool(key, true)
        .bool("tokenizer.ggml.add_eos_token", true)
        .u32("tokenizer.ggml.eos_token_id", 1);
    assert_eq!(with_special(both), [0, 3, 1]);
}

#[test]
fn llama3_takes_whole_tokens_without_merging() {
    let tokenizer = tokenizer(&bpe("llama-bpe", &["a", "b", "ab"], &[]));
    assert_eq!(ids(&tokenizer, "ab"), [5]);
}

#[test]
fn dbrx_splits_as_llama3_and_merges_whole_tokens() {
    let tokenizer = tokenizer(&bpe("dbrx", &["a", "b", "ab"], &[]));
    assert_eq!(ids(&tokenizer, "ab"), [3, 4]);
}

#[test]
fn qwen2_normalises() {
    let tokenizer = tokenizer(&bpe("qwen2", &["Ã", "©", "Ã©"], &["Ã ©"]));
    assert_eq!(ids(&tokenizer, "e\u{301}"), [5]);
}

/// A word ends where a small letter is followed by a capital one, and slashes stay with the line break before them.
#[test]
fn tekken_splits_by_case() {
    let tokens = ["a", "B", "aB", "Ba", "BB", "/", "Ċ", "/Ċ", "Ċ/"];
    let merges = ["a B", "B a", "B B", "Ċ /", "/ Ċ"];
    let split = |pre, text| ids(&tokenizer(&bpe(pre, &tokens, &merges)), text);
    // Ba, not aB.
    assert_eq!(split("tekken", "aBa"), [3, 6]);
    assert_eq!(split("qwen2", "aBa"), [5, 3]);
    assert_eq!(split("tekken", "BB"), [7]);
    assert_eq!(split("tekken", "/\n/"), [8, 11]);
    assert_eq!(split("qwen2", "/\n/"), [10, 8]);
    let whole = tokenizer(&bpe("tekken", &["a", "b", "ab"], &[]));
    // A token is taken whole, and BOS stands before a text.
    assert_eq!(whole.encode("ab", true).unwrap().get_ids(), [0, 5]);
}

/// As Tekken's, but an apostrophe and what it shortens stay with their word.
#[test]
fn gpt_4o_splits_by_case_and_keeps_contractions() {
    let tokens = ["a", "B", "'", "s", "S", "aB", "Ba", "'s", "a's", "'S"];
    let merges = ["a B", "B a", "' s", "a 's", "' S"];
    let split = |pre, text| ids(&tokenizer(&bpe(pre, &tokens, &merges)), text);
    assert_eq!(split("gpt-4o", "aBa"), [3, 9]);
    assert_eq!(split("gpt-4o", "a's"), [11]);
    assert_eq!(split("tekken", "a's"), [3, 10]);
    assert_eq!(split("gpt-4o", "a'S"), [3, 12]);
    // A text has no first token unless the file says so, and whole tokens are merged.
    let whole = tokenizer(&bpe("gpt-4o", &["a", "b", "ab"], &[]));
    assert_eq!(whole.encode("ab", true).unwrap().get_ids(), [3, 4]);
}

/// GLM 4's files have Llama 3's expression, and merge all pieces.
#[test]
fn chatglm_splits_as_llama3_and_merges_whole_tokens() {
    for pre in ["chatglm-bpe", "glm4"] {
        let tokenizer = tokenizer(&bpe(pre, &["a", "b", "ab", "'", "s"], &[]));
        assert_eq!(
            tokenizer.encode("ab's", true).unwrap().get_ids(),
            [3, 4, 6, 7]
        );
    }
}

#[test]
fn what_cannot_be_rebuilt_is_named() {
    let message = |builder: Builder| files(&builder).unwrap_err().to_string();
    assert!(message(bpe("falcon", &["a"], &[])).contains("\"falcon\""));
    let missing = bpe("gpt-2", &["a"], &[]).without("tokenizer.ggml.pre");
    assert!(message(missing).contains("pre is \"\""));
    let model = bpe("gpt-2", &["a"], &[])
        .without("tokenizer.ggml.model")
        .string("tokenizer.ggml.model", "bert");
    assert!(message(model).contains("\"bert\""));
    assert!(message(bpe("gpt-2", &["a", "a"], &[])).contains("two ids 3 and 4"));
    // As in files of Gemma 4 that llama.cpp does not load.
    let twice = Builder::new()
        .string("tokenizer.ggml.model", "gemma4")
        .strings("tokenizer.ggml.tokens", &["<pad>", "//", "<bos>", "//"])
        .strings("tokenizer.ggml.merges", &[]);
    let twice = message(twice);
    assert!(
        twice.contains("the token \"//\" has the two ids 1 and 3"),
        "{twice}"
    );
    assert!(message(bpe("gpt-2", &["a"], &["a"])).contains("merge 0"));
    assert!(message(bpe("gpt-2", &["a"], &["a a a"])).contains("merge 0"));
    assert!(message(bpe("gpt-2", &["a"], &["a a"])).contains("\"aa\""));
    let outside = bpe("gpt-2", &["a"], &[]).u32("tokenizer.ggml.eos_token_id", 99);
    assert!(message(outside).contains("eos_token_id is 99"));
    let kinds = bpe("gpt-2", &["a"], &[])
        .without("tokenizer.ggml.token_type")
        .i32s("tokenizer.ggml.token_type", &[1]);
    assert!(message(kinds).contains("1 entries"));
}

/// Ids: `<unk>`, `<s>`, `</s>`, two bytes, then pieces whose scores fall in the order given.
fn sentencepiece(pieces: &[(&str, f32)]) -> Builder {
    let mut tokens = vec!["<unk>", "<s>", "</s>", "<0x0A>", "<0x21>"];
    tokens.extend(pieces.iter().map(|(piece, _)| *piece));
    let mut kinds = vec![2, 3, 3, 6, 6];
    kinds.resize(tokens.len(), 1);
    let mut scores = vec![0.0; 5];
    scores.extend(pieces.iter().map(|(_, score)| *score));
    Builder::new()
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

const PIECES: [(&str, f32); 7] = [
    ("\u{2581}a", -1.0),
    ("ab", -2.0),
    ("abc", -3.0),
    ("\u{2581}", -10.0),
    ("a", -11.0),
    ("b", -12.0),
    ("c", -13.0),
];

#[test]
fn sentencepiece_joins_by_score() {
    let tokenizer = tokenizer(&sentencepiece(&PIECES));
    // The best-scoring pair first: ▁a before ab.
    assert_eq!(ids(&tokenizer, "ab"), [5, 10]);
    assert_eq!(ids(&tokenizer, "cab"), [8, 11, 6]);
    assert_eq!(ids(&tokenizer, "b abc"), [8, 10, 5, 10, 11]);
    assert_eq!(ids(&tokenizer, "babc"), [8, 10, 7]);
}

#[test]
fn sentencepiece_falls_back_to_bytes() {
    let tokenizer = tokenizer(&sentencepiece(&PIECES));
    assert_eq!(ids(&tokenizer, "a\n!"), [5, 3, 4]);
    assert_eq!(ids(&tokenizer, "a?"), [5, 0]);
    assert_eq!(tokenizer.decode(&[5, 3, 4, 8, 9], true).unwrap(), "a\n! a");
    let with_bos = tokenizer.encode("a", true).unwrap();
    assert_eq!(with_bos.get_ids(), [1, 5]);
    assert_eq!(ids(&tokenizer, "<s>a</s>"), [1, 5, 2]);
}

#[test]
fn sentencepiece_without_space_prefix() {
    let builder = sentencepiece(&PIECES).bool("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = tokenizer(&builder);
    assert_eq!(ids(&tokenizer, "ab a"), [6, 5]);
    assert_eq!(tokenizer.decode(&[6, 5], true).unwrap(), "ab a");
}

#[test]
fn sentencepiece_needs_a_score_for_every_token() {
    let scores = sentencepiece(&PIECES)
        .without("tokenizer.ggml.scores")
        .f32s("tokenizer.ggml.scores", &[1.0]);
    let message = files(&scores).unwrap_err().to_string();
    assert!(message.contains("scores has 1 entries"), "{message}");
    let long = "x".repeat(2000);
    let message = files(&sentencepiece(&[(&long, 0.0)]))
        .unwrap_err()
        .to_string();
    assert!(message.contains("at most 1024"), "{message}");
}
