//! Command lines that clap refuses, help and version: as text, or as JSON where `--json` stands anywhere on the line.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use backdraft_recipe::{KEYS, nearest_key};
use clap::CommandFactory;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde_json::json;

use crate::about;
use crate::args::Cli;
use crate::error::{CliError, USAGE};
use crate::output::Output;
use crate::shell;

/// The recipe that `init` writes.
const RECIPE: &str = "recipe.toml";

/// Whether `--json` is among the flags.
pub(crate) fn wants_json(words: &[OsString]) -> bool {
    flags(words).any(|word| word == "--json")
}

/// The words after the program's name, up to `--`.
fn flags(words: &[OsString]) -> impl Iterator<Item = &OsStr> {
    let words = words.iter().skip(1).map(OsString::as_os_str);
    words.take_while(|word| *word != "--")
}

/// Says what clap found: help, the version, or what is wrong with the line.
pub(crate) fn answer(mut error: clap::Error, words: &[OsString], json: bool) -> ExitCode {
    let output = Output::new(json);
    let told = match error.kind() {
        ErrorKind::DisplayVersion if flags(words).any(|word| word == "--version") || json => {
            about::show(output)
        }
        ErrorKind::DisplayHelp if json => {
            let text = error.render().to_string();
            output.record("help", &json!({ "text": text }))
        }
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away needs no help.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        _ => {
            advise(&mut error, words);
            if json {
                return refusal(&error).report(true);
            }
            // Standard error may be closed; the exit code still tells.
            let _ = error.print();
            return ExitCode::from(USAGE);
        }
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(json),
    }
}

/// Puts what helps in the place of clap's general tips.
fn advise(error: &mut clap::Error, words: &[OsString]) {
    let tip = match error.kind() {
        ErrorKind::UnknownArgument => {
            // "To pass it as a value, use -- --flag" helps with none of our flags.
            error.remove(ContextKind::Suggested);
            recipe_key(error, words)
        }
        ErrorKind::MissingRequiredArgument => recipe_here(words),
        _ => None,
    };
    if let Some(tip) = tip {
        let tips = vec![StyledStr::from(tip)];
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
}

/// `--lr 1e-4` is a key of the recipe: how to set it from the command line.
fn recipe_key(error: &mut clap::Error, words: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let flag = flag.clone();
    let name = flag.strip_prefix("--")?.replace(['-', '.'], "_");
    if !takes_set(words) {
        return None;
    }
    let key = match KEYS.iter().find(|key| key.path.replace('.', "_") == name) {
        Some(key) => key.path.to_owned(),
        None => nearest_key(&name)?,
    };
    let flag_of_key = format!("--{}", key.rsplit('.').next()?.replace('_', "-"));
    let like_it = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(other)) => *other == flag_of_key,
        _ => true,
    };
    if !like_it {
        error.remove(ContextKind::SuggestedArg);
    }
    let value = value_of(&flag, words).unwrap_or_else(|| "VALUE".to_owned());
    let set = shell::quote(&format!("{key}={value}")).into_owned();
    Some(format!("to set this key of the recipe, use '--set {set}'"))
}

/// Whether the command on this line takes `--set`.
fn takes_set(words: &[OsString]) -> bool {
    let mut cli = Cli::command();
    cli.build();
    let mut command = &cli;
    for word in flags(words).filter_map(OsStr::to_str) {
        if let Some(next) = command.find_subcommand(word) {
            command = next;
        }
    }
    command
        .get_arguments()
        .any(|arg| arg.get_long() == Some("set"))
}

/// The value that follows a flag, or stands in it after `=`.
fn value_of(flag: &str, words: &[OsString]) -> Option<String> {
    let words: Vec<&str> = flags(words).filter_map(OsStr::to_str).collect();
    let inline = words
        .iter()
        .find_map(|word| word.strip_prefix(flag)?.strip_prefix('='));
    let next = || {
        let at = words.iter().position(|word| *word == flag)?;
        words
            .get(at + 1)
            .copied()
            .filter(|word| !word.starts_with("--"))
    };
    inline.or_else(next).map(str::to_owned)
}

/// `train` without a recipe, where `init` has left one.
fn recipe_here(words: &[OsString]) -> Option<String> {
    let command = flags(words)
        .filter_map(OsStr::to_str)
        .find(|word| !word.starts_with('-'))?;
    let takes = matches!(command, "train" | "plan") && std::path::Path::new(RECIPE).is_file();
    takes.then(|| format!("{RECIPE} is in this directory: backdraft {command} {RECIPE}"))
}

