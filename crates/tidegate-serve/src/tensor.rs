//! The protocol's tensors: JSON, and the binary extension, both ways.
//!
//! A request is untrusted: elements are counted while they are read, so that memory is bounded by the
//! limits and not by what a short text can unfold to. No message repeats a value.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::{Value, json};

/// The most elements of one tensor: more than the largest body holds in eight-byte numbers.
const MAX_ELEMENTS: usize = 1 << 21;
/// The most tensors of one request.
const MAX_TENSORS: usize = 10_000;
/// The longest `id` that is given back.
const MAX_ID: usize = 256;

/// A request that does not follow the protocol; the text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadRequest(pub(crate) String);

fn bad(text: impl Into<String>) -> BadRequest {
    BadRequest(text.into())
}

/// Element types that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datatype {
    Fp32,
    Fp64,
    Int64,
    Bytes,
}

impl Datatype {
    const ALL: [(&'static str, Self); 4] = [
        ("FP32", Self::Fp32),
        ("FP64", Self::Fp64),
        ("INT64", Self::Int64),
        ("BYTES", Self::Bytes),
    ];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, datatype)| *datatype == self)
            .map_or("", |(name, _)| name)
    }
}

/// The elements of a tensor in row-major order; a missing number is NaN, a missing text `None`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Elements {
    Numbers(Vec<f64>),
    Texts(Vec<Option<String>>),
}

impl Elements {
    fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.len(),
            Self::Texts(texts) => texts.len(),
        }
    }
}

/// One input.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) datatype: Datatype,
    pub(crate) elements: Elements,
}

/// One output that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) binary: bool,
}

/// An inference request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InferRequest {
    pub(crate) id: Option<String>,
    pub(crate) inputs: Vec<Tensor>,
    /// Empty when all are wanted.
    pub(crate) outputs: Vec<Wanted>,
    /// How outputs are given that were not named.
    pub(crate) binary: bool,
}

/// The parameters that mean something here; all others are read over without being kept.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    binary_data: bool,
    binary_data_output: bool,
    binary_data_size: Option<usize>,
    // Extensions that change what a tensor means are refused, not passed over.
    classification: Option<IgnoredAny>,
    shared_memory_region: Option<IgnoredAny>,
}

impl Parameters {
    fn check(&self) -> Result<(), BadRequest> {
        if self.classification.is_some() || self.shared_memory_region.is_some() {
            return Err(bad(
                "the extensions `classification` and `shared_memory` are not offered",
            ));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct WireRequest {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<WireInput>,
    #[serde(default)]
    outputs: Vec<WireOutput>,
}

#[derive(Deserialize)]
struct WireInput {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct WireOutput {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// `data`: an array, nested as the shape says or flat.
struct Data(Elements);

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut cells = Cells::default();
        deserializer.deserialize_seq(Row(&mut cells))?;
        Ok(Self(cells.finish()))
    }
}

/// What was read of `data` so far. Until the first number or text, nulls are only counted.
#[derive(Default)]
struct Cells {
    nulls: usize,
    elements: Option<Elements>,
}

impl Cells {
    fn finish(self) -> Elements {
        self.elements
            .unwrap_or_else(|| Elements::Numbers(vec![f64::NAN; self.nulls]))
    }

    fn push<E: serde::de::Error>(&mut self, cell: Cell<'_>) -> Result<(), E> {
        let count = self.elements.as_ref().map_or(self.nulls, Elements::len);
        if count >= MAX_ELEMENTS {
            return Err(E::custom("too many elements"));
        }
        let nulls = self.nulls;
        match (cell, &mut self.elements) {
            (Cell::Null, None) => self.nulls += 1,
            (Cell::Null, Some(Elements::Numbers(numbers))) => numbers.push(f64::NAN),
            (Cell::Null, Some(Elements::Texts(texts))) => texts.push(None),
            (Cell::Number(number), Some(Elements::Numbers(numbers))) => numbers.push(number),
            (Cell::Text(text), Some(Elements::Texts(texts))) => texts.push(Some(text.to_owned())),
            (Cell::Number(number), empty @ None) => {
                let mut numbers = vec![f64::NAN; nulls];
                numbers.push(number);
                *empty = Some(Elements::Numbers(numbers));
            }
            (Cell::Text(text), empty @ None) => {
                let mut texts = vec![None; nulls];
                texts.push(Some(text.to_owned()));
                *empty = Some(Elements::Texts(texts));
            }
            _ => return Err(E::custom("numbers and texts are mixed")),
        }
        Ok(())
    }
}

enum Cell<'a> {
    Null,
    Number(f64),
    Text(&'a str),
}

/// Reads one array, or one element of an array.
struct Row<'a>(&'a mut Cells);

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of numbers or texts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> Result<(), A::Error> {
        while row.next_element_seed(Element(self.0))?.is_some() {}
        Ok(())
    }
}

struct Element<'a>(&'a mut Cells);

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a text, null or an array of them")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.0.push(Cell::Null)
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        self.0.push(Cell::Number(number))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.0.push(Cell::Number(number as f64))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.0.push(Cell::Number(number as f64))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.0.push(Cell::Text(text))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        Err(E::custom("true and false are not read: use 1 and 0"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, row: A) -> Result<(), A::Error> {
        Row(self.0).visit_seq(row)
    }
}

