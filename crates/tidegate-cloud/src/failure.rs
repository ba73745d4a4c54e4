//! What a failed call means to whoever may try again, and why a store refused something.

use std::io;

use tidegate_contracts::StoreError;
use tidegate_contracts::store::NOT_ALLOWED;

use crate::address::Provider;
use crate::answer::{Answer, Signs};
use crate::store::{CloudStore, What};

/// Seconds by which clocks may differ: signatures are refused beyond a quarter of an hour, tokens earlier.
const MOST_SKEW: i64 = 300;
/// What Amazon calls credentials whose time is over.
const EXPIRED: &str = "<Code>ExpiredToken</Code>";

impl CloudStore {
    /// What a failure means to whoever may try again. Messages of servers and libraries may hold names of
    /// keys and whole requests; none of them is passed on.
    pub(crate) fn failure(
        &self,
        error: &object_store::Error,
        answer: Option<Answer>,
        signs: &Signs,
        what: What<'_>,
    ) -> Failure {
        use object_store::Error;
        let denied = || {
            let why = self.reason(error, signs);
            Failure::Other(StoreError::Denied { what: what(), why })
        };
        let answered = |status: u16| io::Error::other(format!("{} answered with status {status}", self.address()));
        match (error, answer) {
            (Error::InvalidPath { .. }, _) => Failure::Other(StoreError::Permanent {
                what: what(),
                source: io::Error::other(
                    "the name of an object there has an empty part, `.` or `..`, which nobody can read",
                ),
            }),
            (_, Some(Answer::Broken(kind))) => Failure::Other(StoreError::Transient {
                what: what(),
                source: io::Error::other(format!("no whole answer came from {} ({kind:?})", self.address())),
            }),
            (_, Some(Answer::Busy(after))) => Failure::Other(StoreError::Busy { what: what(), after }),
            // Two writers at once: one of them will have won when this one asks again. Azure says so of an
            // object that is there.
            (_, Some(Answer::Status(409))) if self.address().provider != Provider::Azure => {
                Failure::Other(StoreError::Busy {
                    what: what(),
                    after: None,
                })
            }
            (Error::AlreadyExists { .. } | Error::Precondition { .. }, _) => Failure::Exists,
            (_, Some(Answer::Status(301 | 307 | 400))) if self.elsewhere(signs).is_some() => denied(),
            (_, Some(Answer::Status(400))) if error.to_string().contains(EXPIRED) => denied(),
            (_, Some(Answer::Status(401 | 403))) => denied(),
            (_, Some(Answer::Status(416))) => Failure::Behind,
            (Error::NotFound { .. }, Some(Answer::Status(404))) => Failure::NotFound,
            (_, Some(Answer::Status(status))) if status >= 500 || status == 408 => {
                Failure::Other(StoreError::Transient {
                    what: what(),
                    source: answered(status),
                })
            }
            // Removing is a list of removals, and a good answer tells what became of each.
            (Error::NotFound { .. }, Some(Answer::Status(200 | 202))) => Failure::NotFound,
            (_, Some(Answer::Status(200))) if error.to_string().contains("AccessDenied") => denied(),
            // An answer that is known by its error, of which not all came: where it did, the library says so.
            (Error::Generic { .. }, Some(Answer::Status(404 | 409 | 412)))
                if !error.to_string().contains("non-2xx status code") =>
            {
                Failure::Other(StoreError::Transient {
                    what: what(),
                    source: io::Error::other(format!("the answer of {} was not whole", self.address())),
                })
            }
            // What began well and ended badly: a body that stopped.
            (_, Some(Answer::Status(status))) if status < 300 => Failure::Other(StoreError::Transient {
                what: what(),
                source: io::Error::other(format!("the answer of {} was not whole", self.address())),
            }),
            (_, Some(Answer::Status(status))) => Failure::Other(StoreError::Permanent {
                what: what(),
                source: answered(status),
            }),
            (_, None) => denied(),
        }
    }

    /// The region that the bucket is in, where the address has another.
    fn elsewhere<'a>(&self, signs: &'a Signs) -> Option<&'a str> {
        let region = signs
            .region
            .as_deref()
            .filter(|_| self.address().provider == Provider::S3);
        region.filter(|region| *self.region != **region)
    }

    /// Why a store refused something, as far as its answer tells.
    fn reason(&self, error: &object_store::Error, signs: &Signs) -> String {
        if let Some(region) = self.elsewhere(signs) {
            return format!("the bucket is in another region; write `region={region}` into the store's address");
        }
        match signs.clock {
            Some(ahead) if ahead.abs() > MOST_SKEW => {
                let (minutes, direction) = (ahead.abs() / 60, if ahead > 0 { "behind" } else { "ahead of" });
                format!("this machine's clock is {minutes} minutes {direction} the server's; set it right")
            }
            _ if error.to_string().contains(EXPIRED) => "the credentials have expired; get new ones".to_owned(),
            _ => NOT_ALLOWED.to_owned(),
        }
    }
}

/// How a call failed, before it is known what that means to the caller.
pub(crate) enum Failure {
    NotFound,
    Exists,
    /// The range begins behind the object.
    Behind,
    Other(StoreError),
}

impl Failure {
    /// Where only one kind of failure has a meaning of its own.
    pub(crate) fn or(self, what: What<'_>) -> StoreError {
        let strange = |why: &str| StoreError::Permanent {
            what: what(),
            source: io::Error::other(why.to_owned()),
        };
        match self {
            Self::Other(error) => error,
            Self::NotFound => strange("the bucket or container is not there"),
            Self::Exists => strange("the store spoke of a condition that nobody asked for"),
            Self::Behind => strange("the store spoke of a range that nobody asked for"),
        }
    }
}

pub(crate) fn stalled(what: String) -> StoreError {
    StoreError::Transient {
        what,
        source: io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long"),
    }
}
