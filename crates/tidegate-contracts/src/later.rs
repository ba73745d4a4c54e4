//! A value that is computed beside other work, and waited for where it is needed.

use std::fmt;
use std::sync::{Arc, LazyLock};

type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// A value that a thread of its own computes.
#[derive(Clone)]
pub struct Later<T>(Arc<LazyLock<T, Work<T>>>);

impl<T: Send + Sync + 'static> Later<T> {
    /// Begins the work. Where no thread can be had, whoever asks first does it.
    pub fn begin(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let value: Arc<LazyLock<T, Work<T>>> = Arc::new(LazyLock::new(Box::new(work)));
        let begun = Arc::clone(&value);
        // The thread ends with its work, or with the process.
        let _ = std::thread::Builder::new().spawn(move || {
            LazyLock::force(&begun);
        });
        Self(value)
    }

    /// The value; blocks until it is there.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.0
    }
}

impl<T: Clone + Send + Sync + 'static> From<T> for Later<T> {
    /// A value that is there already.
    fn from(value: T) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(move || value))))
    }
}

impl<T> fmt::Debug for Later<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_computed_once_whoever_asks() {
        let (told, count) = std::sync::mpsc::channel();
        let later = Later::begin(move || {
            told.send(()).unwrap();
            7
        });
        let again = later.clone();
        assert_eq!((*later.get(), *again.get()), (7, 7));
        assert_eq!(count.iter().count(), 1);
        assert_eq!(*Later::from(5).get(), 5);
    }
}
