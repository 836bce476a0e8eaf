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
    let command = command
        .split_whitespace()
        .fold(&mut cli, |cli, name| cli.find_subcommand_mut(name).unwrap());
    let text = command.render_long_help().to_string();
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_shows_an_example_that_parses() {
    let cli = Cli::command();
    let nested = cli
        .get_subcommands()
        .flat_map(clap::Command::get_subcommands);
    for command in cli.get_subcommands().chain(nested) {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let examples: Vec<&str> = help
            .lines()
            .filter_map(|line| line.strip_prefix("  backdraft "))
            .collect();
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
    for line in [
        "backdraft --json --device cpu init",
        "backdraft init --json --device cpu",
    ] {
        let global = parse(line).unwrap().global;
        assert!(global.json);
        assert_eq!(global.device, Some(Choice::Cpu));
    }
}

#[test]
fn lines_that_mean_nothing_are_refused() {
    assert_snapshot!(refused("backdraft trian recipe.toml"), @"
    error: unrecognized subcommand 'trian'

      tip: a similar subcommand exists: 'train'

    Usage: backdraft [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    assert_snapshot!(refused("backdraft train"), @"
    error: the following required arguments were not provided:
      <RECIPE>

    Usage: backdraft train <RECIPE>

    For more information, try '--help'.
    ");
    assert_snapshot!(refused("backdraft generate --model m.gguf --temperature -1 hi"), @"
    error: invalid value '-1' for '--temperature <T>': expected a number, 0 or more

    For more information, try '--help'.
    ");
    assert_snapshot!(refused("backdraft generate --model m.gguf --top-p 1.5 hi"), @"
    error: invalid value '1.5' for '--top-p <P>': expected a number above 0, at most 1

    For more information, try '--help'.
    ");
    assert_snapshot!(refused("backdraft generate --model m.gguf"), @"
    error: the following required arguments were not provided:
      <PROMPT>

    Usage: backdraft generate --model <MODEL> <PROMPT>

    For more information, try '--help'.
    ");
    assert_snapshot!(refused("backdraft init --device gpu"), @r#"
    error: invalid value 'gpu' for '--device <DEVICE>': expected auto, cpu, cuda, cuda:N or wgpu, found "gpu"

    For more information, try '--help'.
    "#);
}

#[test]
fn help_of_the_program() {
    assert_snapshot!(help(""), @"
    Fine-tune Llama-class language models from one program

    Usage: backdraft [OPTIONS] <COMMAND>

    Commands:
      train       Train an adapter as a recipe says
      data        Look at rows before they are trained on
      plan        Show what a recipe needs in memory and what it recomputes, without reading the weights
      watch       Show the dashboard of a run that goes on elsewhere, or is over
      report      Write a run's report.html again, or one that compares several runs
      generate    Let a model, with or without an adapter, answer a prompt
      eval        Measure a model on a file, with and without an adapter
      score       Write the logits and the loss of every token for given token ids
      merge       Fold an adapter into a new Hugging Face directory, in the base model's number format
      quantize    Write a model in 4 or 8 bits, as bitsandbytes stores it and transformers loads it
      inspect     Show what a model, adapter, recipe or data file contains, and what it would cost to
                  train
      init        Write a recipe with every key explained, set to where to start
      quickstart  Fine-tune a small model in a few minutes, with nothing prepared
      help        Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help

      -V, --version
              Print version

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft quickstart
      backdraft init recipe.toml
      backdraft train recipe.toml
    ");
}

#[test]
fn help_of_train() {
    assert_snapshot!(help("train"), @"
    Train an adapter as a recipe says

    Usage: backdraft train [OPTIONS] [RECIPE]

    Arguments:
      [RECIPE]
              The recipe; `backdraft init` writes one

    Options:
          --resume [<DIR>]
              Go on with a run that was stopped: its output directory or one of its checkpoints
              [default: the recipe's output_dir, else outputs]

          --allow-change <KEY>
              With --resume: let this key (or section) of the recipe differ from the run's; may be given
              again

          --set <SECTION.KEY=VALUE>
              Change a value of the recipe for this run; may be given again

          --max-steps <N>
              Stop after this many optimiser steps [same as --set train.max_steps=N]

          --output-dir <DIR>
              Where the run's files go [same as --set output_dir=DIR]

          --skip-bad-rows <N>
              Pass over up to this many broken rows [same as --set data.skip_bad_rows=N]

          --force
              Replace the run that the output directory holds

          --plain
              Plain lines instead of the dashboard, also on a terminal

      -h, --help
              Print help

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft train recipe.toml
      backdraft train recipe.toml --set train.learning_rate=1e-4 --set lora.rank=32
      backdraft train recipe.toml --max-steps 5 --output-dir trial --force
      backdraft train --resume outputs
      backdraft train --resume outputs --max-steps 500 --allow-change train
    ");
}

#[test]
fn help_of_generate() {
    assert_snapshot!(help("generate"), @r#"
    Let a model, with or without an adapter, answer a prompt

    Usage: backdraft generate [OPTIONS] --model <MODEL> [PROMPT]

    Arguments:
      [PROMPT]
              What to say to the model

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name)

          --adapter <DIR>
              PEFT adapter directory to put on the model

          --quantization <FORMAT>
              How to keep the model's projections [default: as the adapter was trained, else as in the
              files]

              Possible values:
              - none: As in the files
              - nf4:  4-bit NormalFloat, scales quantised too
              - fp4:  4-bit floating point, scales quantised too
              - int8: 8 bits, one scale for each row

          --dtype <DTYPE>
              Number format of the computation [default: auto, bf16 where the device has it, else f32]

              Possible values:
              - auto: The best that the device has
              - bf16: bfloat16, with sums in f32
              - f16:  Half precision, with sums in f32
              - f32:  Single precision

          --chat
              Talk to the model line by line

          --raw
              Give the prompt to the model as it is, without its chat template

          --system <TEXT>
              System message before the prompt

          --max-new-tokens <N>
              Most tokens to write

              [default: 256]

          --temperature <T>
              Sampling temperature; 0 always takes the likeliest token

              [default: 0]

          --top-k <K>
              Choose among the K likeliest tokens

          --top-p <P>
              Choose among the likeliest tokens that together have probability P

          --seed <SEED>
              Seed of the sampling

              [default: 42]

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft generate --model HuggingFaceTB/SmolLM2-135M-Instruct "What is the capital of France?"
      backdraft generate --model model.gguf --temperature 0.7 --top-p 0.9 "Tell a story"
      backdraft generate --model model.gguf --adapter outputs/adapter --chat
    "#);
}

#[test]
fn help_of_eval() {
    assert_snapshot!(help("eval"), @r#"
    Measure a model on a file, with and without an adapter

    Reports the mean negative log-likelihood per supervised token and the perplexity; with an adapter,
    both without and with it. With --generate also the share of answers that match exactly, and that
    start with the same word.

    Usage: backdraft eval [OPTIONS] --model <MODEL> --data <ROWS>

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name)

          --adapter <DIR>
              PEFT adapter directory to put on the model

          --quantization <FORMAT>
              How to keep the model's projections [default: as the adapter was trained, else as in the
              files]

              Possible values:
              - none: As in the files
              - nf4:  4-bit NormalFloat, scales quantised too
              - fp4:  4-bit floating point, scales quantised too
              - int8: 8 bits, one scale for each row

          --dtype <DTYPE>
              Number format of the computation [default: auto, bf16 where the device has it, else f32]

              Possible values:
              - auto: The best that the device has
              - bf16: bfloat16, with sums in f32
              - f16:  Half precision, with sums in f32
              - f32:  Single precision

          --data <ROWS>
              Rows: file, folder, glob, or hub data set (org/name:split); a .txt file is cut into pieces

          --format <FORMAT>
              Shape of the rows

              Possible values:
              - auto:              Seen from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}

              [default: auto]

          --prompt-template <TEMPLATE>
              Turns alpaca rows into text, as in a recipe

          --limit <N>
              Only the first N rows

          --max-seq-length <N>
              Tokens per row; longer rows are cut and counted

              [default: 2048]

          --generate
              Also answer every row and compare with the expected answer

          --max-new-tokens <N>
              Most tokens of an answer

              [default: 64]

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl
      backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl --generate
      backdraft eval --model model.gguf --data book.txt
    "#);
}

#[test]
fn help_of_score() {
    assert_snapshot!(help("score"), @"
    Write the logits and the loss of every token for given token ids

    The ids are a JSON list, or a list of lists of one length. The output holds `logits` [b, s, v] and
    `nll` [b, s - 1], in float32.

    Usage: backdraft score [OPTIONS] --model <MODEL> --ids <FILE> --out <FILE>

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name)

          --adapter <DIR>
              PEFT adapter directory to put on the model

          --quantization <FORMAT>
              How to keep the model's projections [default: as the adapter was trained, else as in the
              files]

              Possible values:
              - none: As in the files
              - nf4:  4-bit NormalFloat, scales quantised too
              - fp4:  4-bit floating point, scales quantised too
              - int8: 8 bits, one scale for each row

          --dtype <DTYPE>
              Number format of the computation [default: auto, bf16 where the device has it, else f32]

              Possible values:
              - auto: The best that the device has
              - bf16: bfloat16, with sums in f32
              - f16:  Half precision, with sums in f32
              - f32:  Single precision

          --ids <FILE>
              JSON file with the token ids

          --out <FILE>
              safetensors file to write

          --force
              Replace the output file if it exists

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Example:
      backdraft score --model model.gguf --ids ids.json --out scores.safetensors
    ");
}

#[test]
fn help_of_merge() {
    assert_snapshot!(help("merge"), @"
    Fold an adapter into a new Hugging Face directory, in the base model's number format

    An adapter that was trained over a quantised base has learned to make up for its errors. Merged onto
    the original weights it meets others: --kl-data measures how far the merged model is from the
    trained one, as the mean Kullback–Leibler divergence of the next token, on answers and on
    everything.

    Usage: backdraft merge [OPTIONS] --model <MODEL> --adapter <DIR> --out <DIR>

    Options:
          --model <MODEL>
              Base model: directory, .gguf file, or hub id (org/name)

          --adapter <DIR>
              PEFT adapter directory

          --out <DIR>
              Directory to write

          --base <BASE>
              Weights to add the adapter to

              Possible values:
              - original:    Those of the model's files
              - dequantized: Those that the adapter was trained over: quantised and back

              [default: original]

          --quantization <FORMAT>
              How the base was quantised in training [default: what is noted beside the adapter]

              Possible values:
              - none: As in the files
              - nf4:  4-bit NormalFloat, scales quantised too
              - fp4:  4-bit floating point, scales quantised too
              - int8: 8 bits, one scale for each row

          --kl-data <ROWS>
              Rows to measure the merged model against the trained one: file, folder, glob, or hub data
              set

          --kl-limit <N>
              Only the first N of those rows

              [default: 64]

          --force
              Replace the output directory if it exists

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft merge --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter outputs/adapter --out merged
      backdraft merge --model model.gguf --adapter outputs/adapter --out merged --base dequantized
      --kl-data test.jsonl
    ");
}

#[test]
fn help_of_inspect() {
    assert_snapshot!(help("inspect"), @"
    Show what a model, adapter, recipe or data file contains, and what it would cost to train

    Usage: backdraft inspect [OPTIONS] <WHAT>

    Arguments:
      <WHAT>
              Model (directory, .gguf file, hub id), adapter directory, recipe or data file

    Options:
          --model <MODEL>
              Model whose tokenizer counts the tokens of a data file

          --rank <N>
              Rank of the adapter whose cost is estimated

              [default: 16]

          --micro-batch-size <N>
              Rows in one pass, for the estimate

              [default: 2]

          --quantization <FORMAT>
              How the model's projections would be kept, for the estimate

              Possible values:
              - none: As in the files
              - nf4:  4-bit NormalFloat, scales quantised too
              - fp4:  4-bit floating point, scales quantised too
              - int8: 8 bits, one scale for each row

          --max-seq-length <N>
              Tokens per row, for the estimate

              [default: 2048]

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft inspect model.gguf
      backdraft inspect outputs/adapter
      backdraft inspect train.jsonl --model model.gguf
    ");
}

#[test]
fn help_of_init() {
    assert_snapshot!(help("init"), @r#"
    Write a recipe with every key explained, set to where to start

    Usage: backdraft init [OPTIONS] [RECIPE]

    Arguments:
      [RECIPE]
              The file to write

              [default: recipe.toml]

    Options:
          --model <MODEL>
              The model to adapt: directory, .gguf file, or hub id (org/name)

          --train <ROWS>
              Rows to learn from: file, folder, glob, or hub data set (org/name:split)

          --eval <ROWS>
              Rows held out: as --train, or a share of its rows such as 0.05

          --format <FORMAT>
              Shape of the rows

              Possible values:
              - auto:              Seen from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}

              [default: auto]

          --output-dir <DIR>
              Where the run's files go

          --templates
              List the built-in chat templates for data.chat_template, and write nothing

          --force
              Replace the file if it exists

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft init
      backdraft init --templates
      backdraft init my.toml --model model.gguf --train train.jsonl --eval test.jsonl --format alpaca
    "#);
}

#[test]
fn help_of_quickstart() {
    assert_snapshot!(help("quickstart"), @"
    Fine-tune a small model in a few minutes, with nothing prepared

    Finds or fetches SmolLM2-135M-Instruct, makes a small data set (text to JSON), trains on it, scores
    held-out rows before and after, and leaves the adapter, the recipe and the logs behind.

    Usage: backdraft quickstart [OPTIONS]

    Options:
          --output-dir <DIR>
              Where the data, the recipe and the adapter go

              [default: backdraft-quickstart]

          --model <MODEL>
              Another model than SmolLM2-135M-Instruct: directory, .gguf file, or hub id

          --max-steps <N>
              Optimiser steps [default: enough for a clear result in a few minutes]

          --seed <SEED>
              Seed of the data set and the training

              [default: 42]

          --force
              Replace an earlier quickstart in the same directory

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Example:
      backdraft quickstart
    ");
}

#[test]
fn help_of_data() {
    assert_snapshot!(help("data"), @"
    Look at rows before they are trained on

    Usage: backdraft data [OPTIONS] <COMMAND>

    Commands:
      preview  Show rows as the model sees them, with what is trained marked
      check    Read all rows and fail if training on them is likely to go wrong
      help     Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft data preview recipe.toml
      backdraft data check recipe.toml
    ");
    assert_snapshot!(help("data preview"), @r#"
    Show rows as the model sees them, with what is trained marked

    Rows are rendered by the chat template; what the model learns to write stands between ⟦ and ⟧ (in
    colour on a terminal), what is cut away after ✂. Counts, lengths and findings of all rows follow.

    Usage: backdraft data preview [OPTIONS] <WHAT>

    Arguments:
      <WHAT>
              A recipe (.toml), or rows: file, folder, glob, or hub data set (org/name:split)

    Options:
          --model <MODEL>
              Model whose tokenizer and chat template are used; needed where WHAT is no recipe

          --format <FORMAT>
              Shape of the rows [same as --set data.format=FORMAT]

              Possible values:
              - auto:              Seen from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}

          --set <SECTION.KEY=VALUE>
              Change a value of the recipe, or give one; may be given again

          --skip-bad-rows <N>
              Pass over up to this many broken rows [same as --set data.skip_bad_rows=N]

          --rows <N>
              Rows to show

              [default: 10]

          --ids
              Show the token ids too

          --html <FILE>
              Write a page that any browser shows, instead of text

          --force
              Replace that page if it exists

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft data preview recipe.toml --rows 5 --ids
      backdraft data preview recipe.toml --html preview.html
      backdraft data preview train.jsonl --model model.gguf --set max_seq_length=1024
    "#);
    assert_snapshot!(help("data check"), @r#"
    Read all rows and fail if training on them is likely to go wrong

    Problems are broken rows, rows without a supervised token, empty answers that are trained, answers
    that no special token ends, and texts that look like special tokens and are none. Rows that are cut
    or said twice are noted. Exits with 1 where there is a problem.

    Usage: backdraft data check [OPTIONS] <WHAT>

    Arguments:
      <WHAT>
              A recipe (.toml), or rows: file, folder, glob, or hub data set (org/name:split)

    Options:
          --model <MODEL>
              Model whose tokenizer and chat template are used; needed where WHAT is no recipe

          --format <FORMAT>
              Shape of the rows [same as --set data.format=FORMAT]

              Possible values:
              - auto:              Seen from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}

          --set <SECTION.KEY=VALUE>
              Change a value of the recipe, or give one; may be given again

          --skip-bad-rows <N>
              Pass over up to this many broken rows [same as --set data.skip_bad_rows=N]

          --skipped <FILE>
              Where rows that are passed over are listed, as JSON lines

              [default: skipped_rows.jsonl]

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --json
              Write results (and errors) as JSON, one object a line, for programs to read

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: what the recipe says, else
              auto]

    Examples:
      backdraft data check recipe.toml
      backdraft data check recipe.toml --skip-bad-rows 10
      backdraft data check data/*.parquet --model model.gguf --format alpaca
    "#);
}
