//! Which part of the data a person belongs to, decided by a keyed pseudo-random function (PRF) of
//! the subject, so that it is stable over versions of the source and cannot be guessed.

use std::fmt;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use tidegate_types::files::pipeline::Split;

use crate::error::PrepareError;

/// Keys of the private site that only preparation uses. They never leave and are not shown.
#[derive(Clone)]
pub struct Keys {
    /// Divides subjects.
    pub split: [u8; 32],
    /// Orders rows, makes tokens and keyed digests of values.
    pub values: [u8; 32],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys([secret])")
    }
}

/// A part of the data. Training and validation may leave; refinement and test never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Leaves, to be learned from.
    Train,
    /// Leaves, to decide when to stop learning.
    Validation,
    /// Stays home; calibration only.
    Refine,
    /// Stays home; figures and gates only.
    Test,
}

impl Part {
    /// All parts, in order.
    pub const ALL: [Self; 4] = [Self::Train, Self::Validation, Self::Refine, Self::Test];

    /// The parts that may leave, in order.
    pub const CROSSING: [Self; 2] = [Self::Train, Self::Validation];

    /// Whether the part may leave home once it is de-identified.
    #[must_use]
    pub const fn crosses(self) -> bool {
        matches!(self, Self::Train | Self::Validation)
    }

    /// The name of the part, as in `split:` and as the name of the training's input.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Refine => "refine",
            Self::Test => "test",
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Train => 0,
            Self::Validation => 1,
            Self::Refine => 2,
            Self::Test => 3,
        }
    }
}

/// HMAC-SHA-256 (RFC 2104) under a key for one purpose.
#[derive(Clone)]
pub(crate) struct Prf {
    key: hmac::Key,
}

impl fmt::Debug for Prf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prf([secret])")
    }
}

impl Prf {
    /// A function of its own for `purpose`: its key is derived, so that two purposes share nothing.
    pub(crate) fn derive(key: &[u8; 32], purpose: &str, context: &[u8]) -> Self {
        let outer = hmac::Key::new(hmac::HMAC_SHA256, key);
        let mut bytes = format!("tidegate.{purpose}.v1\0").into_bytes();
        bytes.extend_from_slice(context);
        let derived = hmac::sign(&outer, &bytes);
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        }
    }

    pub(crate) fn digest(&self, bytes: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.key, bytes);
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        digest
    }

    /// The first eight bytes of the digest as a number.
    pub(crate) fn number(&self, bytes: &[u8]) -> u64 {
        self.digest(bytes)
            .iter()
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A digest of many fields that is different for every different list of fields.
    pub(crate) fn running(&self) -> Running {
        Running {
            context: hmac::Context::with_key(&self.key),
        }
    }
}

/// A keyed digest of a sequence of fields, each with its length before it.
pub(crate) struct Running {
    context: hmac::Context,
}

impl Running {
    /// Adds a field; a missing one is different from an empty one.
    pub(crate) fn field(&mut self, field: Option<&str>) {
        match field {
            None => self.context.update(&[0]),
            Some(text) => {
                self.context.update(&[1]);
                self.context.update(&(text.len() as u64).to_le_bytes());
                self.context.update(text.as_bytes());
            }
        }
    }

    /// Adds bytes as they are, for content whose form tells where each part ends.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        let tag = self.context.sign();
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        digest
    }
}

/// Divides subjects.
///
/// The home parts lie at the low end of the range: giving more to `validation` never moves a person
/// from home to outside, and the parts of a grown source keep their people.
#[derive(Debug, Clone)]
pub(crate) struct Splitter {
    prf: Prf,
    test: u128,
    refine: u128,
    validation: u128,
}

impl Splitter {
    pub(crate) fn new(keys: &Keys, split: &Split) -> Result<Self, PrepareError> {
        let shares = [split.test, split.refine, split.validation];
        let sum: f64 = shares.iter().sum();
        if shares.iter().any(|share| !(0.0..1.0).contains(share)) || sum >= 1.0 {
            return Err(PrepareError::input(
                "dividing the subjects",
                "the shares of `prepare.split` must each be at least 0 and together below 1",
                "Leave a share for `train`",
            ));
        }
        let bound = |share: f64| (share * 2_f64.powi(64)) as u128;
        Ok(Self {
            prf: Prf::derive(&keys.split, "split", b""),
            test: bound(split.test),
            refine: bound(split.test + split.refine),
            validation: bound(sum),
        })
    }

    /// The part of the subject with this value, after trimming.
    pub(crate) fn part(&self, subject: &str) -> Part {
        let place = u128::from(self.prf.number(subject.as_bytes()));
        if place < self.test {
            Part::Test
        } else if place < self.refine {
            Part::Refine
        } else if place < self.validation {
            Part::Validation
        } else {
            Part::Train
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> Keys {
        Keys {
            split: [byte; 32],
            values: [0; 32],
        }
    }

    #[test]
    fn shares_are_kept_and_a_larger_validation_takes_from_train_alone() {
        let split = Split::default();
        let wider = Split {
            validation: 0.3,
            ..split
        };
        let (a, b) = (
            Splitter::new(&keys(1), &split).unwrap(),
            Splitter::new(&keys(1), &wider).unwrap(),
        );
        let mut counts = [0_u32; 4];
        for subject in 0..20_000 {
            let subject = subject.to_string();
            let part = a.part(&subject);
            counts[part.index()] += 1;
            if !part.crosses() {
                assert_eq!(part, b.part(&subject));
            }
        }
        for (count, share) in counts.iter().zip([0.6, 0.1, 0.1, 0.2]) {
            let found = f64::from(*count) / 20_000.0;
            assert!((found - share).abs() < 0.02, "{found} is not near {share}");
        }
    }

    #[test]
    fn another_key_divides_otherwise() {
        let (a, b) = (
            Splitter::new(&keys(1), &Split::default()).unwrap(),
            Splitter::new(&keys(2), &Split::default()).unwrap(),
        );
        assert!((0..100).any(|subject| a.part(&subject.to_string()) != b.part(&subject.to_string())));
    }

    #[test]
    fn shares_that_leave_nothing_for_training_are_an_error() {
        for (validation, test) in [(0.5, 0.5), (-0.1, 0.2), (f64::NAN, 0.2)] {
            let split = Split {
                validation,
                refine: 0.0,
                test,
            };
            assert!(Splitter::new(&keys(1), &split).is_err());
        }
    }

    #[test]
    fn keys_do_not_show_themselves() {
        let text = format!("{:?} {:?}", keys(7), Prf::derive(&[7; 32], "x", b""));
        assert_eq!(text, "Keys([secret]) Prf([secret])");
    }
}
