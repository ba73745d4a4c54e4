//! Attributes of a node, read and checked.

use std::collections::BTreeMap;

use crate::onnx::proto::{AttributeProto, attribute_type as kind};

use super::ModelRefusal;

/// The attributes of one node by name; each has the type it states, and finite numbers.
#[derive(Debug, Default)]
pub(super) struct Attributes(BTreeMap<String, AttributeProto>);

impl Attributes {
    /// Reads a node's attributes.
    pub(super) fn read(attributes: Vec<AttributeProto>) -> Result<Self, ModelRefusal> {
        let mut by_name = BTreeMap::new();
        for attribute in attributes {
            if attribute.g.is_some() || !attribute.graphs.is_empty() {
                return Err(ModelRefusal::Forbidden("sub-graphs"));
            }
            if attribute.ref_attr_name.as_deref().is_some_and(|name| !name.is_empty()) {
                return Err(ModelRefusal::Forbidden("references to attributes of functions"));
            }
            if attribute.sparse_tensor.is_some() || !attribute.sparse_tensors.is_empty() {
                return Err(ModelRefusal::Forbidden("sparse tensors"));
            }
            if !attribute.tensors.is_empty() {
                return Err(ModelRefusal::Forbidden("lists of tensors"));
            }
            if !attribute.f.is_none_or(f32::is_finite) || !attribute.floats.iter().all(|value| value.is_finite()) {
                return Err(ModelRefusal::Forbidden("attributes that are not finite"));
            }
            let name = attribute.name.clone().unwrap_or_default();
            if by_name.insert(name, attribute).is_some() {
                return Err(ModelRefusal::Forbidden("attributes that stand twice"));
            }
        }
        Ok(Self(by_name))
    }

    fn get(&self, name: &str, kind: i32) -> Option<&AttributeProto> {
        self.0.get(name).filter(|attribute| attribute.r#type == Some(kind))
    }

    /// Whether each attribute is one of `allowed`, with that type.
    pub(super) fn all_in(&self, allowed: &[(&str, i32)]) -> bool {
        let known = |(name, attribute): (&String, &AttributeProto)| {
            allowed
                .iter()
                .any(|(allowed, kind)| allowed == name && attribute.r#type == Some(*kind))
        };
        self.0.iter().all(known)
    }

    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.get(name, kind::INT)
            .map(|attribute| attribute.i.unwrap_or_default())
    }

    pub(super) fn integers(&self, name: &str) -> Option<&[i64]> {
        self.get(name, kind::INTS).map(|attribute| &attribute.ints[..])
    }

    pub(super) fn floats(&self, name: &str) -> Option<&[f32]> {
        self.get(name, kind::FLOATS).map(|attribute| &attribute.floats[..])
    }

    pub(super) fn text(&self, name: &str) -> Option<&[u8]> {
        self.get(name, kind::STRING)
            .map(|attribute| attribute.s.as_deref().unwrap_or_default())
    }

    pub(super) fn texts(&self, name: &str) -> Option<&[Vec<u8>]> {
        self.get(name, kind::STRINGS).map(|attribute| &attribute.strings[..])
    }

    /// Takes a tensor attribute out.
    pub(super) fn take_tensor(&mut self, name: &str) -> Option<crate::onnx::proto::TensorProto> {
        self.0
            .remove(name)
            .filter(|attribute| attribute.r#type == Some(kind::TENSOR))
            .and_then(|attribute| attribute.t)
    }

    /// The attributes as they are written again: only what the stated type names.
    pub(super) fn into_protos(self) -> Vec<AttributeProto> {
        let clean = |attribute: AttributeProto| {
            let empty = AttributeProto {
                name: attribute.name,
                r#type: attribute.r#type,
                ..AttributeProto::default()
            };
            match attribute.r#type {
                Some(kind::FLOAT) => AttributeProto {
                    f: Some(attribute.f.unwrap_or_default()),
                    ..empty
                },
                Some(kind::INT) => AttributeProto {
                    i: Some(attribute.i.unwrap_or_default()),
                    ..empty
                },
                Some(kind::STRING) => AttributeProto {
                    s: Some(attribute.s.unwrap_or_default()),
                    ..empty
                },
                Some(kind::FLOATS) => AttributeProto {
                    floats: attribute.floats,
                    ..empty
                },
                Some(kind::INTS) => AttributeProto {
                    ints: attribute.ints,
                    ..empty
                },
                Some(kind::STRINGS) => AttributeProto {
                    strings: attribute.strings,
                    ..empty
                },
                _ => empty,
            }
        };
        self.0.into_values().map(clean).collect()
    }
}
