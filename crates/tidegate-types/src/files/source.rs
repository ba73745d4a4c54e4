//! Where things stand in a file, and errors that point there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde_saphyr::granit_parser::{Event, Marker, Options, Parser, ScalarStyle, Span};

/// A file with its text, for messages that point into it.
#[derive(Debug, Clone, Copy)]
pub struct SourceText<'a> {
    /// The name to show.
    pub file: &'a str,
    /// The whole text.
    pub text: &'a str,
}

/// The texts that the three files were read from.
#[derive(Debug, Clone, Copy)]
pub struct Texts<'a> {
    /// `catalog.yaml`.
    pub catalog: SourceText<'a>,
    /// `sites.yaml`.
    pub sites: SourceText<'a>,
    /// `tidegate.yaml`.
    pub pipeline: SourceText<'a>,
}

/// Something in a file that is wrong, with its place.
///
/// It is shown as one line that editors understand, followed by the line of the file and a caret:
///
/// ```text
/// tidegate.yaml:12:3: unknown key `trian`; did you mean `train`?
///    12 |   trian:
///       |   ^
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file's name as it was given.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The character within the line, from 1.
    pub column: u64,
    /// The text of that line; characters that a terminal would obey are replaced.
    pub offending: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

impl std::error::Error for FileError {}

/// Characters of a long line that are shown on either side of the place.
const SHOWN: usize = 60;

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        let caret = usize::try_from(self.column.saturating_sub(1)).unwrap_or(usize::MAX);
        let skipped = caret.saturating_sub(SHOWN);
        let shown: String = self.offending.chars().skip(skipped).take(2 * SHOWN).collect();
        if !shown.trim().is_empty() {
            let indent = " ".repeat(caret - skipped);
            write!(f, "\n{:>5} | {}\n      | {indent}^", self.line, shown.trim_end())?;
        }
        Ok(())
    }
}

/// A place in a file: line and character, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl Place {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    fn of(marker: Marker) -> Self {
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Self {
            line: number(marker.line().max(1)),
            column: number(marker.col()).saturating_add(1),
        }
    }
}

impl SourceText<'_> {
    /// An error at the value of a key, or where the nearest key around it is.
    #[must_use]
    pub fn fault(&self, path: &[&str], message: impl Into<String>) -> FileError {
        let outline = Outline::read(self).unwrap_or_else(|_| Outline::empty());
        self.error(outline.value(path), message, None)
    }

    /// An error at `place`.
    pub(super) fn error(&self, place: Place, message: impl Into<String>, help: Option<String>) -> FileError {
        let index = usize::try_from(place.line.saturating_sub(1)).unwrap_or(usize::MAX);
        let line = self.text.lines().nth(index).unwrap_or("");
        FileError {
            file: self.file.to_owned(),
            line: place.line,
            column: place.column,
            offending: line
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(4096)
                .collect(),
            message: message.into(),
            help,
        }
    }
}

/// The largest file that is read.
const MAX_BYTES: usize = 1 << 20;
/// How deep mappings and lists may lie within one another.
const MAX_DEPTH: usize = 24;
/// How many keys, values, mappings and lists a file may hold.
const MAX_NODES: usize = 50_000;

/// The keys of a file and where they stand: its shape without its values.
#[derive(Debug)]
pub(super) struct Outline {
    root: Node,
    null_keys: Vec<(Range<usize>, Place)>,
}

#[derive(Debug)]
struct Node {
    value: Place,
    children: Children,
}

#[derive(Debug)]
enum Children {
    None,
    Keys(BTreeMap<String, (Place, Node)>),
    Items(Vec<Node>),
}

/// A mapping or list whose end was not read yet.
struct Open {
    node: Node,
    /// The key that waits for its value.
    key: Option<(String, Place)>,
}

