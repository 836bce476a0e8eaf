//! Values that mean something to other trainers, or will to a later version, and are refused by name.

use toml::de::DeValue;

const PAGED: &str = r#"this version does not page the optimiser's state; write optimizer = "adamw_8bit" or "adamw""#;
const ADAMW: &str = r#"write optimizer = "adamw""#;
const ADAMW_8BIT: &str = r#"write optimizer = "adamw_8bit""#;
const OTHER_OPTIMIZER: &str = r#"this version does not have it; write optimizer = "adamw", "adamw_8bit", "lion", "sgd", "adafactor", "muon" or "schedule_free_adamw""#;
const OFFLOAD: &str = r#"tensors wait in the host's memory where that pays under activation_policy = "smart", unless activation_offloading = false"#;
const SMART: &str =
    r#"write activation_policy = "smart", which recomputes only what the memory demands"#;
const BIAS: &str =
    r#"write bias = "all", or "lora_only" for the biases of modules with an adapter"#;
const ALL_PROJECTIONS: &str = r#"write target_modules = "all-linear""#;
const COSINE: &str = r#"this version does not have it; write lr_scheduler = "cosine""#;
const FOUR_BIT: &str = "write load_in_4bit = true, or load_in_8bit = true for 8 bits";
const OWN_TEMPLATE: &str = "leave chat_template out to use the model's own";
const WEBGPU: &str = r#"write device = "wgpu""#;

