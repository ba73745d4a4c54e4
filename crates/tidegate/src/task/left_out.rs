//! What of a folder stays on this machine.

use std::path::Path;

use tidegate_types::glob;

use crate::failure::Failure;

/// What a folder's `.skyignore` leaves out.
#[derive(Default)]
pub(super) struct LeftOut(Vec<String>);

impl LeftOut {
    pub(super) fn of(folder: &Path) -> Result<Self, Failure> {
        let file = folder.join(".skyignore");
        let failed = |why: &str| Failure::Usage(format!("{}: {why}", file.display()));
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(&error.to_string())),
        };
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        match lines
            .iter()
            .find(|line| line.starts_with('!') || line.contains(['[', '\\']))
        {
            Some(line) => Err(failed(&format!(
                "`{line}` is not understood; write names and paths with `*` and `?`"
            ))),
            None => Ok(Self(lines)),
        }
    }

    /// Whether what stands at `place` below the folder, under `name`, stays here.
    pub(super) fn holds(&self, place: &str, name: &str) -> bool {
        [".git", ".tidegate"].contains(&name)
            || self.0.iter().any(|line| {
                let pattern = line.trim_end_matches('/');
                match pattern.strip_prefix('/') {
                    Some(anchored) => glob::matches(anchored, place),
                    None if pattern.contains('/') => {
                        let anywhere = format!("*/{}", pattern.trim_start_matches("**/"));
                        glob::matches(pattern, place) || glob::matches(&anywhere, place)
                    }
                    None => glob::matches(pattern, name),
                }
            })
    }
}