impl Outline {
    /// Reads the shape of a file, and refuses what a plain settings file does not need and an attacker
    /// does: anchors and aliases (which let a small file become a huge one), tags, merge keys, several
    /// documents, keys written twice, keys that are not text, great size and depth.
    pub(super) fn read(source: &SourceText<'_>) -> Result<Self, FileError> {
        if source.text.len() > MAX_BYTES {
            let message = format!("the file is larger than {} MiB", MAX_BYTES >> 20);
            return Err(source.error(Place::START, message, None));
        }
        let mut builder = Builder {
            source,
            open: Vec::new(),
            root: None,
            null_keys: Vec::new(),
            documents: 0,
            nodes: 0,
        };
        let mut options = Options::default();
        options.disallow_directives = true;
        for event in Parser::new_from_str_with_options(source.text, options) {
            let (event, span) = event.map_err(|error| {
                let message = format!("this is not YAML: {}", error.info());
                source.error(Place::of(*error.marker()), message, None)
            })?;
            builder.take(event, span)?;
        }
        let root = builder.root.ok_or_else(|| {
            let help = "`docs/files.md` describes every key".to_owned();
            source.error(Place::START, "the file is empty", Some(help))
        })?;
        Ok(Self {
            root,
            null_keys: builder.null_keys,
        })
    }

    /// A shape without anything in it: every key is said to stand at the beginning.
    pub(super) const fn empty() -> Self {
        Self {
            root: Node {
                value: Place::START,
                children: Children::None,
            },
            null_keys: Vec::new(),
        }
    }

    /// The text with quotes around every key that is written as a bare `null`. To YAML such a key is no
    /// text; to whoever writes `csv: {null: [NA]}` it is one.
    pub(super) fn quote_null_keys<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut quoted = Cow::Borrowed(text);
        for (range, _) in self.null_keys.iter().rev() {
            if let Some(key) = text.get(range.clone()) {
                quoted.to_mut().replace_range(range.clone(), &format!("\"{key}\""));
            }
        }
        quoted
    }

    /// The place in the text that is at `place` once [`Self::quote_null_keys`] has been at work.
    pub(super) fn unquoted(&self, place: Place) -> Place {
        let before = |(_, key): &&(Range<usize>, Place)| key.line == place.line;
        let column = self
            .null_keys
            .iter()
            .filter(before)
            .fold(place.column, |column, (_, key)| {
                // Keys come in order, so what stands before this one is corrected already.
                if column > key.column {
                    column.saturating_sub(2).max(key.column)
                } else {
                    column
                }
            });
        Place { column, ..place }
    }

    /// Where the mapping or list begins that holds the key at `place`: its own key, where it has one.
    pub(super) fn around(&self, place: Place) -> Place {
        let mut open = vec![(Place::START, &self.root)];
        while let Some((own, node)) = open.pop() {
            match &node.children {
                Children::Keys(keys) => {
                    for (key, child) in keys.values() {
                        if *key == place {
                            return own;
                        }
                        open.push((*key, child));
                    }
                }
                Children::Items(items) => open.extend(items.iter().map(|item| (item.value, item))),
                Children::None => {}
            }
        }
        place
    }

    /// Where the key at `path` stands, or the nearest key around it that is written. Components of
    /// lists are their numbers from 0.
    pub(super) fn key(&self, path: &[&str]) -> Place {
        self.find(path).0
    }

    /// Where the value at `path` begins, or the nearest key around it that is written.
    pub(super) fn value(&self, path: &[&str]) -> Place {
        let (key, value) = self.find(path);
        value.unwrap_or(key)
    }

    /// Whether something is written at `path`.
    pub(super) fn has(&self, path: &[&str]) -> bool {
        self.find(path).1.is_some()
    }

    fn find(&self, path: &[&str]) -> (Place, Option<Place>) {
        let mut node = &self.root;
        let mut key = Place::START;
        for component in path {
            let child = match &node.children {
                Children::Keys(keys) => keys.get(*component).map(|(place, node)| (*place, node)),
                Children::Items(items) => component
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get(index))
                    .map(|node| (node.value, node)),
                Children::None => None,
            };
            let Some((place, child)) = child else {
                return (key, None);
            };
            (key, node) = (place, child);
        }
        (key, Some(node.value))
    }
}

