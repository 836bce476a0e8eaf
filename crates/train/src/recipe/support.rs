//! Values that mean something to other trainers, or will to a later version, and are refused by name.

use toml::Spanned;
use toml::de::DeValue;

const PAGED: &str = r#"this version does not page the optimiser's state; write optimizer = "adamw_8bit" or "adamw""#;
const OFFLOAD: &str = r#"tensors wait in the host's memory where that pays under activation_policy = "smart", unless activation_offloading = false"#;
const BIAS: &str = r#"adapters of this version train no biases; write bias = "none""#;
const PROJECTIONS: &str =
    "adapters go on the seven projections of a layer; take it out of the list";

/// Key, value and what to write instead.
const REFUSED: &[(&str, &str, &str)] = &[
    ("dtype", "bfloat16", r#"write dtype = "bf16""#),
    ("dtype", "float16", r#"write dtype = "f16""#),
    ("dtype", "float32", r#"write dtype = "f32""#),
    ("activation_policy", "offload", OFFLOAD),
    (
        "device",
        "gpu",
        r#"write device = "cuda" or device = "auto""#,
    ),
    ("lora.bias", "all", BIAS),
    ("lora.bias", "lora_only", BIAS),
    ("lora.target_modules", "lm_head", PROJECTIONS),
    ("lora.target_modules", "embed_tokens", PROJECTIONS),
    ("data.train_on", "all", r#"write train_on = "everything""#),
    (
        "data.batching",
        "length-grouped",
        r#"rows that are padded come by length; write batching = "padded""#,
    ),
    ("train.optimizer", "paged_adamw_8bit", PAGED),
    (
        "train.optimizer",
        "adamw_bnb_8bit",
        r#"write optimizer = "adamw_8bit""#,
    ),
    ("train.optimizer", "paged_adamw_32bit", PAGED),
    (
        "train.lr_scheduler",
        "reduce_lr_on_plateau",
        r#"it does not follow from the step alone; write lr_scheduler = "cosine""#,
    ),
    (
        "train.lr_scheduler",
        "warmup_stable_decay",
        r#"this version does not have it; write lr_scheduler = "cosine""#,
    ),
    (
        "train.lr_scheduler",
        "cosine_warmup_with_min_lr",
        r#"write lr_scheduler = { kind = "cosine_with_min_lr", min_lr_rate = 0.1 }"#,
    ),
];

/// What to write instead of a value that this version refuses.
pub(super) fn refusal(key: &str, value: &Spanned<DeValue<'_>>) -> Option<&'static str> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.as_ref(),
        DeValue::Boolean(true) => "true",
        _ => return None,
    };
    let key = key.trim_end_matches(".kind");
    REFUSED
        .iter()
        .find(|(k, v, _)| *k == key && *v == text)
        .map(|(_, _, instead)| *instead)
}