impl InferRequest {
    /// Reads a request. `header` is the length of the JSON at the beginning of `body`, when tensors
    /// follow it in binary.
    pub(crate) fn parse(body: &[u8], header: Option<usize>) -> Result<Self, BadRequest> {
        let length = header.unwrap_or(body.len());
        let (text, mut binary) = body
            .split_at_checked(length)
            .ok_or_else(|| bad("`Inference-Header-Content-Length` is larger than the body"))?;
        let request: WireRequest = serde_json::from_slice(text).map_err(|error| {
            // The message could repeat a value.
            let kind = if error.is_data() {
                "does not fit the protocol"
            } else {
                "is not JSON"
            };
            bad(format!(
                "the request {kind} at line {} column {}: it needs `inputs`, each with `name`, `shape`, `datatype` and \
                 `data`, an array of numbers or of texts",
                error.line(),
                error.column()
            ))
        })?;
        if request.inputs.len() > MAX_TENSORS || request.outputs.len() > MAX_TENSORS {
            return Err(bad(format!("a request has at most {MAX_TENSORS} inputs and outputs")));
        }
        if request.id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
            return Err(bad(format!("`id` is longer than {MAX_ID} bytes")));
        }
        let inputs = request
            .inputs
            .into_iter()
            .map(|input| read_input(input, &mut binary))
            .collect::<Result<_, _>>()?;
        if !binary.is_empty() {
            return Err(bad(
                "there are bytes behind the last input: `binary_data_size` and body do not fit",
            ));
        }
        let outputs = request.outputs.into_iter().map(read_output).collect::<Result<_, _>>()?;
        Ok(Self {
            id: request.id,
            inputs,
            outputs,
            binary: request.parameters.binary_data_output,
        })
    }
}

fn read_output(output: WireOutput) -> Result<Wanted, BadRequest> {
    output.parameters.check()?;
    Ok(Wanted {
        binary: output.parameters.binary_data,
        name: output.name,
    })
}

fn read_input(input: WireInput, binary: &mut &[u8]) -> Result<Tensor, BadRequest> {
    let name = shown(&input.name);
    input.parameters.check()?;
    let datatype = Datatype::ALL
        .iter()
        .find(|(text, _)| *text == input.datatype)
        .map(|(_, datatype)| *datatype);
    let datatype =
        datatype.ok_or_else(|| bad(format!("input `{name}`: the datatype is FP32, FP64, INT64 or BYTES")))?;
    let count = input
        .shape
        .iter()
        .try_fold(1_usize, |count, extent| count.checked_mul(*extent));
    let count = count.filter(|count| *count <= MAX_ELEMENTS).ok_or_else(|| {
        bad(format!(
            "input `{name}`: the shape has more than {MAX_ELEMENTS} elements"
        ))
    })?;
    let elements = match (input.data, input.parameters.binary_data_size) {
        (Some(Data(elements)), None) => elements,
        (None, Some(size)) => {
            let (bytes, rest) = binary.split_at_checked(size).ok_or_else(|| {
                bad(format!(
                    "input `{name}`: `binary_data_size` is not a number of bytes that follow the JSON, whose length \
                     `Inference-Header-Content-Length` gives"
                ))
            })?;
            *binary = rest;
            read_binary(bytes, datatype, count).ok_or_else(|| {
                bad(format!(
                    "input `{name}`: the binary data does not fit datatype and shape"
                ))
            })?
        }
        _ => {
            return Err(bad(format!(
                "input `{name}`: either `data` or `binary_data_size` is needed"
            )));
        }
    };
    let elements = match (datatype, elements) {
        // Nothing but nulls looks like numbers.
        (Datatype::Bytes, Elements::Numbers(numbers)) if numbers.iter().all(|number| number.is_nan()) => {
            Elements::Texts(vec![None; numbers.len()])
        }
        (Datatype::Bytes, elements @ Elements::Texts(_)) => elements,
        (Datatype::Fp32 | Datatype::Fp64 | Datatype::Int64, elements @ Elements::Numbers(_)) => elements,
        _ => {
            let expected = if datatype == Datatype::Bytes {
                "texts"
            } else {
                "numbers"
            };
            return Err(bad(format!(
                "input `{name}`: the datatype {} needs {expected}",
                datatype.as_str()
            )));
        }
    };
    if elements.len() != count {
        return Err(bad(format!(
            "input `{name}`: the shape has {count} elements, the data has {}",
            elements.len()
        )));
    }
    Ok(Tensor {
        name: input.name,
        shape: input.shape,
        datatype,
        elements,
    })
}

