//! Taking the repository that another host sends.
//!
//! The sender is not trusted: it names files by kind and content and nothing else, each is held against its
//! name before it is kept, sizes have bounds, none replaces another that is whole, and the room that stays free
//! is this host's to say.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use claw_snapshot::{Access, FileId, FileKind, Storage};

use super::errors::{failed, fault};
use super::frames::{Answer, Kind, LARGEST_CONFIG, LARGEST_FILE, Question, VERSION, Wire, listing};
use super::link::{Link, Meter};
use super::protocol::{Fault, FaultKind, Job, Outcome};
use super::ration::Rationed;
use super::repository::{exists, lock, open_on};

/// The configuration has no name.
const NAMELESS: FileId = FileId::from_bytes([0; 32]);

/// Takes what is sent, until the sender says that it is everything.
pub(super) fn receive(job: &Job, link: &Link) -> Result<Outcome, Fault> {
    let files: Arc<dyn Storage> = Arc::new(Rationed::new(lock(job, Access::Exclusive)?, job));
    let mut receiver =
        Receiver { job, files, wire: Wire::new(link.incoming()), taken: 0, meter: &link.meter() };
    let served = receiver.greet().and_then(|()| receiver.serve());
    if let Err(fault) = &served {
        // An end that is gone needs no reason.
        _ = receiver.wire.say(&Answer::Refused(words(fault)), NO_BYTES);
    }
    served.map(|()| Outcome::Nothing)
}

struct Receiver<'a> {
    job: &'a Job,
    files: Arc<dyn Storage>,
    wire: Wire,
    /// Bytes so far.
    taken: u64,
    meter: &'a Meter,
}

const NO_BYTES: &[Bytes] = &[];

impl Receiver<'_> {
    fn greet(&mut self) -> Result<(), Fault> {
        match self.hear()? {
            Question::Hello { version: VERSION } => {}
            Question::Hello { version } => {
                return Err(failed(format!(
                    "the other host speaks version {version}, this one {VERSION}; hint: update clawd on both"
                )));
            }
            _ => return Err(failed("the other host does not say who it is")),
        }
        if exists(&self.job.repository).map_err(|error| fault(&error))? {
            open_on(self.job, Arc::clone(&self.files))?;
        }
        self.answer(&Answer::Done)
    }

    fn serve(&mut self) -> Result<(), Fault> {
        loop {
            match self.hear()? {
                Question::Hello { .. } => return Err(failed("the other host says hello again")),
                Question::Prepare => {
                    self.files.prepare()?;
                    self.answer(&Answer::Done)?;
                }
                Question::List { kind } => self.list(kind.into())?,
                Question::Config => {
                    let content = self.files.read(FileKind::Config, NAMELESS)?;
                    let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
                    self.answer_with(&Answer::Content(size), &content)?;
                }
                Question::Write { kind: Kind::Config, size, .. } => self.configure(size)?,
                Question::Write { kind, id, size } => self.keep(kind.into(), &id, size)?,
                Question::Finish => {
                    if !exists(&self.job.repository).map_err(|error| fault(&error))? {
                        return Err(failed("the other host sent no repository"));
                    }
                    return self.answer(&Answer::Done);
                }
            }
        }
    }

    fn list(&mut self, kind: FileKind) -> Result<(), Fault> {
        let files = self.files.list(kind)?;
        let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
        self.answer_with(&Answer::Files(count), &listing(&files))
    }

    /// Keeps the configuration, if it is of a repository that the job's secret opens.
    fn configure(&mut self, size: u32) -> Result<(), Fault> {
        let content = self.bytes(size, LARGEST_CONFIG)?;
        if exists(&self.job.repository).map_err(|error| fault(&error))? {
            let place = self.files.location();
            return Err(Fault { kind: FaultKind::OtherRepository, problem: place });
        }
        self.files.write(FileKind::Config, NAMELESS, &[content])?;
        if let Err(refused) = open_on(self.job, Arc::clone(&self.files)) {
            self.files.remove(FileKind::Config, NAMELESS)?;
            return Err(Fault { kind: FaultKind::Failed, ..refused });
        }
        self.answer(&Answer::Done)
    }

    fn keep(&mut self, kind: FileKind, id: &str, size: u32) -> Result<(), Fault> {
        let id: FileId = id.parse().map_err(|error| fault(&error))?;
        let content = self.bytes(size, LARGEST_FILE)?;
        if FileId::of(&content) != id {
            return Err(failed(format!("{kind} {id} is not what was sent under its name")));
        }
        // One that is there in another size is damaged.
        let there = self.files.read(kind, id).is_ok_and(|there| there == content);
        if there {
            return Err(failed(format!("{kind} {id} is sent again")));
        }
        self.files.write(kind, id, &[content])?;
        self.answer(&Answer::Done)
    }

    fn bytes(&mut self, size: u32, largest: u32) -> Result<Bytes, Fault> {
        let bytes = self.wire.bytes(size, largest).map_err(|error| fault(&error))?;
        self.taken = self.taken.saturating_add(u64::from(size));
        self.meter.reach(self.taken);
        Ok(Bytes::from(bytes))
    }

    fn hear(&mut self) -> Result<Question, Fault> {
        self.wire.hear().map_err(|error| fault(&error))
    }

    fn answer(&mut self, answer: &Answer) -> Result<(), Fault> {
        self.wire.say(answer, NO_BYTES).map_err(|error| fault(&error))
    }

    fn answer_with(&mut self, answer: &Answer, bytes: &[u8]) -> Result<(), Fault> {
        self.wire.say(answer, &[bytes]).map_err(|error: io::Error| fault(&error))
    }
}

/// For the other host.
fn words(fault: &Fault) -> String {
    let Fault { kind, problem } = fault;
    match kind {
        FaultKind::Full => format!("it has no room: {problem}"),
        FaultKind::OtherRepository => {
            let name = Path::new(problem).file_name().unwrap_or_default();
            format!("it has another repository of {}", name.display())
        }
        _ => problem.clone(),
    }
}
