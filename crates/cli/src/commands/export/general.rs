//! What an exported file says of the model as a whole.

use backdraft_formats::ModelSource;
use backdraft_formats::gguf::Entry;
use backdraft_model::ModelSpec;

use super::Named;

/// Name, size, base and licence.
pub(super) fn of_model(
    model: &Named,
    spec: &ModelSpec,
    source: &ModelSource,
    tuned: bool,
) -> Vec<Entry> {
    let weights: usize = spec.tensors().map(|tensor| tensor.num_values()).sum();
    let mut entries = vec![
        Entry::new("general.name", model.name.as_str()),
        Entry::new("general.size_label", size_label(weights as f64)),
    ];
    if let ModelSource::Gguf(gguf) = source {
        for key in [
            "general.license",
            "general.license.name",
            "general.license.link",
        ] {
            // One of another type says nothing of a licence.
            if let Ok(Some(text)) = gguf.file().metadata().str(key) {
                entries.push(Entry::new(key, text));
            }
        }
    }
    if tuned {
        entries.extend(base(model));
    }
    entries
}

/// Name and base.
pub(super) fn of_adapter(model: &Named) -> Vec<Entry> {
    let mut entries = vec![Entry::new("general.name", model.name.as_str())];
    entries.extend(base(model));
    entries
}

fn base(model: &Named) -> Vec<Entry> {
    let name = model.base.rsplit('/').next().unwrap_or_default();
    let mut entries = vec![
        Entry::new("general.base_model.count", 1),
        Entry::new("general.base_model.0.name", name),
    ];
    // A hub id; a path of this machine is nobody else's business.
    if let Some((organisation, _)) = model
        .base
        .split_once('/')
        .filter(|_| is_hub_id(&model.base))
    {
        let url = format!("https://huggingface.co/{}", model.base);
        entries.push(Entry::new(
            "general.base_model.0.organization",
            organisation,
        ));
        entries.push(Entry::new("general.base_model.0.repo_url", url));
    }
    entries
}

fn is_hub_id(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let parts: Vec<&str> = name.split('/').collect();
    let fine = |part: &&str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    parts.len() == 2 && parts.iter().all(fine) && !std::path::Path::new(name).exists()
}

/// `135M`, `1.2B`: two digits at least, as llama.cpp's tools write it.
fn size_label(weights: f64) -> String {
    let (scaled, unit) = match weights {
        w if w >= 1e12 => (w / 1e12, "T"),
        w if w >= 1e9 => (w / 1e9, "B"),
        w if w >= 1e6 => (w / 1e6, "M"),
        w => (w / 1e3, "K"),
    };
    match scaled.round() < 10.0 {
        true => format!("{scaled:.1}{unit}"),
        false => format!("{scaled:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_llama_cpp_writes_them() {
        let labels = [134_515_008.0, 1_235_814_400.0, 8_030_261_248.0, 70.6e9, 9e3];
        let labels = labels.map(size_label);
        assert_eq!(labels, ["135M", "1.2B", "8.0B", "71B", "9.0K"]);
    }

    #[test]
    fn only_names_of_the_hub_become_links() {
        let entries = |base: &str| {
            let model = Named {
                name: "x".to_owned(),
                base: base.to_owned(),
            };
            of_adapter(&model).len()
        };
        assert_eq!(entries("org/name"), 5);
        assert_eq!(entries("/models/tuned/model"), 3);
        assert_eq!(entries("../model"), 3);
    }
}
