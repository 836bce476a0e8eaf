use clap::CommandFactory;
use insta::assert_snapshot;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn refused(line: &str) -> String {
    match parse(line) {
        Ok(cli) => panic!("expected a usage error, got {cli:?}"),
        Err(error) => {
            assert_eq!(error.exit_code(), i32::from(crate::error::USAGE));
            error.to_string()
        }
    }
}

/// The help of a command as `--help` prints it.
fn help(command: &str) -> String {
    let mut cli = Cli::command().term_width(100);
    cli.build();
    let command = match command {
        "" => &mut cli,
        name => cli.find_subcommand_mut(name).unwrap(),
    };
    let text = command.render_long_help().to_string();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_shows_an_example_that_parses() {
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<&str> =
            help.lines().filter_map(|line| line.strip_prefix("  backdraft ")).collect();
        assert!(!examples.is_empty(), "{}", command.get_name());
        for example in examples {
            let quoted = example.split('"').enumerate();
            let mut words = vec!["backdraft".to_owned()];
            for (index, part) in quoted {
                if index % 2 == 1 {
                    words.push(part.to_owned());
                } else {
                    words.extend(part.split_whitespace().map(str::to_owned));
                }
            }
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{example}: {error}");
            }
        }
    }
}

#[test]
fn global_flags_stand_before_or_behind_the_command() {
    for line in ["backdraft --json --device cpu init", "backdraft init --json --device cpu"] {
        let global = parse(line).unwrap().global;
        assert!(global.json);
        assert_eq!(global.device, Some(DeviceArg::Cpu));
    }
}

#[test]
fn lines_that_mean_nothing_are_refused() {
    assert_snapshot!(refused("backdraft trian recipe.toml"), @"");
    assert_snapshot!(refused("backdraft train"), @"");
    assert_snapshot!(refused("backdraft generate --model m.gguf --temperature -1 hi"), @"");
    assert_snapshot!(refused("backdraft generate --model m.gguf --top-p 1.5 hi"), @"");
    assert_snapshot!(refused("backdraft generate --model m.gguf"), @"");
    assert_snapshot!(refused("backdraft init --device cuda"), @"");
}

#[test]
fn help_of_the_program() {
    assert_snapshot!(help(""), @"");
}

#[test]
fn help_of_train() {
    assert_snapshot!(help("train"), @"");
}

#[test]
fn help_of_generate() {
    assert_snapshot!(help("generate"), @"");
}

#[test]
fn help_of_eval() {
    assert_snapshot!(help("eval"), @"");
}

#[test]
fn help_of_score() {
    assert_snapshot!(help("score"), @"");
}

#[test]
fn help_of_merge() {
    assert_snapshot!(help("merge"), @"");
}

#[test]
fn help_of_inspect() {
    assert_snapshot!(help("inspect"), @"");
}

#[test]
fn help_of_init() {
    assert_snapshot!(help("init"), @"");
}

#[test]
fn help_of_quickstart() {
    assert_snapshot!(help("quickstart"), @"");
}
