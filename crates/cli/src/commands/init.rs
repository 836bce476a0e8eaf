//! `init`: write a commented recipe.

use std::path::{Path, PathBuf};

use backdraft_data::BuiltinTemplate;
use backdraft_formats::{Existing, write_file};
use backdraft_recipe::{Choices, DataFormat, Recipe};
use clap::Args;

use crate::args::choice;
use crate::commands::Context;
use crate::error::CliError;
use crate::shell::{CommandLine, quote};

/// Write a starter recipe with every key explained
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft init
  backdraft init --templates
  backdraft init my.toml --model model.gguf --train train.jsonl --eval test.jsonl --format alpaca")]
pub(crate) struct InitArgs {
    /// The file to write
    #[arg(value_name = "RECIPE", default_value = "recipe.toml")]
    pub(crate) recipe: PathBuf,

    /// The model to fine-tune: directory, .gguf file, or hub id (org/name)
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Training rows: file, folder, glob, or hub data set (org/name:split)
    #[arg(long, value_name = "ROWS")]
    pub(crate) train: Option<String>,

    /// Held-out rows: as --train, or a share of its rows such as 0.05
    #[arg(long, value_name = "ROWS")]
    pub(crate) eval: Option<String>,

    /// Format of the rows
    #[arg(long, value_parser = choice::format(), default_value = "auto")]
    pub(crate) format: DataFormat,

    /// Output directory of the run
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<String>,

    /// Train over a base of 4.5 bits a weight, dealt out by what your rows show
    #[arg(long)]
    pub(crate) load_in_4bit: bool,

    /// List the built-in chat templates for data.chat_template, and write nothing
    #[arg(long)]
    pub(crate) templates: bool,

    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

impl InitArgs {
    fn choices(&self) -> Choices {
        let standard = Choices::default();
        Choices {
            model: self
                .model
                .as_deref()
                .map_or(standard.model, |model| self.seen_from_recipe(model)),
            train: self
                .train
                .as_deref()
                .map_or(standard.train, |path| self.seen_from_recipe(path)),
            eval: self.eval.as_deref().map(|path| self.seen_from_recipe(path)),
            format: self.format,
            output_dir: self
                .output_dir
                .as_deref()
                .map_or(standard.output_dir, |path| self.seen_from_recipe(path)),
            load_in_4bit: self.load_in_4bit,
        }
    }

    /// Paths on the command line start at the working directory, those in a recipe at the recipe.
    fn seen_from_recipe(&self, path: &str) -> String {
        let beside = directory(&self.recipe).as_os_str().is_empty();
        let hub_id = self.model.as_deref() == Some(path) && !Path::new(path).exists();
        let share = path.parse::<f64>().is_ok();
        if beside || hub_id || share {
            return path.to_owned();
        }
        let absolute = std::path::absolute(path).ok();
        absolute
            .and_then(|path| path.to_str().map(str::to_owned))
            .unwrap_or_else(|| path.to_owned())
    }
}

/// Writes the recipe; what it says is checked first, so that `train` takes it.
pub(crate) fn run(args: &InitArgs, context: Context) -> Result<(), CliError> {
    if args.templates {
        return list_templates(context);
    }
    let text = Recipe::template(&args.choices());
    let directory = directory(&args.recipe);
    Recipe::from_toml(&text, directory, &[])?;
    if !directory.as_os_str().is_empty() && !directory.is_dir() {
        let make = format!(
            "make it first: mkdir -p {}",
            quote(&directory.to_string_lossy())
        );
        let missing = format!("there is no directory {}", directory.display());
        return Err(CliError::user(missing).hint(make));
    }
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    write_file(&args.recipe, text.as_bytes(), existing)?;
    context
        .output
        .record("recipe", &serde_json::json!({ "recipe": args.recipe }))?;
    let look = CommandLine::new("data preview").path(&args.recipe);
    let train = CommandLine::new("train").path(&args.recipe);
    context.output.line(format!(
        "Wrote {}. Next:\n  {look}   # see the rows as the model will\n  {train}",
        args.recipe.display()
    ))
}

fn list_templates(context: Context) -> Result<(), CliError> {
    for template in BuiltinTemplate::ALL {
        context.output.record(
            "template",
            &serde_json::json!({
                "name": template, "turn": template.summary(), "template": template.source(),
            }),
        )?;
        context
            .output
            .line(format!("{:<8} {}", template.as_str(), template.summary()))?;
    }
    context
        .output
        .line("\nIn a recipe: chat_template = \"chatml\" under [data]; left out, the model's own.")
}

fn directory(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

#[cfg(test)]
mod tests {
    use backdraft_data::Format;
    use insta::assert_snapshot;

    use super::*;
    use crate::args::Global;
    use crate::error::Look;
    use crate::output::Output;

    const ALPACA: DataFormat = DataFormat::Named(Format::Alpaca);

    fn args(recipe: PathBuf) -> InitArgs {
        InitArgs {
            recipe,
            model: None,
            train: Some("rows.jsonl".into()),
            eval: None,
            format: ALPACA,
            output_dir: None,
            load_in_4bit: false,
            templates: false,
            force: false,
        }
    }

    /// Says nothing: the tests look at the file.
    fn context() -> Context {
        Context {
            global: Global::default(),
            output: Output::new(false),
        }
    }

    #[test]
    fn writes_a_recipe_that_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path().join("recipe.toml"));
        run(&args, context()).unwrap();
        let recipe = Recipe::load(&args.recipe, &[]).unwrap();
        assert_eq!(recipe.data.format, ALPACA);
        let rows = std::env::current_dir().unwrap().join("rows.jsonl");
        assert_eq!(recipe.data.train.0[0].path, rows.to_str().unwrap());
        assert_eq!(recipe.output_dir, dir.path().join("outputs"));
    }

    #[test]
    fn replaces_a_file_only_where_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(dir.path().join("recipe.toml"));
        std::fs::write(&args.recipe, "mine").unwrap();
        let error = run(&args, context()).unwrap_err();
        let text = error
            .render(Look::Plain)
            .replace(&dir.path().display().to_string(), "DIR");
        assert_snapshot!(text, @"
        error: DIR/recipe.toml already exists and is not replaced
        hint: choose another name, or add --force to replace it
        ");
        assert_eq!(std::fs::read_to_string(&args.recipe).unwrap(), "mine");
        args.force = true;
        run(&args, context()).unwrap();
        assert_ne!(std::fs::read_to_string(&args.recipe).unwrap(), "mine");
    }

    #[test]
    fn a_directory_that_does_not_exist_is_named() {
        let error = run(&args("nowhere/recipe.toml".into()), context()).unwrap_err();
        assert_snapshot!(error.render(Look::Plain), @"
        error: there is no directory nowhere
        hint: make it first: mkdir -p nowhere
        ");
    }

    #[test]
    fn a_model_that_is_none_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let args = InitArgs {
            model: Some("llama 3".into()),
            ..args(dir.path().join("recipe.toml"))
        };
        let error = run(&args, context()).unwrap_err();
        assert!(
            error.to_string().contains("`model` takes a hub id"),
            "{error}"
        );
        assert!(!args.recipe.exists());
    }
}