/// A key, values of it in one string, and what to write instead of any of them.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "dtype",
        "bfloat16 torch.bfloat16 bf16-true bf16-mixed",
        r#"write dtype = "bf16""#,
    ),
    (
        "dtype",
        "float16 torch.float16 fp16 half 16-true 16-mixed",
        r#"write dtype = "f16""#,
    ),
    (
        "dtype",
        "float32 torch.float32 fp32 float full no none",
        r#"write dtype = "f32""#,
    ),
    (
        "dtype",
        "true True",
        r#"write dtype = "bf16", "f16" or "auto""#,
    ),
    ("dtype", "false False", r#"write dtype = "f32" or "auto""#),
    (
        "activation_policy",
        "offload offloading offload_disk",
        OFFLOAD,
    ),
    ("activation_policy", "unsloth auto selective", SMART),
    (
        "activation_policy",
        "true True full recompute",
        r#"write activation_policy = "smart", or "recompute-all" for what gradient checkpointing does elsewhere"#,
    ),
    (
        "activation_policy",
        "false False none",
        r#"write activation_policy = "keep-all""#,
    ),
    (
        "device",
        "gpu",
        r#"write device = "cuda" or device = "auto""#,
    ),
    ("device", "mps metal vulkan webgpu", WEBGPU),
    ("load_in_4bit", "4 nf4 fp4 bnb bitsandbytes int4", FOUR_BIT),
    (
        "quantization.quant_type",
        "int4 int8 fp8 nf8",
        r#"write quant_type = "nf4" or "fp4""#,
    ),
    (
        "trainable",
        "true full full_finetuning everything model",
        r#"write trainable = "all""#,
    ),
    (
        "trainable",
        "false lora qlora adapters peft",
        r#"write trainable = "adapter""#,
    ),
    ("lora.bias", "lora true", BIAS),
    (
        "lora.adapter",
        "lora qlora peft",
        "it is the directory of an adapter to train further; adapters are LoRA, over 4 bits with load_in_4bit = true: take it out",
    ),
    (
        "lora.target_modules",
        "all all_linear auto",
        ALL_PROJECTIONS,
    ),
    (
        "data.format",
        "chatml openai chat_template chat conversational",
        r#"write format = "messages""#,
    ),
    (
        "data.format",
        "completion pretrain raw pt",
        r#"write format = "text""#,
    ),
    (
        "data.format",
        "instruction instruct",
        r#"write format = "alpaca""#,
    ),
    (
        "data.format",
        "conversations vicuna",
        r#"write format = "sharegpt""#,
    ),
    (
        "data.format",
        "completions prompt-completion",
        r#"write format = "prompt_completion""#,
    ),
    (
        "data.chat_template",
        "tokenizer_default default auto none",
        OWN_TEMPLATE,
    ),
    (
        "data.train_on",
        "all true inputs",
        r#"write train_on = "everything""#,
    ),
    (
        "data.train_on",
        "false assistant assistants assistant_only",
        r#"write train_on = "responses""#,
    ),
    (
        "data.train_on",
        "last last_response",
        r#"write train_on = "last_turn""#,
    ),
    (
        "data.batching",
        "length-grouped group_by_length",
        r#"rows that are padded come by length; write batching = "padded""#,
    ),
    (
        "data.batching",
        "true True packing bfd wrapped",
        r#"write batching = "packed""#,
    ),
    (
        "data.batching",
        "false False",
        r#"write batching = "padding-free""#,
    ),
    (
        "data.overlong",
        "keep_start",
        r#"write overlong = "truncate""#,
    ),
    (
        "train.optimizer",
        "paged_adamw_8bit paged_adamw_32bit paged_adamw PagedAdamW8bit",
        PAGED,
    ),
    (
        "train.optimizer",
        "adamw_bnb_8bit adamw_torch_8bit AdamW8bit bnb_adamw_8bit bitsandbytes.optim.AdamW8bit torchao.optim.AdamW8bit",
        ADAMW_8BIT,
    ),
    (
        "train.optimizer",
        "adamw_torch adamw_torch_fused adamw_hf adamw_torch_xla adamw_torch_npu_fused adamw_apex_fused adamw_anyprecision \
         AdamW torch.optim.AdamW adamw_32bit",
        ADAMW,
    ),
    (
        "train.optimizer",
        "adam Adam torch.optim.Adam",
        r#"AdamW is Adam where weight_decay = 0; write optimizer = "adamw""#,
    ),
    (
        "train.optimizer",
        "lion_32bit lion_pytorch Lion bitsandbytes.optim.Lion",
        r#"write optimizer = "lion""#,
    ),
    (
        "train.optimizer",
        "SGD torch.optim.SGD",
        r#"write optimizer = "sgd""#,
    ),
    (
        "train.optimizer",
        "Adafactor torch.optim.Adafactor",
        r#"write optimizer = "adafactor""#,
    ),
    (
        "train.optimizer",
        "Muon torch.optim.Muon",
        r#"write optimizer = "muon""#,
    ),
    (
        "train.optimizer",
        "adagrad adamw_torch_4bit ademamix ademamix_8bit paged_ademamix_32bit paged_ademamix_8bit lion_8bit \
         paged_lion_32bit paged_lion_8bit rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw \
         galore_adamw_8bit galore_adafactor galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo adalomo \
         grokadamw schedule_free_radam schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw \
         optimi_adamw ao_adamw_4bit ao_adamw_8bit ao_adamw_fp8 came_pytorch dion adopt shampoo sophia flash_adamw q_galore_adamw8bit",
        OTHER_OPTIMIZER,
    ),
    (
        "train.lr_scheduler",
        "reduce_lr_on_plateau plateau",
        r#"it does not follow from the step alone; write lr_scheduler = "cosine""#,
    ),
    (
        "train.lr_scheduler",
        "warmup_stable_decay wsd greedy one_cycle rex log_sweep cosine_with_quadratic_warmup step exponential",
        COSINE,
    ),
    (
        "train.lr_scheduler",
        "cosine_warmup_with_min_lr",
        r#"write lr_scheduler = { kind = "cosine_with_min_lr", min_lr_rate = 0.1 }"#,
    ),
    (
        "train.lr_scheduler",
        "cosine_decay torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup cosine_annealing",
        r#"write lr_scheduler = "cosine""#,
    ),
    (
        "train.lr_scheduler",
        "linear_schedule linear_decay",
        r#"write lr_scheduler = "linear""#,
    ),
];

/// What to write instead of a value that this version refuses.
pub(crate) fn refusal(key: &str, value: &DeValue<'_>) -> Option<&'static str> {
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Integer(number) => number.as_str(),
        _ => return None,
    };
    let key = key.trim_end_matches(".kind");
    REFUSED
        .iter()
        .find(|(k, values, _)| *k == key && values.split_whitespace().any(|value| value == text))
        .map(|(_, _, instead)| *instead)
}

/// Every key with every value of it that is refused, and what to write instead.
#[cfg(test)]
pub(crate) fn values() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let all = REFUSED.iter();
    all.flat_map(|(key, values, instead)| {
        let values = values.split_whitespace();
        values.map(|value| (*key, value, *instead))
    })
}
