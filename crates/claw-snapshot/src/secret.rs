//! What opens a repository: our own secret, and a password that a person can keep.
//!
//! Both are random and long, so that guessing them is hopeless whatever one guess costs. That is
//! what allows key files with a cheap derivation (see [`crate::Repository::create`]).

use std::fmt;

use rand::RngCore;
use zeroize::Zeroizing;

/// 32 random bytes that open a repository: the agent's key. Restic takes it as a password of 64
/// hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct RepositorySecret(Zeroizing<[u8; 32]>);

/// A password that opens a repository with plain restic, without us: 32 characters, 160 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryPassword(Zeroizing<String>);

/// A text that cannot be a recovery password of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a recovery password has 32 letters and digits in groups of four")]
pub struct ParseRecoveryPasswordError;

/// Which of a repository's keys: each has its own key file and is replaced on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyRole {
    /// The agent's [`RepositorySecret`].
    Agent,
    /// The [`RecoveryPassword`].
    Recovery,
}

/// One of the things that open a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// As [`KeyRole::Agent`].
    Secret(RepositorySecret),
    /// As [`KeyRole::Recovery`].
    Recovery(RecoveryPassword),
    /// A password that another program set on the repository, whatever its strength.
    Foreign(Zeroizing<String>),
}

/// Crockford's alphabet: no letter that is taken for another.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const GROUP: usize = 4;
const LETTERS: usize = 32;

impl RepositorySecret {
    /// A new secret.
    #[must_use]
    pub fn generate(random: &mut impl RngCore) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        random.fill_bytes(bytes.as_mut());
        Self(bytes)
    }

    /// The secret that [`Self::expose`] gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself, to be sealed and kept.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The secret as restic takes it.
    #[must_use]
    pub fn password(&self) -> Zeroizing<String> {
        use fmt::Write as _;
        let mut text = Zeroizing::new(String::with_capacity(64));
        for byte in self.0.iter() {
            // Writing to a string does not fail.
            _ = write!(text, "{byte:02x}");
        }
        text
    }
}

impl RecoveryPassword {
    /// A new password.
    #[must_use]
    pub fn generate(random: &mut impl RngCore) -> Self {
        let mut bytes = Zeroizing::new([0_u8; LETTERS]);
        random.fill_bytes(bytes.as_mut());
        let mut text = String::with_capacity(LETTERS + LETTERS / GROUP);
        for (place, byte) in bytes.iter().enumerate() {
            if place > 0 && place % GROUP == 0 {
                text.push('-');
            }
            let letter = ALPHABET.get(usize::from(byte % 32)).copied().unwrap_or(b'0');
            text.push(char::from(letter));
        }
        Self(Zeroizing::new(text))
    }

    /// Reads a password as it was printed; spaces, case and missing hyphens do not matter.
    ///
    /// # Errors
    ///
    /// When it has not the letters that a password of ours has.
    pub fn parse(text: &str) -> Result<Self, ParseRecoveryPasswordError> {
        let letters: Zeroizing<String> = Zeroizing::new(
            text.chars()
                .filter(|letter| *letter != '-' && !letter.is_whitespace())
                .map(|letter| letter.to_ascii_lowercase())
                .collect(),
        );
        let ours = |letter: u8| ALPHABET.contains(&letter);
        if letters.len() != LETTERS || !letters.bytes().all(ours) {
            return Err(ParseRecoveryPasswordError);
        }
        let mut printed = String::with_capacity(LETTERS + LETTERS / GROUP);
        for (place, letter) in letters.chars().enumerate() {
            if place > 0 && place % GROUP == 0 {
                printed.push('-');
            }
            printed.push(letter);
        }
        Ok(Self(Zeroizing::new(printed)))
    }

    /// The password itself, to be shown once or kept sealed. It is also what restic takes.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl KeyRole {
    /// What key files of this role say in their field `username`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Agent => "claw-agent",
            Self::Recovery => "claw-recovery",
        }
    }
}

impl Credential {
    pub(crate) fn password(&self) -> Zeroizing<String> {
        match self {
            Self::Secret(secret) => secret.password(),
            Self::Recovery(password) => Zeroizing::new(password.expose().to_owned()),
            Self::Foreign(password) => password.clone(),
        }
    }
}

impl fmt::Debug for RepositorySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepositorySecret(..)")
    }
}

impl fmt::Debug for RecoveryPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryPassword(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_password_is_read_as_it_was_written() {
        let password = RecoveryPassword::generate(&mut rand::rng());
        assert_eq!(password.expose().len(), 39, "{}", password.expose());
        assert_eq!(RecoveryPassword::parse(password.expose()), Ok(password.clone()));
        let typed = password.expose().replace('-', " ").to_uppercase();
        assert_eq!(RecoveryPassword::parse(&typed), Ok(password));
        assert_eq!(RecoveryPassword::parse("short"), Err(ParseRecoveryPasswordError));
        let wrong = "u".repeat(32);
        assert_eq!(RecoveryPassword::parse(&wrong), Err(ParseRecoveryPasswordError));
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = RepositorySecret::from_bytes([7; 32]);
        assert_eq!(format!("{secret:?}"), "RepositorySecret(..)");
        assert_eq!(secret.password().as_str(), "07".repeat(32));
        let debug = format!("{:?}", Credential::Secret(secret));
        assert!(!debug.contains("07"), "{debug}");
    }
}
