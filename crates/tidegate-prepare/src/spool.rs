//! Output rows on their way out: written once as they come, read for the last look and in the secret
//! order. They are kept aside on the private site, in nameless temporary files.

use std::path::Path;

use crate::error::PrepareError;
use crate::execute::OutputBatch;
use crate::sort::{Bits, Sorted, Sorter, cut_short};
use crate::split::{Part, Prf};

/// A spool that is written.
pub(crate) struct SpoolWriter {
    sorter: Sorter,
    order: Prf,
    width: usize,
    rows: u64,
    fields: Vec<u8>,
}

/// A spool that is read: by part, then in the secret order.
pub(crate) struct Spool {
    sorted: Sorted,
}

/// Bytes of a row's place in the secret order.
const ORDER: usize = 16;

impl SpoolWriter {
    pub(crate) fn new(folder: &Path, order: Prf, width: usize) -> Self {
        Self {
            sorter: Sorter::new(folder),
            order,
            width,
            rows: 0,
            fields: Vec::new(),
        }
    }

    /// Adds one output row of a part that may leave. Its place in the secret order follows from its
    /// content, so it tells nothing of where the row stood in the source.
    pub(crate) fn add(&mut self, part: Part, batch: &OutputBatch, row: usize) -> Result<(), PrepareError> {
        let mut order = self.order.running();
        self.fields.clear();
        for column in 0..self.width {
            let field = batch.field(column, row);
            order.field(Some(field));
            let length = u32::try_from(field.len()).map_err(|_| cut_short())?;
            self.fields.extend_from_slice(&length.to_le_bytes());
            self.fields.extend_from_slice(field.as_bytes());
        }
        let order = order.finish();
        let (order, _) = order.split_at(ORDER);
        let number = self.rows.to_be_bytes();
        self.sorter
            .push(&[&[part.index() as u8], order, &number, &self.fields])?;
        self.rows += 1;
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Spool, PrepareError> {
        Ok(Spool {
            sorted: self.sorter.finish()?,
        })
    }
}

impl Spool {
    /// Hands the rows that are `alive` to `each`, those of one `part` or of all, in the secret order. Rows
    /// are numbered as they were added.
    pub(crate) fn each(
        &mut self,
        part: Option<Part>,
        alive: &Bits,
        mut each: impl FnMut(&[&str]) -> Result<(), PrepareError>,
    ) -> Result<(), PrepareError> {
        let mut reader = self.sorted.read()?;
        while let Some(record) = reader.next()? {
            let (found, rest) = record.split_first().ok_or_else(cut_short)?;
            let (number, mut rest) = rest
                .get(ORDER..)
                .and_then(|rest| rest.split_first_chunk::<8>())
                .ok_or_else(cut_short)?;
            let wanted = part.is_none_or(|part| part.index() == usize::from(*found));
            if !wanted || !alive.get(u64::from_be_bytes(*number)) {
                continue;
            }
            let mut fields = Vec::new();
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let field = after.split_at_checked(u32::from_le_bytes(*length) as usize);
                let (field, after) = field.ok_or_else(cut_short)?;
                fields.push(std::str::from_utf8(field).map_err(|_| cut_short())?);
                rest = after;
            }
            each(&fields)?;
        }
        Ok(())
    }
}
