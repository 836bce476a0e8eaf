//! What the user sees when something goes wrong, and the exit code.

use std::error::Error;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use backdraft_data::{DataError, TemplateError};
use backdraft_formats::FormatError;
use backdraft_formats::hub::HubError;
use backdraft_formats::hub::push::PushError;
use backdraft_lora::MergeError;
use backdraft_model::{LoadError, QuantizeError};
use backdraft_recipe::{ObjectiveKind, RecipeError};
use backdraft_train::TrainError;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};

use crate::shell::{CommandLine, quote};
use crate::{about, envelope, output};

/// Exit code for a mistake in what the user gave: a file, a recipe, a model.
pub(crate) const USER: u8 = 1;
/// Exit code for a command line that means nothing; clap's too.
pub(crate) const USAGE: u8 = 2;
/// Exit code of a run that a signal ended, as shells have it for Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;
/// Exit code for a bug in the program.
pub(crate) const INTERNAL: u8 = 255;

type Source = Box<dyn Error + Send + Sync>;

/// An error as the user sees it: what is wrong, why, and what to do next.
#[derive(Debug)]
pub(crate) struct CliError {
    body: Body,
    hint: Option<String>,
    /// What is wrong, one by one, where that is more than one sentence.
    problems: Vec<String>,
    code: u8,
    silent: bool,
}

#[derive(Debug)]
enum Body {
    /// A library's error, with its own message and causes.
    Library(Source),
    /// A message of the program, and what caused it.
    Message(String, Option<Source>),
}

impl CliError {
    /// A mistake in what the user gave.
    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self::new(Body::Message(message.into(), None), USER)
    }

    /// A command line that means nothing.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Body::Message(message.into(), None), USAGE)
    }

    /// A library's error about what the user gave.
    pub(crate) fn library(error: impl Error + Send + Sync + 'static) -> Self {
        Self::new(Body::Library(Box::new(error)), USER)
    }

    /// A library's error of a type that is not named.
    pub(crate) fn boxed(error: Source) -> Self {
        Self::new(Body::Library(error), USER)
    }

    /// A bug: something that no input should bring about.
    pub(crate) fn internal(error: impl Error + Send + Sync + 'static) -> Self {
        let body = Body::Message("internal error".to_owned(), Some(Box::new(error)));
        Self::new(body, INTERNAL).hint(format!("this is a bug; please report it at {ISSUES}"))
    }

    /// A signal ended the run, which has said so itself.
    pub(crate) fn interrupted() -> Self {
        let body = Body::Message("the run was interrupted".to_owned(), None);
        Self {
            silent: true,
            ..Self::new(body, INTERRUPTED)
        }
    }

    /// Another process of the run failed, and its errors are told already.
    pub(crate) fn told(code: u8) -> Self {
        let body = Body::Message("another process has failed".to_owned(), None);
        Self {
            silent: true,
            ..Self::new(body, code)
        }
    }

    /// Whether a signal ended the run.
    pub(crate) const fn is_interruption(&self) -> bool {
        self.code == INTERRUPTED
    }

    const fn new(body: Body, code: u8) -> Self {
        Self {
            body,
            hint: None,
            problems: Vec::new(),
            code,
            silent: false,
        }
    }

    /// Adds what caused the error.
    pub(crate) fn because(mut self, error: impl Error + Send + Sync + 'static) -> Self {
        if let Body::Message(_, source) = &mut self.body {
            *source = Some(Box::new(error));
        }
        self
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the single problems that the message lists below its first line.
    pub(crate) fn problems(mut self, problems: impl IntoIterator<Item = String>) -> Self {
        self.problems = problems.into_iter().collect();
        self
    }

    /// Shows the error on standard error and gives the exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if !self.silent {
            let text = if json {
                self.to_json()
            } else {
                self.render(Look::of_stderr())
            };
            // Standard error may be closed; the exit code still tells.
            let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
        }
        ExitCode::from(self.code)
    }

    /// One line with `error`, `problems`, `causes`, `hint` and `exit_code`.
    pub(crate) fn to_json(&self) -> String {
        let mut causes = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        let message = self.to_string();
        // What people read as a list below the first line is a list of its own.
        let message = match self.problems.is_empty() {
            true => message.as_str(),
            false => message
                .lines()
                .next()
                .unwrap_or_default()
                .trim_end_matches(':'),
        };
        let value = serde_json::json!({
            "error": message,
            "problems": self.problems,
            "causes": causes,
            "hint": self.hint,
            "exit_code": self.code,
        });
        envelope::line_of("error", value)
    }

    /// The error for people.
    pub(crate) fn render(&self, look: Look) -> String {
        let mut handler = GraphicalReportHandler::new_themed(look.theme());
        handler = match look {
            Look::Plain => handler.with_wrap_lines(false),
            Look::Terminal { columns } => handler.with_width(columns),
        };
        if let Some(hint) = &self.hint {
            handler = handler.with_footer(format!("hint: {hint}"));
        }
        let mut text = String::new();
        match handler.render_report(&mut text, self) {
            Ok(()) => dedent(&text),
            Err(_) => format!("error: {self}"),
        }
    }
}

