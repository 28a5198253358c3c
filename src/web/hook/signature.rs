//! Whether a request was made by somebody who knows a secret: an HMAC of its body, or the secret itself.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::web::request::Request;

/// Headers that hold an HMAC-SHA-256 of the body, hexadecimal, and what stands before it.
const SIGNATURES: &[(&str, &str)] = &[
    ("x-hub-signature-256", "sha256="),
    ("x-gorget-signature", "sha256="),
    ("x-gitea-signature", ""),
    ("x-forgejo-signature", ""),
];

/// The header in which GitLab sends the secret itself.
const TOKEN: &str = "x-gitlab-token";

/// In any of the ways that are known.
pub(super) fn is_signed(request: &Request, secret: &str) -> bool {
    SIGNATURES.iter().any(|(name, _)| has_mac(request, name, secret)) || has_token(request, secret)
}

/// Whether this header has the HMAC of the body. Compared in a time that tells nothing.
pub(super) fn has_mac(request: &Request, header: &str, secret: &str) -> bool {
    let Some((_, prefix)) = SIGNATURES.iter().find(|(name, _)| *name == header) else {
        return false;
    };
    let shown = request.header(header).and_then(|value| value.trim().strip_prefix(prefix));
    let Some(shown) = shown.and_then(bytes) else { return false };
    // An HMAC takes keys of any length.
    <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes())
        .is_ok_and(|mac| mac.chain_update(&request.body).verify_slice(&shown).is_ok())
}

/// Whether GitLab's header has the secret. Hashes are compared, whose time tells nothing of what was hashed.
pub(super) fn has_token(request: &Request, secret: &str) -> bool {
    request.header(TOKEN).is_some_and(|shown| Sha256::digest(shown) == Sha256::digest(secret))
}

/// What 64 hexadecimal digits stand for.
fn bytes(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::hook::forge::tests::request;

    /// Of the body `{}` with the key `secret`, by openssl-dgst(1).
    const MAC: &str = "77325902caca812dc259733aacd046b73817372c777b8d95b402647474516e13";

    #[test]
    fn each_forge_signs_in_its_own_way() {
        for (header, prefix) in SIGNATURES {
            let value = format!("{prefix}{MAC}");
            let signed = request(&[(header, &value)], "{}");
            assert!(is_signed(&signed, "secret") && !is_signed(&signed, "other"), "{header}");
            let changed = request(&[(header, &value)], "{} ");
            assert!(!is_signed(&changed, "secret"), "{header}");
            assert!(has_mac(&signed, header, "secret"));
        }
        let shown = request(&[("X-Gitlab-Token", "secret")], "{}");
        assert!(is_signed(&shown, "secret") && !is_signed(&shown, "secre"));
    }

    #[test]
    fn what_is_no_signature_signs_nothing() {
        for value in ["", "sha256=", "sha256=00", MAC, &format!("sha1={MAC}"), "sha256=é"] {
            assert!(!is_signed(&request(&[("X-Hub-Signature-256", value)], "{}"), "secret"));
        }
        assert!(!is_signed(&request(&[], "{}"), ""));
        assert!(!is_signed(&request(&[("X-Hub-Signature", MAC)], "{}"), "secret"));
    }
}