struct Builder<'a> {
    source: &'a SourceText<'a>,
    open: Vec<Open>,
    root: Option<Node>,
    null_keys: Vec<(Range<usize>, Place)>,
    documents: usize,
    nodes: usize,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), FileError> {
        let place = Place::of(span.start);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return self.refuse(place, "a second document begins here", "one file holds one document");
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) | Event::Anchor(..) => return self.refuse_anchor(place),
            Event::Scalar(text, style, anchor, tag) => {
                self.count(place, anchor, tag.is_some())?;
                if let Some(open) = self.open.last_mut()
                    && let Children::Keys(keys) = &open.node.children
                    && open.key.is_none()
                {
                    if text == "<<" {
                        return self.refuse(place, "merge keys are not supported", "write the keys out");
                    }
                    if let Some((first, _)) = keys.get(text.as_ref()) {
                        let message = format!("key `{text}` is written twice, first on line {}", first.line);
                        return self.refuse(place, &message, "remove one of them");
                    }
                    if style == ScalarStyle::Plain && matches!(text.as_ref(), "null" | "Null" | "NULL" | "~") {
                        self.null_keys.extend(span.byte_range().map(|range| (range, place)));
                    }
                    open.key = Some((text.into_owned(), place));
                } else {
                    self.close(Node {
                        value: place,
                        children: Children::None,
                    });
                }
            }
            Event::MappingStart(_, anchor, tag) => {
                self.begin(place, anchor, tag.is_some(), Children::Keys(BTreeMap::new()))?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(place, anchor, tag.is_some(), Children::Items(Vec::new()))?;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                if let Some(open) = self.open.pop() {
                    self.close(open.node);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, tagged: bool, children: Children) -> Result<(), FileError> {
        self.count(place, anchor, tagged)?;
        if self.open.len() >= MAX_DEPTH {
            return self.refuse(
                place,
                "mappings and lists lie too deep within one another",
                "flatten them",
            );
        }
        if let Some(open) = self.open.last()
            && matches!(open.node.children, Children::Keys(_))
            && open.key.is_none()
        {
            return self.refuse(place, "this key is not a text", "write a plain name");
        }
        self.open.push(Open {
            node: Node { value: place, children },
            key: None,
        });
        Ok(())
    }

    /// Hands a finished node to the mapping or list around it.
    fn close(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { node: parent, key }) => match &mut parent.children {
                Children::Keys(keys) => {
                    if let Some((name, place)) = key.take() {
                        keys.insert(name, (place, node));
                    }
                }
                Children::Items(items) => items.push(node),
                Children::None => {}
            },
        }
    }

    fn count(&mut self, place: Place, anchor: usize, tagged: bool) -> Result<(), FileError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self.refuse(place, "the file holds too many keys and values", "divide it");
        }
        if anchor != 0 {
            return self.refuse_anchor(place);
        }
        if tagged {
            return self.refuse(place, "tags such as `!!str` are not supported", "put text into quotes");
        }
        Ok(())
    }

    fn refuse_anchor<T>(&self, place: Place) -> Result<T, FileError> {
        self.refuse(
            place,
            "anchors and aliases are not supported",
            "write the value out in each place",
        )
    }

    fn refuse<T>(&self, place: Place, message: &str, help: &str) -> Result<T, FileError> {
        Err(self.source.error(place, message, Some(help.to_owned())))
    }
}

/// `did you mean …?` for the known word that is nearest to `word`, if any is near.
pub(super) fn did_you_mean<'a, I: IntoIterator<Item = &'a str>>(word: &str, known: I) -> Option<String> {
    let word = word.to_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

/// A suggestion, or else the list of what is known.
pub(super) fn suggest<'a, I: IntoIterator<Item = &'a str> + Clone>(word: &str, what: &str, known: I) -> Option<String> {
    did_you_mean(word, known.clone()).or_else(|| {
        let names: Vec<String> = known.into_iter().take(40).map(|name| format!("`{name}`")).collect();
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    })
}
