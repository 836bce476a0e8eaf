//! Words of a command that the user is shown, quoted so that a shell reads them back.

use std::borrow::Cow;

/// `word` as a shell takes it: as it is, or in single quotes.
pub(crate) fn quote(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        Cow::Borrowed(word)
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
    }
}

/// A path as a shell takes it.
pub(crate) fn path(path: &std::path::Path) -> String {
    quote(&path.display().to_string()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_quotes_has_them() {
        for (word, quoted) in [
            ("outputs/adapter", "outputs/adapter"),
            ("my runs/a", "'my runs/a'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("a;rm b", "'a;rm b'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quote(word), quoted);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for word in [
            "plain",
            "two words",
            "it's \"so\"",
            "a\\b",
            "*?[x]",
            "~user",
            "ü → ;&|<>()#!",
        ] {
            let command = format!("printf %s {}", quote(word));
            let output = std::process::Command::new("sh")
                .args(["-c", &command])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
