//! Bytes that others can open: digests, signatures, sealed shards, packing lists and envelopes.
//!
//! Everything here is a pure function from bytes to bytes: no file, no network, no clock, nothing
//! asynchronous. Every format is a published one, so that whoever doubts what crossed can check it
//! with software that is not ours; `docs/formats.md` says how, field by field.
//!
//! | to … | use | format |
//! |---|---|---|
//! | name content | [`digest`] | SHA-256, HMAC-SHA-256, canonical JSON (RFC 8785) |
//! | say who said it | [`sign`], [`dsse`], [`permit`] | Ed25519 (RFC 8032), DSSE v1, in-toto Statement v1 |
//! | seal rows, models, code | [`shard`] | Tink streaming AEAD `AES256_GCM_HKDF_1MB` |
//! | describe one sealing | [`packing`] | DSSE for what anybody may read, the shard format for the rest |
//! | give a key to one machine | [`envelope`] | age v1 with X25519 |
//! | keep a key at home | [`wrap`] | Tink `AES256_GCM`, raw |
//!
//! One crossing uses them like this. The keeper makes a [`key::DataKey`]; the sender cuts the
//! artifact into shards of 64 MiB, each a [`shard::PlainShard`] that is sealed where it lies under a fresh
//! key and id; the shard keys and the manifest go into a [`SealedIndex`](tidegate_types::artifact::SealedIndex)
//! that [`packing::seal_index`] seals under the data key; digests and sizes go into a
//! [`PackingList`](tidegate_types::PackingList) that [`packing::sign_packing_list`] signs. The
//! receiver walks the same way back and finds every flipped bit, missing end, swapped part, other key
//! and other organisation on its way.
//!
//! Keys wipe themselves when they are dropped and never show in `Debug`. Errors ([`SealError`]) say
//! what was being opened and what to do, and hold neither key nor plaintext.

mod canonical;
mod cipher;
pub mod digest;
pub mod dsse;
pub mod envelope;
mod error;
pub mod key;
pub mod packing;
pub mod permit;
pub mod random;
pub mod shard;
pub mod sign;
mod stream;
#[cfg(test)]
mod vectors;
pub mod wrap;

pub use error::SealError;