/// The refusal as an error of ours: its first lines, and the tip or the usage as the hint.
fn refusal(error: &clap::Error) -> CliError {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return CliError::usage("expected a command, found none")
            .hint("`backdraft --help` lists the commands");
    }
    let text = error.render().to_string();
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message: Vec<&str> = lines()
        .take_while(|line| {
            !["tip:", "Usage:", "For more information"]
                .iter()
                .any(|end| line.starts_with(end))
        })
        .collect();
    let message = message.join(" ");
    let refused = CliError::usage(message.strip_prefix("error: ").unwrap_or(&message));
    let tips: Vec<&str> = lines()
        .filter_map(|line| line.strip_prefix("tip: "))
        .collect();
    let usage = || lines().find(|line| line.starts_with("Usage:"));
    match (tips.is_empty(), usage()) {
        (false, _) => refused.hint(tips.join("; ")),
        (true, Some(usage)) => refused.hint(usage),
        (true, None) => refused,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use insta::assert_snapshot;

    use super::*;

    fn refused(line: &str) -> (String, CliError) {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let mut error = Cli::try_parse_from(&words).unwrap_err();
        advise(&mut error, &words);
        (error.to_string(), refusal(&error))
    }

    #[test]
    fn a_flag_that_is_a_key_of_the_recipe_names_it() {
        assert_snapshot!(refused("backdraft train r.toml --lr 1e-4").0, @"
        error: unexpected argument '--lr' found

          tip: to set this key of the recipe, use '--set train.learning_rate=1e-4'

        Usage: backdraft train <RECIPE>

        For more information, try '--help'.
        ");
        let tip = |line: &str| {
            let json: serde_json::Value = serde_json::from_str(&refused(line).1.to_json()).unwrap();
            json["hint"].as_str().unwrap_or_default().to_owned()
        };
        let sets = |line: &str, set: &str| {
            let tip = tip(line);
            assert!(tip.contains(&format!("'--set {set}'")), "{line}: {tip}");
        };
        sets(
            "backdraft train r.toml --lr 1e-4",
            "train.learning_rate=1e-4",
        );
        sets(
            "backdraft train r.toml --learning-rate=3e-4",
            "train.learning_rate=3e-4",
        );
        sets("backdraft --json train --seed 7 r.toml", "seed=7");
        sets("backdraft train r.toml --lora-r 32", "lora.rank=32");
        sets(
            "backdraft train r.toml --batch-size 4",
            "train.micro_batch_size=4",
        );
        sets(
            "backdraft train r.toml --num-train-epochs 1",
            "train.epochs=1",
        );
        sets("backdraft train r.toml --epochs", "train.epochs=VALUE");
        sets("backdraft train r.toml --lora-rank 8", "lora.rank=8");
        sets(
            "backdraft train r.toml --train.weight-decay 0",
            "train.weight_decay=0",
        );
        sets(
            "backdraft plan r.toml --max-seq-length 512",
            "max_seq_length=512",
        );
        sets(
            "backdraft data preview r.toml --train-on responses",
            "data.train_on=responses",
        );
        // Where there is no --set, it is not named.
        assert!(!tip("backdraft watch outputs --lr 1").contains("--set"));
    }

    #[test]
    fn a_refusal_has_a_message_and_what_helps() {
        assert_snapshot!(refused("backdraft trian x").1.to_json(), @r#"{"event":"error","schema_version":1,"error":"unrecognized subcommand 'trian'","problems":[],"causes":[],"hint":"a similar subcommand exists: 'train'","exit_code":2}"#);
        assert_snapshot!(refused("backdraft eval --model x").1.to_json(), @r#"{"event":"error","schema_version":1,"error":"the following required arguments were not provided: --data <ROWS>","problems":[],"causes":[],"hint":"Usage: backdraft eval --model <MODEL> --data <ROWS> [RECIPE]","exit_code":2}"#);
        assert_snapshot!(refused("backdraft").1.to_json(), @r#"{"event":"error","schema_version":1,"error":"expected a command, found none","problems":[],"causes":[],"hint":"`backdraft --help` lists the commands","exit_code":2}"#);
        assert_snapshot!(refused("backdraft init --format csv").1.to_json(), @r#"{"event":"error","schema_version":1,"error":"invalid value 'csv' for '--format <FORMAT>' [possible values: auto, messages, alpaca, sharegpt, prompt_completion, text, preference, unpaired]","problems":[],"causes":[],"hint":null,"exit_code":2}"#);
    }

    #[test]
    fn json_is_found_wherever_it_stands() {
        let wants = |line: &str| {
            wants_json(
                &line
                    .split_whitespace()
                    .map(OsString::from)
                    .collect::<Vec<_>>(),
            )
        };
        assert!(wants("backdraft --json trian x"));
        assert!(wants("backdraft train r.toml --lr 1 --json"));
        assert!(!wants("backdraft generate --model m -- --json"));
        assert!(!wants("--json"));
    }
}
