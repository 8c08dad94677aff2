//! The pipe of a job, as bytes that come and bytes that go.
//!
//! Both wait for the agent, and the agent for the other end: nothing is kept but one piece each way.

use std::io::{self, Read, Write};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::link::say;
use super::protocol::{Said, Told};
use crate::ports::MAX_PIECE;

/// The pipe broke, or its other end does not keep to what was agreed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(super) struct Cut(pub(super) String);

/// What comes through the pipe.
#[derive(Debug)]
pub(super) struct Incoming {
    answers: Arc<Mutex<Receiver<Told>>>,
    piece: io::Cursor<Vec<u8>>,
    /// Nothing more comes, and whether that was everything.
    over: Option<Result<(), Cut>>,
}

impl Incoming {
    pub(super) const fn new(answers: Arc<Mutex<Receiver<Told>>>) -> Self {
        Self { answers, piece: io::Cursor::new(Vec::new()), over: None }
    }

    /// Waits until the other end says that it has sent everything.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if io::copy(self, &mut io::sink())? == 0 {
            return Ok(());
        }
        Err(cut("more was sent than should have been"))
    }

    fn next(&mut self) {
        let told = self.answers.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let broken = |why: &str| Some(Err(Cut(why.to_owned())));
        match told {
            Ok(Told::Piece(text)) => match STANDARD.decode(text) {
                Ok(piece) => self.piece = io::Cursor::new(piece),
                Err(_) => self.over = broken("a piece is garbled"),
            },
            Ok(Told::End) => self.over = Some(Ok(())),
            Ok(Told::Broken(why)) => self.over = broken(&why),
            Ok(Told::Held) | Err(_) => self.over = broken("the agent does not speak as it should"),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.piece.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match &self.over {
                Some(Ok(())) => return Ok(0),
                Some(Err(why)) => return Err(io::Error::other(why.clone())),
                None => self.next(),
            }
        }
    }
}

/// What goes through the pipe: [`Write::flush`] sends what is there.
#[derive(Debug)]
pub(super) struct Outgoing {
    piece: Vec<u8>,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { piece: Vec::with_capacity(MAX_PIECE) }
    }
}

impl Write for Outgoing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.piece.len() == MAX_PIECE {
            self.flush()?;
        }
        let count = buffer.len().min(MAX_PIECE - self.piece.len());
        self.piece.extend(buffer.iter().take(count));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.piece.is_empty() {
            say(&Said::Piece(STANDARD.encode(&self.piece)));
            self.piece.clear();
        }
        Ok(())
    }
}

/// An error of reading or writing that says so.
pub(super) fn cut(why: impl Into<String>) -> io::Error {
    io::Error::other(Cut(why.into()))
}
