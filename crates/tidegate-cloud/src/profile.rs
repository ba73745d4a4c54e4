//! Profiles in the files of Amazon's own tools, `credentials` and `config` in `~/.aws`.

use std::path::PathBuf;

use ini::{Ini, Properties};

use crate::credentials::Environment;

/// Variables that say who somebody is: where one of them is set, no file is looked at.
const SAID: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];
/// What a profile may hold of credentials, and the variables that say the same.
const KEYS: [(&str, &str); 3] = [
    ("aws_access_key_id", "AWS_ACCESS_KEY_ID"),
    ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"),
    ("aws_session_token", "AWS_SESSION_TOKEN"),
];
/// A profile with this one acts as a role, whatever keys it has besides.
const ROLE: &str = "role_arn";
/// Other ways to get credentials that a profile may name and that are not gone here.
const OTHER_WAYS: [&str; 4] = ["sso_session", "sso_start_url", "credential_process", "login_session"];

/// The environment with what a profile adds to it: credentials where it holds none, and a region where it names none.
///
/// # Errors
/// Where `AWS_PROFILE` names a profile: when a file cannot be read, or the profile is in neither or leads elsewhere.
/// Where nobody asked for one, such a profile is left alone.
pub(crate) fn with_profile(environment: &Environment) -> Result<Environment, String> {
    let value = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    if SAID.iter().any(|name| value(name).is_some()) {
        return Ok(environment.clone());
    }
    let wanted = value("AWS_PROFILE");
    match added(environment, wanted.as_deref().unwrap_or("default"), wanted.is_some()) {
        Ok(added) => {
            let mut environment = environment.clone();
            if added.iter().any(|(variable, _)| *variable == "AWS_ACCESS_KEY_ID") {
                // Part of other credentials.
                environment.remove("AWS_SESSION_TOKEN");
            }
            environment.extend(added.into_iter().map(|(variable, value)| (variable.to_owned(), value)));
            Ok(environment)
        }
        Err(why) if wanted.is_none() => {
            tracing::warn!("the profile `default` is left alone: {why}");
            Ok(environment.clone())
        }
        Err(why) => Err(why),
    }
}

/// What the profile `name` adds.
fn added(environment: &Environment, name: &str, needed: bool) -> Result<Vec<(&'static str, String)>, String> {
    let value = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    let file = |variable: &str, usual: &str| {
        let usual = || value("HOME").map(|home| PathBuf::from(home).join(".aws").join(usual));
        value(variable).map(PathBuf::from).or_else(usual)
    };
    let credentials = read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
    let config = read(file("AWS_CONFIG_FILE", "config"))?;
    let in_config = match name {
        "default" => config
            .section(Some("default"))
            .or_else(|| config.section(Some("profile default"))),
        name => config.section(Some(format!("profile {name}"))),
    };
    let sections = [credentials.section(Some(name)), in_config];
    let set = |section: &Properties, key: &str| section.get(key).filter(|value| !value.is_empty()).map(str::to_owned);
    let found = |key: &str| sections.iter().flatten().find_map(|section| set(section, key));
    let (first, _) = KEYS[0];
    let keys = sections.iter().flatten().find(|section| set(section, first).is_some());
    let mut other = OTHER_WAYS.iter().filter(|_| keys.is_none());
    if let Some(way) = std::iter::once(&ROLE)
        .chain(&mut other)
        .find(|way| found(way).is_some())
    {
        return Err(format!(
            "the profile `{name}` says `{way}`, which is not followed here; set the variables that \
             `aws configure export-credentials --profile {name} --format env` prints"
        ));
    }
    // All of them from one place: those of another would be somebody else's.
    let mut added: Vec<(&'static str, String)> = match keys {
        Some(section) => KEYS
            .iter()
            .filter_map(|(key, variable)| Some((*variable, set(section, key)?)))
            .collect(),
        None if needed => return Err(format!("no profile `{name}` with credentials is in Amazon's files")),
        None => Vec::new(),
    };
    if value("AWS_REGION").or_else(|| value("AWS_DEFAULT_REGION")).is_none() {
        added.extend(found("region").map(|region| ("AWS_REGION", region)));
    }
    Ok(added)
}

