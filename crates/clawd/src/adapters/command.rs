//! Runs a program: an argument list, never a shell; a deadline; bounded output.
//!
//! What it deliberately does not do: retry, interpret output, pass secrets (argument lists are
//! visible to every user of the machine).

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Most bytes kept of each of a program's two outputs; more is read and dropped.
pub const MAX_OUTPUT_BYTES: u64 = 16 * 1024;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not there, or may not be run.
    #[error("starting {program}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended badly.
    #[error("{program} ended with {status}: {output}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        status: ExitStatus,
        /// The end of what it wrote to its standard error, at most 2 000 characters.
        output: String,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {} s", .after.as_secs())]
    Timeout {
        /// Which.
        program: String,
        /// The deadline.
        after: Duration,
    },
}

/// Runs a program to its end; returns what it wrote to its standard output.
///
/// It gets no standard input, and `LC_ALL=C` so that its messages can be compared. Dropping the
/// future kills it.
///
/// # Errors
/// See [`CommandError`]; every status other than 0 is one.
pub async fn run(argv: &[&str], deadline: Duration) -> Result<String, CommandError> {
    let program = argv.first().copied().unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(argv.iter().skip(1))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let start = |source| CommandError::Start { program: program.to_owned(), source };
    let mut child = command.spawn().map_err(start)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let whole = async { tokio::join!(child.wait(), capture(stdout), capture(stderr)) };
    let Ok((status, stdout, stderr)) = tokio::time::timeout(deadline, whole).await else {
        return Err(CommandError::Timeout { program: program.to_owned(), after: deadline });
    };
    let status = status.map_err(start)?;
    if status.success() {
        return Ok(stdout);
    }
    Err(CommandError::Failed { program: program.to_owned(), status, output: ending(&stderr) })
}

/// Reads a pipe to its end and keeps the beginning. A pipe that breaks has ended.
async fn capture(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    let _ended = (&mut pipe).take(MAX_OUTPUT_BYTES).read_to_end(&mut kept).await;
    let _drained = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// The last 2 000 characters, trimmed: programs say what went wrong last.
fn ending(text: &str) -> String {
    let text = text.trim();
    let surplus = text.chars().count().saturating_sub(2000);
    text.chars().skip(surplus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn output_and_failure_are_told_apart() {
        assert_eq!(run(&["echo", "a b", "$HOME"], SOON).await.unwrap(), "a b $HOME\n");
        let error = run(&["ls", "/does/not/exist"], SOON).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("ls ended with exit status: 2: "), "{text}");
        assert!(text.ends_with("No such file or directory"), "{text}");
        let error = run(&["/does/not/exist"], SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "starting /does/not/exist");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let error = run(&["sleep", "1000"], Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, CommandError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn endless_talk_neither_blocks_nor_fills_memory() {
        let text = run(&["head", "-c", "1000000", "/dev/zero"], SOON).await.unwrap();
        assert_eq!(u64::try_from(text.len()).unwrap(), MAX_OUTPUT_BYTES);
    }
}
