//! `{"text": …}`

use serde_json::{Map, Value};

use super::field::{FieldError, string};
use crate::conversation::Record;

pub(super) fn read(row: Map<String, Value>) -> Result<Record, FieldError> {
    string(&row, "text", "text").map(Record::Text)
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use crate::conversation::Record;
    use serde_json::json;

    #[test]
    fn reads_text_as_it_stands() {
        let read = Format::Text
            .read(json!({"text": " a\n", "meta": {}}))
            .unwrap();
        assert_eq!(read, Record::Text(" a\n".into()));
        assert!(Format::Text.read(json!({"text": null})).is_err());
    }
}