/// A file, or nothing where there is none. Its lines may be secrets, and are in no error.
fn read(file: Option<PathBuf>) -> Result<Ini, String> {
    let Some(file) = file else {
        return Ok(Ini::new());
    };
    match std::fs::read_to_string(&file) {
        Ok(text) => Ini::load_from_str_noescape(&text)
            .map_err(|error| format!("`{}` is no file of profiles: line {}", file.display(), error.line)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ini::new()),
        Err(error) => Err(format!("reading `{}`: {error}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home with both files.
    fn home(credentials: &str, config: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        home
    }

    fn environment(home: &tempfile::TempDir, more: &[(&str, &str)]) -> Environment {
        let mut environment = Environment::from([("HOME".to_owned(), home.path().display().to_string())]);
        environment.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        environment
    }

    #[test]
    fn keys_come_from_one_place_and_a_role_goes_before_them() {
        let home = home(
            "[ward]\naws_access_key_id=ID2\naws_secret_access_key=two\n[both]\naws_access_key_id=ID3\naws_secret_access_key=x\n",
            "[profile ward]\naws_session_token=of somebody else\n[profile both]\nrole_arn=arn:aws:iam::1:role/x\n",
        );
        let ward = environment(&home, &[("AWS_PROFILE", "ward"), ("AWS_SESSION_TOKEN", "left behind")]);
        assert!(!with_profile(&ward).unwrap().contains_key("AWS_SESSION_TOKEN"));
        let both = environment(&home, &[("AWS_PROFILE", "both")]);
        assert!(with_profile(&both).unwrap_err().contains("`role_arn`"));
    }

    #[test]
    fn what_nobody_asked_for_stops_nobody() {
        for credentials in [
            "[default\n",
            "[default]\nsso_session = x\n",
            "[default]\nrole_arn = x\n",
        ] {
            let home = home(credentials, "");
            let with = environment(&home, &[]);
            assert_eq!(with_profile(&with).unwrap(), with, "{credentials}");
        }
    }

    const CREDENTIALS: &str = "[default]\naws_access_key_id = ID1\naws_secret_access_key = a/b+c\\d=%\n\n\
        # a comment\n[ward]\naws_access_key_id=ID2\naws_secret_access_key=two\naws_session_token=token\n";
    const CONFIG: &str = "[default]\nregion = eu-central-1\ns3 =\n  max_concurrent_requests = 20\n\
        [profile ward]\nregion=us-east-1\n[profile clinic]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n";

    #[test]
    fn a_profile_says_who_somebody_is_and_where() {
        let home = home(CREDENTIALS, CONFIG);
        let said = with_profile(&environment(&home, &[])).unwrap();
        assert_eq!(said["AWS_ACCESS_KEY_ID"], "ID1");
        assert_eq!(said["AWS_SECRET_ACCESS_KEY"], "a/b+c\\d=%");
        assert_eq!(said["AWS_REGION"], "eu-central-1");
        let said = with_profile(&environment(&home, &[("AWS_PROFILE", "ward"), ("AWS_REGION", "here")])).unwrap();
        assert_eq!(
            (
                said["AWS_SECRET_ACCESS_KEY"].as_str(),
                said["AWS_SESSION_TOKEN"].as_str()
            ),
            ("two", "token")
        );
        assert_eq!(said["AWS_REGION"], "here");
    }

    #[test]
    fn variables_go_before_files_and_no_file_is_no_error() {
        let home = home("[[[", "");
        let said = [("AWS_ACCESS_KEY_ID", "mine"), ("AWS_PROFILE", "missing")];
        let with = environment(&home, &said);
        assert_eq!(with_profile(&with).unwrap(), with);
        let nowhere = Environment::new();
        assert_eq!(with_profile(&nowhere).unwrap(), nowhere);
    }

    #[test]
    fn a_profile_that_leads_elsewhere_is_told_without_what_is_in_the_files() {
        let with = |credentials: &str, profile: &str| {
            let home = home(credentials, CONFIG);
            with_profile(&environment(&home, &[("AWS_PROFILE", profile)])).unwrap_err()
        };
        assert!(with(CREDENTIALS, "clinic").contains("`role_arn`"));
        assert!(with(CREDENTIALS, "missing").contains("no profile `missing`"));
        let error = with("[default]\naws_secret_access_key\n hush hush\n", "default");
        assert!(
            error.contains("credentials` is no file of profiles") && !error.contains("hush"),
            "{error}"
        );
    }
}