/// A name from a request as messages show it.
pub(crate) fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(80).collect()
}

/// Little-endian numbers; texts after their length in four little-endian bytes.
fn read_binary(bytes: &[u8], datatype: Datatype, count: usize) -> Option<Elements> {
    fn numbers<const N: usize>(bytes: &[u8], count: usize, read: impl Fn([u8; N]) -> f64) -> Option<Elements> {
        let (chunks, rest) = bytes.as_chunks::<N>();
        (rest.is_empty() && chunks.len() == count)
            .then(|| Elements::Numbers(chunks.iter().copied().map(read).collect()))
    }
    match datatype {
        Datatype::Fp32 => numbers(bytes, count, |bytes| f32::from_le_bytes(bytes).into()),
        Datatype::Fp64 => numbers(bytes, count, f64::from_le_bytes),
        Datatype::Int64 => numbers(bytes, count, |bytes| i64::from_le_bytes(bytes) as f64),
        Datatype::Bytes => {
            let (mut texts, mut rest) = (Vec::new(), bytes);
            while !rest.is_empty() {
                let (length, after) = rest.split_first_chunk::<4>()?;
                let (text, after) = after.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
                if texts.len() == count {
                    return None;
                }
                texts.push(Some(std::str::from_utf8(text).ok()?.to_owned()));
                rest = after;
            }
            (texts.len() == count).then_some(Elements::Texts(texts))
        }
    }
}

/// One output of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Output {
    Fp64(Vec<f64>),
    Int64(Vec<i64>),
}

/// An answer's body, and the length of its JSON when tensors follow in binary.
pub(crate) fn write_response(
    model: &str,
    version: u64,
    id: Option<&str>,
    outputs: &[(&str, bool, &Output)],
) -> (Vec<u8>, Option<usize>) {
    let mut tail = Vec::new();
    let described: Vec<Value> = outputs
        .iter()
        .map(|(name, binary, output)| {
            let (datatype, count, data) = match output {
                Output::Fp64(numbers) => ("FP64", numbers.len(), json!(numbers)),
                Output::Int64(numbers) => ("INT64", numbers.len(), json!(numbers)),
            };
            if !binary {
                return json!({"name": name, "datatype": datatype, "shape": [count], "data": data});
            }
            let before = tail.len();
            match output {
                Output::Fp64(numbers) => tail.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
                Output::Int64(numbers) => tail.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
            }
            let parameters = json!({"binary_data_size": tail.len() - before});
            json!({"name": name, "datatype": datatype, "shape": [count], "parameters": parameters})
        })
        .collect();
    let mut head = json!({"model_name": model, "model_version": version.to_string(), "outputs": described});
    if let (Some(id), Value::Object(head)) = (id, &mut head) {
        head.insert("id".to_owned(), id.into());
    }
    let mut body = head.to_string().into_bytes();
    let length = outputs.iter().any(|(_, binary, _)| *binary).then_some(body.len());
    body.extend(tail);
    (body, length)
}

#[cfg(test)]
#[path = "tensor_tests.rs"]
mod tests;
