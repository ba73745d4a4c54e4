//! The log as a folder of small files (C2SP `tlog-tiles`), so that it can be kept on any store,
//! mirrored with any tool and read with any implementation.
//!
//! - `tile/L/N` holds 256 hashes of 32 bytes: at level 0 leaf hashes, above it the roots of full tiles
//!   of the level below. `tile/L/N.p/W` is the last one of a level while it holds only `W` hashes.
//! - `tile/entries/N` and `tile/entries/N.p/W` hold the leaves themselves, each after its length as
//!   two big-endian bytes.
//! - `N` is written in groups of three digits, all but the last behind an `x`: `x001/x234/067`.
//!
//! Full files never change; a partial file is for one size and is left as it is when the log grows.

use crate::LedgerError;
use crate::merkle::Tree;

/// Hashes in a full tile, leaves in a full bundle.
pub const TILE_WIDTH: u64 = 256;
/// The length of a full hash tile.
const FULL_TILE_BYTES: usize = 8192;
/// Binary tree levels in a tile.
const TILE_HEIGHT: u32 = 8;
/// Where the signed checkpoint lies beside the tiles.
pub const CHECKPOINT_PATH: &str = "checkpoint";

/// A file of the log's folder: its path with `/` between components, and its bytes.
pub type TileFile = (String, Vec<u8>);

/// Reads one file of a log's folder by its path; `None` when it is not there.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> std::io::Result<Option<Vec<u8>>>;

/// Where the leaves are: the journal's table, or a slice in tests.
pub trait LeafSource {
    /// The number of leaves.
    fn size(&self) -> u64;
    /// Leaf `index`.
    ///
    /// # Errors
    /// When there is no such leaf, or it cannot be read.
    fn leaf(&self, index: u64) -> Result<Vec<u8>, LedgerError>;
}

impl<T: AsRef<[u8]>> LeafSource for [T] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn leaf(&self, index: u64) -> Result<Vec<u8>, LedgerError> {
        let leaf = usize::try_from(index).ok().and_then(|index| self.get(index));
        leaf.map(|leaf| leaf.as_ref().to_vec()).ok_or(LedgerError::NoSuchLeaf {
            index,
            size: self.len() as u64,
        })
    }
}

/// One tile or bundle: its number and how many hashes or leaves it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    number: u64,
    width: u64,
}

impl Slot {
    fn path(self, kind: &str) -> String {
        let mut groups = vec![format!("{:03}", self.number % 1000)];
        let mut rest = self.number / 1000;
        while rest > 0 {
            groups.insert(0, format!("x{:03}", rest % 1000));
            rest /= 1000;
        }
        let partial = if self.width == TILE_WIDTH {
            String::new()
        } else {
            format!(".p/{}", self.width)
        };
        format!("tile/{kind}/{}{partial}", groups.join("/"))
    }

    const fn first(self) -> u64 {
        self.number * TILE_WIDTH
    }
}

/// The slots that a row of `new` things has and a row of `old` things had not.
fn new_slots(old: u64, new: u64) -> impl Iterator<Item = Slot> {
    let numbers = if old < new {
        old / TILE_WIDTH..new.div_ceil(TILE_WIDTH)
    } else {
        0..0
    };
    numbers.map(move |number| Slot {
        number,
        width: (new - number * TILE_WIDTH).min(TILE_WIDTH),
    })
}

/// The levels of hash tiles of a log with `size` leaves, with the number of hashes in each.
fn levels(size: u64) -> impl Iterator<Item = (u32, u64)> {
    (0..8)
        .map(move |level| (level, size >> (level * TILE_HEIGHT)))
        .take_while(|(_, hashes)| *hashes > 0)
}

/// The hash tiles that a folder for `old` leaves lacks for `new` leaves: every tile that became full,
/// and the partial one at the end of each row. Writing them twice does no harm.
///
/// # Errors
/// When the tree has fewer than `new` leaves, or `old` is larger than `new`.
pub fn hash_tiles(tree: &Tree, old: u64, new: u64) -> Result<Vec<TileFile>, LedgerError> {
    if old > new || new > tree.size() {
        return Err(LedgerError::NoSuchSize {
            old,
            new,
            have: tree.size(),
        });
    }
    let mut files = Vec::new();
    for (level, hashes) in levels(new) {
        for slot in new_slots(old >> (level * TILE_HEIGHT), hashes) {
            files.push((slot.path(&level.to_string()), tile_bytes(tree, level, slot)?));
        }
    }
    Ok(files)
}

