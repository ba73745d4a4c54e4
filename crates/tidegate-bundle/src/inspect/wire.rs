//! A first pass over the protobuf that only counts, so that decoding it cannot use much memory.
//!
//! An empty message costs two bytes in the file and hundreds in memory; counting first keeps a small
//! hostile file from growing a thousandfold.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::ModelRefusal;

/// The most messages (nodes, attributes, tensors, dimensions) that are decoded.
const MAX_MESSAGES: usize = 100_000;
/// The most texts and byte strings that are decoded; a boosted model has one for each tree node.
const MAX_TEXTS: usize = 4_000_000;
/// The most integers that are decoded: one byte in the file becomes eight in memory. The largest tree
/// ensemble has nine for each node.
const MAX_INTEGERS: usize = 10_000_000;

#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Value,
    Type,
    TensorType,
    Shape,
    Leaf,
}

impl Kind {
    /// The message that field `tag` holds, as far as the reader decodes it.
    fn child(self, tag: u32) -> Option<Self> {
        Some(match (self, tag) {
            (Self::Model, 7) => Self::Graph,
            (Self::Graph, 1) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5) => Self::Tensor,
            (Self::Graph, 11 | 12) => Self::Value,
            (Self::Node, 5) => Self::Attribute,
            (Self::Value, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            (Self::Model, 8) | (Self::Shape, 1) => Self::Leaf,
            _ => return None,
        })
    }

    /// Whether field `tag` is a list of integers of variable length.
    fn integers(self, tag: u32) -> bool {
        matches!((self, tag), (Self::Attribute, 8) | (Self::Tensor, 1 | 5 | 7))
    }
}

struct Budget {
    messages: usize,
    texts: usize,
    integers: usize,
}

/// Checks that decoding `bytes` as a model stays within bounds.
pub(super) fn check(bytes: &[u8]) -> Result<(), ModelRefusal> {
    scan(
        bytes,
        Kind::Model,
        &mut Budget {
            messages: MAX_MESSAGES,
            texts: MAX_TEXTS,
            integers: MAX_INTEGERS,
        },
    )
}

fn scan(mut bytes: &[u8], kind: Kind, budget: &mut Budget) -> Result<(), ModelRefusal> {
    let broken = |_| ModelRefusal::NotOnnx;
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(broken)?;
        match wire_type {
            WireType::Varint => {
                decode_varint(&mut bytes).map_err(broken)?;
                if kind.integers(tag) {
                    take(&mut budget.integers, 1, MAX_INTEGERS, "integers")?;
                }
            }
            WireType::SixtyFourBit => skip(&mut bytes, 8)?,
            WireType::ThirtyTwoBit => skip(&mut bytes, 4)?,
            WireType::LengthDelimited => {
                let length = decode_varint(&mut bytes).map_err(broken)?;
                let length = usize::try_from(length).map_err(|_| ModelRefusal::NotOnnx)?;
                let body = bytes.get(..length).ok_or(ModelRefusal::NotOnnx)?;
                bytes.advance(length);
                if let Some(child) = kind.child(tag) {
                    take(&mut budget.messages, 1, MAX_MESSAGES, "messages")?;
                    scan(body, child, budget)?;
                } else if kind.integers(tag) {
                    // The last byte of an integer is the one without its highest bit.
                    let count = body.iter().filter(|byte| **byte < 0x80).count();
                    take(&mut budget.integers, count, MAX_INTEGERS, "integers")?;
                } else {
                    take(&mut budget.texts, 1, MAX_TEXTS, "texts")?;
                }
            }
            WireType::StartGroup | WireType::EndGroup => return Err(ModelRefusal::NotOnnx),
        }
    }
    Ok(())
}

fn skip(bytes: &mut &[u8], count: usize) -> Result<(), ModelRefusal> {
    if bytes.remaining() < count {
        return Err(ModelRefusal::NotOnnx);
    }
    bytes.advance(count);
    Ok(())
}

fn take(left: &mut usize, count: usize, limit: usize, what: &'static str) -> Result<(), ModelRefusal> {
    *left = left.checked_sub(count).ok_or(ModelRefusal::TooMuch {
        what,
        limit: limit as u64,
    })?;
    Ok(())
}