/// miette sets everything off by two columns and leaves blank lines; an error should be compact.
fn dedent(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| format!("{}\n", line.strip_prefix("  ").unwrap_or(line)))
        .collect()
}

/// How errors are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Look {
    /// No colour, no wrapping: for files and pipes.
    Plain,
    /// Colour, wrapped to the width of the terminal.
    Terminal {
        /// Width of the terminal in characters.
        columns: usize,
    },
}

impl Look {
    fn of_stderr() -> Self {
        if std::io::stderr().is_terminal() && output::colour_allowed() {
            Self::Terminal {
                columns: output::terminal_columns().unwrap_or(100),
            }
        } else {
            Self::Plain
        }
    }

    fn theme(self) -> GraphicalTheme {
        let mut theme = match self {
            Self::Plain => GraphicalTheme::none(),
            Self::Terminal { .. } => GraphicalTheme::unicode(),
        };
        theme.characters.error = "error:".to_owned();
        theme
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Library(error) => error.fmt(f),
            Body::Message(message, _) => f.write_str(message),
        }
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.body {
            Body::Library(error) => error.source(),
            Body::Message(_, source) => source.as_ref().map(|source| source.as_ref() as _),
        }
    }
}

impl Diagnostic for CliError {}

impl From<RecipeError> for CliError {
    fn from(error: RecipeError) -> Self {
        let hint = match &error {
            RecipeError::Read { .. } | RecipeError::Language { .. } => {
                Some("`backdraft init recipe.toml` writes a recipe to start from")
            }
            RecipeError::Invalid { .. } => {
                Some("`backdraft init example.toml` writes a recipe that explains every key")
            }
            _ => None,
        };
        let problems: Vec<String> = match &error {
            RecipeError::Invalid { problems, .. } => {
                problems.iter().map(ToString::to_string).collect()
            }
            _ => Vec::new(),
        };
        let error = Self::library(error).problems(problems);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl From<FormatError> for CliError {
    fn from(error: FormatError) -> Self {
        let exists = matches!(error, FormatError::TargetExists { .. });
        let error = Self::library(error);
        if exists {
            error.hint("choose another name, or add --force to replace it")
        } else {
            error
        }
    }
}

impl From<TrainError> for CliError {
    fn from(error: TrainError) -> Self {
        let hint = match &error {
            TrainError::OutputExists { .. } => Some(
                "choose another --output-dir, add --resume to continue the run, or --force to replace it"
                    .to_owned(),
            ),
            TrainError::RecipeInOutput { .. } => Some(
                "choose another --output-dir, such as a directory beside the recipe".to_owned(),
            ),
            TrainError::Locked { path, .. } => Some(format!(
                "wait for it, stop it, or choose another --output-dir; `{}` shows it",
                CommandLine::new("watch").path(path)
            )),
            TrainError::NothingToResume { path } => Some(format!(
                "`{}` starts a run there, where recipe.toml is a recipe of yours",
                CommandLine::new("train recipe.toml").flag("--output-dir", path)
            )),
            TrainError::NoGoodCheckpoint { .. } => Some(
                "copy one back if you have it, or start again with --force".to_owned(),
            ),
            TrainError::Checkpoint(_) => Some(
                "`--resume` with the output directory takes the newest good checkpoint".to_owned(),
            ),
            TrainError::Changed { differences, .. } => {
                let flags = (differences.iter())
                    .map(|d| format!(" --allow-change {}", quote(&d.key)));
                Some(format!(
                    "revert it, or accept it with{}",
                    flags.collect::<String>()
                ))
            }
            TrainError::SweepChanged { .. } => Some(
                "revert it, start over with --force, or choose another --output-dir".to_owned(),
            ),
            TrainError::CannotChange { .. } => {
                Some("start a new run in another --output-dir".to_owned())
            }
            TrainError::NotFinite { last_good, .. } => Some(match last_good {
                Some(path) => format!(
                    "lower train.learning_rate or look at those lines; the last good checkpoint is {}",
                    path.display()
                ),
                None => "lower train.learning_rate or look at those lines".to_owned(),
            }),
            TrainError::OutOfMemory { exhausted, .. } => {
                let advice: Vec<String> =
                    exhausted.advice.iter().map(ToString::to_string).collect();
                Some(if advice.is_empty() {
                    "no single setting helps; `backdraft plan RECIPE` shows what memory goes to"
                        .to_owned()
                } else {
                    format!("change one of these: {}", advice.join("; "))
                })
            }
            TrainError::HostBase { .. } => Some(
                "set device = \"cuda\", or base = \"device\"".to_owned(),
            ),
            TrainError::HostMemory { .. } => Some(
                "free host memory, keep fewer bits (load_in_4bit, quantization.double_quant), or set base = \"device\"".to_owned(),
            ),
            TrainError::Objective {
                kind: ObjectiveKind::Sft,
                ..
            } => Some(
                "set objective.kind = \"dpo\" (or orpo, simpo, cpo) for pairs, \"kto\" for judged answers; or name another data.format".to_owned(),
            ),
            TrainError::Objective { .. } => Some(
                "set objective.kind = \"sft\", or name the format that the rows have with data.format".to_owned(),
            ),
            TrainError::UnusedMargins { .. } => Some(
                "set objective.kind = \"reward\", or give the column another name; objective.gamma is one margin for all pairs, for reward and simpo".to_owned(),
            ),
            TrainError::TooLong { expected, .. } => {
                Some(format!("set max_seq_length = {expected} or less"))
            }
            TrainError::ForeignTemplate { .. } => Some(
                "leave data.chat_template out to use the model's own; alpaca and vicuna of `backdraft init --templates` need no special tokens".to_owned(),
            ),
            TrainError::Template(TemplateError::Broken { .. }) => Some(
                "name another template with data.chat_template (`backdraft init --templates` lists the built-in ones)".to_owned(),
            ),
            TrainError::Data { source, .. } | TrainError::Rows(source) => data_hint(source),
            TrainError::Fetch { source, .. } => {
                let hub = source.downcast_ref::<HubError>();
                hub.and_then(hub_hint).map(str::to_owned)
            }
            _ => None,
        };
        let error = Self::library(error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn data_hint(error: &DataError) -> Option<String> {
    let hint = match error {
        DataError::Cache { .. } => {
            "free some space, or keep rows in memory with data.cache = \"off\""
        }
        DataError::TooManyBadRows { .. } => {
            "fix the rows, or allow more bad ones with --skip-bad-rows N; `backdraft data check` names all of them"
        }
        DataError::Render { .. } => {
            "look at the row, or name another template with data.chat_template; --skip-bad-rows N skips up to N bad rows and lists them"
        }
        error if error.is_about_a_row() => {
            "fix the row, or skip up to N bad rows with --skip-bad-rows N; `backdraft data check` names all of them"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

impl From<LoadError> for CliError {
    fn from(error: LoadError) -> Self {
        Self::library(error)
    }
}

impl From<DataError> for CliError {
    fn from(error: DataError) -> Self {
        Self::library(error)
    }
}

impl From<MergeError> for CliError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Format(error) => error.into(),
            error => Self::library(error),
        }
    }
}

impl From<QuantizeError> for CliError {
    fn from(error: QuantizeError) -> Self {
        match error {
            QuantizeError::Format(error) => error.into(),
            QuantizeError::Load(error) => error.into(),
            error => Self::library(error),
        }
    }
}

impl From<HubError> for CliError {
    fn from(error: HubError) -> Self {
        let hint = hub_hint(&error);
        let error = Self::library(error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn hub_hint(error: &HubError) -> Option<&'static str> {
    match error {
        HubError::NotFound { name, .. } if name.starts_with('~') => {
            Some("a shell expands ~ outside quotes only; write the whole path")
        }
        HubError::Request { .. } => Some(
            "without a network, name a directory or a .gguf file; HF_HUB_OFFLINE=1 uses what the cache has without asking",
        ),
        HubError::Offline { .. } => {
            Some("unset HF_HUB_OFFLINE to download it, or name a directory or a .gguf file")
        }
        _ => None,
    }
}

impl From<PushError> for CliError {
    fn from(error: PushError) -> Self {
        let hint = push_hint(&error);
        let error = Self::library(error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn push_hint(error: &PushError) -> Option<String> {
    const AGAIN: &str = "nothing of this push is visible on the hub; the same command tries again, and sends no large file twice";
    let hint = match error {
        PushError::Token { endpoint, .. } => {
            return Some(format!(
                "make a token with the role `write` at {endpoint}/settings/tokens, and put it into HF_TOKEN"
            ));
        }
        PushError::Refused { place, .. } if error.status() == Some(401) => {
            return Some(format!(
                "it may have expired: make a token with the role `write` at {place}/settings/tokens, and put it into HF_TOKEN"
            ));
        }
        PushError::Refused { .. } if error.is_quota() => {
            "free storage there, send to another organisation, or leave files out with --exclude"
        }
        PushError::Refused { .. } => match error.status() {
            Some(403) => {
                "the token needs the role `write`, and you the right to write to that organisation"
            }
            Some(404 | 409) => {
                "check the spelling of --repo and --revision; a repository of that name may belong to somebody else"
            }
            Some(413) => {
                "split the files (`export --split-size`), or leave some out with --exclude"
            }
            Some(408 | 429 | 500..) => AGAIN,
            _ => return None,
        },
        PushError::Offline { .. } => "unset HF_HUB_OFFLINE to send, or look with --dry-run",
        PushError::Network { .. } => AGAIN,
        PushError::Uncertain { .. } => {
            "look at the repository's page; the same command does no harm if it has the commit already"
        }
        PushError::Moved { .. } => "run the command again, and look at what it would replace now",
        PushError::Public { .. } => "add --public if that is meant, or name another repository",
        PushError::Renamed { .. } => "name it so in --repo",
        PushError::Changed { .. } => {
            "run the command again when nothing writes to the directory any more"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

const ISSUES: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/issues");

/// Makes a panic one clear line that says how to report it; `RUST_BACKTRACE` still brings the rest.
pub(crate) fn install_panic_hook(json: bool) {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let line = panic_line(panic);
        let value = || serde_json::json!({ "error": line, "problems": [], "causes": [], "hint": null, "exit_code": INTERNAL });
        let said = match json {
            true => envelope::line_of("error", value()),
            false => format!("error: {line}"),
        };
        let _ = writeln!(std::io::stderr(), "{said}");
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            standard(panic);
        }
    }));
}

fn panic_line(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("unknown cause");
    let place = panic
        .location()
        .map_or_else(String::new, |place| format!(" ({place})"));
    let message: Vec<&str> = message.split_whitespace().collect();
    let (message, build) = (message.join(" "), about::build());
    format!(
        "internal error: {message}{place}; this is a bug in {build}: please report this line and the command at {ISSUES}"
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backdraft_recipe::Recipe;
    use insta::assert_snapshot;

    use super::*;

    fn disk_full() -> CliError {
        let source = std::io::Error::other("No space left on device");
        CliError::user("cannot write outputs/adapter")
            .because(source)
            .hint("free some space")
    }

    #[test]
    fn shows_causes_and_the_hint() {
        assert_snapshot!(disk_full().render(Look::Plain), @"
        error: cannot write outputs/adapter
        `-> No space left on device
        hint: free some space
        ");
        assert_snapshot!(CliError::usage("no prompt").render(Look::Plain), @"error: no prompt");
    }

    #[test]
    fn draws_for_a_terminal() {
        let text = disk_full().render(Look::Terminal { columns: 40 });
        assert_snapshot!(text.replace('\u{1b}', "␛"), @"
        ␛[31merror:␛[0m cannot write outputs/adapter
        ␛[31m  ╰─▶ ␛[0mNo space left on device
        hint: free some space
        ");
    }

    #[test]
    fn says_the_same_to_programs() {
        assert_snapshot!(disk_full().to_json(), @r#"{"event":"error","schema_version":1,"error":"cannot write outputs/adapter","problems":[],"causes":["No space left on device"],"hint":"free some space","exit_code":1}"#);
    }

    #[test]
    fn problems_of_a_recipe_stand_on_their_own_lines() {
        let error =
            Recipe::from_toml("model = \"a/b\"\nsede = 1\n", Path::new("/"), &[]).unwrap_err();
        assert_snapshot!(CliError::from(error).render(Look::Plain), @r#"
        error: 2 problems in the recipe recipe.toml:
        |   line 2: unknown key `sede`; did you mean `seed`?
        |   `data.train` is missing: Training rows: a file, a folder, a glob, a hub data set (org/name:split), a table with path, weight (or epochs, or share), format and fields, or a list of these. For instance `data.train = "train.jsonl"`
        hint: `backdraft init example.toml` writes a recipe that explains every key
        "#);
    }

    #[test]
    fn a_missing_recipe_names_the_next_command() {
        let error = Recipe::load(Path::new("nowhere.toml"), &[]).unwrap_err();
        assert_snapshot!(CliError::from(error).render(Look::Plain), @"
        error: cannot read the recipe nowhere.toml
        `-> No such file or directory (os error 2)
        hint: `backdraft init recipe.toml` writes a recipe to start from
        ");
    }

    #[test]
    fn exit_codes_tell_mistakes_from_bugs() {
        let error = || std::io::Error::other("x");
        let codes = [
            CliError::library(error()),
            CliError::usage("x"),
            CliError::internal(error()),
        ];
        assert_eq!(codes.map(|error| error.code), [1, 2, 255]);
    }

    #[test]
    fn internal_errors_ask_for_a_report() {
        let error = CliError::internal(std::io::Error::other("impossible"));
        assert_snapshot!(error.render(Look::Plain), @"
        error: internal error
        `-> impossible
        hint: this is a bug; please report it at https://github.com/backdraft-rs/backdraft/issues
        ");
    }
}
