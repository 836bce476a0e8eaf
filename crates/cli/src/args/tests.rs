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
            let example = example.split(" > ").next().unwrap_or_default();
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
        "backdraft --json --device cpu train r.toml",
        "backdraft train r.toml --json --device cpu",
        "backdraft generate --json --model m --device cpu hi",
    ] {
        let cli = parse(line).unwrap();
        assert!(cli.global.json);
        let device = cli.command.device().unwrap();
        assert_eq!(device.or(cli.device), Some(DeviceChoice::Cpu));
    }
    assert_eq!(parse("backdraft init").unwrap().command.device(), None);
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
    assert_snapshot!(refused("backdraft train r.toml --device gpu"), @r#"
    error: invalid value 'gpu' for '--device <DEVICE>': expected auto, cpu, cuda, cuda:N or wgpu, found "gpu"

    For more information, try '--help'.
    "#);
}

#[test]
fn help_of_the_program() {
    assert_snapshot!(help(""), @"
    Fine-tune Llama, Mistral, Qwen, Gemma, Granite, SmolLM and OLMo models from one program

    Usage: backdraft [OPTIONS] <COMMAND>

    Commands:
      train        Fine-tune a LoRA or QLoRA adapter from a recipe
      tune         Find the learning rate and other settings of a recipe
      data         Preview and check rows before training
      plan         Show how much memory a recipe needs and what it recomputes, without loading the
                   weights; or what precision costs
      watch        Show the dashboard of a run in another terminal, or of one that has ended
      report       Rebuild a run's report.html, or compare several runs
      generate     Generate text from a prompt, or chat
      eval         Evaluate a model on a file, with and without an adapter
      score        Write logits and per-token losses for given token ids
      serve        Serve a model and its adapters to OpenAI clients, with a page to chat in
      merge        Merge an adapter into its base and save a Hugging Face checkpoint in the base's dtype
      combine      Combine several adapters of one base into one, as PEFT's add_weighted_adapter does
      quantize     Quantize a model to 4 or 8 bits, in the format of bitsandbytes, which transformers
                   loads
      export       Write a model, with an adapter merged in, as GGUF files for llama.cpp and Ollama
      push         Send an adapter, a model or exported files to the hub, with a model card
      inspect      Show what a model, adapter, run, recipe or data file contains, and what training
                   would take
      init         Write a starter recipe with every key explained
      quickstart   Fine-tune a small model in a few minutes, with nothing prepared
      devices      Tell which GPUs there are, how they reach each other, and how fast gradients are
                   exchanged between processes
      doctor       Tell what this machine has for training, what it lacks, and what helps
      completions  Print a script that completes commands and flags in your shell
      man          Write manual pages, one for each command
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help

      -V, --version
              Print version

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft quickstart
      backdraft init recipe.toml
      backdraft train recipe.toml
    ");
}

#[test]
fn help_of_train() {
    assert_snapshot!(help("train"), @"
    Fine-tune a LoRA or QLoRA adapter from a recipe

    On a terminal a dashboard shows the run: 1 to 4 or Tab change the view, p pauses, s saves a
    checkpoint, q stops after the current step with a checkpoint (exit code 0). Ctrl-C does the same
    with exit code 130; a second one ends the program at once.

    Usage: backdraft train [OPTIONS] [RECIPE]

    Arguments:
      [RECIPE]
              The recipe; `backdraft init` writes one

    Options:
          --resume [<DIR>]
              Resume a run that was stopped: its output directory or one of its checkpoints [default:
              the recipe's output_dir, else outputs]

          --allow-change <KEY>
              With --resume: accept that this key (or section) differs from the run's recipe; repeatable

          --set <SECTION.KEY=VALUE>
              Override a key of the recipe for this run; repeatable

          --adapter <DIR>
              Train this adapter further: a PEFT directory, or the output directory of a run [same as
              --set lora.adapter=DIR]

          --max-steps <N>
              Stop after this many optimizer steps [same as --set train.max_steps=N]

          --output-dir <DIR>
              Output directory of the run [same as --set output_dir=DIR]

          --skip-bad-rows <N>
              Skip up to this many bad rows [same as --set data.skip_bad_rows=N]

          --force
              Replace the run in the output directory

          --plain
              Print plain lines instead of the dashboard, on a terminal too

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

          --devices <N|GPUS>
              Share the run among several processes on this machine, up to train.gradient_blocks: a
              number on the processor (--device cpu --devices 2), or GPUs, a process on each: their
              number, a list (0,1) or all

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft train recipe.toml
      backdraft train recipe.toml --set train.learning_rate=1e-4 --set lora.rank=32
      backdraft train recipe.toml --max-steps 5 --output-dir trial --force
      backdraft train recipe.toml --adapter outputs --output-dir further
      backdraft train recipe.toml --devices 0,1
      backdraft train recipe.toml --device cpu --devices 2
      backdraft train --resume outputs
      backdraft train --resume outputs --max-steps 500 --allow-change train
    ");
}

#[test]
fn help_of_tune() {
    assert_snapshot!(help("tune"), @r#"
    Find the learning rate and other settings of a recipe

    Goes through the [sweep] of the recipe: every combination, draws, or successive halving. The base is
    read once, each trial is a run as `train` makes it, and the end is a table, a page and a
    recommendation. A recipe without [sweep] gets a learning-rate range test. Ctrl-C ends it with a
    checkpoint; --resume continues.

    Usage: backdraft tune [OPTIONS] <RECIPE>

    Arguments:
      <RECIPE>
              The recipe; its [sweep] says what to try

    Options:
          --resume
              Continue a sweep that was stopped, or that has more trials now

          --force
              Replace the sweep in the output directory

          --set <SECTION.KEY=VALUE>
              Override a key of the recipe; repeatable

          --output-dir <DIR>
              Directory of the sweep [default: tune in the recipe's output_dir]

          --range-test
              Only a learning-rate range test [default: where the recipe has no [sweep]]

          --range-steps <N>
              Optimizer steps of the range test

              [default: 100]

          --min-lr <LR>
              Learning rate of its first step

              [default: 0.000001]

          --max-lr <LR>
              Learning rate of its last step

              [default: 0.1]

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft tune recipe.toml
      backdraft tune recipe.toml --resume
      backdraft tune recipe.toml --range-test
      backdraft tune recipe.toml --set "sweep.train.learning_rate=[1e-4, 3e-4, 1e-3]"
    "#);
}

#[test]
fn help_of_generate() {
    assert_snapshot!(help("generate"), @r#"
    Generate text from a prompt, or chat

    In a chat, /exit, an empty line or the end of input ends it; Ctrl-C stops an answer, or the program
    where no answer is being written.

    Usage: backdraft generate [OPTIONS] [PROMPT]

    Arguments:
      [PROMPT]
              The user's message; - reads it from standard input

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name) [default: the model that the adapter was
              trained over]

          --adapter <DIR>
              PEFT adapter to apply: its directory, or the output directory of a run

          --quantization <FORMAT>
              Quantize the linear layers on load [default: as the adapter was trained, else as in the
              files]

              Possible values:
              - none:   No quantization beyond that of the files
              - blocks: The blocks of a .gguf file, as they are
              - nf4:    4-bit NormalFloat, double quantization
              - fp4:    4-bit floating point, double quantization
              - int8:   8 bits, one scale per row

          --dtype <DTYPE>
              Data type to compute in [default: auto, bf16 or f16 on tensor cores, else f32]

              Possible values:
              - auto: bf16 or f16 on tensor cores, else f32
              - bf16: bfloat16, accumulated in f32
              - f16:  Half precision, accumulated in f32
              - f32:  Single precision

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

          --prompt-file <FILE>
              Read the message from a file

          --chat
              Chat with the model line by line

          --raw
              Use the prompt as it is, without the chat template

          --system <TEXT>
              System message

          --chat-template <NAME|FILE>
              Built-in chat template, or a .jinja file [default: as the adapter was trained, else the
              model's own]

          --prompt-template <TEMPLATE>
              Prompt template, as in a recipe [default: as the adapter was trained]

          --max-new-tokens <N>
              Maximum new tokens

              [default: 256]

          --temperature <T>
              Sampling temperature; 0 is greedy decoding

              [default: 0]

          --top-k <K>
              Sample from the K most likely tokens

          --top-p <P>
              Sample from the most likely tokens whose probabilities add up to P

          --seed <SEED>
              Random seed for sampling

              [default: 42]

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft generate --model HuggingFaceTB/SmolLM2-135M-Instruct "What is the capital of France?"
      backdraft generate --model model.gguf --temperature 0.7 --top-p 0.9 "Tell a story"
      backdraft generate --model model.gguf --adapter outputs/adapter --chat
      backdraft generate --model model.gguf --prompt-file question.txt
    "#);
}

#[test]
fn help_of_serve() {
    assert_snapshot!(help("serve"), @"
    Serve a model and its adapters to OpenAI clients, with a page to chat in

    Clients name the base or an adapter as `model`; all of them share one base in memory, and requests
    are answered together. The address is http://HOST:PORT/v1; the page is at http://HOST:PORT.
    BACKDRAFT_API_KEY, where it is set, is the key that clients must send. Ctrl-C or SIGTERM lets
    running requests finish; a second one ends the server at once.

    Usage: backdraft serve [OPTIONS]

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name) [default: the model that the first adapter was
              trained over]

          --adapter <[NAME=]DIR>
              PEFT adapter to serve beside the base, under a name of its own [default: that of its
              directory]; repeatable

          --name <NAME>
              Name of the base for clients [default: the hub id, else that of the directory or file]

          --quantization <FORMAT>
              Quantize the linear layers on load [default: as the first adapter was trained, else as in
              the files]

              Possible values:
              - none:   No quantization beyond that of the files
              - blocks: The blocks of a .gguf file, as they are
              - nf4:    4-bit NormalFloat, double quantization
              - fp4:    4-bit floating point, double quantization
              - int8:   8 bits, one scale per row

          --dtype <DTYPE>
              Data type to compute in [default: auto, bf16 or f16 on tensor cores, else f32]

              Possible values:
              - auto: bf16 or f16 on tensor cores, else f32
              - bf16: bfloat16, accumulated in f32
              - f16:  Half precision, accumulated in f32
              - f32:  Single precision

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

          --chat-template <NAME|FILE>
              Built-in chat template, or a .jinja file [default: as each adapter was trained, else the
              model's own]

          --host <HOST>
              Address to listen on; another machine reaches only one that is not loopback

              [default: 127.0.0.1]

          --port <PORT>
              Port to listen on; 0 takes any

              [default: 8080]

          --without-key
              Listen on an address that other machines reach without a key

          --max-batch <N>
              Texts that are written together

              [default: 64]

          --queue <N>
              Requests that may wait; one more is answered with status 429

              [default: 256]

          --cache-memory <GIB>
              Memory for keys and values of all texts together, in GiB; taken as it is needed

              [default: 2]

          --max-new-tokens <N>
              New tokens of a chat whose request sets no limit

              [default: 1024]

          --max-body <KIB>
              Largest body of a request, in KiB

              [default: 1024]

          --timeout <SECONDS>
              Seconds that a request may take, waiting included

              [default: 600]

          --grace <SECONDS>
              Seconds that running requests have when the server is told to end

              [default: 30]

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft serve --model HuggingFaceTB/SmolLM2-135M-Instruct
      backdraft serve --adapter outputs
      backdraft serve --model model.gguf --adapter support=outputs --adapter tone=trial/adapter
    ");
}

#[test]
fn help_of_eval() {
    assert_snapshot!(help("eval"), @r#"
    Evaluate a model on a file, with and without an adapter

    Prints the mean negative log-likelihood per supervised token and the perplexity: of the base, and
    with the adapter. Of rows with answers to compare (preference, unpaired) instead: loss, accuracy,
    margin, rewards, log-likelihoods and entropy with standard errors, judged as the recipe's objective
    does (or as --set objective.kind says, else dpo or kto). A reward model scores the answers of rows:
    accuracy, margin and rewards, and with --answers each answer's reward. With --generate also how many
    generated answers match exactly, and how many start with the right word.

    Rows are read as the adapter's run read its own (format, fields, templates, what is trained,
    length), unless flags say otherwise. A recipe names the model, the adapter of its run and the
    held-out rows: those of data.eval, and after them each set of data.eval_sets by its name.

    Usage: backdraft eval [OPTIONS] [RECIPE]

    Arguments:
      [RECIPE]
              A recipe (.toml): its model, the adapter in its output_dir, its held-out rows

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name) [default: the model that the adapter was
              trained over]

          --adapter <DIR>
              PEFT adapter to apply: its directory, or the output directory of a run

          --quantization <FORMAT>
              Quantize the linear layers on load [default: as the adapter was trained, else as in the
              files]

              Possible values:
              - none:   No quantization beyond that of the files
              - blocks: The blocks of a .gguf file, as they are
              - nf4:    4-bit NormalFloat, double quantization
              - fp4:    4-bit floating point, double quantization
              - int8:   8 bits, one scale per row

          --dtype <DTYPE>
              Data type to compute in [default: auto, bf16 or f16 on tensor cores, else f32]

              Possible values:
              - auto: bf16 or f16 on tensor cores, else f32
              - bf16: bfloat16, accumulated in f32
              - f16:  Half precision, accumulated in f32
              - f32:  Single precision

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

          --data <ROWS>
              Rows: file, folder, glob, or hub data set (org/name:split); a .txt file is cut into chunks
              [default: the rows that the recipe holds out]

          --format <FORMAT>
              Shape of the rows [default: as in training, else detected]

              Possible values:
              - auto:              Detected from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}
              - preference:        {"prompt": …, "chosen": …, "rejected": …}
              - unpaired:          {"prompt": …, "completion": …, "label": true or false}

          --fields <OURS=YOURS,…>
              Other names for the fields of the format, such as instruction=question,output=answer

          --prompt-template <TEMPLATE>
              Prompt template for alpaca rows, as in a recipe [default: as in training]

          --skip-bad-rows <N>
              Skip up to this many bad rows [same as --set data.skip_bad_rows=N]

          --set <SECTION.KEY=VALUE>
              Override a key of the recipe that the rows are read by; repeatable

          --limit <N>
              Only the first N rows of each set

          --max-seq-length <N>
              Maximum tokens per row; longer rows are truncated [default: as in training, else 2048]

          --generate
              Also generate an answer for every row and compare it with the expected one

          --answers <FILE>
              Write each question with the expected and the generated answers, or each row's rewards by
              a reward model, as JSON lines

          --force
              Replace the file of answers if it exists

          --max-new-tokens <N>
              Maximum new tokens per answer

              [default: 64]

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft eval recipe.toml
      backdraft eval --adapter outputs --data test.jsonl --generate
      backdraft eval --adapter outputs --data test.jsonl --generate --answers answers.jsonl
      backdraft eval --adapter outputs --data test.csv --fields instruction=question,output=answer
      backdraft eval --model model.gguf --data book.txt
    "#);
}

#[test]
fn help_of_score() {
    assert_snapshot!(help("score"), @"
    Write logits and per-token losses for given token ids

    The ids are a JSON list, or a list of lists of the same length. The output file holds `logits` [b,
    s, v] and `nll` [b, s - 1], in float32.

    Usage: backdraft score [OPTIONS] --ids <FILE> --out <FILE>

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name) [default: the model that the adapter was
              trained over]

          --adapter <DIR>
              PEFT adapter to apply: its directory, or the output directory of a run

          --quantization <FORMAT>
              Quantize the linear layers on load [default: as the adapter was trained, else as in the
              files]

              Possible values:
              - none:   No quantization beyond that of the files
              - blocks: The blocks of a .gguf file, as they are
              - nf4:    4-bit NormalFloat, double quantization
              - fp4:    4-bit floating point, double quantization
              - int8:   8 bits, one scale per row

          --dtype <DTYPE>
              Data type to compute in [default: auto, bf16 or f16 on tensor cores, else f32]

              Possible values:
              - auto: bf16 or f16 on tensor cores, else f32
              - bf16: bfloat16, accumulated in f32
              - f16:  Half precision, accumulated in f32
              - f32:  Single precision

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

          --ids <FILE>
              JSON file with the token ids

          --out <FILE>
              safetensors file to write

          --force
              Replace the output file if it exists

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Example:
      backdraft score --model model.gguf --ids ids.json --out scores.safetensors
    ");
}

#[test]
fn help_of_merge() {
    assert_snapshot!(help("merge"), @r#"
    Merge an adapter into its base and save a Hugging Face checkpoint in the base's dtype

    An adapter trained over a quantized base has learned to compensate for its quantization errors,
    which the original weights do not have. --kl-data measures how far the merged model is from the
    trained one: the mean Kullback–Leibler divergence of the next token, on answers and on all tokens.
    `combine` makes one adapter of several.

    Usage: backdraft merge [OPTIONS] --adapter <DIR> --out <DIR>

    Options:
          --model <MODEL>
              Base model: directory, .gguf file, or hub id (org/name) [default: the model that the
              adapter was trained over]

          --adapter <DIR>
              PEFT adapter directory, or the output directory of a run

          --out <DIR>
              Directory to write

          --base <BASE>
              Weights to merge the adapter into

              Possible values:
              - original:    The weights in the model's files
              - dequantized: The weights that the adapter was trained over: quantized and dequantized

              [default: original]

          --quantization <FORMAT>
              How the base was quantized in training [default: as noted beside the adapter]

              Possible values:
              - none:   No quantization beyond that of the files
              - blocks: The blocks of a .gguf file, as they are
              - nf4:    4-bit NormalFloat, double quantization
              - fp4:    4-bit floating point, double quantization
              - int8:   8 bits, one scale per row

          --kl-data <ROWS>
              Rows to compare the merged model with the trained one on: file, folder, glob, or hub data
              set

          --format <FORMAT>
              Shape of the rows [default: as in training, else detected]

              Possible values:
              - auto:              Detected from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}
              - preference:        {"prompt": …, "chosen": …, "rejected": …}
              - unpaired:          {"prompt": …, "completion": …, "label": true or false}

          --fields <OURS=YOURS,…>
              Other names for the fields of the format, such as instruction=question,output=answer

          --prompt-template <TEMPLATE>
              Prompt template for alpaca rows, as in a recipe [default: as in training]

          --skip-bad-rows <N>
              Skip up to this many bad rows [same as --set data.skip_bad_rows=N]

          --set <SECTION.KEY=VALUE>
              Override a key of the recipe that the rows are read by; repeatable

          --kl-limit <N>
              Only the first N of those rows

              [default: 64]

          --force
              Replace the output directory if it exists

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft merge --adapter outputs --out merged
      backdraft merge --adapter outputs --out merged --base dequantized --kl-data test.jsonl
      backdraft merge --model model.gguf --adapter outputs/adapter --out merged
    "#);
}

#[test]
fn help_of_combine() {
    assert_snapshot!(help("combine"), @"
    Combine several adapters of one base into one, as PEFT's add_weighted_adapter does

    The result is a PEFT directory, which `generate`, `serve`, `merge` and `train --adapter` take like
    any other. A module that only some of the adapters have is made of those. The same adapters and
    settings give the same bytes.

    Usage: backdraft combine [OPTIONS] --out <DIR> <DIR>...

    Arguments:
      <DIR>...
              PEFT adapter directories, or the output directories of runs

    Options:
          --out <DIR>
              Directory to write

          --weights <W,W,…>
              What each adapter counts, in their order; may be negative [default: 1 for each]

          --combination-type <TYPE>
              How they become one

              Possible values:
              - svd:             Weighted sum of their products, the nearest of a rank
              - linear:          Weighted sums of A and of B; ranks must be the same
              - cat:             Factors one behind the other: the exact sum, ranks add up
              - ties:            As linear, the largest values of the sign that prevails
              - dare_linear:     As linear, values chosen by chance
              - dare_ties:       As linear, values chosen by chance, of the sign that prevails
              - magnitude_prune: As linear, the largest values

              [default: svd]

          --density <SHARE>
              Share of the values that stay, above 0 and at most 1; for ties, dare and magnitude_prune

          --majority-sign-method <METHOD>
              Which sign prevails; for ties and dare_ties

              Possible values:
              - total:     That of the sum of the values
              - frequency: That of most values

              [default: total]

          --svd-rank <N>
              Rank of the result; for svd [default: the largest of the adapters' ranks]

          --seed <N>
              Seed of the values that are chosen by chance; for dare

              [default: 42]

          --force
              Replace the output directory if it exists

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft combine outputs-a outputs-b --out both
      backdraft combine outputs-a outputs-b --weights 0.7,0.3 --combination-type linear --out both
      backdraft combine a b c --combination-type ties --density 0.2 --out three
    ");
}

#[test]
fn help_of_export() {
    assert_snapshot!(help("export"), @"
    Write a model, with an adapter merged in, as GGUF files for llama.cpp and Ollama

    Blocks, mixtures of types by layer and metadata are those of llama.cpp's own tools. What was written
    is read back and compared with the trained model: ids of texts must be equal, and the KL divergence
    of the next token and the share of equal best tokens are printed.

    Usage: backdraft export [OPTIONS] --to <DIR>

    Options:
          --model <MODEL>
              Directory, .gguf file, or hub id (org/name) [default: the model that the adapter was
              trained over]

          --adapter <DIR>
              PEFT adapter to merge: its directory, or the output directory of a run

          --to <DIR>
              Directory to write to

          --type <TYPE,…>
              Types of the files, one file for each: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m,
              q4_k_s, q5_1, q5_0, q4_1, q4_0

          --adapter-only
              Write the adapter alone, for programs that put it on a base themselves

          --name <NAME>
              Name of the model and beginning of the files' names [default: the model's]

          --base <BASE>
              Weights to merge the adapter into

              Possible values:
              - original:    The weights in the model's files
              - dequantized: The weights that the adapter was trained over: quantized and dequantized

              [default: original]

          --quantization <FORMAT>
              How the base was quantized in training [default: as noted beside the adapter]

              Possible values:
              - none:   No quantization beyond that of the files
              - blocks: The blocks of a .gguf file, as they are
              - nf4:    4-bit NormalFloat, double quantization
              - fp4:    4-bit floating point, double quantization
              - int8:   8 bits, one scale per row

          --split-size <SIZE>
              Split files whose tensors take more than this

          --no-check
              Do not read the files back and compare them with the trained model

          --check-data <ROWS>
              Rows to compare on: file, folder, glob, or hub data set [default: a few texts and chats]

          --force
              Replace files that exist

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft export --adapter outputs --to gguf --type q4_k_m,q8_0
      backdraft export --model HuggingFaceTB/SmolLM2-135M-Instruct --to gguf --type f16
      backdraft export --adapter outputs --to gguf --adapter-only
    ");
}

#[test]
fn help_of_inspect() {
    assert_snapshot!(help("inspect"), @"
    Show what a model, adapter, run, recipe or data file contains, and what training would take

    Usage: backdraft inspect [OPTIONS] <WHAT>

    Arguments:
      <WHAT>
              Model (directory, .gguf file, hub id), adapter directory, output directory of a run,
              recipe or data file

    Options:
          --model <MODEL>
              Model whose tokenizer is used to count tokens of a data file

          --rank <N>
              LoRA rank, for the memory estimate

              [default: 16]

          --micro-batch-size <N>
              Rows per micro-batch, for the memory estimate

              [default: 2]

          --quantization <FORMAT>
              Quantization of the linear layers, for the memory estimate

              Possible values:
              - none:   No quantization beyond that of the files
              - blocks: The blocks of a .gguf file, as they are
              - nf4:    4-bit NormalFloat, double quantization
              - fp4:    4-bit floating point, double quantization
              - int8:   8 bits, one scale per row

          --max-seq-length <N>
              Tokens per row, for the memory estimate

              [default: 2048]

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft inspect model.gguf
      backdraft inspect outputs/adapter
      backdraft inspect train.jsonl --model model.gguf
    ");
}

#[test]
fn help_of_init() {
    assert_snapshot!(help("init"), @r#"
    Write a starter recipe with every key explained

    Usage: backdraft init [OPTIONS] [RECIPE]

    Arguments:
      [RECIPE]
              The file to write

              [default: recipe.toml]

    Options:
          --model <MODEL>
              The model to fine-tune: directory, .gguf file, or hub id (org/name)

          --train <ROWS>
              Training rows: file, folder, glob, or hub data set (org/name:split)

          --eval <ROWS>
              Held-out rows: as --train, or a share of its rows such as 0.05

          --format <FORMAT>
              Format of the rows

              Possible values:
              - auto:              Detected from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}
              - preference:        {"prompt": …, "chosen": …, "rejected": …}
              - unpaired:          {"prompt": …, "completion": …, "label": true or false}

              [default: auto]

          --output-dir <DIR>
              Output directory of the run

          --load-in-4bit
              Train over a base of 4.5 bits a weight, dealt out by what your rows show

          --templates
              List the built-in chat templates for data.chat_template, and write nothing

          --force
              Replace the file if it exists

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

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

    Finds or downloads SmolLM2-135M-Instruct, makes a small data set (sentences to JSON), trains on it,
    scores held-out rows before and after, and leaves the adapter, the recipe and the logs behind. A
    quickstart that was stopped is resumed by the same command; after one that has finished, the next
    goes to another directory.

    Usage: backdraft quickstart [OPTIONS]

    Options:
          --output-dir <DIR>
              Directory for the data, the recipe and the adapter [default: backdraft-quickstart, or the
              first of backdraft-quickstart-2, -3, … that is free]

          --model <MODEL>
              Another model than SmolLM2-135M-Instruct: directory, .gguf file, or hub id

          --max-steps <N>
              Optimizer steps [default: one epoch, enough for a clear result]

          --seed <SEED>
              Seed for the data set and the training

              [default: 42]

          --force
              Replace an earlier quickstart in the same directory

          --plain
              Print plain lines instead of the dashboard, on a terminal too

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else
              auto]

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft quickstart
      backdraft quickstart --output-dir trial --max-steps 20
    ");
}

#[test]
fn help_of_data() {
    assert_snapshot!(help("data"), @"
    Preview and check rows before training

    Usage: backdraft data [OPTIONS] <COMMAND>

    Commands:
      preview  Show rows as the model sees them, supervised tokens marked
      check    Read all rows and fail if training on them is likely to go wrong
      help     Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft data preview recipe.toml
      backdraft data check recipe.toml
    ");
    assert_snapshot!(help("data preview"), @r#"
    Show rows as the model sees them, supervised tokens marked

    Rows are rendered by the chat template. Supervised tokens are between ⟦ and ⟧ (in colour on a
    terminal), truncated ones after ✂. Counts, lengths and findings of all rows follow.

    Usage: backdraft data preview [OPTIONS] <WHAT>

    Arguments:
      <WHAT>
              A recipe (.toml), or rows: file, folder, glob, or hub data set (org/name:split)

    Options:
          --model <MODEL>
              Model whose tokenizer and chat template are used; required where WHAT is not a recipe

          --format <FORMAT>
              Format of the rows [same as --set data.format=FORMAT]

              Possible values:
              - auto:              Detected from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}
              - preference:        {"prompt": …, "chosen": …, "rejected": …}
              - unpaired:          {"prompt": …, "completion": …, "label": true or false}

          --set <SECTION.KEY=VALUE>
              Set a key of the recipe; repeatable

          --skip-bad-rows <N>
              Skip up to this many bad rows [same as --set data.skip_bad_rows=N]

          --rows <N>
              Rows to show

              [default: 10]

          --ids
              Show the token ids too

          --html <FILE>
              Write an HTML page instead of text

          --force
              Replace the page if it exists

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft data preview recipe.toml --rows 5 --ids
      backdraft data preview recipe.toml --html preview.html
      backdraft data preview train.jsonl --model model.gguf --set max_seq_length=1024
    "#);
    assert_snapshot!(help("data check"), @r#"
    Read all rows and fail if training on them is likely to go wrong

    Problems are rows that cannot be used, rows without a supervised token, empty answers that are
    trained, answers that do not end in EOS or an end-of-turn token, and text that looks like a special
    token but is not one in this tokenizer. Each kind is listed with its count and its first rows.
    Truncated and duplicate rows are notes. The exit code is 1 if there is a problem.

    Usage: backdraft data check [OPTIONS] <WHAT>

    Arguments:
      <WHAT>
              A recipe (.toml), or rows: file, folder, glob, or hub data set (org/name:split)

    Options:
          --model <MODEL>
              Model whose tokenizer and chat template are used; required where WHAT is not a recipe

          --format <FORMAT>
              Format of the rows [same as --set data.format=FORMAT]

              Possible values:
              - auto:              Detected from the first rows
              - messages:          Chats: {"messages": [{"role": …, "content": …}, …]}
              - alpaca:            {"instruction": …, "input": … (optional), "output": …}
              - sharegpt:          Chats: {"conversations": [{"from": …, "value": …}, …]}
              - prompt_completion: {"prompt": …, "completion": …}
              - text:              {"text": …}
              - preference:        {"prompt": …, "chosen": …, "rejected": …}
              - unpaired:          {"prompt": …, "completion": …, "label": true or false}

          --set <SECTION.KEY=VALUE>
              Set a key of the recipe; repeatable

          --skip-bad-rows <N>
              Skip up to this many bad rows [same as --set data.skip_bad_rows=N]

          --skipped <FILE>
              Write the rows that are skipped to this file, as JSON lines

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --json
              Print results and errors as JSON, one object per line (described in docs/json.md)

    Examples:
      backdraft data check recipe.toml
      backdraft data check recipe.toml --skip-bad-rows 10
      backdraft data check data/*.parquet --model model.gguf --format alpaca
    "#);
}
