//! Constants of a model: typed, finite, as many elements as the shape says, nothing elsewhere.

use crate::onnx::proto::{TensorProto, data_type};

use super::shape::Element;
use super::{ModelRefusal, printable};

/// The most elements of an integer constant.
const MAX_INTEGERS: usize = 1 << 20;

/// A constant tensor, read and checked.
#[derive(Debug, Clone)]
pub(super) struct Constant {
    pub(super) element: Element,
    pub(super) dims: Vec<usize>,
    /// Values of an integer constant; indices, axes and shapes are read from here, and taken.
    pub(super) integers: Vec<i64>,
    raw: Vec<u8>,
}

impl Constant {
    /// Reads a tensor and takes its bytes.
    pub(super) fn read(tensor: TensorProto) -> Result<Self, ModelRefusal> {
        let name = printable(tensor.name.as_deref().unwrap_or_default());
        let refuse = |reason: &'static str| ModelRefusal::Constant {
            name: name.clone(),
            reason,
        };
        if tensor.data_location.unwrap_or_default() != 0 || !tensor.external_data.is_empty() {
            return Err(ModelRefusal::Forbidden("constants outside the file"));
        }
        if tensor.segment.is_some() {
            return Err(refuse("segments are not supported"));
        }
        let (element, width) = match tensor.data_type.unwrap_or_default() {
            data_type::FLOAT => (Element::Float, 4),
            data_type::INT32 => (Element::Int32, 4),
            data_type::INT64 => (Element::Int64, 8),
            data_type::BOOL => (Element::Bool, 1),
            _ => return Err(refuse("the element type is not float32, int32, int64 or bool")),
        };
        let dims = tensor
            .dims
            .iter()
            .map(|&extent| usize::try_from(extent).ok())
            .collect::<Option<Vec<_>>>();
        let dims = dims.ok_or_else(|| refuse("an extent is negative"))?;
        if dims.len() > 8 {
            return Err(refuse("it has more than eight axes"));
        }
        let count = dims
            .iter()
            .try_fold(1usize, |product, &extent| product.checked_mul(extent));
        let bytes = count
            .and_then(|count| count.checked_mul(width))
            .ok_or_else(|| refuse("it is too large"))?;
        // Before anything is copied: what does not fit its shape is not worth the memory.
        let given = match (&tensor.raw_data, element) {
            (Some(raw), _) => Some(raw.len()),
            (None, Element::Float) => tensor.float_data.len().checked_mul(width),
            (None, Element::Int64) => tensor.int64_data.len().checked_mul(width),
            (None, Element::Int32 | Element::Bool) => tensor.int32_data.len().checked_mul(width),
            (None, Element::Label) => None,
        };
        if given != Some(bytes) {
            return Err(refuse("the number of elements does not fit its shape"));
        }
        if matches!(element, Element::Int32 | Element::Int64) && count.is_none_or(|count| count > MAX_INTEGERS) {
            return Err(refuse("it has more integers than indices, axes and shapes need"));
        }
        let raw = match tensor.raw_data {
            Some(raw) => raw,
            None => match element {
                Element::Float => tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Element::Int64 => tensor.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Element::Int32 => tensor.int32_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Element::Bool => tensor.int32_data.iter().map(|&value| u8::from(value != 0)).collect(),
                Element::Label => return Err(refuse("labels are not a constant")),
            },
        };
        if element == Element::Float && !words(&raw).all(|word| f32::from_le_bytes(word).is_finite()) {
            return Err(refuse("a weight is not finite"));
        }
        if element == Element::Bool && raw.iter().any(|&byte| byte > 1) {
            return Err(refuse("a truth value is neither 0 nor 1"));
        }
        let integers = match element {
            Element::Int64 => raw.as_chunks().0.iter().map(|&word| i64::from_le_bytes(word)).collect(),
            Element::Int32 => words(&raw).map(|word| i64::from(i32::from_le_bytes(word))).collect(),
            _ => vec![],
        };
        Ok(Self {
            element,
            dims,
            integers,
            raw,
        })
    }

    /// The tensor as it is written again.
    pub(super) fn into_tensor(self, name: String) -> TensorProto {
        let code = self.element.code();
        let dims = self.dims.iter().map(|&extent| extent as i64).collect();
        TensorProto {
            dims,
            data_type: Some(code),
            name: Some(name),
            raw_data: Some(self.raw),
            ..TensorProto::default()
        }
    }
}

fn words(raw: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    raw.as_chunks().0.iter().copied()
}
