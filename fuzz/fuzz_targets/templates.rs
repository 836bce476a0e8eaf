//! Any text as a chat template: it ends, within its limits, in a text or an error.
#![no_main]

use backdraft_data::{ChatTemplate, Conversation, Message, Role};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source, Some("<s>"), Some("</s>")) else {
        return;
    };
    let chat = Conversation::new(vec![
        Message::new(Role::System, "be brief"),
        Message::new(Role::User, "one é"),
        Message::new(Role::Assistant, "two"),
    ]);
    let whole = template.render(&chat, false);
    let _ = template.render(&chat, true);
    if let (Ok(whole), Ok(Some((marked, spans)))) = (whole, template.render_marked(&chat)) {
        for span in spans {
            assert!(marked.get(span).is_some());
        }
        let _ = whole;
    }
});
