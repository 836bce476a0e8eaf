//! Floating-point numbers in a checkpoint's JSON, written as text.
//!
//! A number of JSON comes back with every bit too, but cannot be infinite or NaN, as a loss can; and every version reads
//! the checkpoints of the others.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes a number as text, for `#[serde(with = …)]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Reads a number from text.
///
/// # Errors
/// Text that is no number.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|_| D::Error::custom(format!("`{text}` is not a number")))
}

/// For values that may be missing.
pub mod option {
    use super::{Deserialize, Deserializer, Error, Serializer};

    /// Writes a number as text, nothing as `null`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            None => serializer.serialize_none(),
            Some(value) => serializer.collect_str(value),
        }
    }

    /// Reads a number from text, or `null`.
    ///
    /// # Errors
    /// Text that is no number.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(D::Error::custom(format!("`{text}` is not a number"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(serde::Serialize, Deserialize)]
    struct Both {
        #[serde(with = "super")]
        plain: f64,
        #[serde(with = "super::option")]
        maybe: Option<f64>,
    }

    proptest! {
        #[test]
        fn every_bit_comes_back(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(!value.is_nan());
            let text = serde_json::to_string(&Both { plain: value, maybe: Some(value) }).unwrap();
            let back: Both = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(back.plain.to_bits(), bits);
            prop_assert_eq!(back.maybe.map(f64::to_bits), Some(bits));
        }
    }

    #[test]
    fn nothing_is_nothing_and_words_are_no_numbers() {
        let text = r#"{"plain":"1.5","maybe":null}"#;
        let both: Both = serde_json::from_str(text).unwrap();
        assert_eq!((both.plain, both.maybe), (1.5, None));
        assert!(serde_json::from_str::<Both>(&text.replace("1.5", "much")).is_err());
    }
}
