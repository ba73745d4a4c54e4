//! Where a key in Azure Key Vault is.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::super::{Options, is_plain};
use crate::address::{AddressError, secure};

/// Where a key is: `key-vault:https://HOST/NAME[?certificates=FILE]`. Its keys are `NAME-1`, `NAME-2` and so on, the one
/// with the greatest number wraps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyVaultAddress {
    pub(super) server: Url,
    pub(super) name: String,
    pub(super) options: Options,
}

impl FromStr for KeyVaultAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |why: &str| AddressError::new(text, why);
        let rest = text
            .strip_prefix("key-vault:")
            .ok_or_else(|| wrong("it does not begin with `key-vault:`"))?;
        let mut server = Url::parse(rest).map_err(|error| wrong(&error.to_string()))?;
        secure(&server).map_err(|why| wrong(&format!("its server {why}")))?;
        let name = server.path().trim_matches('/').to_owned();
        if !is_plain(&name, "-") || name.len() > 100 {
            return Err(wrong(
                "the key's name is missing or holds other signs, as in `key-vault:https://my-vault.vault.azure.net/st-mary`",
            ));
        }
        let options = Options::of(text, &server, false)?;
        server.set_path("");
        server.set_query(None);
        Ok(Self { server, name, options })
    }
}

/// Without its options.
impl fmt::Display for KeyVaultAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key-vault:{}{}", self.server, self.name)
    }
}

impl KeyVaultAddress {
    /// What tokens for this vault are asked for: the service that its host belongs to.
    pub(super) fn resource(&self) -> String {
        let host = self.server.host_str().unwrap_or_default();
        let service = host.split_once('.').filter(|_| self.server.domain().is_some());
        format!("https://{}", service.map_or("vault.azure.net", |(_, service)| service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_vault_and_key() {
        let address: KeyVaultAddress = "key-vault:https://my-vault.vault.azure.net/st-mary?certificates=/etc/ca.pem"
            .parse()
            .unwrap();
        assert_eq!(
            address.to_string(),
            "key-vault:https://my-vault.vault.azure.net/st-mary"
        );
        assert_eq!(address.resource(), "https://vault.azure.net");
        let china: KeyVaultAddress = "key-vault:https://v.vault.azure.cn/k".parse().unwrap();
        assert_eq!(china.resource(), "https://vault.azure.cn");
        for (text, why) in [
            ("key-vault:https://my-vault.vault.azure.net", "name is missing"),
            ("key-vault:https://my-vault.vault.azure.net/a/b", "name is missing"),
            ("key-vault:http://my-vault.vault.azure.net/st-mary", "https"),
            (
                "key-vault:https://a:secret@my-vault.vault.azure.net/st-mary",
                "nothing else",
            ),
            (
                "key-vault:https://my-vault.vault.azure.net/st-mary?token=secret",
                "not known",
            ),
            ("file:", "key-vault:"),
        ] {
            let error = text.parse::<KeyVaultAddress>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
