//! The address of a key in a token.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// Where a key is: `pkcs11:token=LABEL;object=NAME?module-path=FILE` (RFC 7512).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Address {
    pub(super) token: String,
    pub(super) object: String,
    pub(super) module: PathBuf,
}

/// A text that names no key of a PKCS#11 token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}:…` names no key: {why}")]
pub struct InvalidPkcs11Address {
    text: String,
    why: String,
}

impl InvalidPkcs11Address {
    /// What is wrong with it.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

fn absolute(path: String) -> Option<PathBuf> {
    Some(PathBuf::from(path)).filter(|path| path.is_absolute())
}

impl FromStr for Pkcs11Address {
    type Err = InvalidPkcs11Address;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why: String| InvalidPkcs11Address {
            // A PIN in the text must not be repeated.
            text: text.split(':').next().unwrap_or_default().to_owned(),
            why,
        };
        let rest = text
            .strip_prefix("pkcs11:")
            .ok_or_else(|| wrong("it does not begin with `pkcs11:`".to_owned()))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let parts = path.split(';').chain(query.split('&')).filter(|part| !part.is_empty());
        let mut found: BTreeMap<&str, String> = BTreeMap::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let known = ["token", "object", "module-path"]
                .into_iter()
                .find(|known| *known == name);
            let Some(known) = known else {
                return Err(wrong(match name {
                    "pin-value" | "pin-source" => {
                        "a PIN does not belong into a file; set TIDEGATE_PKCS11_PIN".to_owned()
                    }
                    _ => "it has a part besides `token`, `object` and `module-path`".to_owned(),
                }));
            };
            let value = percent_decode_str(value).decode_utf8();
            let value = value
                .map_err(|_| wrong(format!("its `{known}` is not UTF-8")))?
                .into_owned();
            if value.is_empty() || found.insert(known, value).is_some() {
                return Err(wrong(format!("its `{known}` is empty or stands there twice")));
            }
        }
        let mut take = |name: &str| {
            let missing = || {
                wrong(format!(
                    "its `{name}` is missing, as in `pkcs11:token=st-mary;object=custody?module-path=/usr/lib/softhsm/libsofthsm2.so`"
                ))
            };
            found.remove(name).ok_or_else(missing)
        };
        Ok(Self {
            token: take("token")?,
            object: take("object")?,
            module: absolute(take("module-path")?)
                .ok_or_else(|| wrong("its `module-path` is no absolute path".to_owned()))?,
        })
    }
}

impl fmt::Display for Pkcs11Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pkcs11:token={};object={}", self.token, self.object)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_address_names_token_object_and_module() {
        let address: Pkcs11Address = "pkcs11:token=st%20mary;object=custody?module-path=/usr/lib/p11.so"
            .parse()
            .unwrap();
        assert_eq!(address.token, "st mary");
        assert_eq!(address.module, Path::new("/usr/lib/p11.so"));
        assert_eq!(address.to_string(), "pkcs11:token=st mary;object=custody");
        for (text, why) in [
            ("pkcs11:object=custody?module-path=/p11.so", "`token` is missing"),
            ("pkcs11:token=a;object=b", "`module-path` is missing"),
            ("pkcs11:token=a;token=b;object=b?module-path=/p11.so", "twice"),
            ("pkcs11:token=;object=b?module-path=/p11.so", "empty"),
            (
                "pkcs11:token=a;object=b?module-path=/p11.so&pin-value=secret",
                "TIDEGATE_PKCS11_PIN",
            ),
            ("pkcs11:token=a;slot-id=1;object=b?module-path=/p11.so", "besides"),
            ("pkcs11:token=%ff;object=b?module-path=/p11.so", "UTF-8"),
            ("pkcs11:token=a;object=b?module-path=p11.so", "absolute"),
            (
                "pkcs11:pin-value=secret;token=a;object=b?module-path=/p11.so",
                "TIDEGATE_PKCS11_PIN",
            ),
            ("file:", "pkcs11:"),
        ] {
            let error = text.parse::<Pkcs11Address>().unwrap_err();
            assert!(error.why().contains(why), "{text}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
