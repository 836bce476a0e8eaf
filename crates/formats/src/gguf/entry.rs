//! Metadata to be written.

/// A value of a metadata key.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names are the definition")]
pub enum EntryValue {
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Bools(Vec<bool>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A metadata key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: EntryValue,
}

impl Entry {
    /// An entry.
    pub fn new(key: impl Into<String>, value: impl Into<EntryValue>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
        }
    }

    /// Appends the entry as it lies in a file.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_text(out, &self.key);
        let mut put = |kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match &self.value {
            EntryValue::U16(value) => put(2, &value.to_le_bytes()),
            EntryValue::U32(value) => put(4, &value.to_le_bytes()),
            EntryValue::I32(value) => put(5, &value.to_le_bytes()),
            EntryValue::F32(value) => put(6, &value.to_le_bytes()),
            EntryValue::Bool(value) => put(7, &[u8::from(*value)]),
            EntryValue::Text(value) => {
                put(8, &[]);
                put_text(out, value);
            }
            EntryValue::Texts(values) => {
                put(9, &list_head(8, values.len()));
                for value in values {
                    put_text(out, value);
                }
            }
            EntryValue::Bools(values) => {
                put(9, &list_head(7, values.len()));
                out.extend(values.iter().map(|value| u8::from(*value)));
            }
            EntryValue::I32s(values) => {
                put(9, &list_head(5, values.len()));
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            EntryValue::F32s(values) => {
                put(9, &list_head(6, values.len()));
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
}

fn list_head(kind: u32, length: usize) -> Vec<u8> {
    let mut head = kind.to_le_bytes().to_vec();
    head.extend((length as u64).to_le_bytes());
    head
}

/// A text with its length before it.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl From<u32> for EntryValue {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for EntryValue {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for EntryValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for EntryValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for EntryValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}
