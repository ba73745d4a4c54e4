//! Random bytes from the operating system's generator.

use aws_lc_rs::rand;

use crate::error::SealError;

/// `N` random bytes, fit for keys.
///
/// # Errors
/// [`SealError::Random`] when the operating system gives none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(random_bytes::<32>().unwrap(), random_bytes::<32>().unwrap());
    }
}
