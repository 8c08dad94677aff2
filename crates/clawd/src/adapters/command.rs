//! Runs a program: an argument list, never a shell; a deadline; bounded output.
//!
//! What it deliberately does not do: retry, interpret output, pass secrets (argument lists are
//! visible to every user of the machine). Where to start: [`run`]; [`feed`] for programs that read a text,
//! [`dump`] for those whose output is useless unless it is whole, [`follow`] for those that go on.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, Split};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Most bytes kept of each of a program's two outputs; more is read and dropped.
pub const MAX_OUTPUT_BYTES: u64 = 16 * 1024;
/// Most bytes of output that must be whole: the rules of 254 instances take less than 1 MiB per family,
/// 20 000 connections 5 MiB.
pub const MAX_DUMP_BYTES: u64 = 16 * 1024 * 1024;

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
    /// It wrote more than anybody expects; what it wrote is not used.
    #[error("{program} wrote more than {MAX_DUMP_BYTES} bytes")]
    TooMuch {
        /// Which.
        program: String,
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
    let output = execute(argv, None, MAX_OUTPUT_BYTES, deadline).await?;
    Ok(text(&output.kept))
}

/// As [`run`], for a program that reads `input` from its standard input. What it does not read is dropped.
///
/// # Errors
/// See [`CommandError`]; every status other than 0 is one.
pub async fn feed(argv: &[&str], input: &str, deadline: Duration) -> Result<String, CommandError> {
    let output = execute(argv, Some(input), MAX_OUTPUT_BYTES, deadline).await?;
    Ok(text(&output.kept))
}

/// As [`run`], for output that is whole or an error, up to [`MAX_DUMP_BYTES`].
///
/// # Errors
/// See [`CommandError`]; every status other than 0 is one.
pub async fn dump(argv: &[&str], deadline: Duration) -> Result<String, CommandError> {
    let output = execute(argv, None, MAX_DUMP_BYTES, deadline).await?;
    if output.dropped > 0 {
        return Err(CommandError::TooMuch { program: name(argv) });
    }
    Ok(text(&output.kept))
}

/// A program that writes lines until it is dropped, which ends it.
#[derive(Debug)]
pub struct Following {
    lines: Split<BufReader<ChildStdout>>,
    // Ended when it is dropped.
    _child: Child,
}

impl Following {
    /// The next line, without its end; `None` when the program ended. Cancel-safe.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub async fn next_line(&mut self) -> std::io::Result<Option<String>> {
        Ok(self.lines.next_segment().await?.map(|line| text(&line)))
    }
}

/// Starts a program whose lines are read as they come. It gets no standard input; what it says of errors
/// is dropped.
///
/// # Errors
/// [`CommandError::Start`].
pub fn follow(argv: &[&str]) -> Result<Following, CommandError> {
    let program = name(argv);
    let start = |source| CommandError::Start { program: program.clone(), source };
    let mut child = Command::new(&program)
        .args(argv.iter().skip(1))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let missing = || start(std::io::Error::other("it has no standard output"));
    let stdout = child.stdout.take().ok_or_else(missing)?;
    Ok(Following { lines: BufReader::new(stdout).split(b'\n'), _child: child })
}

/// What came through a pipe.
#[derive(Default)]
struct Captured {
    kept: Vec<u8>,
    dropped: u64,
}

async fn execute(
    argv: &[&str],
    input: Option<&str>,
    keep: u64,
    deadline: Duration,
) -> Result<Captured, CommandError> {
    let program = name(argv);
    let mut command = Command::new(&program);
    command
        .args(argv.iter().skip(1))
        .env("LC_ALL", "C")
        .stdin(input.map_or_else(Stdio::null, |_text| Stdio::piped()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let start = |source| CommandError::Start { program: program.clone(), source };
    let mut child = command.spawn().map_err(start)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let whole = async {
        tokio::join!(
            child.wait(),
            offer(stdin, input.unwrap_or_default()),
            capture(stdout, keep),
            capture(stderr, MAX_OUTPUT_BYTES)
        )
    };
    let Ok((status, (), stdout, stderr)) = tokio::time::timeout(deadline, whole).await else {
        return Err(CommandError::Timeout { program, after: deadline });
    };
    let status = status.map_err(start)?;
    if status.success() {
        return Ok(stdout);
    }
    Err(CommandError::Failed { program, status, output: ending(&text(&stderr.kept)) })
}

fn name(argv: &[&str]) -> String {
    argv.first().copied().unwrap_or_default().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes a text into a pipe and closes it. A program that ends before it has read all of it says so by
/// its exit status.
async fn offer(pipe: Option<ChildStdin>, input: &str) {
    if let Some(mut pipe) = pipe {
        let _written = pipe.write_all(input.as_bytes()).await;
    }
}

/// Reads a pipe to its end and keeps the beginning. A pipe that breaks has ended.
async fn capture(pipe: Option<impl AsyncRead + Unpin>, keep: u64) -> Captured {
    let Some(mut pipe) = pipe else { return Captured::default() };
    let mut kept = Vec::new();
    let _ended = (&mut pipe).take(keep).read_to_end(&mut kept).await;
    let dropped = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await.unwrap_or_default();
    Captured { kept, dropped }
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

    #[tokio::test]
    async fn programs_are_fed() {
        let long = "x".repeat(1_000_000);
        let error = feed(&["false"], &long, SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "false ended with exit status: 1: ");
        assert_eq!(feed(&["wc", "-c"], &long, SOON).await.unwrap().trim(), "1000000");
    }

    #[tokio::test]
    async fn a_dump_is_whole_or_refused() {
        let text = dump(&["head", "-c", "1000000", "/dev/zero"], SOON).await.unwrap();
        assert_eq!(text.len(), 1_000_000);
        let error = dump(&["head", "-c", "16777217", "/dev/zero"], SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "head wrote more than 16777216 bytes");
    }

    #[tokio::test]
    async fn lines_come_until_the_program_ends() {
        let mut following = follow(&["printf", "one\\ntwo\\n"]).unwrap();
        assert_eq!(following.next_line().await.unwrap().as_deref(), Some("one"));
        assert_eq!(following.next_line().await.unwrap().as_deref(), Some("two"));
        assert_eq!(following.next_line().await.unwrap(), None);
    }
}
