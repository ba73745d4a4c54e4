use std::sync::Arc;

use super::{Verdict, done, must};
use crate::custody::{Custody, CustodyError};

/// Checks the contract of [`Custody`]. `open` gives the custody of that name; every name has another
/// key.
///
/// # Errors
/// The first promise that was broken.
pub async fn custody(open: &dyn Fn(&str) -> Arc<dyn Custody>) -> Verdict {
    let key: [u8; 32] = std::array::from_fn(|i| i as u8 ^ 0xa5);
    let context = "st-mary/hospital/artifact";
    let site = open("site");
    let wrapped = done(site.wrap(&key, context).await, "a key is wrapped")?;
    let again = done(site.wrap(&key, context).await, "a key is wrapped twice")?;
    must(wrapped != again, "the same key is never wrapped to the same bytes")?;
    must(
        !wrapped
            .windows(8)
            .any(|part| key.windows(8).any(|secret| secret == part)),
        "a wrapped key does not show the key",
    )?;
    for wrapped in [&wrapped, &again] {
        let opened = done(site.unwrap_key(wrapped, context).await, "what was wrapped opens")?;
        must(opened == key, "what opens is what was wrapped")?;
        let reopened = done(
            open("site").unwrap_key(wrapped, context).await,
            "it opens after a restart",
        )?;
        must(reopened == key, "what opens after a restart is what was wrapped")?;
    }

    for other in [
        "",
        "st-mary/hospital/artifac",
        "st-mary/hospital/artifact ",
        "st-mary/hospital/artifact\0",
    ] {
        refused(&*site, &wrapped, other, &key, "another context does not open").await?;
    }
    refused(
        &*open("other"),
        &wrapped,
        context,
        &key,
        "another custody does not open",
    )
    .await?;
    for position in 0..wrapped.len() {
        let mut altered = wrapped.clone();
        if let Some(byte) = altered.get_mut(position) {
            *byte ^= 1;
        }
        refused(&*site, &altered, context, &key, "an altered wrapped key does not open").await?;
        let cut = wrapped.get(..position).unwrap_or_default();
        refused(&*site, cut, context, &key, "a cut wrapped key does not open").await?;
    }
    let longer = [&wrapped[..], &[0]].concat();
    refused(&*site, &longer, context, &key, "a longer wrapped key does not open").await?;
    renewed(open, &wrapped, context, &key).await
}

/// A new wrapping key, and the end of the one before.
async fn renewed(open: &dyn Fn(&str) -> Arc<dyn Custody>, old: &[u8], context: &str, key: &[u8; 32]) -> Verdict {
    let site = open("site");
    let number = done(site.rotate().await, "a new key is made")?;
    let new = done(site.wrap(key, context).await, "the new key wraps")?;
    for custody in [&site, &open("site")] {
        for wrapped in [old, &new] {
            let opened = done(
                custody.unwrap_key(wrapped, context).await,
                "after a rotation old and new open",
            )?;
            must(opened == *key, "after a rotation old and new open")?;
        }
    }
    done(site.rotate().await, "a key after the new one is made")?;
    done(site.retire(number).await, "the old key is destroyed")?;
    for custody in [&site, &open("site")] {
        let opened = done(
            custody.unwrap_key(&new, context).await,
            "a key that is not before the number is kept",
        )?;
        must(opened == *key, "a key that is not before the number is kept")?;
        refused(
            &**custody,
            old,
            context,
            key,
            "what a destroyed key wrapped does not open",
        )
        .await?;
    }
    Ok(())
}

async fn refused(custody: &dyn Custody, wrapped: &[u8], context: &str, key: &[u8; 32], promise: &str) -> Verdict {
    match custody.unwrap_key(wrapped, context).await {
        Err(error @ CustodyError::WrongKey { .. }) => {
            let shown = format!("{error} {error:?}");
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            must(
                !shown.contains(&hex) && !shown.contains(&format!("{key:?}")),
                "no error holds key material",
            )
        }
        Err(error) => Err(format!("broken: {promise}, as `WrongKey`: {error}")),
        Ok(_) => Err(format!("broken: {promise}")),
    }
}
