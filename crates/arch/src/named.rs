//! Enums whose variants people write by name.

/// A name that none of a choice's values has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {}, found {actual:?}", alternatives(expected))]
pub struct UnknownName {
    /// The names that there are.
    pub expected: &'static [&'static str],
    /// What was given.
    pub actual: String,
}

fn alternatives(names: &[&str]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        names => names.concat(),
    }
}

/// An enum with one list of names, for recipes, files, command lines and messages alike.
///
/// The variant that is marked `#[default]` is the default. The crate that uses it depends on `serde`.
#[macro_export]
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ::serde::Serialize, ::serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// All values, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// The name as a recipe writes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::UnknownName;

            fn from_str(name: &str) -> ::std::result::Result<Self, Self::Err> {
                let mut all = Self::ALL.iter().copied();
                all.find(|one| one.name() == name)
                    .ok_or_else(|| $crate::UnknownName {
                        expected: Self::NAMES,
                        actual: name.to_owned(),
                    })
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use crate::FourBitFormat;

    #[test]
    fn text_files_and_messages_have_the_same_names() {
        assert_eq!(FourBitFormat::NAMES, ["nf4", "fp4"]);
        for (&format, &name) in FourBitFormat::ALL.iter().zip(FourBitFormat::NAMES) {
            assert_eq!(name.parse(), Ok(format));
            assert_eq!(format.to_string(), name);
            let json = format!("\"{name}\"");
            assert_eq!(serde_json::to_string(&format).unwrap(), json);
            let read: FourBitFormat = serde_json::from_str(&json).unwrap();
            assert_eq!(read, format);
        }
        let error = "NF4".parse::<FourBitFormat>().unwrap_err();
        assert_eq!(error.to_string(), "expected nf4 or fp4, found \"NF4\"");
    }

    #[test]
    fn alternatives_are_joined_as_people_do() {
        let texts = [&["a"][..], &["a", "b"], &["a", "b", "c"]].map(super::alternatives);
        assert_eq!(texts, ["a", "a or b", "a, b or c"]);
    }
}
