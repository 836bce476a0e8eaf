//! The notebook for Colab: what its cells say is run, over a small model.

use backdraft_arch::Family;
use backdraft_testkit::random_model::RandomModel;

use super::*;

/// Splits a line as a shell does, where there are no quotes but double ones around whole words.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    parts
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

#[test]
fn the_notebooks_cells_run() {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    let model = RandomModel {
        family: Family::Llama,
        window: None,
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        vocab: 320,
    };
    model.write_in_bytes(&d.join("model"), 0.1);
    let path = d.join("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}\
        {% if add_generation_prompt %}<assistant>{% endif %}"
        .into();
    fs::write(&path, config.to_string()).unwrap();

    let notebook = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/colab.ipynb");
    let notebook: Value = serde_json::from_slice(&fs::read(notebook).unwrap()).unwrap();
    let mut commands = 0;
    for cell in notebook["cells"].as_array().unwrap() {
        let lines: Vec<&str> = (cell["source"].as_array().unwrap().iter())
            .map(|line| line.as_str().unwrap().trim_end())
            .collect();
        if cell["cell_type"] != "code" {
            continue;
        }
        if let Some(name) = lines[0].strip_prefix("%%writefile ") {
            fs::write(d.join(name), lines[1..].join("\n")).unwrap();
            continue;
        }
        for line in lines {
            let Some(line) = line.strip_prefix("!backdraft ") else {
                assert!(
                    line.starts_with("!pip install") || line.starts_with('#'),
                    "{line}"
                );
                continue;
            };
            let line = line.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "model");
            let arguments = words(&line);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = backdraft(d, &arguments);
            assert!(
                output.status.success(),
                "{line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            commands += 1;
        }
    }
    assert!(commands >= 7, "{commands} commands");
    let files = fs::read_dir(d.join("gguf")).unwrap().flatten();
    let mut names = files.map(|file| file.file_name().into_string().unwrap());
    assert!(names.any(|name| name.ends_with(".gguf")));
}
