use std::time::{Duration, Instant, SystemTime};

/// The time as its owner told it once, going on from there.
///
/// A permit's times are compared with one clock, the caller's. Neither a wall clock that is set back
/// nor a machine that slept may make a permit live longer, so of the two ways to measure what passed
/// since the larger one counts.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    told: u64,
    running: Instant,
    wall: SystemTime,
}

impl Clock {
    /// A clock that shows `now` (Unix time in seconds).
    pub(crate) fn at(now: u64) -> Self {
        Self {
            told: now,
            running: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// Unix time in seconds.
    pub(crate) fn now(&self) -> u64 {
        let by_wall = self.wall.elapsed().unwrap_or(Duration::ZERO);
        self.told.saturating_add(self.running.elapsed().max(by_wall).as_secs())
    }
}