fn tile_bytes(tree: &Tree, level: u32, slot: Slot) -> Result<Vec<u8>, LedgerError> {
    let mut bytes = Vec::with_capacity(FULL_TILE_BYTES);
    for index in slot.first()..slot.first() + slot.width {
        let missing = LedgerError::NoSuchLeaf {
            index,
            size: tree.size(),
        };
        bytes.extend_from_slice(tree.node(level * TILE_HEIGHT, index).ok_or(missing)?.as_bytes());
    }
    Ok(bytes)
}

/// The entry bundles that a folder for `old` leaves lacks for `new` leaves.
///
/// # Errors
/// When there are fewer leaves, one cannot be read, or one is longer than 65,535 bytes.
pub fn entry_bundles<S: LeafSource + ?Sized>(leaves: &S, old: u64, new: u64) -> Result<Vec<TileFile>, LedgerError> {
    if old > new || new > leaves.size() {
        return Err(LedgerError::NoSuchSize {
            old,
            new,
            have: leaves.size(),
        });
    }
    let mut files = Vec::new();
    for slot in new_slots(old, new) {
        let mut bytes = Vec::new();
        for index in slot.first()..slot.first() + slot.width {
            let leaf = leaves.leaf(index)?;
            let length = u16::try_from(leaf.len()).map_err(|_| LedgerError::LeafTooLong {
                index,
                bytes: leaf.len(),
            })?;
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&leaf);
        }
        files.push((slot.path("entries"), bytes));
    }
    Ok(files)
}

/// Reads a partial file, or the beginning of the full one that has taken its place; `None` when
/// neither is there. The path is that of the file that was read.
fn read_slot(read: ReadFile<'_>, slot: Slot, kind: &str) -> Result<Option<(String, Vec<u8>)>, LedgerError> {
    let full = Slot {
        width: TILE_WIDTH,
        ..slot
    };
    for path in [slot.path(kind), full.path(kind)] {
        match read(&path) {
            Ok(Some(bytes)) => return Ok(Some((path, bytes))),
            Ok(None) => {}
            Err(error) => {
                return Err(LedgerError::Read {
                    what: path,
                    reason: error.to_string(),
                });
            }
        }
    }
    Ok(None)
}

/// The leaves of a log with `size` leaves from its entry bundles, one bundle in memory at a time. It
/// ends early where a bundle is missing and all before were there: the log was truncated.
///
/// An item is an error when a bundle cannot be read or is malformed; nothing comes after it.
pub fn read_leaves(read: ReadFile<'_>, size: u64) -> impl Iterator<Item = Result<Vec<u8>, LedgerError>> {
    let mut slots = new_slots(0, size);
    let mut bundle: std::vec::IntoIter<Vec<u8>> = Vec::new().into_iter();
    let mut ended = false;
    std::iter::from_fn(move || {
        loop {
            if let Some(leaf) = bundle.next() {
                return Some(Ok(leaf));
            }
            if ended {
                return None;
            }
            let slot = slots.next()?;
            match read_slot(read, slot, "entries") {
                Ok(None) => ended = true,
                Ok(Some((path, bytes))) => match split_bundle(&bytes, slot, path) {
                    Ok(leaves) => {
                        ended = (leaves.len() as u64) < slot.width;
                        bundle = leaves.into_iter();
                    }
                    Err(error) => {
                        ended = true;
                        return Some(Err(error));
                    }
                },
                Err(error) => {
                    ended = true;
                    return Some(Err(error));
                }
            }
        }
    })
}

