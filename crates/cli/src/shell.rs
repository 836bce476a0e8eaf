//! Commands as they are shown to the user: pasted into a shell they do what they say.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

/// A command of this program, with everything quoted that a shell would read otherwise.
///
/// ```ignore
/// let line = CommandLine::new("train").flag("--resume", "my run");
/// assert_eq!(line.to_string(), "backdraft train --resume 'my run'");
/// ```
#[derive(Debug, Clone)]
pub(crate) struct CommandLine(String);

impl CommandLine {
    /// `backdraft COMMAND`.
    pub(crate) fn new(command: &str) -> Self {
        Self(format!("backdraft {command}"))
    }

    /// A flag with a value.
    pub(crate) fn flag(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref().to_string_lossy();
        match value.starts_with('-') {
            // Apart from its flag it would be read as another one.
            true => self.push(&quote(&format!("{name}={value}"))),
            false => self.push(name).push(&quote(&value)),
        }
    }

    /// A flag whose value may be missing; then it is left out.
    pub(crate) fn optional(self, name: &str, value: Option<impl AsRef<OsStr>>) -> Self {
        match value {
            Some(value) => self.flag(name, value),
            None => self,
        }
    }

    /// A flag without a value.
    pub(crate) fn switch(self, name: &str) -> Self {
        self.push(name)
    }

    /// A path that stands without a flag.
    pub(crate) fn path(self, path: &Path) -> Self {
        let path = path.to_string_lossy();
        match path.starts_with('-') {
            true => self.push(&quote(&format!("./{path}"))),
            false => self.push(&quote(&path)),
        }
    }

    /// A text that stands without a flag: the last part of a command.
    pub(crate) fn text(self, text: &str) -> Self {
        match text.starts_with('-') {
            true => self.push("--").push(&quote(text)),
            false => self.push(&quote(text)),
        }
    }

    fn push(mut self, word: &str) -> Self {
        self.0.push(' ');
        self.0.push_str(word);
        self
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One word for a shell: as it is where no shell reads it otherwise, else in quotes.
pub(crate) fn quote(word: &str) -> Cow<'_, str> {
    let plain =
        |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c) || cfg!(windows) && c == '\\';
    // `=` in front means something to zsh.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(plain) {
        return Cow::Borrowed(word);
    }
    if cfg!(windows) {
        return Cow::Owned(format!("\"{}\"", word.replace('"', "\\\"")));
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_only_where_it_must() {
        let line = CommandLine::new("generate")
            .flag("--model", "org/name@main")
            .flag("--adapter", "my run/adapter")
            .switch("--chat");
        assert_eq!(
            line.to_string(),
            "backdraft generate --model org/name@main --adapter 'my run/adapter' --chat"
        );
        let line = CommandLine::new("train")
            .path(Path::new("-r.toml"))
            .flag("--set", "data.prompt_template=\"it's {output}\"")
            .flag("--output-dir", "-out");
        assert_eq!(
            line.to_string(),
            r#"backdraft train ./-r.toml --set 'data.prompt_template="it'\''s {output}"' --output-dir=-out"#
        );
        assert_eq!(
            CommandLine::new("x").text("- a").to_string(),
            "backdraft x -- '- a'"
        );
    }

    /// What a real shell makes of it.
    #[cfg(unix)]
    #[test]
    fn a_shell_reads_back_what_was_meant() {
        for word in [
            "a b", "it's", "\"", "$HOME", "`id`", "a\\b", "~", "~/x", "*", "a;b", "a&b", "(x)",
            "#x", "", "!x", "a\nb", "é中", "x=y", "=x", "{a,b}", "[a]", "'", "''", "\t", "a|b",
            "<x>", "-x",
        ] {
            let script = format!("printf %s {}", quote(word));
            let out = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            // `printf %s -x` would do too; what counts is the word.
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word, "{script}");
        }
    }
}
