//! The commented recipe that `init` writes.

use backdraft_arch::AdapterStart;
use backdraft_data::{Format, Supervision};

use crate::data_format::DataFormat;
use crate::keys::{KEYS, Key};

/// What a new recipe says; everything else starts at its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// The model: hub id, directory or `.gguf` file.
    pub model: String,
    /// Rows to learn from.
    pub train: String,
    /// Rows held out, if there are any: a path, or a share of the others.
    pub eval: Option<String>,
    /// Shape of a row.
    pub format: DataFormat,
    /// Where the run's files go.
    pub output_dir: String,
    /// A base in 4 bits that trains as an unquantized one does: precision by measurement, and adapters that start by
    /// giving back the rest of the error. What that is worth: BENCHMARKS.md, "Adaptive precision".
    pub load_in_4bit: bool,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            model: "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned(),
            train: "train.jsonl".to_owned(),
            eval: None,
            format: DataFormat::default(),
            output_dir: "outputs".to_owned(),
            load_in_4bit: false,
        }
    }
}

impl Choices {
    /// The value of a key as TOML, or `None` where the key stays a comment.
    fn value(&self, key: &Key) -> Option<String> {
        match key.path {
            "model" => Some(quote(&self.model)),
            "output_dir" => Some(quote(&self.output_dir)),
            "data.train" => Some(quote(&self.train)),
            "data.eval" => self.eval.as_deref().map(|eval| match eval.parse::<f64>() {
                Ok(_) => eval.to_owned(),
                Err(_) => quote(eval),
            }),
            "data.format" => Some(quote(self.format.name())),
            "data.train_on" if self.format == DataFormat::Named(Format::Text) => {
                Some(quote(Supervision::All.name()))
            }
            "load_in_4bit" => Some(self.load_in_4bit.to_string()),
            "quantization.bits" if self.load_in_4bit => Some(key.example.to_owned()),
            "lora.init" if self.load_in_4bit => Some(quote(AdapterStart::Qera.name())),
            // Only beside tokens to add.
            "tokens.init" => None,
            // Only beside a patience, which has no default.
            "train.early_stopping_min_improvement" => None,
            "train.eval_steps" | "train.early_stopping_metric" if self.eval.is_none() => None,
            _ => key.default.map(str::to_owned),
        }
    }
}

fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}

const HEADER: &str = "\
# A Backdraft recipe. Run it with `backdraft train FILE`; `--set train.learning_rate=1e-4` beside it
# changes a value for one run. Relative paths start at the directory of this file.
# A line that begins with `# key =` shows a key that is not set.
";

pub(crate) fn template(choices: &Choices) -> String {
    let mut text = HEADER.to_owned();
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            text.push_str(&format!("\n\n[{section}]"));
        }
        text.push('\n');
        text.push_str(&comment(key));
        match choices.value(key) {
            Some(value) => text.push_str(&format!("{} = {value}\n", key.name())),
            None => text.push_str(&format!("# {} = {}\n", key.name(), key.example)),
        }
    }
    text
}

fn comment(key: &Key) -> String {
    let change = match key.change {
        "" => String::new(),
        change => format!("# Change: {change}.\n"),
    };
    format!("{}{change}", wrap(key.meaning))
}

/// Comment lines of at most 100 characters.
fn wrap(sentence: &str) -> String {
    const WIDTH: usize = 100;
    let mut lines = vec!["#".to_owned()];
    for word in sentence.split(' ') {
        if let Some(line) = lines.last_mut()
            && line.chars().count() + 1 + word.chars().count() <= WIDTH
        {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("# {word}"));
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
