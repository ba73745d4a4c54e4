//! Which files a source of the catalog names.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::PrepareError;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Csv,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" | "tsv" | "txt" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    pub(crate) const fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// One file to be read.
#[derive(Debug, Clone)]
pub(crate) struct InputFile {
    pub(crate) path: PathBuf,
    /// What messages call it: the path as the source names it, also when a copy is read.
    pub(crate) shown: String,
    pub(crate) format: Format,
}

/// The files of `source`, relative to `folder`, in the order of their names.
pub(crate) fn find(folder: &Path, source: &str) -> Result<Vec<InputFile>, PrepareError> {
    let failed = |why: String, fix: &str| PrepareError::input(format!("reading source `{source}`"), why, fix);
    if source.contains("://") {
        return Err(failed(
            "only files, folders and globs can be read here".to_owned(),
            "Export the data into CSV or Parquet files and name these in the catalog",
        ));
    }
    let mut paths = vec![folder.to_path_buf()];
    for component in Path::new(source).components() {
        let text = component.as_os_str().to_string_lossy().into_owned();
        let mut next = Vec::new();
        for path in paths {
            if text.contains(['*', '?']) {
                for name in names(&path)? {
                    if matches(&text, &name) {
                        next.push(path.join(name));
                    }
                }
            } else {
                next.push(path.join(component));
            }
        }
        paths = next;
    }
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            for name in names(&path)? {
                let file = path.join(name);
                if file.is_file() && Format::of(&file).is_some() {
                    files.push(file);
                }
            }
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    files.dedup();
    let mut inputs = Vec::with_capacity(files.len());
    for path in files {
        let shown = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
        let Some(format) = Format::of(&path) else {
            return Err(failed(
                format!("`{shown}` is neither `.csv` nor `.parquet`"),
                "Name CSV or Parquet files",
            ));
        };
        inputs.push(InputFile { path, shown, format });
    }
    let Some(first) = inputs.first() else {
        return Err(failed(
            "there is no such file".to_owned(),
            "Correct `source` in the catalog; it is relative to the catalog's own folder",
        ));
    };
    if let Some(other) = inputs.iter().find(|input| input.format != first.format) {
        return Err(failed(
            format!("`{}` and `{}` have different formats", first.shown, other.shown),
            "Name files of one format",
        ));
    }
    Ok(inputs)
}

/// One file, whatever signs its name holds.
pub(crate) fn exactly(folder: &Path, name: &str) -> Vec<InputFile> {
    let path = folder.join(name);
    vec![InputFile {
        format: Format::of(&path).unwrap_or(Format::Csv),
        path,
        shown: name.to_owned(),
    }]
}

/// The names in a folder, sorted; hidden ones left out.
fn names(folder: &Path) -> Result<Vec<String>, PrepareError> {
    let failed = |source| PrepareError::file("listing", folder, source);
    let mut names = Vec::new();
    if !folder.is_dir() {
        return Ok(names);
    }
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else {
            return Err(PrepareError::input(
                format!("listing `{}`", folder.display()),
                "a file's name is not UTF-8",
                "Rename the file",
            ));
        };
        if !name.starts_with('.') {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether `name` fits `pattern`, in which `*` stands for any text and `?` for one character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // `reached[j]`: the pattern so far fits the first `j` characters.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for wanted in pattern {
        let mut next = vec![false; name.len() + 1];
        if wanted == '*' {
            let mut any = false;
            for (to, from) in next.iter_mut().zip(&reached) {
                any |= from;
                *to = any;
            }
        } else {
            for ((to, from), found) in next.iter_mut().skip(1).zip(&reached).zip(&name) {
                *to = *from && (wanted == '?' || wanted == *found);
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, fits) in [
            ("*.csv", "a.csv", true),
            ("*.csv", ".csv", true),
            ("a*b*c", "aXXbYYc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*", "ba", false),
            ("**", "anything", true),
            ("é?", "éé", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn files_folders_and_globs_are_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.csv", "a.csv", ".hidden.csv", "readme.md"] {
            fs::write(folder.path().join(name), "x\n1\n").unwrap();
        }
        let shown = |source: &str| {
            find(folder.path(), source)
                .map(|files| files.into_iter().map(|file| file.shown).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        assert_eq!(shown("."), Ok(vec!["a.csv".to_owned(), "b.csv".to_owned()]));
        assert_eq!(shown("?.csv"), Ok(vec!["a.csv".to_owned(), "b.csv".to_owned()]));
        assert_eq!(shown("b.csv"), Ok(vec!["b.csv".to_owned()]));
        for (source, expected) in [
            ("c.csv", "no such file"),
            ("readme.md", "neither `.csv` nor `.parquet`"),
            ("s3://bucket/a.csv", "only files"),
        ] {
            let error = shown(source).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        fs::write(folder.path().join("c.parquet"), "").unwrap();
        assert!(shown("*").unwrap_err().contains("neither") || shown("*").unwrap_err().contains("different formats"));
        assert!(shown(".").unwrap_err().contains("different formats"));
    }
}
