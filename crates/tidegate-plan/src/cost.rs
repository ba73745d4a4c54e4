//! Estimates of time, bytes and money. All of them are from above, and rough.

use tidegate_types::files::pipeline::{Pipeline, Split};
use tidegate_types::files::sites::{ComputeOffer, Sites};
use tidegate_types::ids::SiteName;
use tidegate_types::quantity::Money;

use crate::model::Step;

const MIB: u64 = 1 << 20;

/// Seconds that a step takes at the most, by the size of the source.
///
/// Measured on one core of 2020: reading, labelling and sealing 1 MiB takes well below a second, ten
/// epochs of the built-in network over 1 MiB about one. A command of one's own can take any time; ten
/// minutes, and five for its setup, is what two unknown sites are compared by.
pub(crate) fn seconds(step: Step, pipeline: &Pipeline, source_bytes: u64) -> u64 {
    let mebibytes = source_bytes.div_ceil(MIB);
    match step {
        Step::Prepare => 5 + mebibytes,
        Step::Train => match &pipeline.train.trainer {
            Some(trainer) => 10 + mebibytes.saturating_mul(u64::from(trainer.epochs)).div_ceil(5),
            None => 600 + pipeline.train.setup.as_ref().map_or(0, |_| 300),
        },
        Step::Evaluate => 10 + mebibytes,
        Step::Refine => 5 + mebibytes,
        Step::Release => 10 + mebibytes,
        Step::Deploy => 2,
    }
}

/// What a task on a site costs; `None` where the site has no price.
pub(crate) fn compute_cost(offer: Option<&ComputeOffer>, spot: bool, seconds: u64) -> Option<Money> {
    let offer = offer?;
    match (offer.spot_price, spot) {
        // A machine that may be taken away does a fifth of the work twice.
        (Some(price), true) => Some(price.for_seconds(seconds.saturating_mul(6).div_ceil(5))),
        _ => offer.price.map(|price| price.for_seconds(seconds)),
    }
}

/// What bytes cost at the most that leave `from`, or one of `others`, for `to`; `None` where one has no price for them.
pub(crate) fn egress_cost(
    sites: &Sites,
    from: &SiteName,
    others: &[SiteName],
    to: &SiteName,
    bytes: u64,
) -> Option<Money> {
    let price = |from: &SiteName| {
        let prices = &sites.sites.get(from)?.egress;
        let price = prices.get(to.as_str()).or_else(|| prices.get("*"))?;
        Some(price.for_bytes(bytes))
    };
    others
        .iter()
        .try_fold(price(from)?, |most, other| Some(most.max(price(other)?)))
}

/// Bytes of the training and of the validation part, as if every byte of the source left.
pub(crate) fn part_bytes(split: Split, source_bytes: u64) -> (u64, u64) {
    let share = |share: f64| {
        // A share is a person's number with a few decimals: a millionth is exact enough.
        let millionths = (share.clamp(0.0, 1.0) * 1e6).ceil() as u64;
        let bytes = u128::from(source_bytes) * u128::from(millionths);
        u64::try_from(bytes.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    };
    (
        share(1.0 - split.validation - split.refine - split.test),
        share(split.validation),
    )
}

/// Bytes of the files of a command, or of the built-in trainer's settings.
pub(crate) fn code_bytes(pipeline: &Pipeline) -> u64 {
    if pipeline.train.trainer.is_some() {
        64 << 10
    } else {
        MIB
    }
}

/// Bytes of a model.
pub(crate) const MODEL_BYTES: u64 = 2 * MIB;
/// Bytes of a bundle: the model, and what describes it.
pub(crate) const BUNDLE_BYTES: u64 = 3 * MIB;
