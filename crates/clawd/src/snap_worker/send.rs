//! Sending the repository to another host: the copying of off-site, into a storage at the far end of the pipe.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use claw_snapshot::{Access, FileId, FileKind, Removal, Storage, StorageAction, StorageError};

use super::errors::{failed, fault};
use super::frames::{Answer, LARGEST_CONFIG, Question, VERSION, Wire};
use super::link::Link;
use super::offsite::{carried, copy};
use super::pieces::cut;
use super::protocol::{Fault, Job, Outcome};
use super::repository::{exists, lock, sound};

/// Files that are on their way while the next one is read: the far end may be far.
const AHEAD: u32 = 2;

/// Sends what the other host lacks.
pub(super) fn send(job: &Job, link: &Link) -> Result<Outcome, Fault> {
    if !exists(&job.repository).map_err(|error| fault(&error))? {
        return Err(failed("there is no repository"));
    }
    let from = sound(Arc::new(lock(job, Access::Shared)?))?;
    let to = Remote::greet(Wire::new(link.incoming())).map_err(|error| fault(&error))?;
    let replicated = copy(&from, &to, Removal::Withheld, link)?;
    to.finish().map_err(|error| fault(&error))?;
    Ok(carried(replicated))
}

/// The repository of the other host.
#[derive(Debug)]
struct Remote(Mutex<Talk>);

#[derive(Debug)]
struct Talk {
    wire: Wire,
    /// Files whose `Done` has not come yet.
    ahead: u32,
}

impl Remote {
    fn greet(wire: Wire) -> io::Result<Self> {
        let mut talk = Talk { wire, ahead: 0 };
        talk.ask(&Question::Hello { version: VERSION }).and_then(Answer::done)?;
        Ok(Self(Mutex::new(talk)))
    }

    fn talk(&self) -> MutexGuard<'_, Talk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self) -> io::Result<()> {
        self.talk().ask(&Question::Finish)?.done()
    }
}

impl Talk {
    /// Asks when everything that was asked before is answered.
    fn ask(&mut self, question: &Question) -> io::Result<Answer> {
        self.catch_up(0)?;
        self.wire.say(question, NO_BYTES)?;
        self.wire.hear()
    }

    /// Waits until no more than so many files are on their way.
    fn catch_up(&mut self, ahead: u32) -> io::Result<()> {
        while self.ahead > ahead {
            self.wire.hear::<Answer>()?.done()?;
            self.ahead -= 1;
        }
        Ok(())
    }

    fn list(&mut self, kind: FileKind) -> io::Result<Vec<(FileId, u32)>> {
        match self.ask(&Question::List { kind: kind.into() })? {
            Answer::Files(count) => self.wire.files(count),
            other => Err(other.unexpected()),
        }
    }

    fn config(&mut self) -> io::Result<Bytes> {
        match self.ask(&Question::Config)? {
            Answer::Content(size) => self.wire.bytes(size, LARGEST_CONFIG).map(Bytes::from),
            other => Err(other.unexpected()),
        }
    }

    fn write(&mut self, kind: FileKind, id: FileId, parts: &[Bytes]) -> io::Result<()> {
        let size = parts.iter().map(Bytes::len).sum::<usize>();
        let size = u32::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let question = Question::Write { kind: kind.into(), id: id.to_string(), size };
        self.wire.say(&question, parts)?;
        self.ahead += 1;
        self.catch_up(AHEAD)
    }
}

const NO_BYTES: &[Bytes] = &[];

impl Answer {
    fn done(self) -> io::Result<()> {
        match self {
            Self::Done => Ok(()),
            other => Err(other.unexpected()),
        }
    }

    fn unexpected(self) -> io::Error {
        match self {
            Self::Refused(problem) => cut(format!("the other host: {problem}")),
            _ => cut("the other host gives the answer to another question"),
        }
    }
}

impl Storage for Remote {
    fn location(&self) -> String {
        "the other host".to_owned()
    }

    fn prepare(&self) -> Result<(), StorageError> {
        let done = self.talk().ask(&Question::Prepare).and_then(Answer::done);
        done.map_err(|source| error(StorageAction::Prepare, FileKind::Config, source))
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError> {
        self.talk().list(kind).map_err(|source| error(StorageAction::List, kind, source))
    }

    fn read(&self, kind: FileKind, _id: FileId) -> Result<Bytes, StorageError> {
        let content = match kind {
            FileKind::Config => self.talk().config(),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        content.map_err(|source| error(StorageAction::Read, kind, source))
    }

    fn read_range(
        &self,
        kind: FileKind,
        _id: FileId,
        _range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        Err(error(StorageAction::Read, kind, io::ErrorKind::Unsupported.into()))
    }

    /// It is on its way when this returns, and durable when the next listing does.
    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
        let name = id.to_string();
        let written = self.talk().write(kind, id, parts);
        written.map_err(|source| StorageError { name, ..error(StorageAction::Write, kind, source) })
    }

    fn remove(&self, kind: FileKind, _id: FileId) -> Result<(), StorageError> {
        Err(error(StorageAction::Remove, kind, io::ErrorKind::Unsupported.into()))
    }
}

fn error(action: StorageAction, kind: FileKind, source: io::Error) -> StorageError {
    StorageError { action, kind, name: "of the other host".to_owned(), source }
}
