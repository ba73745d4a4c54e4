//! Profiles in the files of Amazon's own tools, `credentials` and `config` in `~/.aws`.

use std::path::PathBuf;

use ini::Ini;

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
/// Ways to get credentials that a profile may name and that are not gone here.
const OTHER_WAYS: [&str; 5] = [
    "role_arn",
    "sso_session",
    "sso_start_url",
    "credential_process",
    "login_session",
];

/// The environment with what a profile adds to it: credentials where it holds none, and a region where it names none.
///
/// # Errors
/// When a file cannot be read, or the profile that `AWS_PROFILE` names is in neither or leads elsewhere.
pub(crate) fn with_profile(environment: &Environment) -> Result<Environment, String> {
    let mut environment = environment.clone();
    let value = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    if SAID.iter().any(|name| value(name).is_some()) {
        return Ok(environment);
    }
    let wanted = value("AWS_PROFILE");
    let name = wanted.clone().unwrap_or_else(|| "default".to_owned());
    let file = |variable: &str, usual: &str| {
        let usual = || value("HOME").map(|home| PathBuf::from(home).join(".aws").join(usual));
        value(variable).map(PathBuf::from).or_else(usual)
    };
    let credentials = read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
    let config = read(file("AWS_CONFIG_FILE", "config"))?;
    let in_credentials = credentials.section(Some(name.as_str()));
    let in_config = match name.as_str() {
        "default" => config
            .section(Some("default"))
            .or_else(|| config.section(Some("profile default"))),
        name => config.section(Some(format!("profile {name}"))),
    };
    let found = |key: &str| {
        let sections = in_credentials.into_iter().chain(in_config);
        sections
            .filter_map(|section| section.get(key))
            .find(|value| !value.is_empty())
    };
    let mut added = Vec::new();
    if found("aws_access_key_id").is_some() {
        added.extend(
            KEYS.iter()
                .filter_map(|(key, variable)| Some((*variable, found(key)?.to_owned()))),
        );
    } else if let Some(way) = OTHER_WAYS.iter().find(|way| found(way).is_some()) {
        return Err(format!(
            "the profile `{name}` says `{way}`, which is not followed here; set the variables that \
             `aws configure export-credentials --profile {name} --format env` prints"
        ));
    } else if wanted.is_some() {
        return Err(format!(
            "no profile `{name}` with credentials is in the files of AWS_PROFILE"
        ));
    }
    if value("AWS_REGION").or_else(|| value("AWS_DEFAULT_REGION")).is_none() {
        added.extend(found("region").map(|region| ("AWS_REGION", region.to_owned())));
    }
    environment.extend(added.into_iter().map(|(variable, value)| (variable.to_owned(), value)));
    Ok(environment)
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
