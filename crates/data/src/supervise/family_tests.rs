//! What is trained under the chat templates of Mistral, Qwen, Granite, OLMo, SmolLM and Gemma, with what is peculiar to each.
//!
//! Their texts are other people's work: `BACKDRAFT_TEMPLATES` names a folder with them, as `jinja/tests/make_renderings.py`
//! unpacks it; that they render as in transformers is tested there. Templates of the same kind in our own words are always
//! tested.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::reach_tests::{Row, row};
use super::*;
use crate::format::Format;
use crate::tokenizer::tests::{BOS, tokenizer};

/// A default system text where none is given, as Qwen 2.5 has it.
const DEFAULT_SYSTEM: &str = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}\
    {% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// One BOS, user and assistant by turns, a system text inside the last question if nothing follows it: as Mistral has it.
const BY_TURNS: &str = "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}\
    {{ bos_token }}{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
    {% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}\
    {% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}";

fn said(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn two_turns() -> Vec<Value> {
    vec![
        said("user", "Hi"),
        said("assistant", "One"),
        said("user", "More"),
        said("assistant", "Two"),
    ]
}

fn with_system() -> Vec<Value> {
    let mut turns = vec![said("system", "Be brief.")];
    turns.extend(two_turns());
    turns
}

fn labelled(template: &str, turns: Vec<Value>) -> Row {
    row(template, json!({ "messages": turns }))
}

/// A template's text, if there is a folder of them.
fn public(name: &str) -> Option<String> {
    let Some(folder) = std::env::var_os("BACKDRAFT_TEMPLATES").map(PathBuf::from) else {
        println!("nothing checked: BACKDRAFT_TEMPLATES names no folder of templates");
        return None;
    };
    let path = folder.join(name);
    Some(std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

#[test]
fn a_default_system_text_is_context() {
    let check = |template: &str, default: &str, answers: [&str; 2]| {
        let found = labelled(template, two_turns());
        assert!(found.text.contains(default), "{}", found.text);
        assert_eq!(found.trained, answers);
        assert_eq!(found.unseen, []);
        let found = labelled(template, with_system());
        assert!(!found.text.contains(default), "{}", found.text);
        assert!(found.text.contains("Be brief."), "{}", found.text);
        assert_eq!(found.trained, answers);
        assert_eq!(found.unseen, []);
    };
    let answers = ["One<|im_end|>", "Two<|im_end|>"];
    check(DEFAULT_SYSTEM, "You help.", answers);
    // The template that TRL trains with says itself what is trained: the line breaks around an answer too.
    let tagged = ["\nOne<|im_end|>\n", "\nTwo<|im_end|>\n"];
    for (name, answers) in [
        ("axolotl.qwen_25.jinja", answers),
        ("trl.qwen2_5_training.jinja", tagged),
    ] {
        if let Some(template) = public(name) {
            check(
                &template,
                "You are Qwen, created by Alibaba Cloud.",
                answers,
            );
        }
    }
}

#[test]
fn turns_between_brackets_are_trained_with_eos_and_have_one_bos() {
    let check = |template: &str, space: &str| {
        let found = labelled(template, two_turns());
        let answers = ["One", "Two"].map(|answer| format!("{space}{answer}</s>"));
        assert_eq!(found.trained, answers);
        assert_eq!(found.text.matches("<s>").count(), 1);
        let record = Format::Messages.read(json!({"messages": two_turns()}));
        let tokenizer = tokenizer(Some(template));
        let row = supervise(&record.unwrap(), &tokenizer, None, Supervision::Responses).unwrap();
        assert_eq!(row.input_ids.iter().filter(|id| **id == BOS).count(), 1);
        assert_eq!((row.input_ids[0], row.open_turns), (BOS, 0));
    };
    check(BY_TURNS, " ");
    for (name, space) in [
        ("axolotl.mistral_v1.jinja", " "),
        ("axolotl.mistral_v2v3.jinja", " "),
        ("axolotl.mistral_v3_tekken.jinja", ""),
        ("axolotl.mistral_v7_tekken.jinja", ""),
    ] {
        if let Some(template) = public(name) {
            check(&template, space);
        }
    }
}

#[test]
fn roles_that_do_not_alternate_are_refused_in_the_templates_words() {
    let check = |template: &str, words: &str| {
        let turns = json!({"messages": [said("user", "Hi"), said("user", "Hello?"), said("assistant", "One")]});
        let record = Format::Messages.read(turns).unwrap();
        let tokenizer = tokenizer(Some(template));
        let error = supervise(&record, &tokenizer, None, Supervision::Responses).unwrap_err();
        assert!(
            matches!(error, RowError::Template(TemplateError::Raised { .. })),
            "{error:?}"
        );
        assert!(error.to_string().contains(words), "{error}");
    };
    check(BY_TURNS, "roles must alternate");
    for name in [
        "axolotl.mistral_v1.jinja",
        "axolotl.mistral_v2v3.jinja",
        "axolotl.mistral_v3_tekken.jinja",
    ] {
        if let Some(template) = public(name) {
            check(&template, "conversation roles must alternate");
        }
    }
}

/// The system text stands in the last question only where no answer follows it, so in no row with an answer at its end.
#[test]
fn a_system_text_that_no_answered_question_shows_is_named() {
    let check = |template: &str, answers: [&str; 2]| {
        let found = labelled(template, with_system());
        assert_eq!(found.trained, answers);
        assert_eq!(found.unseen, [Unseen::System]);
    };
    check(BY_TURNS, [" One</s>", " Two</s>"]);
    if let Some(template) = public("axolotl.mistral_v2v3.jinja") {
        check(&template, [" One</s>", " Two</s>"]);
    }
    if let Some(template) = public("axolotl.mistral_v3_tekken.jinja") {
        check(&template, ["One</s>", "Two</s>"]);
    }
    // Other versions show it in the first question, or in a part of its own.
    for (name, shown) in [
        (
            "axolotl.mistral_v1.jinja",
            " [INST] Be brief.\n\nHi [/INST]",
        ),
        (
            "axolotl.mistral_v7_tekken.jinja",
            "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]",
        ),
    ] {
        if let Some(template) = public(name) {
            let found = labelled(&template, with_system());
            assert!(found.text.contains(shown), "{}", found.text);
            assert_eq!(found.trained.len(), 2);
            assert_eq!(found.unseen, []);
        }
    }
}

/// Thoughts of the last turn are trained, those of earlier turns are not in the text; a last turn without one has an
/// empty one. What the generation prompt writes of it is not trained.
#[test]
fn thoughts_of_qwen3() {
    let mut thinking = two_turns();
    thinking[1]["reasoning_content"] = "first".into();
    thinking[3]["reasoning_content"] = "second".into();
    let mut inside = two_turns();
    inside[1]["content"] = "<think>\nfirst\n</think>\n\nOne".into();
    inside[3]["content"] = "<think>\nsecond\n</think>\n\nTwo".into();
    // The second's generation prompt ends in `<think>` and two line breaks.
    for (name, opens, opens_empty) in [
        ("trl.qwen3.jinja", "<think>\n", "<think>\n\n"),
        ("axolotl.qwen3.jinja", "", ""),
    ] {
        let Some(template) = public(name) else {
            return;
        };
        for turns in [&thinking, &inside] {
            let found = labelled(&template, turns.clone());
            assert!(!found.text.contains("first"), "{name}: {}", found.text);
            let last = format!("{opens}second\n</think>\n\nTwo<|im_end|>");
            assert_eq!(found.trained, ["One<|im_end|>", &last], "{name}");
            assert_eq!(found.unseen, [], "{name}");
        }
        let found = labelled(&template, two_turns());
        let last = format!("{opens_empty}</think>\n\nTwo<|im_end|>");
        assert_eq!(found.trained, ["One<|im_end|>", &last], "{name}");
    }
    // The template that TRL trains with keeps them all, and says itself what is trained.
    if let Some(template) = public("trl.qwen3_training.jinja") {
        let found = labelled(&template, thinking.clone());
        let trained = ["first", "second"].into_iter().zip(["One", "Two"]);
        let trained = trained.map(|(t, a)| format!("<think>\n{t}\n</think>\n\n{a}<|im_end|>\n"));
        assert_eq!(found.trained, trained.collect::<Vec<_>>());
    }
    // The models without thoughts write none.
    if let Some(template) = public("trl.qwen3_instruct_2507.jinja") {
        let found = labelled(&template, two_turns());
        assert_eq!(found.trained, ["One<|im_end|>", "Two<|im_end|>"]);
    }
}

/// Roles between marks, the date and a name in a default system text, an end of turn that is the end of text: as Granite 3
/// has it.
const MARKED_ROLES: &str = "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}\
    {% else %}{% set system = 'Today is ' + strftime_now('%B %d, %Y') + '.' %}{% set turns = messages %}{% endif %}\
    {{ '<|start_of_role|>system<|end_of_role|>' + system + '</s>\n' }}\
    {% for m in turns %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '</s>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}";

/// A line for each role, the end of text after each answer, without a line break after the last: as OLMo 2 has it.
const ROLES_IN_LINES: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}\
    {{ '<|assistant|>\n' + m.content + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}\
    {% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}\
    {% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}";

/// A block of metadata that a flag in the system text changes, and an empty thought in each answer: as SmolLM 3 has it.
const WITH_METADATA: &str = "{% set said = messages[0].content if messages[0].role == 'system' else '' %}\
    {% set thinks = '/no_think' not in said %}\
    {{ '<|im_start|>system\n## Metadata\n\nReasoning Mode: ' + ('/think' if thinks else '/no_think') + '\n\n' }}\
    {{ said | replace('/no_think', '') | trim }}{{ '<|im_end|>\n' }}\
    {% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}\
    {% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% if not thinks %}{{ '<think>\n\n</think>\n' }}{% endif %}\
    {{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if not thinks %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}";

#[test]
fn answers_between_marked_roles_end_with_the_text() {
    for (template, after) in [(MARKED_ROLES, "</s>"), (ROLES_IN_LINES, "</s>")] {
        for turns in [two_turns(), with_system()] {
            let found = labelled(template, turns);
            let answers = ["One", "Two"].map(|answer| format!("{answer}{after}"));
            assert_eq!(found.trained, answers);
            assert_eq!(found.unseen, []);
        }
    }
    assert!(
        labelled(MARKED_ROLES, two_turns())
            .text
            .contains("Today is ")
    );
}

/// The empty thought belongs to the generation prompt, so it is not trained; the flag is not content.
#[test]
fn a_flag_in_the_system_text_chooses_what_is_not_trained() {
    let answers = ["One<|im_end|>", "Two<|im_end|>"];
    let found = labelled(WITH_METADATA, two_turns());
    assert_eq!(found.trained, answers);
    assert!(
        found.text.contains("Reasoning Mode: /think"),
        "{}",
        found.text
    );
    let mut turns = vec![said("system", "/no_think")];
    turns.extend(two_turns());
    let found = labelled(WITH_METADATA, turns);
    assert_eq!(found.trained, answers);
    assert!(
        found.text.contains("<think>\n\n</think>\nTwo"),
        "{}",
        found.text
    );
}

/// No system role: its text begins the first question. The answer's role is `model`, contents are trimmed: as Gemma has it.
const SYSTEM_IN_QUESTION: &str = "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim + '\n\n' %}\
    {% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{{ bos_token }}\
    {% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
    {% set role = 'model' if m.role == 'assistant' else m.role %}\
    {{ '<|im_start|>' + role + '\n' + (system if loop.first else '') + m.content | trim + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}";

/// What Gemma's own templates train of two turns: the tokenizer here has no token that ends a turn, so the line's end is trained too.
const GEMMA_ANSWERS: [&str; 2] = ["One<end_of_turn>\n", "Two<end_of_turn>\n"];

#[test]
fn a_system_text_that_begins_the_first_question_is_context() {
    let answers = ["One<|im_end|>", "Two<|im_end|>"];
    let found = labelled(SYSTEM_IN_QUESTION, with_system());
    assert_eq!(found.trained, answers);
    assert_eq!(found.unseen, []);
    let question = "<s><|im_start|>user\nBe brief.\n\nHi<|im_end|>\n<|im_start|>model\n";
    assert!(found.text.starts_with(question), "{}", found.text);
    assert_eq!(found.text.matches("Be brief.").count(), 1);
    let mut blanks = two_turns();
    blanks[1]["content"] = " One\n".into();
    let found = labelled(SYSTEM_IN_QUESTION, blanks);
    assert_eq!(found.trained, answers);
    let twice =
        json!({"messages": [said("user", "Hi"), said("user", "Hello?"), said("assistant", "One")]});
    let record = Format::Messages.read(twice).unwrap();
    let tokenizer = tokenizer(Some(SYSTEM_IN_QUESTION));
    let refused = supervise(&record, &tokenizer, None, Supervision::Responses).unwrap_err();
    assert!(
        refused.to_string().contains("roles must alternate"),
        "{refused}"
    );
    for name in ["axolotl.gemma3.jinja", "trl.gemma3.jinja"] {
        if let Some(template) = public(name) {
            let found = labelled(&template, with_system());
            assert!(found.text.contains("Be brief."), "{name}: {}", found.text);
            assert_eq!(found.trained, GEMMA_ANSWERS, "{name}");
            assert_eq!(found.unseen, [], "{name}");
        }
    }
}

/// A system turn of its own, the role `model`, and an empty thought behind the generation prompt which no answer has: as
/// Gemma 4 has it.
const EMPTY_THOUGHT: &str = "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}\
    {{ '<|im_start|>' + role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>model\n<|channel>thought\n<channel|>' }}{% endif %}";

#[test]
fn an_empty_thought_of_the_generation_prompt_is_not_trained() {
    let check = |template: &str, [open, close]: [&str; 2], ends: [&str; 2]| {
        for turns in [two_turns(), with_system()] {
            let system = turns.len() > 4;
            let found = labelled(template, turns);
            assert_eq!(found.trained, ends.map(str::to_owned), "{}", found.text);
            assert_eq!(found.unseen, []);
            let said = format!("{open}system\nBe brief.{close}");
            assert_eq!(found.text.contains(&said), system, "{}", found.text);
            assert!(!found.text.contains("thought"), "{}", found.text);
        }
    };
    let marks = ["<|im_start|>", "<|im_end|>"];
    check(EMPTY_THOUGHT, marks, ["One<|im_end|>", "Two<|im_end|>"]);
    // The tokenizer here has no token that ends their turns.
    let answers = ["One<turn|>\n", "Two<turn|>\n"];
    for name in [
        "axolotl.gemma4.jinja",
        "axolotl.gemma4_unified.jinja",
        "trl.gemma4.jinja",
        "trl.gemma4_v2.jinja",
        "trl.gemma4_v3.jinja",
        "trl.gemma4_v4.jinja",
        "trl.gemma4_v5.jinja",
    ] {
        if let Some(template) = public(name) {
            println!("{name}");
            check(&template, ["<|turn>", "<turn|>"], answers);
        }
    }
}

/// Gemma 1 and 2, whose templates refuse a system turn; what they train without one.
#[test]
fn a_system_text_that_the_template_refuses_is_an_error() {
    for name in ["axolotl.gemma.jinja", "trl.gemma.jinja"] {
        if let Some(template) = public(name) {
            assert_eq!(labelled(&template, two_turns()).trained, GEMMA_ANSWERS);
            let record = Format::Messages.read(json!({ "messages": with_system() }));
            let tokenizer = tokenizer(Some(&template));
            let refused = supervise(&record.unwrap(), &tokenizer, None, Supervision::Responses);
            let refused = refused.unwrap_err().to_string();
            assert!(
                refused.contains("System role not supported"),
                "{name}: {refused}"
            );
        }
    }
}
