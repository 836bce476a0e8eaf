//! A system prompt that stands beside the turns.

use serde_json::{Map, Value};

use super::field::{FieldError, describe, optional_string};
use crate::conversation::{Message, Role};

/// The row's `system`; empty where it has none.
pub(super) fn read_system(row: &Map<String, Value>) -> Result<String, FieldError> {
    optional_string(row, "system")
}

/// Puts a row's `system` before its turns; says whether it did.
pub(super) fn put_before(
    row: &Map<String, Value>,
    messages: &mut Vec<Message>,
) -> Result<bool, FieldError> {
    let system = read_system(row)?;
    if system.is_empty() {
        return Ok(false);
    }
    match messages.first() {
        Some(first) if first.role != Role::System => {}
        None => {}
        Some(first) if first.text() == system => return Ok(false),
        Some(_) => {
            return Err(FieldError::new(
                "system",
                "nothing, since the turns begin with another system prompt",
                describe(&Value::String(system)),
            ));
        }
    }
    messages.insert(0, Message::new(Role::System, system));
    Ok(true)
}
