//! Access tokens where none should be.

use std::fs;
use std::path::Path;

use backdraft_formats::FormatError;

use crate::error::CliError;

/// Whether a file holds what an access token of the hub looks like, or the one that is in use.
pub(super) fn holds_token(path: &Path) -> Result<bool, CliError> {
    let bytes = fs::read(path).map_err(FormatError::io(path, "read"))?;
    let own = std::env::var("HF_TOKEN").unwrap_or_default();
    let own = own.trim().as_bytes();
    let has_own = own.len() >= 8 && bytes.windows(own.len()).any(|window| window == own);
    Ok(has_own || looks_like_token(&bytes))
}

/// `hf_` or `api_org_`, and 30 letters and digits or more.
pub(super) fn looks_like_token(bytes: &[u8]) -> bool {
    [b"hf_".as_slice(), b"api_org_"].iter().any(|start| {
        let starts = bytes.windows(start.len()).enumerate();
        let mut starts = starts.filter(|(_, window)| window == start);
        starts.any(|(at, _)| {
            let rest = bytes[at + start.len()..].iter();
            let apart = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
            apart && rest.take_while(|byte| byte.is_ascii_alphanumeric()).count() >= 30
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_from_words() {
        let token = format!("\"hf_{}\"", "aB3".repeat(12));
        assert!(looks_like_token(token.as_bytes()));
        let short = format!("hf_-{}", "aB3".repeat(12));
        let inner = format!("x{}", &token[1..]);
        for harmless in ["hf_hub", &short, &inner] {
            assert!(!looks_like_token(harmless.as_bytes()), "{harmless}");
        }
    }
}
