//! One module for each kind of case, and what they share.

mod adamw8bit;
mod adapters;
mod adaptive;
mod bf16;
mod compare;
mod files;
mod forward;
mod four_bit;
mod full_gradients;
mod gguf_blocks;
mod lora;
mod lora_entry;
mod misc;
mod nested;
mod outgrown;
mod packed_documents;
mod packing;
mod place;
mod preference;
mod smollm2;
mod smollm2_lora;
mod support;
mod tiny_case;
mod trainer;
mod training;
mod wrapped;

use backdraft_testkit::golden;

#[test]
fn golden_directory_holds_cases() {
    let parts = [
        "tiny",
        "smollm2",
        "misc",
        "bitsandbytes",
        "adaptive",
        "adapters",
        "preference",
        "training",
    ];
    assert!(
        parts.iter().any(|name| golden::part(name).is_some()),
        "{} holds none of {parts:?}",
        golden::root().display()
    );
}