/// The leaves of a slot; fewer when the file ends between two leaves. Only a full file that stands
/// where a partial one was asked for may hold more.
fn split_bundle(bytes: &[u8], slot: Slot, path: String) -> Result<Vec<Vec<u8>>, LedgerError> {
    let (mut leaves, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() && (leaves.len() as u64) < slot.width {
        let cut = rest.split_first_chunk::<2>().and_then(|(length, rest)| {
            let length = usize::from(u16::from_be_bytes(*length));
            rest.split_at_checked(length)
        });
        let Some((leaf, after)) = cut else {
            return Err(LedgerError::BadTile {
                path,
                reason: "ends in the middle of a leaf",
            });
        };
        leaves.push(leaf.to_vec());
        rest = after;
    }
    if !rest.is_empty() && path == slot.path("entries") {
        return Err(LedgerError::BadTile {
            path,
            reason: "holds more leaves than its path says",
        });
    }
    Ok(leaves)
}

/// Compares every hash tile of a folder with the tree of its leaves.
///
/// # Errors
/// [`LedgerError::BadTile`] when one is missing or has another length,
/// [`LedgerError::TileMismatch`] with the first leaves concerned when one disagrees.
pub fn check_hash_tiles(read: ReadFile<'_>, tree: &Tree) -> Result<(), LedgerError> {
    for (level, hashes) in levels(tree.size()) {
        for slot in new_slots(0, hashes) {
            let kind = level.to_string();
            let Some((path, bytes)) = read_slot(read, slot, &kind)? else {
                return Err(LedgerError::BadTile {
                    path: slot.path(&kind),
                    reason: "is missing",
                });
            };
            let expected = tile_bytes(tree, level, slot)?;
            // A full tile may stand where a partial one was asked for.
            let length = if path == slot.path(&kind) {
                expected.len()
            } else {
                FULL_TILE_BYTES
            };
            let Some(found) = bytes.get(..expected.len()).filter(|_| bytes.len() == length) else {
                return Err(LedgerError::BadTile {
                    path,
                    reason: "has another length than its hashes",
                });
            };
            let differs = found
                .chunks(32)
                .zip(expected.chunks(32))
                .position(|(found, expected)| found != expected);
            if let Some(at) = differs {
                let span = 1 << (level * TILE_HEIGHT);
                let first = (slot.first() + at as u64) * span;
                return Err(LedgerError::TileMismatch {
                    path,
                    first,
                    last: first + span - 1,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(
            Slot {
                number: 1_234_067,
                width: 256
            }
            .path("0"),
            "tile/0/x001/x234/067"
        );
        assert_eq!(Slot { number: 0, width: 7 }.path("entries"), "tile/entries/000.p/7");
        assert_eq!(Slot { number: 1000, width: 1 }.path("2"), "tile/2/x001/000.p/1");
    }

    #[test]
    fn a_log_of_70_000_leaves_has_the_tiles_that_the_specification_counts() {
        let count = |level: u32, hashes: u64| {
            let slots: Vec<Slot> = new_slots(0, hashes).collect();
            let full = slots.iter().filter(|slot| slot.width == TILE_WIDTH).count();
            (
                level,
                full,
                slots.iter().map(|slot| slot.width).find(|width| *width < TILE_WIDTH),
            )
        };
        let tiles: Vec<_> = levels(70_000).map(|(level, hashes)| count(level, hashes)).collect();
        assert_eq!(tiles, [(0, 273, Some(112)), (1, 1, Some(17)), (2, 0, Some(1))]);
        let tiles: Vec<_> = levels(256).map(|(level, hashes)| count(level, hashes)).collect();
        assert_eq!(tiles, [(0, 1, None), (1, 0, Some(1))]);
    }

    #[test]
    fn growing_writes_only_what_is_new() {
        let slots = |old, new| new_slots(old, new).map(|slot| slot.path("0")).collect::<Vec<_>>();
        assert_eq!(slots(0, 0), Vec::<String>::new());
        assert_eq!(slots(5, 5), Vec::<String>::new());
        assert_eq!(slots(5, 9), ["tile/0/000.p/9"]);
        assert_eq!(slots(5, 256), ["tile/0/000"]);
        assert_eq!(slots(256, 257), ["tile/0/001.p/1"]);
        assert_eq!(slots(200, 600), ["tile/0/000", "tile/0/001", "tile/0/002.p/88"]);
    }
}
