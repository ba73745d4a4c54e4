//! Where a key in Amazon's service is.

use std::fmt;
use std::str::FromStr;

use super::super::{Options, is_plain, names_of};
use crate::address::AddressError;

/// Where a key is: `aws-kms://REGION/NAME[?endpoint=URL&certificates=FILE]`. Its keys have the aliases
/// `alias/NAME/1`, `alias/NAME/2` and so on, the one with the greatest number wraps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsAddress {
    pub(super) region: String,
    pub(super) name: String,
    pub(super) options: Options,
}

impl FromStr for KmsAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |why: &str| AddressError::new(text, why);
        let url = names_of(text, "aws-kms")?;
        let region = url.host_str().unwrap_or_default().to_owned();
        let name = url.path().trim_matches('/').to_owned();
        if !is_plain(&region, "-") || !is_plain(&name, "-_/") || name.starts_with("aws/") || name.len() > 200 {
            return Err(wrong(
                "region and name are missing or hold other signs, as in `aws-kms://eu-central-1/st-mary`",
            ));
        }
        let options = Options::of(text, &url, true)?;
        Ok(Self { region, name, options })
    }
}

/// Without its options.
impl fmt::Display for KmsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "aws-kms://{}/{}", self.region, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_region_and_key() {
        let address: KmsAddress = "aws-kms://eu-central-1/hospitals/st-mary?certificates=/etc/ca.pem"
            .parse()
            .unwrap();
        assert_eq!(address.to_string(), "aws-kms://eu-central-1/hospitals/st-mary");
        for (text, why) in [
            ("aws-kms://eu-central-1", "region and name"),
            ("aws-kms:eu-central-1/st-mary", "region and name"),
            ("aws-kms://eu-central-1/aws/s3", "region and name"),
            ("aws-kms://id:secret@eu-central-1/st-mary", "credentials"),
            (
                "aws-kms://eu-central-1/st-mary?endpoint=http://kms.example.org",
                "https",
            ),
            ("aws-kms://eu-central-1/st-mary?secret_access_key=secret", "not known"),
            ("vault:https://host/transit/st-mary", "aws-kms:"),
        ] {
            let error = text.parse::<KmsAddress>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
