use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tidegate_contracts::StoreError;
use tokio::time::Instant;

/// How often one call to a store is tried.
pub(crate) const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The longest wait that a store may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Waits before try number `tried + 1`: twice as long each time, and a random part of that, so that
/// many senders that were turned away together do not come back together. Where the store said how long it wants to
/// be left alone, that comes first.
pub(crate) async fn pause(tried: u32, failure: &StoreError) {
    // Without randomness the pause is merely not spread.
    let random = tidegate_seal::random::random_bytes::<1>().map_or(255, |[byte]| byte);
    tokio::time::sleep(length(tried, failure, random)).await;
}

fn length(tried: u32, failure: &StoreError, random: u8) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << tried.min(16)).min(LONGEST_PAUSE);
    let asked = match failure {
        StoreError::Busy { after: Some(after), .. } => (*after).min(LONGEST_ASKED),
        _ => Duration::ZERO,
    };
    asked + longest.mul_f64(0.5 + f64::from(random) / 510.0)
}

/// Repeats a call while it fails in a way that may pass: eight times at the most, with growing pauses. Only
/// for calls that may have their effect twice.
///
/// # Errors
/// What the last try failed with.
pub async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let mut tried = 0;
    loop {
        tried += 1;
        match call().await {
            Err(error) if error.is_transient() && tried < TRIES => pause(tried, &error).await,
            result => return result,
        }
    }
}

/// How many objects may be under way at once: halved when the store asks for less, and growing by one
/// for every full round of successes (additive increase, multiplicative decrease). None is put while the store
/// wants to be left alone, whoever of those under way it told so.
#[derive(Debug)]
pub(crate) struct Window {
    most: f64,
    size: Mutex<f64>,
    left_alone_until: Mutex<Instant>,
}

impl Window {
    /// A window that begins at its widest.
    pub(crate) fn new(most: usize) -> Self {
        let most = u32::try_from(most.max(1)).map_or(f64::from(u32::MAX), f64::from);
        Self {
            most,
            size: Mutex::new(most),
            left_alone_until: Mutex::new(Instant::now()),
        }
    }

    /// The window now; at least one.
    pub(crate) fn size(&self) -> usize {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) as usize
    }

    /// The store asked for less, and perhaps to be left alone for so long.
    pub(crate) fn throttled(&self, after: Option<Duration>) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        *size = (*size / 2.0).max(1.0);
        if let Some(after) = after {
            let mut until = self.left_alone_until.lock().unwrap_or_else(PoisonError::into_inner);
            *until = (*until).max(Instant::now() + after.min(LONGEST_ASKED));
        }
    }

    /// Returns once the store may be asked for something again.
    pub(crate) async fn may_ask(&self) {
        loop {
            let until = *self.left_alone_until.lock().unwrap_or_else(PoisonError::into_inner);
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// An object was stored.
    pub(crate) fn stored(&self) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        *size = (*size + 1.0 / *size).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_a_store_that_says_how_long_is_left_alone() {
        let busy = |after| StoreError::Busy {
            what: "putting".to_owned(),
            after,
        };
        assert_eq!(length(1, &busy(None), 255), Duration::from_millis(50));
        assert_eq!(length(1, &busy(None), 0), Duration::from_millis(25));
        assert_eq!(length(30, &busy(None), 255), LONGEST_PAUSE);
        let asked = busy(Some(Duration::from_secs(7)));
        assert!(length(1, &asked, 0) >= Duration::from_secs(7));
        assert!(length(1, &asked, 255) < Duration::from_secs(8));
        let forever = busy(Some(Duration::from_secs(1 << 40)));
        assert!(length(1, &forever, 255) <= LONGEST_ASKED + LONGEST_PAUSE);
    }

    #[test]
    fn a_window_halves_and_grows_back_slowly() {
        let window = Window::new(8);
        for expected in [4, 2, 1, 1] {
            window.throttled(None);
            assert_eq!(window.size(), expected);
        }
        for _ in 0..2 {
            window.stored();
        }
        assert_eq!(window.size(), 2);
        for _ in 0..100 {
            window.stored();
        }
        assert_eq!(window.size(), 8);
        assert_eq!(Window::new(0).size(), 1);
    }

    #[tokio::test]
    async fn a_store_that_wants_to_be_left_alone_is_by_everybody() {
        let window = Window::new(8);
        window.throttled(None);
        window.may_ask().await;
        let (began, asked) = (Instant::now(), Duration::from_millis(80));
        window.throttled(Some(asked));
        window.throttled(Some(Duration::from_millis(1)));
        tokio::join!(window.may_ask(), window.may_ask());
        assert!(began.elapsed() >= asked);
    }
}
