//! Bytes that nobody can guess, and how they are written.

use std::fs::File;
use std::io::{self, Read};

/// From the kernel.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Has C's own generator begin where nobody can guess; to be called before other threads may use it.
pub(crate) fn seed_c() -> io::Result<()> {
    let seed = u32::from_ne_bytes(bytes()?);
    // SAFETY: it takes a number and keeps it.
    unsafe { libc::srand(seed) };
    Ok(())
}

/// Two digits a byte, in lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_differ_and_have_two_digits_each() {
        assert_ne!(bytes::<16>().unwrap(), bytes::<16>().unwrap());
        assert_eq!(hex(&[0, 255]), "00ff");
    }
}
