//! Word that the machine will be taken from this worker: unfinished work goes home while there is time.
//!
//! ```text
//! notice ── unfinished work is sent without waiting ── command is stopped ── last messages ── machine ends
//!                                                      │◀──── STOPPING ───────────────────────▶│
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::sync::watch;

use crate::error::{Failure, Stage};

/// So long before the machine ends, the command is stopped.
const STOPPING: Duration = Duration::from_secs(15);
/// So long before the machine ends, nothing but the failure is told any more.
const LEAVING: Duration = Duration::from_secs(5);

/// What somebody who knows said about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// In fixed words, as what the machine does: "is taken back by …".
    pub why: String,
    /// When it ends; none where that is only likely.
    pub ends: Option<SystemTime>,
}

/// Where word of the machine's end comes from. By default, none comes.
#[derive(Debug, Clone)]
pub struct Notices(watch::Receiver<Option<Notice>>);

impl Notices {
    /// What is sent into the other end of `receiver` counts; a later notice takes the place of an earlier one.
    #[must_use]
    pub const fn new(receiver: watch::Receiver<Option<Notice>>) -> Self {
        Self(receiver)
    }

    /// A notice that was not heard before.
    pub(crate) fn news(&mut self) -> Option<Notice> {
        // Also from somebody who has ended since.
        let said = self.0.borrow_and_update();
        if said.has_changed() { said.clone() } else { None }
    }

    /// Makes what was said before news again, for a command that has not heard of it.
    pub(crate) fn again(&mut self) {
        self.0.mark_changed();
    }

    /// Whether it is certain that the machine ends.
    pub(crate) fn is_certain(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|notice| notice.ends.is_some())
    }

    /// How long a command may go on; none where nobody said that the machine ends.
    pub(crate) fn work_left(&self) -> Option<Duration> {
        self.left(STOPPING)
    }

    /// How long messages may be told.
    pub(crate) fn words_left(&self) -> Option<Duration> {
        self.left(LEAVING)
    }

    fn left(&self, before: Duration) -> Option<Duration> {
        let ends = self.0.borrow().as_ref()?.ends?;
        let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
        Some(left.saturating_sub(before))
    }

    /// The end of an attempt whose machine ends.
    pub(crate) fn failure(&self) -> Failure {
        let notice = self.0.borrow();
        let why = notice.as_ref().map_or("ends", |notice| notice.why.as_str());
        Failure::new(Stage::Machine, format!("its machine {why}"))
    }
}

impl Default for Notices {
    fn default() -> Self {
        Self(watch::channel(None).1)
    }
}

impl Notice {
    /// For the command's log.
    pub(crate) fn line(&self) -> String {
        let left = |ends: SystemTime| ends.duration_since(SystemTime::now()).unwrap_or_default();
        let when = self.ends.map_or_else(String::new, |ends| {
            let work = left(ends).saturating_sub(STOPPING).as_secs();
            format!(", and the command is stopped in {work} s")
        });
        format!("this machine {}{when}: unfinished work is sent now", self.why)
    }

    /// Puts it where the command looks; whole, or not at all.
    pub(crate) fn write(&self, file: &Path) -> std::io::Result<()> {
        let seconds = |moment: SystemTime| moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let stops = self
            .ends
            .map(|ends| seconds(ends.checked_sub(STOPPING).unwrap_or(ends)));
        let text = json!({"why": self.why, "stops": stops});
        let new: PathBuf = file.with_extension("new");
        std::fs::write(&new, format!("{text}\n"))?;
        std::fs::rename(new, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_counts_and_is_news_once() {
        let (tell, heard) = watch::channel(None);
        let mut notices = Notices::new(heard);
        assert_eq!((notices.news(), notices.work_left()), (None, None));
        let likely = Notice {
            why: "may be taken back".to_owned(),
            ends: None,
        };
        tell.send_replace(Some(likely.clone()));
        assert_eq!(notices.news(), Some(likely));
        assert_eq!((notices.news(), notices.work_left()), (None, None), "it may go on");
        let certain = Notice {
            why: "is taken back".to_owned(),
            ends: Some(SystemTime::now() + Duration::from_secs(60)),
        };
        tell.send_replace(Some(certain.clone()));
        assert_eq!(notices.news().as_ref(), Some(&certain));
        let (work, words) = (notices.work_left().unwrap(), notices.words_left().unwrap());
        assert!(
            work > Duration::from_secs(40) && work <= Duration::from_secs(45),
            "{work:?}"
        );
        assert!(words > work);
        notices.again();
        assert_eq!(
            notices.news().as_ref(),
            Some(&certain),
            "the next command hears of it too"
        );
        tell.send_replace(Some(Notice {
            why: "ends".to_owned(),
            ..certain
        }));
        drop(tell);
        let last = notices.news().map(|notice| notice.why);
        assert_eq!(last.as_deref(), Some("ends"), "who said it has ended");
        assert!(
            notices.news().is_none() && notices.work_left().is_some(),
            "it stays said"
        );
        assert_eq!(notices.failure().reason, "its machine ends");
    }
}
