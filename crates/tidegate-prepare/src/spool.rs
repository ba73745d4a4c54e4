//! Output rows on their way out: written once as they come, read again for the last look and in the
//! secret order. A spool is a nameless temporary file on the private site.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::PrepareError;
use crate::execute::OutputBatch;
use crate::split::{Part, Prf};

/// Bytes of rows that are sorted at a time.
const SORT_BYTES: u64 = 96 << 20;

/// A spool that is written.
pub(crate) struct SpoolWriter {
    file: BufWriter<File>,
    order: Prf,
    width: usize,
    bytes: [u64; 2],
}

/// A spool that is read.
pub(crate) struct Spool {
    file: File,
    width: usize,
    bytes: [u64; 2],
}

/// One row.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SpoolRow {
    /// Where the row stands in the secret order.
    order: [u8; 16],
    pub(crate) fields: Vec<String>,
}

fn failed(source: std::io::Error) -> PrepareError {
    PrepareError::file("writing rows aside in", Path::new("the stage's folder"), source)
}

impl SpoolWriter {
    pub(crate) fn new(folder: &Path, order: Prf, width: usize) -> Result<Self, PrepareError> {
        let file = tempfile::tempfile_in(folder).map_err(|source| PrepareError::file("writing", folder, source))?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            order,
            width,
            bytes: [0; 2],
        })
    }

    /// Adds one output row of a part that may leave. Its place in the secret order follows from its
    /// content, so it tells nothing of where the row stood in the source.
    pub(crate) fn add(&mut self, part: Part, batch: &OutputBatch, row: usize) -> Result<(), PrepareError> {
        let mut order = self.order.running();
        for column in 0..self.width {
            order.field(Some(batch.field(column, row)));
        }
        let order = order.finish();
        let (order, _) = order.split_at(16);
        self.file.write_all(&[part.index() as u8]).map_err(failed)?;
        self.file.write_all(order).map_err(failed)?;
        let mut bytes = 17;
        for column in 0..self.width {
            let field = batch.field(column, row).as_bytes();
            let length = u32::try_from(field.len()).map_err(|_| failed(std::io::ErrorKind::FileTooLarge.into()))?;
            self.file.write_all(&length.to_le_bytes()).map_err(failed)?;
            self.file.write_all(field).map_err(failed)?;
            bytes += 4 + u64::from(length);
        }
        if let Some(total) = self.bytes.get_mut(part.index()) {
            *total += bytes;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Spool, PrepareError> {
        let file = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(Spool {
            file,
            width: self.width,
            bytes: self.bytes,
        })
    }
}

impl Spool {
    /// Hands every row that is `alive` to `each`, in the order in which they were added.
    pub(crate) fn each(
        &mut self,
        alive: &[bool],
        mut each: impl FnMut(usize, SpoolRow) -> Result<(), PrepareError>,
    ) -> Result<(), PrepareError> {
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut reader = BufReader::with_capacity(1 << 20, &mut self.file);
        for alive in alive {
            let mut part = [0; 1];
            let mut row = SpoolRow::default();
            reader.read_exact(&mut part).map_err(failed)?;
            reader.read_exact(&mut row.order).map_err(failed)?;
            for _ in 0..self.width {
                let mut length = [0; 4];
                reader.read_exact(&mut length).map_err(failed)?;
                let mut field = vec![0; u32::from_le_bytes(length) as usize];
                reader.read_exact(&mut field).map_err(failed)?;
                let field = String::from_utf8(field).map_err(|_| failed(std::io::ErrorKind::InvalidData.into()))?;
                row.fields.push(field);
            }
            if *alive {
                each(usize::from(part[0]), row)?;
            }
        }
        Ok(())
    }

    /// Hands the rows of one part that are `alive` to `each`, in the secret order. More rows than fit
    /// into memory are sorted slice by slice of that order, with one reading for each.
    pub(crate) fn shuffled(
        &mut self,
        part: Part,
        alive: &[bool],
        mut each: impl FnMut(&SpoolRow) -> Result<(), PrepareError>,
    ) -> Result<(), PrepareError> {
        let bytes = self.bytes.get(part.index()).copied().unwrap_or(0);
        let slices = (bytes / SORT_BYTES + 1).min(256) as usize;
        for slice in 0..slices {
            let mut rows = Vec::new();
            self.each(alive, |found, row| {
                let place = usize::from(row.order[0]) * slices / 256;
                if found == part.index() && place == slice {
                    rows.push(row);
                }
                Ok(())
            })?;
            rows.sort_unstable();
            rows.iter().try_for_each(&mut each)?;
        }
        Ok(())
    }
}
