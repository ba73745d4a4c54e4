//! Which files a source of the catalog names.

use std::fs;
use std::path::{Path, PathBuf};

use tidegate_types::glob;

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

/// A file of a source that lies elsewhere, as it was brought here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it lies here.
    pub path: PathBuf,
    /// What the source calls it; how it is written is told by its ending.
    pub name: String,
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
            "only files, folders, globs and stores of clouds can be read".to_owned(),
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
                    if glob::matches(&text, &name) {
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
    let shown = |path: &PathBuf| path.strip_prefix(folder).unwrap_or(path).display().to_string();
    let files: Vec<SourceFile> = files
        .into_iter()
        .map(|path| SourceFile {
            name: shown(&path),
            path,
        })
        .collect();
    brought(source, &files)
}

/// Files of a source that were found, or brought here from elsewhere.
pub(crate) fn brought(source: &str, files: &[SourceFile]) -> Result<Vec<InputFile>, PrepareError> {
    let failed = |why: String, fix: &str| PrepareError::input(format!("reading source `{source}`"), why, fix);
    let mut inputs = Vec::with_capacity(files.len());
    for SourceFile { path, name } in files {
        let Some(format) = Format::of(Path::new(name)) else {
            return Err(failed(
                format!("`{name}` is neither `.csv` nor `.parquet`"),
                "Name CSV or Parquet files",
            ));
        };
        inputs.push(InputFile {
            path: path.clone(),
            shown: name.clone(),
            format,
        });
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

#[cfg(test)]
mod tests {
    use super::*;

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
