//! What vSphere says, as a tree: its objects have properties of any kind, each named by `xsi:type`.

use std::fmt::{self, Display, Write as _};

use quick_xml::Reader;
use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::{BytesStart, Event};

/// The deepest nesting that is read.
const DEEPEST: usize = 64;

/// The name of an object of vSphere, which its server gave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Reference {
    pub(super) kind: String,
    pub(super) id: String,
}

impl Reference {
    pub(super) fn new(kind: &str, id: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            id: id.to_owned(),
        }
    }

    /// As an element of this name.
    pub(super) fn as_element(&self, name: &str) -> String {
        let (kind, id) = (escape(&self.kind), escape(&self.id));
        format!("<{name} type=\"{kind}\">{id}</{name}>")
    }
}

/// An element, as it is written in a request.
pub(super) fn element(name: &str, value: impl Display) -> String {
    format!("<{name}>{}</{name}>", escape(value.to_string()))
}

/// A setting of a machine by its key, as it is written in a request.
pub(super) fn option(key: &str, value: &str) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "<extraConfig><key>{}</key><value xsi:type=\"xsd:string\">{}</value></extraConfig>",
        escape(key),
        escape(value)
    );
    text
}

/// An element of an answer.
#[derive(Default)]
pub(super) struct Element {
    pub(super) name: String,
    /// Its type, of several that can stand there; empty where it says none.
    pub(super) kind: String,
    /// What it refers to, where it is a reference.
    refers_to: String,
    text: String,
    pub(super) children: Vec<Element>,
}

impl Element {
    /// None where it is no XML, or is nested too deep.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::from_str(std::str::from_utf8(bytes).ok()?);
        // The elements that are open, the outermost first; in the first one stands the document.
        let mut open = vec![Self::default()];
        loop {
            match reader.read_event().ok()? {
                Event::Start(start) if open.len() < DEEPEST => open.push(Self::of(&start)?),
                Event::Start(_) => return None,
                Event::Empty(start) => open.last_mut()?.children.push(Self::of(&start)?),
                Event::End(_) => {
                    let closed = open.pop()?;
                    open.last_mut()?.children.push(closed);
                }
                Event::Text(text) => open.last_mut()?.text.push_str(&text.decode().ok()?),
                Event::CData(text) => open.last_mut()?.text.push_str(&text.decode().ok()?),
                Event::GeneralRef(entity) => {
                    let text = &mut open.last_mut()?.text;
                    match entity.resolve_char_ref().ok()? {
                        Some(one) => text.push(one),
                        None => text.push_str(resolve_predefined_entity(&entity.decode().ok()?)?),
                    }
                }
                // Entities of its own would be one.
                Event::DocType(_) => return None,
                Event::Eof => break,
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            }
        }
        let document = open.pop().filter(|_| open.is_empty())?;
        document.children.into_iter().next()
    }

    fn of(start: &BytesStart<'_>) -> Option<Self> {
        let mut element = Self {
            name: std::str::from_utf8(start.local_name().as_ref()).ok()?.to_owned(),
            ..Self::default()
        };
        for attribute in start.attributes() {
            let attribute = attribute.ok()?;
            let value = attribute.unescape_value().ok()?;
            match attribute.key.as_ref() {
                b"type" => element.refers_to = value.into_owned(),
                // A type of a schema may have a prefix too.
                key if key.ends_with(b":type") => {
                    value.rsplit(':').next()?.clone_into(&mut element.kind);
                }
                _ => {}
            }
        }
        Some(element)
    }

    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    pub(super) fn text(&self) -> &str {
        self.text.trim()
    }

    /// The text of the child of this name; empty where there is none.
    pub(super) fn said(&self, name: &str) -> &str {
        self.child(name).map_or("", Self::text)
    }

    pub(super) fn reference(&self) -> Option<Reference> {
        let there = !self.refers_to.is_empty() && !self.text().is_empty();
        there.then(|| Reference::new(&self.refers_to, self.text()))
    }
}

/// Answers may hold what was told to a machine.
impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Element")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_types_and_references() {
        let answer = r#"<?xml version="1.0"?><e:Envelope xmlns:e="x" xmlns:xsi="y"><e:Body><val xsi:type="vim25:ManagedObjectReference"
            type="Folder">group-v3</val><name>a &lt;b&gt; &#38; c<![CDATA[<d>]]></name><empty/></e:Body></e:Envelope>"#;
        let read = Element::parse(answer.as_bytes()).unwrap();
        let body = read.child("Body").unwrap();
        let value = body.child("val").unwrap();
        assert_eq!(value.kind, "ManagedObjectReference");
        assert_eq!(value.reference(), Some(Reference::new("Folder", "group-v3")));
        assert_eq!(body.said("name"), "a <b> & c<d>");
        assert_eq!((body.said("empty"), body.said("none")), ("", ""));
        assert_eq!(body.child("name").unwrap().reference(), None);
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        let entities = "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>";
        for text in ["", "a", "<a>", "<a></b>", "<a>&b;</a>", entities, deep.as_str()] {
            assert!(Element::parse(text.as_bytes()).is_none(), "{text}");
        }
        assert!(Element::parse(b"\xff<a/>").is_none());
    }

    #[test]
    fn what_is_written_stays_what_it_is() {
        let text = "a<b>&\"c\"'";
        let written = format!("<x>{}{}</x>", element("one", text), option("k&", text));
        let read = Element::parse(written.as_bytes()).unwrap();
        assert_eq!(read.said("one"), text);
        let option = read.child("extraConfig").unwrap();
        assert_eq!((option.said("key"), option.said("value")), ("k&", text));
        let reference = Reference::new("Task", "task-\"1<");
        let read = Element::parse(reference.as_element("obj").as_bytes()).unwrap();
        assert_eq!(read.reference(), Some(reference));
    }
}
