//! Bytes that others can open: shards, packing lists, envelopes, signatures, digests.
