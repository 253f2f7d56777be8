//! What the processes of a job know and strangers do not, and how they show that they know it without saying it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Bytes of what nobody can guess.
const RANDOM: usize = 16;
/// Bytes of a block of SHA-256, to which HMAC fills keys up.
const BLOCK: usize = 64;

/// 128 random bits of the system as 32 hexadecimal digits: the token of a job, or a number that is used once.
///
/// # Errors
/// If the system has no random numbers.
pub fn random() -> std::io::Result<String> {
    let mut bytes = [0; RANDOM];
    getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A job's token as the key of HMAC-SHA256 (RFC 2104 with FIPS 180-4).
#[derive(Clone)]
pub struct Secret([u8; BLOCK]);

/// Length of a [`Secret::proof`].
pub const PROOF: usize = 64;

impl Secret {
    /// Of the text that all processes of a job have in common.
    pub fn new(token: &str) -> Self {
        let mut key = [0; BLOCK];
        let digest = Sha256::digest(token);
        key[..digest.len()].copy_from_slice(&digest);
        Self(key)
    }

    fn mac(&self, what: &[&str]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new(&self.0.into());
        for part in what {
            // With its length, so that no other parts are the same bytes.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    /// Shows that its sender knows the secret, as [`PROOF`] hexadecimal digits. It is worth nothing elsewhere if `what` holds a number that
    /// the receiver uses once.
    pub fn proof(&self, what: &[&str]) -> String {
        hex(&self.mac(what).finalize().into_bytes())
    }

    /// Whether a proof is the right one, found out in a time that does not tell how much of it is.
    pub fn proves(&self, proof: &str, what: &[&str]) -> bool {
        let digits = proof.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> =
            digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
        bytes.is_some_and(|bytes| self.mac(what).verify_slice(&bytes).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HMAC-SHA256 by its definition, over the parts with their lengths.
    #[test]
    fn a_proof_is_the_keyed_hash_of_all_parts() {
        let secret = Secret::new("token");
        let message = [&5u64.to_be_bytes()[..], b"hello", &1u64.to_be_bytes(), b"7"].concat();
        let pad = |with: u8| secret.0.iter().map(|byte| byte ^ with).collect::<Vec<u8>>();
        let inner = Sha256::digest([pad(0x36), message].concat());
        let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
        let proof = secret.proof(&["hello", "7"]);
        assert_eq!(proof, hex(&outer));
        assert_eq!(proof.len(), PROOF);

        assert!(secret.proves(&proof, &["hello", "7"]));
        for (secret, proof, what) in [
            (&Secret::new("token "), &proof[..], ["hello", "7"]),
            (&secret, &proof, ["hello", "8"]),
            (&secret, &proof, ["hell", "o7"]),
            (&secret, &proof[1..], ["hello", "7"]),
            (&secret, "", ["hello", "7"]),
            (&secret, "+0é0", ["hello", "7"]),
            (&secret, &proof.replace(|c: char| c.is_ascii_digit(), "x"), ["hello", "7"]),
        ] {
            assert!(!secret.proves(proof, &what), "{proof} {what:?}");
        }
        assert!(random().unwrap() != random().unwrap() && random().unwrap().len() == 2 * RANDOM);
    }
}
