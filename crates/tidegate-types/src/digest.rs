//! Digests as values. Computing one needs bytes and belongs to `tidegate-seal`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a digest: expected `{prefix}` and 64 lower-case hexadecimal digits")]
pub struct InvalidDigest {
    text: String,
    prefix: &'static str,
}

/// A digest of 32 bytes, written as its prefix and hexadecimal digits.
macro_rules! digest {
    ($(#[$meaning:meta])* $name:ident, $prefix:literal) => {
        $(#[$meaning])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the 32 bytes of a hash.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; 32];
                let digits = text.strip_prefix($prefix).unwrap_or_default();
                match hex::decode_to_slice(digits, &mut bytes) {
                    Ok(()) if !digits.bytes().any(|b| b.is_ascii_uppercase()) => Ok(Self(bytes)),
                    _ => Err(InvalidDigest {
                        text: text.chars().take(80).collect(),
                        prefix: $prefix,
                    }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": concat!("^", $prefix, "[0-9a-f]{64}$")})
            }
        }
    };
}

digest! {
    /// A SHA-256 digest (FIPS 180-4), written `sha256:` followed by 64 lower-case hexadecimal digits.
    Digest, "sha256:"
}

digest! {
    /// A BLAKE3 hash in keyed mode, written `blake3:` followed by 64 lower-case hexadecimal digits. Only who has the key
    /// can tell whose digest it is.
    KeyedDigest, "blake3:"
}

impl Digest {
    /// The 64 hexadecimal digits without the `sha256:` in front, as used in object names.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first 12 hexadecimal digits: enough for a person, never for a comparison.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_hex().chars().take(12).collect()
    }
}
